r"""
Rank: a bound on the rank
=========================

Rank keeps the largest singular values of a weight matrix and sets the others to zero.

.. math::

    C &= \{ W : \operatorname{rank} W \le r \} \\
    P(W) &= \operatorname*{argmin}_{U \in C} \|U - W\|_F = \sum_{i \le r} \sigma_i u_i v_i^H

with the singular value decomposition :math:`W = U \Sigma V^H`.

**Take Rank** where the rank is known: a layer that shall be a product of two thin matrices of
that size.

**Do not take Rank** to find out which rank suffices: :doc:`Nuclear
</gallery_built/penalties/plot_nuclear>` lowers it as far as the loss allows.

**Source:** Carl Eckart, Gale Young, "The Approximation of One Matrix by Another of Lower Rank",
Psychometrika, 1936. As a step of a training: Prateek Jain, Raghu Meka, Inderjit Dhillon,
"Guaranteed Rank Minimization via Singular Value Projection", NIPS 2010. **Reference:**
:class:`torchreg.Rank`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch

from torchreg import Nuclear, Rank

for rank in (8, 3, 1):
    weights = pictures.fitted(lambda strength: Rank(rank), 1.0)  # noqa: B023
    pictures.matrix(weights, f"Rank({rank})")

# %%
# The weights of a regression with eight outputs, whose true weights have rank 3, under three
# bounds.

weights = pictures.fitted(Nuclear, 0.7)
pictures.matrix(weights, f"Nuclear(0.7): rank {torch.linalg.matrix_rank(weights)}")

# %%
# The penalty makes all singular values smaller, and the weights paler.
#
# In a model:

import torch
from torch import nn

from torchreg import Rank, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, Rank(4), mode="prox").attach(optimizer)
