r"""
Simplex: weights that are proportions
=====================================

Simplex makes every unit's incoming weights proportions: not negative, and of a given sum. Many
become exactly zero.

.. math::

    C &= \{ w : w_i \ge 0, \; \textstyle\sum_{i \in g} w_i = c \text{ for every group } g \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2 \\
    P(w)_i &= \max(w_i - \tau_g, 0)

with the threshold :math:`\tau_g` that makes the sum right.

**Take Simplex** for mixtures, portfolios and averages with learned weights.

**Do not take Simplex** where all proportions must be positive: a softmax does that.

**Source:** John Duchi, Shai Shalev-Shwartz, Yoram Singer, Tushar Chandra, "Efficient
Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008. **Reference:**
:class:`torchreg.Simplex`.
"""

import pictures

from torchreg import Simplex

pictures.projections(Simplex(1.0))
pictures.coefficients(Simplex, bounds=[8 - 0.1 * k for k in range(80)])

# %%
# Left: with two weights the set is the line from (1, 0) to (0, 1); most points go to an end of
# it, where one weight is exactly zero. Right: the coefficients of a regression that must not be
# negative and have a given sum, as the sum gets smaller. Where it is too large, coefficients
# that are truly zero must take a share.
#
# In a model:

import torch
from torch import nn

from torchreg import Regularizer, Simplex

model = nn.Linear(64, 10, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, Simplex(1.0), mode="prox").attach(optimizer)
