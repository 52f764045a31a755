r"""
GroupLasso: whole units go
==========================

GroupLasso pulls groups of weights towards zero, such as all weights into one unit. A group goes
as a whole, or stays.

.. math::

    R(w) &= s \sum_g \sqrt{n_g} \, \|w_g\|_2 \\
    \operatorname{prox}_{tR}(w)_g &= w_g \max\!\left(1 - \frac{ts \sqrt{n_g}}{\|w_g\|_2}, 0\right)

where :math:`n_g` is the size of group :math:`g`. A group is the weights into an output unit, out of an input, a filter,
an attention head, or what an index tensor says.

**Take GroupLasso** to remove units, filters, heads or inputs: :func:`torchreg.compress` makes
the model smaller afterwards.

**Do not take GroupLasso** for single zeros within groups: :doc:`SparseGroupLasso
<plot_sparse_group_lasso>`.

**Source:** Ming Yuan, Yi Lin, "Model Selection and Estimation in Regression with Grouped
Variables", Journal of the Royal Statistical Society B, 2006. For networks: Wei Wen, Chunpeng
Wu, Yandan Wang, Yiran Chen, Hai Li, "Learning Structured Sparsity in Deep Neural Networks",
NeurIPS 2016. **Reference:** :class:`torchreg.GroupLasso`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

from torchreg import L1, GroupLasso

pictures.before_and_after({"prox of L1": L1(0.4), "prox of GroupLasso": GroupLasso(0.4)})

# %%
# Weights of six units (blue: positive, orange: negative) and what one proximal step makes of
# them. L1 takes single weights from every unit. GroupLasso takes three units and keeps all
# weights of the others.

pictures.plane(GroupLasso)
pictures.coefficients(lambda s: GroupLasso(s, groups=pictures.TRIPLES), groups=True)

# %%
# Left: two weights of one group, which go to zero together. Right: a regression with four
# groups of three inputs. In truth the first group is all in use, the second in one input, the
# others not at all.
#
# In a model:

import torch
from torch import nn

from torchreg import GroupLasso, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(
    model, {"0.*": GroupLasso(1e-3, groups="output")}, mode="prox"
).attach(optimizer)
