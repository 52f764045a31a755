r"""
FeatureAlphaDropout: whole channels of self-normalizing networks
================================================================

FeatureAlphaDropout is alpha dropout of whole channels.

.. math::

    y_c &= a (m_c x_c + (1 - m_c) \alpha') + b \\
    m_c &\sim \operatorname{Bernoulli}(1 - p) \text{ for each channel } c

with the constants of :doc:`AlphaDropout <plot_alpha_dropout>`.

**Take FeatureAlphaDropout** after convolutions in networks of SELUs.

**Do not take FeatureAlphaDropout** anywhere else: take :doc:`Dropout2d <plot_channels>`.

**Source:** Günter Klambauer, Thomas Unterthiner, Andreas Mayr, Sepp Hochreiter,
"Self-Normalizing Neural Networks", NIPS 2017; for channels: Jonathan Tompson, Ross Goroshin,
Arjun Jain, Yann LeCun, Christoph Bregler, "Efficient Object Localization Using Convolutional
Networks", CVPR 2015. **Reference:** :class:`torchreg.nn.FeatureAlphaDropout`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures

from torchreg.nn import FeatureAlphaDropout

maps = pictures.feature_maps()
maps = (maps - maps.mean()) / maps.std()
output, dropped = pictures.drawn(FeatureAlphaDropout(0.4), maps[None], seed=3)
tones = {"black": -1.0, "white": 4.0, "height": 1.95}
pictures.montage(maps.view(2, 4, 40, 40), "eight feature maps", **tones)
pictures.montage(
    output.view(2, 4, 40, 40),
    "FeatureAlphaDropout(0.4)",
    dropped=dropped.view(2, 4, 40, 40),
    **tones,
)

# %%
# Dropped maps (orange) have one value each. The others are scaled and shifted so that mean 0
# and variance 1 are kept.
#
# In a model:

from torch import nn

from torchreg.nn import FeatureAlphaDropout

model = nn.Sequential(
    nn.Conv2d(1, 8, 3), nn.SELU(), FeatureAlphaDropout(0.1), nn.Flatten(), nn.Linear(288, 10)
)
