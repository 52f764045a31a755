r"""
SoftOrthogonality: orthonormal units
====================================

SoftOrthogonality draws the weight vectors of the output units towards length 1 and right
angles.

.. math::

    R(W) &= s \|W W^H - I\|_F^2 \\
    &= s \sum_i (\sigma_i^2 - 1)^2

(the second form where there are at least as many inputs as outputs). It is not convex and has no proximal operator in
closed form.

**Take SoftOrthogonality** so that units differ from each other, and signals and gradients keep
their size through many layers.

**Do not take SoftOrthogonality** for layers with more outputs than inputs, which cannot be
orthonormal; there :doc:`SRIP <plot_srip>` asks only for what is possible.

**Source:** Nitin Bansal, Xiaohan Chen, Zhangyang Wang, "Can We Gain More from Orthogonality
Regularizations in Training Deep CNNs?", NeurIPS 2018. **Reference:**
:class:`torchreg.SoftOrthogonality`.
"""

import pictures

from torchreg import SoftOrthogonality

pictures.plane(
    SoftOrthogonality, pictures.diagonal, through=[(1, 0.85), (1, 0.65), (1, 0.3), (1.55, 1)]
)
pictures.singular_values(SoftOrthogonality)

# %%
# Left: the penalty is least where both singular values are 1. Right: in a regression with eight
# outputs all singular values go to 1 as the strength grows, those above and those below.

free, tied = (pictures.fitted(SoftOrthogonality, s) for s in (1e-4, 3.0))
pictures.matrix(free @ free.T, "Gram matrix, s = 0.0001")
pictures.matrix(tied @ tied.T, "Gram matrix, s = 3")

# %%
# The products of the units' weight vectors with each other: at the end nearly the identity.
#
# In a model:

import torch
from torch import nn

from torchreg import Regularizer, SoftOrthogonality

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, SoftOrthogonality(1e-2), mode="grad").attach(optimizer)
