r"""
AlphaDropout: for self-normalizing networks
===========================================

AlphaDropout sets elements to the value that a SELU has far below zero, and keeps mean 0 and
variance 1.

.. math::

    y &= a (m x + (1 - m) \alpha') + b \\
    m &\sim \operatorname{Bernoulli}(1 - p)

with :math:`\alpha' \approx -1.7581`, :math:`a = ((1 - p)(1 + p \alpha'^2))^{-1/2}` and :math:`b = -a p \alpha'`.

**Take AlphaDropout** in networks of SELUs.

**Do not take AlphaDropout** anywhere else: the value of what is dropped is made for SELUs.

**Source:** Günter Klambauer, Thomas Unterthiner, Andreas Mayr, Sepp Hochreiter,
"Self-Normalizing Neural Networks", NIPS 2017. **Reference:** :class:`torchreg.nn.AlphaDropout`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch
from torch import nn

from torchreg.nn import AlphaDropout, Dropout

gray = pictures.photo().mean(0)
pictures.masks(AlphaDropout(0.3), (gray - gray.mean()) / gray.std())

# %%
# An image of mean 0 and variance 1. The mean of many draws has less contrast than the input:
# part of the variance is the noise's. Below, the standard deviation and the mean of the
# activations behind each of 20 layers of SELUs, with either dropout at a rate of 0.2:

deviation, mean = {}, {}
for layer in (AlphaDropout(0.2), Dropout(0.2)):
    torch.manual_seed(0)
    x, name = torch.randn(1000, 128), type(layer).__name__
    deviation[name], mean[name] = [], []
    for _ in range(20):
        x = layer(torch.selu(x @ torch.randn(128, 128) / 128**0.5))
        deviation[name].append(x.std().item())
        mean[name].append(x.mean().item())

depth = range(1, 21)
panel = {"xlabel": "layer", "xticks": (1, 10, 20), "size": (3.3, 2.5)}
for title, values, limits in (
    ("standard deviation", deviation, (0, 2)),
    ("mean", mean, (-0.2, 0.2)),
):
    pictures.lines(
        title, {name: (depth, y) for name, y in values.items()}, ylim=limits, **panel
    )

# %%
# In a model:

from torch import nn

from torchreg.nn import AlphaDropout

model = nn.Sequential(nn.Linear(64, 32), nn.SELU(), AlphaDropout(0.1), nn.Linear(32, 10))
