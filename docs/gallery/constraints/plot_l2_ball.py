r"""
L2Ball: the ridge with a bound
==============================

L2Ball bounds the Euclidean norm of a weight tensor. It shrinks as the ridge does, but the bound
is given and the strength is found.

.. math::

    C &= \{ w : \|w\|_2 \le r \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2 \\
    &= w \min(1, r / \|w\|_2)

**Take L2Ball** where the norm of a layer as a whole must not grow.

**Do not take L2Ball** to bound each unit by itself: that is :doc:`MaxNorm <plot_max_norm>`, the
same set with other groups.

**Source:** Neal Parikh, Stephen Boyd, "Proximal Algorithms", Foundations and Trends in
Optimization, 2014, section 6.5.1. **Reference:** :class:`torchreg.L2Ball`.
"""

import pictures

from torchreg import L2Ball

pictures.projections(L2Ball(1.0))
pictures.coefficients(L2Ball, bounds=[5 - 0.1 * k for k in range(50)])

# %%
# Left: points outside go straight to the surface, so no weight becomes exactly zero. Right: the
# coefficients of a regression as the bound gets smaller: the ridge's path, with the norm as its
# axis.
#
# In a model:

import torch
from torch import nn

from torchreg import L2Ball, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, L2Ball(3.0), mode="prox").attach(optimizer)
