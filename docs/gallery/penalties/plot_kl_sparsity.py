r"""
KLSparsity: units that are rarely active
========================================

KLSparsity draws the mean activation of each unit over a batch towards a small target. It is a
penalty on activations.

.. math::

    R(a) &= s \, n \sum_j \operatorname{KL}(t \,\|\, \hat\rho_j) \\
    \hat\rho_j &= \frac1n \sum_{i=1}^n a_{ij} \\
    \operatorname{KL}(t \,\|\, \rho) &= t \log\frac{t}{\rho} + (1 - t) \log\frac{1 - t}{1 - \rho}

An :class:`torchreg.ActivityRegularizer` divides by the batch size :math:`n`, so it adds
:math:`s \sum_j \operatorname{KL}`.

**Take KLSparsity** for autoencoders whose units shall each stand for something rare.

**Do not take KLSparsity** on weights, or for exact zeros: it is about the mean of each unit,
not about single activations (:doc:`L1 <plot_l1>` with an ``ActivityRegularizer``).

**Source:** Andrew Ng, "Sparse autoencoder", CS294A lecture notes, Stanford University, 2011.
**Reference:** :class:`torchreg.KLSparsity`.
"""

import pictures
import torch
from torch import nn

from torchreg import ActivityRegularizer, KLSparsity

mean = torch.linspace(0.002, 0.998, 200)
pictures.lines(
    "penalty of one unit",
    {
        f"$t = {t}$": (mean, [KLSparsity(1.0, target=t).value(m.view(1, 1)) for m in mean])
        for t in (0.05, 0.2, 0.5)
    },
    xlabel="mean activation",
    ylim=(0, 2),
    yticks=(0, 1, 2),
)

# %%
# The penalty is zero at the target. The same for an autoencoder of handwritten digits with 32
# sigmoid units, trained without and with the penalty:

images, _ = pictures.digits()
images = images[:500]
active, features = {}, {}
for name, strength in {"without": 0.0, "target 0.05": 0.05}.items():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 32), nn.Sigmoid())
    decoder = nn.Linear(32, 64)
    activity = ActivityRegularizer(
        encoder, KLSparsity(strength, target=0.05), modules=nn.Sigmoid
    )
    criterion = activity.penalize(
        lambda decoded: (decoded - images).square().sum(1).mean() / 10
    )
    model = nn.Sequential(encoder, decoder)
    pictures.train(
        model, lambda model=model, loss=criterion: loss(model(images)), lr=0.02, steps=150
    )
    active[name] = encoder(images).mean(0).sort(descending=True).values.detach()
    features[name] = encoder[0].weight.detach().view(4, 8, 8, 8)

units = torch.arange(1, 33)
pictures.lines(
    "mean activation of each unit",
    {name: (units, values) for name, values in active.items()},
    xlabel="units, the most active first",
    ylim=(0, 1),
)

# %%
# In a model:

from torch import nn

from torchreg import ActivityRegularizer, KLSparsity

model = nn.Sequential(nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 64))
activity = ActivityRegularizer(model, KLSparsity(1e-2, target=0.05), modules=nn.Sigmoid)
criterion = activity.penalize(nn.MSELoss())
