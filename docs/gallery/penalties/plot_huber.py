r"""
Huber: a ridge with a bounded force
===================================

Huber is a ridge for small weights. For large weights its force stops growing, so large weights
are spared.

.. math::

    R(w) &= s \sum_i h(|w_i|) \\
    h(u) &= \begin{cases} u^2 / 2 & u \le \delta \\ \delta (u - \delta / 2) & u > \delta \end{cases}

Its proximal operator is the ridge's up to :math:`\delta (1 + ts)`, and from there
:math:`w - ts \delta \operatorname{sign}(w)`.

**Take Huber** where most weights shall be small and a few may be large.

**Do not take Huber** to get zeros: at zero it is flat (:doc:`L1 <plot_l1>`).

**Source:** Peter J. Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical
Statistics, 1964. **Reference:** :class:`torchreg.Huber`.
"""

import pictures

from torchreg import Huber

pictures.plane(lambda s: Huber(s, delta=0.5))
pictures.coefficients(lambda s: Huber(s, delta=0.5))

# %%
# The inner level sets are circles, as those of the ridge; the outer ones become the lasso's
# diamonds with round corners. In the regression small coefficients shrink fast and large ones
# keep their distance.

pictures.curves(
    {r"$\delta = 0.5$": Huber(1.0, delta=0.5), r"$\delta = 1.5$": Huber(1.0, delta=1.5)}
)

# %%
# The gradient is that of the ridge, clipped at :math:`\pm s \delta`.
#
# In a model:

import torch
from torch import nn

from torchreg import Huber, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, Huber(1e-2, delta=0.1), mode="decoupled").attach(optimizer)
