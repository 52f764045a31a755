r"""
ExclusiveLasso: weights compete within groups
=============================================

ExclusiveLasso makes zeros within every group and empties none: the opposite of the group lasso.

.. math::

    R(w) &= \frac{s}{2} \sum_g \|w_g\|_1^2 \\
    \operatorname{prox}_{tR}(w)_i &= \operatorname{sign}(w_i) \max(|w_i| - \tau_g, 0)

The threshold :math:`\tau_g` is :math:`ts` times the 1-norm that the group has afterwards. It is
found by sorting.

**Take ExclusiveLasso** where each unit shall choose a few inputs, and each unit shall keep
some.

**Do not take ExclusiveLasso** to remove units: a group that shrinks is pulled less and less.

**Source:** Yang Zhou, Rong Jin, Steven C. H. Hoi, "Exclusive Lasso for Multi-task Feature
Selection", AISTATS 2010. **Reference:** :class:`torchreg.ExclusiveLasso`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

from torchreg import ExclusiveLasso, GroupLasso

pictures.before_and_after(
    {"prox of GroupLasso": GroupLasso(0.4), "prox of ExclusiveLasso": ExclusiveLasso(0.4)}
)

# %%
# Weights of six units (blue: positive, orange: negative) and what one proximal step makes of
# them. GroupLasso takes three units. ExclusiveLasso takes the smaller weights of each unit and
# empties none.

pictures.plane(ExclusiveLasso)
pictures.coefficients(lambda s: ExclusiveLasso(s, groups=pictures.TRIPLES), groups=True)

# %%
# Left: two weights of one group. The level sets are the lasso's; the farther out, the denser
# they are. Right: within each group the largest coefficient survives.
#
# In a model:

import torch
from torch import nn

from torchreg import ExclusiveLasso, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, ExclusiveLasso(1e-2), mode="prox").attach(optimizer)
