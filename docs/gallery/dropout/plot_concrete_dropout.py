r"""
ConcreteDropout: a rate that is learned
=======================================

ConcreteDropout drops the inputs of a layer with a rate that is trained with the weights.

.. math::

    y &= F\left(\frac{1 - z}{1 - p} x\right) \\
    z &= \sigma\left(\frac{\operatorname{logit} p + \operatorname{logit} u}{t}\right), \quad u \sim U(0, 1)

The rate has a cost, :math:`C = \frac{l^2}{2 (1 - p)} \|W\|^2 - K \operatorname{H}(p)` with
:math:`K` inputs, which :class:`torchreg.Complexity` adds to the loss. Without it the rate would
shrink to 0.

**Take ConcreteDropout** where the rate shall follow from the data, and for uncertainty by Monte
Carlo.

**Do not take ConcreteDropout** without ``Complexity(1 / N)``, :math:`N` the number of training
examples.

**Source:** Yarin Gal, Jiri Hron, Alex Kendall, "Concrete Dropout", NIPS 2017. **Reference:**
:class:`torchreg.nn.ConcreteDropout`.
"""

import pictures
import torch
import torch.nn.functional as F
from torch import nn

from torchreg import Complexity, Regularizer
from torchreg.nn import ConcreteDropout

images, labels = pictures.digits()
rates = {}
for count in (50, 200, 1000):
    torch.manual_seed(0)
    layer = ConcreteDropout(nn.Linear(64, 10), p=0.3)
    regularizer = Regularizer(layer, Complexity(1 / count), mode="grad")
    x, y = images[:count], labels[:count]
    rates[f"{count} examples"] = pictures.train(
        layer,
        lambda layer=layer, x=x, y=y: F.cross_entropy(layer(x), y),
        regularizer=regularizer,
        lr=0.03,
        steps=150,
        watch=lambda layer=layer: layer.p.item(),
    )

steps = range(1, 151)
pictures.lines(
    "learned drop rate",
    {name: (steps, rate) for name, rate in rates.items()},
    size=(4.4, 2.9),
    xlabel="step",
    ylim=(0, 0.6),
)

# %%
# The drop rate of the 64 pixels of handwritten digits while a linear classifier is trained on
# few and on many examples. The more examples, the less is dropped.
#
# In a model:

import torch
from torch import nn

from torchreg import Complexity, Regularizer
from torchreg.nn import ConcreteDropout

model = nn.Sequential(
    ConcreteDropout(nn.Linear(64, 32)), nn.ReLU(), ConcreteDropout(nn.Linear(32, 10))
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, Complexity(1 / 1000), mode="grad").attach(optimizer)
