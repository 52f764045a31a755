r"""
GaussianDropout: noise instead of zeros
=======================================

GaussianDropout multiplies each element by normal noise with the mean and variance that
dropout's factors have.

.. math::

    y &= \epsilon x \\
    \epsilon &\sim N\left(1, \frac{p}{1 - p}\right)

In evaluation mode it is the identity.

**Take GaussianDropout** in the place of dropout where exact zeros hurt.

**Do not take GaussianDropout** at high rates: the factors can be negative, at :math:`p = 0.5`
one in six is.

**Source:** Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan
Salakhutdinov, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", Journal of
Machine Learning Research 15, 2014, section 10. **Reference:**
:class:`torchreg.nn.GaussianDropout`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch

from torchreg.nn import Dropout, GaussianDropout

pictures.masks(GaussianDropout(0.2), drops=False)

# %%
# Nothing is dropped; every pixel is darker or brighter. The factors of both layers have mean 1
# and variance 1/4:

ones = torch.ones(100_000)
pictures.histogram("factors of GaussianDropout", GaussianDropout(0.2)(ones))
pictures.histogram("factors of Dropout", Dropout(0.2)(ones), pictures.ORANGE)

# %%
# In a model:

from torch import nn

from torchreg.nn import GaussianDropout

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), GaussianDropout(0.2), nn.Linear(32, 10))
