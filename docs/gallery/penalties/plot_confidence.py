r"""
Confidence: predictions that are less sure
==========================================

Confidence penalizes predictions of low entropy. It is a penalty on logits.

.. math::

    R(z) &= s \, n \operatorname*{mean}_i \, (\log C - \operatorname{H}(p_i)) \\
    p_i &= \operatorname{softmax}(z_i), \qquad
    \operatorname{H}(p) = -\sum_{j=1}^C p_j \log p_j

An :class:`torchreg.ActivityRegularizer` divides by the batch size :math:`n`, so it adds
:math:`s` times the mean over all distributions. The constant :math:`\log C` makes it
non-negative: it is the divergence of the prediction from the uniform distribution.

**Take Confidence** for classifiers that are surer than they are right.

**Do not take Confidence** if probabilities near 0 and 1 are right, as for data without noise;
and not to calibrate a trained model, for which one temperature is enough.

**Source:** Gabriel Pereyra, George Tucker, Jan Chorowski, Łukasz Kaiser, Geoffrey Hinton,
"Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017.
**Reference:** :class:`torchreg.Confidence`.
"""

import math

import pictures
import torch
from torch import nn

from torchreg import ActivityRegularizer, Confidence

p = torch.linspace(0.003, 0.997, 300)
two = torch.stack([p, 1 - p], 1).log()
smoothing = -(two.mean(1) + math.log(2))  # the divergence of the uniform distribution from p
pictures.lines(
    "two classes",
    {
        "Confidence(1)": (p, [Confidence(1.0).value(z[None]) for z in two]),
        "label smoothing": (p, smoothing),
    },
    xlabel="probability of the first class",
    ylim=(0, 1.5),
    yticks=(0, 0.5, 1, 1.5),
)

# %%
# Confidence is bounded by :math:`\log C`; label smoothing, the divergence in the other
# direction, grows without bound as a probability goes to 0. The same for a network that
# learns 300 digits, of which a third have a wrong label; the other digits are then predicted:

images, labels = pictures.digits()
torch.manual_seed(1)
given = labels[:300].clone()
given[::3] = torch.randint(10, (100,))
sure = {}
for name, strength in {"without": 0.0, "s = 0.3": 0.3, "s = 1": 1.0}.items():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    activity = ActivityRegularizer(model, Confidence(strength), modules="")
    criterion = activity.penalize(nn.CrossEntropyLoss())
    pictures.train(
        model, lambda model=model, loss=criterion: loss(model(images[:300]), given), steps=300
    )
    sure[name] = model(images[300:]).softmax(1).amax(1).sort().values.detach()

share = torch.linspace(0, 100, len(images) - 300)
pictures.lines(
    "largest probability of each prediction",
    {name: (share, values) for name, values in sure.items()},
    xlabel="predictions, the least sure first, %",
    ylim=(0, 1.02),
)

# %%
# In a model:

from torch import nn

from torchreg import ActivityRegularizer, Confidence

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
activity = ActivityRegularizer(model, Confidence(0.1), modules="")  # "": the model's own output
criterion = activity.penalize(nn.CrossEntropyLoss())
