r"""
LogSum: zeros, and large weights nearly free
============================================

LogSum is a strong lasso near zero. Its force falls as one over the weight, so large weights
hardly feel it.

.. math::

    R(w) &= s \sum_i \log\Big(1 + \frac{|w_i|}{\epsilon}\Big) \\
    \operatorname{prox}_{tR}(w) &= \operatorname*{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u)

Near zero it acts like the lasso with strength :math:`s / \epsilon`. The proximal operator is 0
or the larger root of a quadratic equation, whichever is better.

**Take LogSum** for sparse weights of which the large ones keep their size.

**Do not take LogSum** where the result must not depend on the start: it is not convex.

**Source:** Emmanuel J. Candès, Michael B. Wakin, Stephen P. Boyd, "Enhancing Sparsity by
Reweighted l1 Minimization", Journal of Fourier Analysis and Applications, 2008. **Reference:**
:class:`torchreg.LogSum`.
"""

import pictures

from torchreg import LogSum

pictures.plane(lambda s: LogSum(s, epsilon=0.5))
pictures.coefficients(lambda s: LogSum(s, epsilon=0.5))

# %%
# The coefficients that are truly zero vanish early, and the others keep close to their true
# values (strokes at the left) over a wide range of strengths.

pictures.curves(
    {
        r"$\epsilon = 0.1$": LogSum(1.0, epsilon=0.1),
        r"$\epsilon = 0.5$": LogSum(1.0, epsilon=0.5),
    }
)

# %%
# In a model:

import torch
from torch import nn

from torchreg import LogSum, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, LogSum(1e-4, epsilon=0.1), mode="prox").attach(optimizer)
