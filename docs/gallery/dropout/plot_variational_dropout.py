r"""
VariationalDropout: weights that drown in noise
===============================================

VariationalDropout learns a noise level for each weight. Weights that drown in their noise are
dropped.

.. math::

    y_i &\sim N\Big(\sum_j \theta_{ij} x_j + b_i, \; \sum_j \sigma_{ij}^2 x_j^2\Big) \\
    \alpha &= \frac{\sigma^2}{\theta^2}

Noise makes a weight cheaper: the cost that :class:`torchreg.Complexity` adds to the loss is
least where a weight is all noise. In evaluation mode weights with :math:`\log \alpha > 3` are
zero.

**Take VariationalDropout** for very sparse layers without a strength to choose.

**Do not take VariationalDropout** at full strength from the start: a schedule must bring the
complexity in. It needs many examples.

**Source:** Dmitry Molchanov, Arsenii Ashukha, Dmitry Vetrov, "Variational Dropout Sparsifies
Deep Neural Networks", ICML 2017. Diederik P. Kingma, Tim Salimans, Max Welling, "Variational
Dropout and the Local Reparameterization Trick", NIPS 2015. **Reference:**
:class:`torchreg.nn.VariationalDropout`.
"""

import pictures
import torch
import torch.nn.functional as F
from torch import nn

from torchreg import Complexity, Regularizer, linear
from torchreg.nn import VariationalDropout

images, labels = pictures.digits()
layer = VariationalDropout(nn.Linear(64, 10), log_sigma2=-6.0)
schedule = linear(steps=200, start=0.0, end=1.0)
regularizer = Regularizer(layer, Complexity(1 / len(images)), mode="grad", schedule=schedule)
kept = pictures.train(
    layer,
    lambda: F.cross_entropy(layer(images), labels),
    regularizer=regularizer,
    lr=0.05,
    steps=300,
    watch=lambda: (layer.log_alpha < layer.threshold).float().mean().item() * 100,
)

weights = layer.pruned().weight
pictures.digit_weights(weights, "what is left of the weights, by digit")
pictures.lines(
    "weights that are kept",
    {"": (range(1, 301), kept)},
    xlabel="step",
    ylabel="%",
    ylim=(0, 105),
)
zeros, right = weights == 0, layer(images).argmax(1) == labels
print(f"zero weights: {zeros.float().mean():.0%}, right digits: {right.float().mean():.0%}")

# %%
# Left: a linear classifier of handwritten digits of 8 x 8 pixels, the weights of each class
# (blue: positive, orange: negative). The pixels that stay white were dropped. Right: how many
# weights are left while it is trained.
#
# In a model:

import torch
from torch import nn

from torchreg import Complexity, Regularizer, linear
from torchreg.nn import VariationalDropout

model = nn.Sequential(
    VariationalDropout(nn.Linear(64, 32)), nn.ReLU(), VariationalDropout(nn.Linear(32, 10))
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
schedule = linear(steps=1000, start=0.0, end=1.0)
regularizer = Regularizer(model, Complexity(1 / 1797), mode="grad", schedule=schedule).attach(
    optimizer
)
