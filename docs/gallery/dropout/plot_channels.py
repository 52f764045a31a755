r"""
Dropout1d, Dropout2d, Dropout3d: whole channels
===============================================

These layers drop whole channels of sequences, images and volumes, each channel of each example
with probability :math:`p`.

.. math::

    y_c &= \frac{m_c}{1 - p} x_c \\
    m_c &\sim \operatorname{Bernoulli}(1 - p) \text{ for each channel } c

In evaluation mode they are the identity.

**Take these layers** after convolutions, where the elements of a channel are so alike that
dropping some hides nothing.

**Do not take these layers** where there are few channels: then each draw hides much.
:doc:`DropBlock2d <plot_drop_block>` hides parts of channels.

**Source:** Jonathan Tompson, Ross Goroshin, Arjun Jain, Yann LeCun, Christoph Bregler,
"Efficient Object Localization Using Convolutional Networks", CVPR 2015. **Reference:**
:class:`torchreg.nn.Dropout1d`, :class:`torchreg.nn.Dropout2d`, :class:`torchreg.nn.Dropout3d`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch

from torchreg.nn import Dropout1d, Dropout2d, Dropout3d

maps = pictures.feature_maps()
output, dropped = pictures.drawn(Dropout2d(0.4), maps[None], seed=2)
pictures.montage(maps.view(2, 4, 40, 40), "eight feature maps", white=1 / 0.6, height=1.95)
pictures.montage(
    output.view(2, 4, 40, 40),
    "Dropout2d(0.4)",
    dropped=dropped.view(2, 4, 40, 40),
    white=1 / 0.6,
    height=1.95,
)

# %%
# Eight maps that a convolution could make of an image, and the same after
# :class:`~torchreg.nn.Dropout2d`: some maps are gone (orange), the others are brighter. The
# three channels of a color image, of which one is dropped in each of these draws:

image = pictures.photo()
pictures.picture(image, "input", white=1 / 0.7)
draws = [pictures.drawn(Dropout2d(0.3), image[None], seed) for seed in range(50)]
for channel, name in enumerate(("red", "green", "blue")):
    only = [k == channel for k in range(3)]
    output = next(output for output, dropped in draws if dropped[0, :, 0, 0].tolist() == only)
    pictures.picture(output[0], f"without {name}", white=1 / 0.7)

# %%
# Left: eight channels of a sequence. Right: four channels of a volume, one row each, as six
# slices.

sequence = pictures.tokens()[1][:, :8].T.repeat_interleave(3, 1)
output, dropped = pictures.drawn(Dropout1d(0.4), sequence[None], seed=2)
pictures.matrix(
    output[0],
    "Dropout1d(0.4)",
    dropped=dropped[0],
    size=(3.4, 2.2),
    square=False,
    xlabel="time",
    ylabel="channels",
)
volume = torch.stack([maps[k].roll(4 * depth, 1) for k in range(4) for depth in range(6)]).view(
    4, 6, 40, 40
)
output, dropped = pictures.drawn(Dropout3d(0.4), volume[None], seed=2)
pictures.montage(output[0], "Dropout3d(0.4)", dropped=dropped[0], white=1 / 0.6, height=2.35)

# %%
# In a model:

from torch import nn

from torchreg.nn import Dropout2d

model = nn.Sequential(
    nn.Conv2d(1, 8, 3), nn.ReLU(), Dropout2d(0.2), nn.Flatten(), nn.Linear(288, 10)
)
