r"""
SparseGroupLasso: few groups, and few weights in each
=====================================================

SparseGroupLasso is lasso and group lasso under one strength. Whole groups go, and single
weights in those that stay.

.. math:: R(w) = s \Big( \alpha \|w\|_1 + (1 - \alpha) \sum_g \sqrt{n_g} \, \|w_g\|_2 \Big)

where :math:`\alpha` is ``l1_ratio`` and :math:`n_g` the size of group :math:`g`. The proximal operator applies the
lasso's threshold to the weights, then the group lasso's to the groups.

**Take SparseGroupLasso** where groups matter but not all of their weights do.

**Do not take SparseGroupLasso** where one kind of zeros is enough: :doc:`L1 <plot_l1>` and
:doc:`GroupLasso <plot_group_lasso>` have one number less to choose.

**Source:** Noah Simon, Jerome Friedman, Trevor Hastie, Robert Tibshirani, "A Sparse-Group
Lasso", Journal of Computational and Graphical Statistics, 2013. **Reference:**
:class:`torchreg.SparseGroupLasso`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

from torchreg import GroupLasso, SparseGroupLasso

pictures.before_and_after(
    {
        "prox of GroupLasso": GroupLasso(0.4),
        "prox of SparseGroupLasso": SparseGroupLasso(0.4, l1_ratio=0.5),
    }
)

# %%
# Weights of six units (blue: positive, orange: negative) and what one proximal step makes of
# them. SparseGroupLasso takes whole units, and small weights of the units that stay.

pictures.plane(lambda s: SparseGroupLasso(s, l1_ratio=0.5))
pictures.coefficients(
    lambda s: SparseGroupLasso(s, l1_ratio=0.5, groups=pictures.TRIPLES), groups=True
)

# %%
# Left: two weights of one group. The level sets are circles with corners on the axes. Right: in
# the second group, which has one input in use, the other two go first.
#
# In a model:

import torch
from torch import nn

from torchreg import Regularizer, SparseGroupLasso

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
penalty = SparseGroupLasso(1e-3, l1_ratio=0.5, groups="input")
regularizer = Regularizer(model, penalty, mode="prox").attach(optimizer)
