r"""
NonNegative: no weight below zero
=================================

NonNegative sets negative weights to exactly zero. The others stay as they are.

.. math::

    C &= \{ w : w_i \ge 0 \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2 \\
    &= \max(w, 0)

**Take NonNegative** where weights are amounts, or where the model must be monotone in its
inputs.

**Do not take NonNegative** where inputs must be able to cancel each other.

**Source:** Jan Chorowski, Jacek M. Zurada, "Learning Understandable Neural Networks With
Nonnegative Weight Constraints", IEEE Transactions on Neural Networks and Learning Systems,
2015. **Reference:** :class:`torchreg.NonNegative`.
"""

import pictures

from torchreg import NonNegative

pictures.projections(NonNegative())
pictures.compare(NonNegative(), "NonNegative")

# %%
# Right: the coefficients of a regression by least squares, and the best ones that are not
# negative. Coefficients that would be negative are zero; the others change a little to make up
# for them.
#
# In a model:

import torch
from torch import nn

from torchreg import NonNegative, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, NonNegative(), mode="prox").attach(optimizer)
