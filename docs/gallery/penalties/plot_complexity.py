r"""
Complexity: what layers pay for what they keep
==============================================

Complexity is the cost of layers that learn what to drop. It needs no choice of parameters: it
finds such layers itself.

.. math:: R = s \sum_{\text{layers } l} C_l

where :math:`C_l` is the layer's own cost: a divergence from a prior for :class:`~torchreg.nn.ConcreteDropout` and
:class:`~torchreg.nn.VariationalDropout`, the expected number of weights for :class:`~torchreg.nn.HardConcrete`.

**Take Complexity** with those layers, always: without Complexity the layers learn to drop
nothing. For a divergence take :math:`s = 1 / N` with :math:`N` training examples.

**Do not take Complexity** for ordinary layers, which have no such cost.

**Source:** the sources of the layers: Yarin Gal, Jiri Hron, Alex Kendall, "Concrete Dropout",
NIPS 2017; Dmitry Molchanov, Arsenii Ashukha, Dmitry Vetrov, "Variational Dropout Sparsifies
Deep Neural Networks", ICML 2017; Christos Louizos, Max Welling, Diederik P. Kingma, "Learning
Sparse Neural Networks through L0 Regularization", ICLR 2018. **Reference:**
:class:`torchreg.Complexity`.
"""

import pictures
import torch
from torch import nn

from torchreg.nn import ConcreteDropout, HardConcrete, VariationalDropout

line = nn.Linear(1, 1, bias=False)
line.weight.data.fill_(1.0)
log_alpha = torch.linspace(-6, 6, 200)
rate = torch.linspace(0.005, 0.995, 200)
costs = {
    "VariationalDropout": VariationalDropout(line).complexity_of,
    "HardConcrete": HardConcrete(line).complexity_of,
    "ConcreteDropout": ConcreteDropout(line).complexity_of,
}
curves = {
    "VariationalDropout": (
        log_alpha,
        [costs["VariationalDropout"](a.view(1, 1), torch.ones(1, 1)) for a in log_alpha],
    ),
    "HardConcrete": (log_alpha, [costs["HardConcrete"](a.view(1)) for a in log_alpha]),
    "ConcreteDropout": (
        rate,
        [costs["ConcreteDropout"](torch.logit(p), line.weight) for p in rate],
    ),
}
xlabels = (
    r"$\log \alpha$: noise over signal",
    r"$\log \alpha$: how open the gate is",
    "drop rate $p$",
)
for (name, (x, costs)), xlabel, color in zip(
    curves.items(), xlabels, pictures.HUES, strict=False
):
    y = torch.stack(costs).detach()
    pictures.lines(
        name, {"": (x, y)}, size=(2.35, 2.3), colors=[color], xlabel=xlabel, ylabel="cost"
    )

# %%
# What one weight costs: the first is free where it is all noise, the second where its gate is
# closed, the third is cheapest at a rate of one half.
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
regularizer = Regularizer(model, Complexity(1e-5), mode="grad").attach(optimizer)
