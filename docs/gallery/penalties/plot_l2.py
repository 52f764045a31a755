r"""
L2: the ridge
=============

L2 pulls every weight towards zero in proportion to its size. Weights become small, and none
becomes exactly zero.

.. math::

    R(w) &= \frac{s}{2} \sum_i w_i^2 \\
    \operatorname{prox}_{tR}(w) &= \operatorname*{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u) \\
    &= \frac{w}{1 + ts}

**Take L2** as the first penalty against overfitting. With plain SGD it is weight decay. With
Adam take mode ``"decoupled"``, which is AdamW's weight decay.

**Do not take L2** to get zeros (:doc:`L1 <plot_l1>`), or where a few large weights carry the
signal (:doc:`Huber <plot_huber>`).

**Source:** Arthur E. Hoerl, Robert W. Kennard, "Ridge Regression: Biased Estimation for
Nonorthogonal Problems", Technometrics, 1970. **Reference:** :class:`torchreg.L2`.
"""

import pictures

from torchreg import L2

pictures.plane(L2)
pictures.coefficients(L2)

# %%
# The level sets are round, so no direction is preferred: the minimum goes to zero on a curve
# and meets no axis. In the regression all coefficients shrink together.

pictures.curves(L2(1.0))

# %%
# The slope grows with the weight and is zero at zero. The proximal operator divides every
# weight by the same number.
#
# In a model:

import torch
from torch import nn

from torchreg import L2, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, L2(1e-2), mode="decoupled").attach(optimizer)
