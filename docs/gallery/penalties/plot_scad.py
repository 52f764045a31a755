r"""
SCAD: smoothly clipped absolute deviation
=========================================

SCAD is the lasso for small weights, fades out, and does not pull large weights at all.

.. math::

    R(w) &= \sum_i r(|w_i|), \quad r(0) = 0 \\
    r'(u) &= \begin{cases} s & u \le s \\ (as - u) / (a - 1) & s < u \le as \\ 0 & u > as \end{cases}

The proximal operator with step 1 is the lasso's up to :math:`2s`, then a steeper line, and the
identity from :math:`as`.

**Take SCAD** for the zeros of the lasso without its bias, with the authors' :math:`a = 3.7`.

**Do not take SCAD** where the result must not depend on the start: it is not convex.

**Source:** Jianqing Fan, Runze Li, "Variable Selection via Nonconcave Penalized Likelihood and
its Oracle Properties", Journal of the American Statistical Association, 2001. **Reference:**
:class:`torchreg.SCAD`.
"""

import pictures

from torchreg import SCAD

pictures.plane(SCAD, strength=0.5)
pictures.coefficients(SCAD)

# %%
# Beyond :math:`as = 1.85` the penalty is flat. In the regression the large coefficients stay at
# their values until :math:`as` reaches them.

pictures.curves({"$a = 2.5$": SCAD(0.8, a=2.5), "$a = 3.7$": SCAD(0.8, a=3.7)})

# %%
# The force (middle, for a strength of 0.8) is constant up to the strength and then falls on a
# straight line.
#
# In a model:

import torch
from torch import nn

from torchreg import SCAD, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, SCAD(1e-2), mode="prox").attach(optimizer)
