r"""
Dropout: single elements
========================

Dropout sets each element to zero with probability :math:`p`, independently, and scales up the
others.

.. math::

    y_i &= \frac{m_i}{1 - p} x_i \\
    m_i &\sim \operatorname{Bernoulli}(1 - p)

In evaluation mode it is the identity.

**Take Dropout** after the activations of fully connected layers.

**Do not take Dropout** for images in the first layers of a convolutional network: the neighbors
of a dropped pixel tell what it was (:doc:`DropBlock2d <plot_drop_block>`, :doc:`Dropout2d
<plot_channels>`).

**Source:** Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan
Salakhutdinov, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", Journal of
Machine Learning Research 15, 2014. **Reference:** :class:`torchreg.nn.Dropout`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures

from torchreg.nn import Dropout

pictures.masks(Dropout(0.4))

# %%
# What is kept is brighter by :math:`1 / (1 - p)`, so the mean of many draws is the input.
#
# With a ``noise_shape`` elements are dropped together, here whole rows of the image:

pictures.masks(Dropout(0.4, noise_shape=(None, None, None, 1)))

# %%
# In a model:

from torch import nn

from torchreg.nn import Dropout

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), Dropout(0.5), nn.Linear(32, 10))
