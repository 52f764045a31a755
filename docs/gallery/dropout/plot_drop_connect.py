r"""
DropConnect: single weights
===========================

DropConnect drops weights of a layer instead of activations, other ones for each example.

.. math::

    y_i &= \Big(\frac{M_i}{1 - p} \circ W\Big) x_i + b \\
    M_{ijk} &\sim \operatorname{Bernoulli}(1 - p)

where :math:`i` counts examples. In evaluation mode it is the layer itself or, with ``inference="moments"``, the mean
over the masks of the activation.

**Take DropConnect** in the place of dropout in fully connected layers, and for the weights
between the hidden states of an LSTM.

**Do not take DropConnect** for large layers with large batches: each example needs a mask of
the weight's size. With ``per_example=False`` the batch shares one.

**Source:** Li Wan, Matthew Zeiler, Sixin Zhang, Yann LeCun, Rob Fergus, "Regularization of
Neural Networks using DropConnect", ICML 2013. For recurrent layers: Stephen Merity, Nitish
Shirish Keskar, Richard Socher, "Regularizing and Optimizing LSTM Language Models", ICLR 2018.
**Reference:** :class:`torchreg.nn.DropConnect`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch
from torch import nn

from torchreg.nn import DropConnect

linear = nn.Linear(12, 8, bias=False)
linear.weight.data = pictures.weights().abs().repeat(2, 2)[:8, :12]
layer = DropConnect(linear, 0.4)
units = torch.eye(12).expand(2, 12, 12)  # for each of two examples, the inputs one by one
torch.manual_seed(0)
first, second = layer(units).mT.detach()

words = {"xlabel": "inputs", "ylabel": "output units", "most": linear.weight.max().item() / 0.6}
pictures.matrix(linear.weight, "weights", **words)
pictures.matrix(first, "for example 1", dropped=first == 0, **words)
pictures.matrix(second, "for example 2", dropped=second == 0, **words)

# %%
# The weights that two examples of one batch meet (orange: dropped).
#
# In a model:

from torch import nn

from torchreg.nn import DropConnect

model = nn.Sequential(DropConnect(nn.Linear(64, 32), 0.5), nn.ReLU(), nn.Linear(32, 10))
