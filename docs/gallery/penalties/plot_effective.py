r"""
Effective: a penalty on what parameters make together
=====================================================

Effective penalizes what a function computes from several parameters, such as the product of two
matrices. Autograd brings its gradient to each of them.

.. math:: \sum_{\text{modules } m} R(f(m)), \qquad \text{for example } f(m) = s B A

**Take Effective** for the update of a LoRA layer, for a product of layers without an activation
between them, or for the sum of two layers of one input.

**Do not take Effective** for a weight that a parametrization computes: every penalty finds that
by itself. Nor for exact zeros: it acts in the modes "loss" and "grad" only.

**Source:** the function is yours. Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu,
Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen, "LoRA: Low-Rank Adaptation of Large Language Models",
ICLR 2022, has the update as a product. **Reference:** :class:`torchreg.Effective`.
"""

import pictures
import torch
from torch import nn

from torchreg import L2, Effective, Regularizer

target = torch.diag(torch.tensor([3.0, 2.25, 1.5, 0.75], dtype=torch.float64))
strengths = torch.linspace(0, 3.0, 13, dtype=torch.float64)


def update(layer):
    return layer.B @ layer.A


def fitted(penalty):
    """The singular values of a product of two matrices, fitted to a target."""
    torch.manual_seed(0)
    layer = nn.ParameterDict({"A": torch.randn(4, 4), "B": torch.randn(4, 4)}).double()
    regularizer = Regularizer(layer, penalty)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=60, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = (update(layer) - target).square().sum() / 2 + regularizer.value()
        loss.backward()
        return loss

    optimizer.step(closure)
    return torch.linalg.svdvals(update(layer)).detach()


for title, make in {
    "L2 of A and of B": L2,
    "Effective: L2 of B A": lambda s: Effective(L2(s), update),
}.items():
    values = torch.stack([fitted(make(s.item())) for s in strengths])
    series = {rf"$\sigma_{i + 1}$": (strengths, values[:, i]) for i in range(4)}
    pictures.lines(title, series, xlabel="strength", ylabel="singular values of the product")

# %%
# Two penalties of one product that is fitted to a matrix. Left: weight decay of the factors
# subtracts the same from each singular value, and lowers the rank. Right: the ridge of the product
# divides each by the same number, so that none vanishes.
#
# In a model:

import torch
from torch import nn

from torchreg import L2, Effective, Regularizer


class LoRA(nn.Module):
    def __init__(self, base, rank=4, scale=2.0):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + self.scale * x @ self.A.mT @ self.B.mT


def update(layer):
    return layer.scale * layer.B @ layer.A


model = nn.Sequential(LoRA(nn.Linear(64, 32)), nn.ReLU(), LoRA(nn.Linear(32, 10)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
penalty = Effective(L2(1e-2), update, modules=LoRA)
regularizer = Regularizer(model, penalty, mode="grad").attach(optimizer)
