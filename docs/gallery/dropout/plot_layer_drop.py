r"""
LayerDrop: whole layers
=======================

LayerDrop is a list of layers. A loop over it in training mode leaves out each layer with
probability :math:`p`, for the whole batch.

.. math::

    x_{l+1} &= \begin{cases} f_l(x_l) & m_l = 1 \\ x_l & m_l = 0 \end{cases} \\
    m_l &\sim \operatorname{Bernoulli}(1 - p)

What is kept is not scaled. In evaluation mode it is the list itself;
:meth:`~torchreg.nn.LayerDrop.every_other` makes a shallower one.

**Take LayerDrop** in deep transformers, to train faster, and if shallower ones shall be cut out
of one that is trained.

**Do not take LayerDrop** for layers without a shortcut of their own. To drop branches for each
example on its own take :doc:`StochasticDepth <plot_stochastic_depth>`.

**Source:** Angela Fan, Edouard Grave, Armand Joulin, "Reducing Transformer Depth on Demand with
Structured Dropout", ICLR 2020. **Reference:** :class:`torchreg.nn.LayerDrop`.
"""

import pictures
import torch
from torch import nn

from torchreg.nn import LayerDrop

layers = LayerDrop([nn.Identity() for _ in range(12)], p=0.25)
torch.manual_seed(0)
passes = [set(layers) for _ in range(12)]
left = torch.tensor([[layer in kept for layer in layers[:].eval()] for kept in passes])
labels = {"size": (3.3, 2.9), "xlabel": "layers, from the first to the last"}
pictures.matrix(
    left.float(), "LayerDrop(p=0.25)", dropped=~left, most=2.0, ylabel="passes", **labels
)
images, targets = pictures.digits()


class Block(nn.Module):
    """A layer with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Net(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.layers = LayerDrop([Block() for _ in range(12)], p)
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


errors = {}
for p in (0.0, 0.25, 0.5):
    torch.manual_seed(0)
    net = Net(p)
    pictures.train(
        net,
        lambda net=net: nn.functional.cross_entropy(net(images[:1000]), targets[:1000]),
        lr=0.003,
    )
    full, found = net.layers, []
    for share in (0.5, 1 / 3, 0.25, None):
        net.layers = full if share is None else full.every_other(share)
        wrong = net(images[1000:]).argmax(1) != targets[1000:]
        found.append((len(net.layers), 100 * wrong.float().mean().item()))
    depth, error = zip(*found, strict=True)
    errors[f"p = {p}"] = (depth, error)
pictures.lines(
    "error on new digits, %",
    errors,
    xlabel="layers that are left",
    ylim=(0, 16),
    xticks=(6, 8, 9, 12),
)

# %%
# Left: twelve passes (rows); orange layers are left out. Right: networks of 12 layers, of which
# every second, third or fourth is cut out after training. Without LayerDrop the error grows
# the most.
#
# In a model:

from torch import nn

from torchreg.nn import LayerDrop

layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
model = nn.TransformerEncoder(layer, num_layers=6)
model.layers = LayerDrop(model.layers, p=0.2)
