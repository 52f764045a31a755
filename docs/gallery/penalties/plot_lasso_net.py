r"""
LassoNet: a lasso on the features of a network
==============================================

LassoNet chooses features for a network. Beside the network is a linear layer of the same features,
the skip layer. A feature that it does not use, the network may not use.

.. math::

    R(\theta, W) = s \sum_j \|\theta_j\|_2
    \quad \text{subject to} \quad \|W_j\|_\infty \le M \|\theta_j\|_2

:math:`\theta_j` are the weights of feature :math:`j` in the skip layer, :math:`W_j` those in the
first layer of the network. After each step of the optimizer both move to the nearest point together.

**Take LassoNet** to select inputs of a network, along a path of strengths from all to none.

**Do not take LassoNet** for a network without a linear part: :doc:`GroupLasso <plot_group_lasso>`
with ``groups="input"`` on the first layer needs none.

**Source:** Ismael Lemhadri, Feng Ruan, Louis Abraham, Robert Tibshirani, "LassoNet: A Neural Network
with Feature Sparsity", Journal of Machine Learning Research, 2021.
**Reference:** :class:`torchreg.LassoNet`.
"""

import pictures
import torch
from torch import nn

from torchreg import LassoNet, Regularizer
from torchreg.functional import hierarchical_threshold


class Net(nn.Module):
    def __init__(self, features, outputs, units=16):
        super().__init__()
        self.skip = nn.Linear(features, outputs, bias=False)
        self.first, self.last = nn.Linear(features, units), nn.Linear(units, outputs)

    def forward(self, x):
        return self.skip(x) + self.last(self.first(x).tanh())


torch.manual_seed(0)
skip, first = torch.randn(1, 12), 0.4 * torch.randn(6, 12)
nearest = hierarchical_threshold(skip, first, 2.0, bound=1.0)
for name, weights in {"before": (skip, first), "after": nearest}.items():
    pictures.matrix(
        torch.cat(weights), name, rows=["skip", *[""] * 6], most=1.5, xlabel="features"
    )

# %%
# One proximal step: a feature whose skip weight becomes zero leaves the first layer too. Elsewhere
# no weight is larger than that of the skip layer.

x = torch.randn(300, 10)
y = (x[:, 0] * x[:, 1] + (2 * x[:, 2]).sin() + x[:, 0])[:, None]  # of the first three features
model = Net(10, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
regularizer = Regularizer(model, LassoNet(1.0), mode="prox").attach(optimizer)
scales = torch.logspace(-2, 2.5, 120)
kept = []
for scale in scales:
    regularizer.scale = scale.item()
    for _ in range(400 if not kept else 40):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    kept.append(model.first.weight.detach().abs().amax(0))
path = torch.stack(kept)
pictures.lines(
    "Along the strengths",
    {f"feature {j + 1}": (scales.log10(), path[:, j]) for j in range(10)},
    colors=[*pictures.HUES[:3], *[pictures.FAINT] * 7],
    labels=False,
    xlabel="strength, powers of 10",
    ylabel=r"largest weight $\|W_j\|_\infty$",
)

# %%
# A path from a dense network to an empty one. The target depends on three of ten features (colors);
# the others (gray) leave first.
#
# In a model:

import torch
from torch import nn

from torchreg import LassoNet, Regularizer


class Net(nn.Module):
    def __init__(self, features, outputs, units=16):
        super().__init__()
        self.skip = nn.Linear(features, outputs, bias=False)
        self.first, self.last = nn.Linear(features, units), nn.Linear(units, outputs)

    def forward(self, x):
        return self.skip(x) + self.last(self.first(x).tanh())


model = Net(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, LassoNet(1.0, M=10.0), mode="prox").attach(optimizer)
