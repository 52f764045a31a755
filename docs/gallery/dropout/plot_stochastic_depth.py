r"""
StochasticDepth: whole residual branches
========================================

StochasticDepth drops the output of a residual branch, for each example on its own. It is also
known as drop path.

.. math::

    y &= x + \frac{m}{1 - p} F(x) \\
    m &\sim \operatorname{Bernoulli}(1 - p)

In evaluation mode it is the branch itself. :func:`torchreg.nn.set_linear_depth` gives the
branches of a model rates that grow with their depth.

**Take StochasticDepth** in deep residual networks and transformers.

**Do not take StochasticDepth** without a shortcut around the branch: nothing would be left.

**Source:** Gao Huang, Yu Sun, Zhuang Liu, Daniel Sedra, Kilian Q. Weinberger, "Deep Networks
with Stochastic Depth", ECCV 2016. **Reference:** :class:`torchreg.nn.StochasticDepth`.
"""

import pictures
import torch
from torch import nn

from torchreg.nn import StochasticDepth, set_linear_depth


def draws(mode: str) -> torch.Tensor:
    """What is left of each branch (columns) for each of 12 examples (rows): 0, or more than 1."""
    branches = nn.Sequential(*(StochasticDepth(nn.Identity(), mode=mode) for _ in range(12)))
    set_linear_depth(branches, 0.5)
    torch.manual_seed(1)
    return torch.cat([branch(torch.ones(12, 1)) for branch in branches], 1)


labels = {
    "size": (3.3, 2.9),
    "square": False,
    "xlabel": "branches, from the first to the last",
    "ylabel": "examples",
}
for mode in ("row", "batch"):
    left = draws(mode)
    pictures.matrix(left, f'mode="{mode}"', dropped=left == 0, most=2.0, **labels)

# %%
# Twelve branches with rates from 0.04 to 0.5. Left: each example on its own drops branches
# (orange), the more the deeper. Right: the whole batch together. Kept branches are scaled up,
# the more the deeper (blue).
#
# In a model:

from torch import nn

from torchreg.nn import StochasticDepth, set_linear_depth


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = StochasticDepth(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        )

    def forward(self, x):
        return x + self.branch(x)


model = nn.Sequential(*(Block(64) for _ in range(6)), nn.Linear(64, 10))
rates = set_linear_depth(model, 0.2)
