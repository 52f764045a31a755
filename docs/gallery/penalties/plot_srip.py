r"""
SRIP: no direction is stretched or shrunk much
==============================================

SRIP looks at the singular value that is farthest from 1 and draws that one towards 1.

.. math:: R(W) = s \max_i |\sigma_i(W)^2 - 1|

It is the spectral norm of :math:`W W^H - I` or of :math:`W^H W - I`, whichever Gram matrix is
smaller. It is not convex and has no proximal operator in closed form.

**Take SRIP** for orthogonal weights where layers have more outputs than inputs, or where the
worst direction matters.

**Do not take SRIP** where all directions shall move at once: only one does at each step
(:doc:`SoftOrthogonality <plot_soft_orthogonality>`).

**Source:** Nitin Bansal, Xiaohan Chen, Zhangyang Wang, "Can We Gain More from Orthogonality
Regularizations in Training Deep CNNs?", NeurIPS 2018. **Reference:** :class:`torchreg.SRIP`.
"""

import pictures

from torchreg import SRIP

pictures.plane(
    SRIP, pictures.diagonal, through=[(1, 0.85), (1, 0.65), (1, 0.3), (1.55, 1)], steps=40
)
pictures.singular_values(SRIP)

# %%
# Left: the level sets are squares in the squares of the singular values; the penalty is least
# where both are 1. Right: in a regression with eight outputs the largest singular values come
# down first, as they are farthest from 1. The small ones rise when the others have come as
# near.
#
# In a model:

import torch
from torch import nn

from torchreg import SRIP, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, SRIP(1e-2), mode="grad").attach(optimizer)
