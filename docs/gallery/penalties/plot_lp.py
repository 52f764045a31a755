r"""
Lp: bridge penalties
====================

Lp takes any power of the weights. Below 1 it makes more zeros than the lasso and pulls large
weights less.

.. math::

    R(w) &= s \sum_i |w_i|^p, \quad p > 0 \\
    \operatorname{prox}_{tR}(w) &= \operatorname*{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u)

The proximal operator is the root of a scalar equation. For :math:`p < 1` it jumps from zero to
a positive size.

**Take Lp** with :math:`p < 1` in mode ``"prox"`` for very sparse weights.

**Do not take Lp** with :math:`p < 1` in another mode, as its slope at zero is infinite, or
where the result must not depend on the start: below 1 it is not convex.

**Source:** Ildiko E. Frank, Jerome H. Friedman, "A Statistical View of Some Chemometrics
Regression Tools", Technometrics, 1993. For :math:`p = 1/2`: Zongben Xu, Xiangyu Chang, Fengmin
Xu, Hai Zhang, "L1/2 Regularization: A Thresholding Representation Theory and a Fast Solver",
IEEE Transactions on Neural Networks and Learning Systems, 2012. **Reference:**
:class:`torchreg.Lp`.
"""

import pictures

from torchreg import Lp

pictures.plane(lambda s: Lp(s, p=0.5), steps=60)
pictures.coefficients(lambda s: Lp(s, p=0.5), count=31)

# %%
# For :math:`p = 1/2` the level sets are drawn in between the axes. The coefficients that are
# truly zero vanish at small strengths, where the others have hardly moved. Each coefficient
# jumps to zero in the end.

pictures.curves({f"$p = {p}$": Lp(1.0, p=p) for p in (0.5, 1, 1.5, 3)})

# %%
# In a model:

import torch
from torch import nn

from torchreg import Lp, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, Lp(1e-4, p=0.5), mode="prox").attach(optimizer)
