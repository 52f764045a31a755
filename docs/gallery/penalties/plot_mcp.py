r"""
MCP: the minimax concave penalty
================================

MCP starts as the lasso, and its force falls to nothing along a straight line. Large weights are
not pulled at all.

.. math::

    R(w) &= \sum_i r(|w_i|) \\
    r(u) &= \begin{cases} s u - u^2 / (2 \gamma) & u \le \gamma s \\ \gamma s^2 / 2 & u > \gamma s \end{cases}

With a step :math:`t < \gamma` the proximal operator is :math:`\operatorname{sign}(w) \max(|w| -
ts, 0) / (1 - t / \gamma)` up to :math:`\gamma s`, and the identity from there.

**Take MCP** for the zeros of the lasso without its bias: what is kept has the size that it has
without a penalty.

**Do not take MCP** where the result must not depend on the start: it is not convex.

**Source:** Cun-Hui Zhang, "Nearly Unbiased Variable Selection under Minimax Concave Penalty",
Annals of Statistics, 2010. **Reference:** :class:`torchreg.MCP`.
"""

import pictures

from torchreg import MCP

pictures.plane(lambda s: MCP(s, gamma=3.0), strength=0.5)
pictures.coefficients(lambda s: MCP(s, gamma=3.0))

# %%
# Beyond :math:`\gamma s = 1.5` the penalty is flat. In the regression the large coefficients
# stay at their values until :math:`\gamma s` reaches them.

pictures.curves({r"$\gamma = 1.5$": MCP(1.0, gamma=1.5), r"$\gamma = 3$": MCP(1.0, gamma=3.0)})

# %%
# The smaller :math:`\gamma`, the earlier weights are let go, and the steeper the proximal
# operator.
#
# In a model:

import torch
from torch import nn

from torchreg import MCP, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, MCP(1e-2, gamma=3.0), mode="prox").attach(optimizer)
