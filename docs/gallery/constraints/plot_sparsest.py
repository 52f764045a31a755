r"""
Sparsest: an exact number of weights
====================================

Sparsest keeps the largest weights of a matrix, or of a whole model, and sets all others to zero.
The number is given and holds after every step.

.. math::

    C &= \{ w : \|w\|_0 \le k \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2

where :math:`\|w\|_0` is the number of weights that are not zero. The :math:`k` largest stay as
they are. With ``groups`` it counts units or inputs, and the longest stay; with ``together=True``
all weights of the model have one number.

**Take Sparsest** for an exact budget, or to go on training a network that is to be pruned: a
weight that was cut may come back.

**Do not take Sparsest** from the first step on, where the weights do not yet say which of them
matter: train first, or take :class:`torchreg.optim.TargetSparsity`, whose share of zeros rises.

**Source:** Thomas Blumensath, Mike E. Davies, "Iterative Hard Thresholding for Compressed
Sensing", Applied and Computational Harmonic Analysis, 2009. **Reference:**
:class:`torchreg.Sparsest`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

from torchreg import Sparsest

pictures.projections(Sparsest(count=1))
pictures.coefficients(
    lambda number: Sparsest(count=max(1, round(number))),
    bounds=[12 - 0.1 * k for k in range(121)],
)

# %%
# Left: with one of two weights, the set is the two axes, and points go to the nearer one. Right:
# the coefficients of a regression as their number gets smaller. Those that stay keep their size.

pictures.before_and_after(
    {"share=0.25": Sparsest(0.25), 'share=0.5, groups="output"': Sparsest(0.5, groups="output")}
)

# %%
# Weights of six units (blue: positive, orange: negative): a quarter of the weights, and half of
# the units.
#
# In a model:

import torch
from torch import nn

from torchreg import Regularizer, Sparsest

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, Sparsest(0.1, together=True), mode="prox").attach(optimizer)
