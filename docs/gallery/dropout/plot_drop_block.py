r"""
DropBlock1d, DropBlock2d, DropBlock3d: contiguous blocks
========================================================

These layers drop blocks of neighbors from sequences, images and volumes, such that each
position is dropped with probability exactly :math:`p`.

A position is dropped if a seed lies in the block around it. Seeds are drawn independently with
probability

.. math:: \gamma = 1 - (1 - p)^{1 / b}

where :math:`b` is the number of positions in a block. What is kept is scaled by :math:`1 / (1 - p)`.

**Take these layers** after convolutions: neighbors tell nearly the same, so only a hole that is
wide enough hides something.

**Do not take these layers** on small maps with large blocks: a block as wide as the map drops
most of it or nothing.

**Source:** Golnaz Ghiasi, Tsung-Yi Lin, Quoc V. Le, "DropBlock: A regularization method for
convolutional networks", NeurIPS 2018. **Reference:** :class:`torchreg.nn.DropBlock1d`,
:class:`torchreg.nn.DropBlock2d`, :class:`torchreg.nn.DropBlock3d`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch

from torchreg.nn import DropBlock1d, DropBlock2d, DropBlock3d

pictures.masks(DropBlock2d(0.4, block_size=9))

# %%
# The mean of many draws is the input, at the borders too: seeds are drawn beyond them.
#
# Left: eight channels of a sequence with blocks of 5. Right: a ball in a volume of six slices,
# with blocks of 3 x 9 x 9; a block goes through neighboring slices.

sequence = pictures.tokens()[1][:, :8].T.repeat_interleave(3, 1)
output, dropped = pictures.drawn(DropBlock1d(0.4, block_size=5), sequence[None], seed=0)
pictures.matrix(
    output[0],
    "DropBlock1d(0.4)",
    dropped=dropped[0],
    size=(3.4, 2.2),
    square=False,
    xlabel="time",
    ylabel="channels",
)
depth, height, width = torch.meshgrid(
    *(torch.linspace(-1.2, 1.2, n) for n in (6, 40, 40)), indexing="ij"
)
ball = (1 - (depth**2 + height**2 + width**2)).clamp(min=0).sqrt()
output, dropped = pictures.drawn(
    DropBlock3d(0.3, block_size=(3, 9, 9)), ball[None, None], seed=1
)
pictures.montage(
    output[0].view(2, 3, 40, 40),
    "DropBlock3d(0.3)",
    dropped=dropped[0].view(2, 3, 40, 40),
    white=1 / 0.7,
    height=2.4,
)

# %%
# In a model:

from torch import nn

from torchreg.nn import DropBlock2d

model = nn.Sequential(
    nn.Conv2d(1, 8, 3),
    nn.ReLU(),
    DropBlock2d(0.1, block_size=3),
    nn.Flatten(),
    nn.Linear(288, 10),
)
