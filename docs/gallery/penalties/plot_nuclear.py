r"""
Nuclear: low rank
=================

Nuclear is the lasso of the singular values. Small ones become exactly zero, so the matrix gets
a low rank.

.. math::

    R(W) &= s \sum_i \sigma_i(W) \\
    \operatorname{prox}_{tR}(W) &= \operatorname*{argmin}_U \tfrac12 \|U - W\|_F^2 + t R(U) \\
    &= U \max(\Sigma - ts, 0) V^H

with the singular value decomposition :math:`W = U \Sigma V^H`.

**Take Nuclear** for layers that shall be a product of two thin matrices.

**Do not take Nuclear** for very large layers: each step needs a singular value decomposition.

**Source:** Jian-Feng Cai, Emmanuel J. Candès, Zuowei Shen, "A Singular Value Thresholding
Algorithm for Matrix Completion", SIAM Journal on Optimization, 2010. **Reference:**
:class:`torchreg.Nuclear`.
"""

import pictures
import torch

from torchreg import Nuclear

pictures.plane(Nuclear, pictures.diagonal)
pictures.singular_values(Nuclear)

# %%
# Left: a matrix of two rows with the singular values :math:`\sigma_1, \sigma_2`. The level sets
# are the lasso's. Right: a regression with eight outputs, whose true weights have rank 3 (blue;
# strokes at the left). The singular values that are truly zero (orange) vanish first.

for strength in (0.001, 0.1, 0.7):
    weights = pictures.fitted(Nuclear, strength)
    pictures.matrix(weights, f"s = {strength}: rank {torch.linalg.matrix_rank(weights)}")

# %%
# The weights of this regression at three strengths.
#
# In a model:

import torch
from torch import nn

from torchreg import Nuclear, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, Nuclear(1e-2), mode="prox").attach(optimizer)
