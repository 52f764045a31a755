r"""
L1Ball: the lasso with a bound
==============================

L1Ball bounds the sum of the magnitudes. It makes zeros as the lasso does, but the bound is
given and the strength is found.

.. math::

    C &= \{ w : \textstyle\sum_i |w_i| \le r \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2 \\
    &= \operatorname{sign}(w) \max(|w| - \tau, 0)

The threshold :math:`\tau` is 0 inside the ball; outside, it is the one that puts the weights on
the surface.

**Take L1Ball** where a budget for the weights is known, or where the same bound must hold in
every run.

**Do not take L1Ball** to reach a given share of zeros: take
:class:`torchreg.optim.TargetSparsity`.

**Source:** Robert Tibshirani, "Regression Shrinkage and Selection via the Lasso", Journal of
the Royal Statistical Society B, 1996. **Reference:** :class:`torchreg.L1Ball`.
"""

import pictures

from torchreg import L1Ball

pictures.projections(L1Ball(1.0))
pictures.coefficients(L1Ball, bounds=[10.8 - 0.2 * k for k in range(54)])

# %%
# Left: points beside a corner go to the corner, where one weight is exactly zero. Right: the
# coefficients of a regression as the bound gets smaller: the lasso's path, with the sum of
# magnitudes as its axis.
#
# In a model:

import torch
from torch import nn

from torchreg import L1Ball, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, L1Ball(1.0, groups="output"), mode="prox").attach(optimizer)
