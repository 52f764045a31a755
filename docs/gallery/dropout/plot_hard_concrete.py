r"""
HardConcrete: gates on whole units
==================================

HardConcrete learns a gate for each input or output of a layer. A gate can be exactly closed, in
training too.

.. math::

    z &= \min\big(1, \max(0, s (\zeta - \gamma) + \gamma)\big) \\
    s &= \sigma\left(\frac{\log \alpha + \operatorname{logit} u}{\beta}\right), \quad u \sim U(0, 1)

:class:`torchreg.Complexity` adds the expected number of weights behind open gates to the loss.

**Take HardConcrete** to learn which inputs or units a layer needs, with zeros that are exact.

**Do not take HardConcrete** where the group lasso does: it has no random gates and one number
less to choose.

**Source:** Christos Louizos, Max Welling, Diederik P. Kingma, "Learning Sparse Neural Networks
through L0 Regularization", ICLR 2018. **Reference:** :class:`torchreg.nn.HardConcrete`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch
import torch.nn.functional as F
from torch import nn

from torchreg import Complexity, Regularizer
from torchreg.nn import HardConcrete

images, labels = (each[:1000] for each in pictures.digits())
layer = HardConcrete(nn.Linear(64, 10), p=0.3)
regularizer = Regularizer(layer, Complexity(8 / len(images)), mode="grad")
closed = pictures.train(
    layer,
    lambda: F.cross_entropy(layer(images), labels),
    regularizer=regularizer,
    lr=0.05,
    steps=200,
    watch=lambda: (layer.gates == 0).sum().item(),
)

pictures.matrix(images.mean(0).view(8, 8), "mean of all digits")
pictures.matrix(layer.gates.view(8, 8), "gates", dropped=layer.gates.view(8, 8) == 0, most=1.0)
pictures.lines(
    "closed gates", {"": (range(1, 201), closed)}, size=(2.35, 2.4), xlabel="step", ylim=(0, 64)
)
closed, right = layer.gates == 0, layer(images).argmax(1) == labels
print(f"closed gates: {closed.sum()} of 64, right digits: {right.float().mean():.0%}")

# %%
# A linear classifier of handwritten digits of 8 x 8 pixels learns which pixels it needs. Closed
# gates are orange: the borders, where all digits are empty, and some that tell what others
# tell.
#
# In a model:

import torch
from torch import nn

from torchreg import Complexity, Regularizer
from torchreg.nn import HardConcrete

model = nn.Sequential(
    HardConcrete(nn.Linear(64, 32)), nn.ReLU(), HardConcrete(nn.Linear(32, 10))
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, Complexity(1 / 1797), mode="grad").attach(optimizer)
