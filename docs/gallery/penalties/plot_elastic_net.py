r"""
ElasticNet: lasso and ridge
===========================

ElasticNet makes zeros as the lasso does, and keeps inputs together that carry the same
information.

.. math::

    R(w) &= s \Big( \alpha \|w\|_1 + \frac{1 - \alpha}{2} \|w\|_2^2 \Big) \\
    \operatorname{prox}_{tR}(w) &= \operatorname*{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u) \\
    &= \frac{\operatorname{sign}(w) \max(|w| - ts\alpha, 0)}{1 + ts(1 - \alpha)}

where :math:`\alpha` is ``l1_ratio``. Strength and ratio are scikit-learn's.

**Take ElasticNet** for zeros among correlated inputs.

**Do not take ElasticNet** where inputs are nearly uncorrelated: :doc:`L1 <plot_l1>` has one
number less to choose.

**Source:** Hui Zou, Trevor Hastie, "Regularization and Variable Selection via the Elastic Net",
Journal of the Royal Statistical Society B, 2005. **Reference:** :class:`torchreg.ElasticNet`.
"""

import pictures

from torchreg import L1, ElasticNet

pictures.plane(lambda s: ElasticNet(s, l1_ratio=0.5))
pictures.curves(
    {
        r"$\alpha = 0.9$": ElasticNet(1.0, l1_ratio=0.9),
        r"$\alpha = 0.5$": ElasticNet(1.0, l1_ratio=0.5),
    },
    panels=1,
)

# %%
# The level sets are round and have corners on the axes (right: the value for two ratios). Below
# is a regression with two inputs that are nearly equal and have the same true coefficient, 1.5.
# The lasso gives them different weights and drops one before the other. The elastic net moves
# both together.

pictures.coefficients(L1, twins=True, title="lasso, two inputs nearly equal")
pictures.coefficients(
    lambda s: ElasticNet(s, l1_ratio=0.5),
    twins=True,
    title="elastic net, two inputs nearly equal",
)

# %%
# In a model:

import torch
from torch import nn

from torchreg import ElasticNet, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, ElasticNet(1e-3, l1_ratio=0.9), mode="prox").attach(optimizer)
