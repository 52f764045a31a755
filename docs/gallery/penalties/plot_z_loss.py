r"""
ZLoss: logits that do not drift
===============================

ZLoss keeps the normalizer of a softmax near 1. It is a penalty on logits.

.. math::

    R(z) &= s \, n \operatorname*{mean}_i \, (\log Z_i)^2 \\
    Z_i &= \sum_{j=1}^C e^{z_{ij}}

An :class:`torchreg.ActivityRegularizer` divides by the batch size :math:`n`, so it adds
:math:`s` times the mean of :math:`(\log Z)^2` over all distributions.

**Take ZLoss** for large softmaxes in half precision: language models (:math:`s = 10^{-4}`),
routers of mixtures of experts (:math:`s = 10^{-3}`).

**Do not take ZLoss** to change predictions: probabilities do not depend on :math:`Z`. Use
:doc:`Confidence <plot_confidence>`, or :doc:`L2 <plot_l2>` on the logits.

**Source:** Barret Zoph and others, "ST-MoE: Designing Stable and Transferable Sparse Expert
Models", 2022. **Reference:** :class:`torchreg.ZLoss`.
"""

import pictures
import torch
from torch import nn

from torchreg import ActivityRegularizer, ZLoss

shift = torch.linspace(-4, 4, 200)
logits = torch.tensor([2.0, 0.0, -1.0])
curves = {
    "ZLoss(1)": (shift, [ZLoss(1.0).value((logits + c)[None]) for c in shift]),
    "cross-entropy": (
        shift,
        [nn.functional.cross_entropy((logits + c)[None], torch.tensor([1])) for c in shift],
    ),
}
pictures.lines(
    "a constant added to the logits 2, 0, -1",
    curves,
    xlabel="constant",
    ylim=(0, 12),
    yticks=(0, 4, 8, 12),
)

# %%
# The loss does not see a constant that is added to all logits; ZLoss is 0 where
# :math:`\log Z = 0`. The same for a classifier of digits whose bias begins at 3:

images, labels = pictures.digits()
drift = {}
for name, strength in {"without": 0.0, "s = 0.1": 0.1}.items():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    nn.init.constant_(model[2].bias, 3.0)
    activity = ActivityRegularizer(model, ZLoss(strength), modules="")
    criterion = activity.penalize(nn.CrossEntropyLoss())
    drift[name] = pictures.train(
        model,
        lambda model=model, loss=criterion: loss(model(images), labels),
        watch=lambda model=model: model(images).logsumexp(1).mean().item(),
    )
steps = torch.arange(1, 201)
pictures.lines(
    r"mean of $\log Z$",
    {name: (steps, values) for name, values in drift.items()},
    xlabel="steps",
)

# %%
# In a model:

from torch import nn

from torchreg import ActivityRegularizer, ZLoss

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
activity = ActivityRegularizer(model, ZLoss(1e-4), modules="")  # "": the model's own output
criterion = activity.penalize(nn.CrossEntropyLoss())
