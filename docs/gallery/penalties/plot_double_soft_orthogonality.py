r"""
DoubleSoftOrthogonality: rows and columns
=========================================

DoubleSoftOrthogonality asks both the rows and the columns of a matrix to be orthonormal, as far
as its shape allows.

.. math:: R(W) = s \big( \|W W^H - I\|_F^2 + \|W^H W - I\|_F^2 \big)

The two terms differ by a constant, the difference of the sides. So the gradient is that of
:doc:`SoftOrthogonality <plot_soft_orthogonality>` with twice the strength. It is not convex and
has no proximal operator in closed form.

**Take DoubleSoftOrthogonality** to compare with papers that use it.

**Do not take DoubleSoftOrthogonality** where SoftOrthogonality with twice the strength does:
training is the same.

**Source:** Nitin Bansal, Xiaohan Chen, Zhangyang Wang, "Can We Gain More from Orthogonality
Regularizations in Training Deep CNNs?", NeurIPS 2018. **Reference:**
:class:`torchreg.DoubleSoftOrthogonality`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures
import torch

from torchreg import DoubleSoftOrthogonality

start = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) / 2
end = pictures.follow(DoubleSoftOrthogonality, torch.zeros_like, start, [1.0], 40.0, 400)[-1]
pictures.matrix(start @ start.T, "rows, before", most=1.5)
pictures.matrix(start.T @ start, "columns, before", most=1.5)

# %%
# Gram matrices of a matrix of 5 rows and 9 columns. Below, after steps along the gradient of
# the penalty alone. The rows are orthonormal. Nine columns in five dimensions cannot be; they
# are as near to it as possible.

pictures.matrix(end @ end.T, "rows, after", most=1.5)
pictures.matrix(end.T @ end, "columns, after", most=1.5)

# %%
# The level sets and the path along the strength are those of SoftOrthogonality.

pictures.plane(
    DoubleSoftOrthogonality,
    pictures.diagonal,
    through=[(1, 0.85), (1, 0.65), (1, 0.3), (1.55, 1)],
)
pictures.singular_values(DoubleSoftOrthogonality)

# %%
# In a model:

import torch
from torch import nn

from torchreg import DoubleSoftOrthogonality, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, DoubleSoftOrthogonality(5e-3), mode="grad").attach(optimizer)
