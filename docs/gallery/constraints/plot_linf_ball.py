r"""
LinfBall: clipped weights
=========================

LinfBall bounds every single weight: weight clipping.

.. math::

    C &= \{ w : |w_i| \le r \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2 \\
    &= \operatorname{sign}(w) \min(|w|, r)

**Take LinfBall** where a range is given, for numbers of few bits or for a critic with a bounded
slope.

**Do not take LinfBall** to make weights small on average: it moves only the largest.

**Source:** Martin Arjovsky, Soumith Chintala, Leon Bottou, "Wasserstein Generative Adversarial
Networks", ICML 2017. **Reference:** :class:`torchreg.LinfBall`.
"""

import pictures

from torchreg import LinfBall

pictures.projections(LinfBall(1.0))
pictures.coefficients(LinfBall, bounds=[3.5 - 0.05 * k for k in range(70)])

# %%
# Left: the set is a square, and each weight is clipped by itself. Right: the coefficients of a
# regression as the bound gets smaller. The largest are cut one after another, and the others
# move to make up for them.
#
# In a model:

import torch
from torch import nn

from torchreg import LinfBall, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, LinfBall(0.01), mode="prox").attach(optimizer)
