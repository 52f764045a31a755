r"""
"corrected": for layers that a normalization follows
====================================================

With ``coupling="corrected"`` the decay is multiplied by the square of the learning rate over
its peak.

.. math:: w \leftarrow \Big(1 - \frac{\eta_t^2}{\eta_{\max}} \lambda\Big) \, w

where :math:`\eta_t` is the learning rate now, :math:`\eta_{\max}` its peak and :math:`\lambda` is ``weight_decay``.

**Take this coupling** for layers that a normalization follows, with a learning rate that falls:
their gradients keep their size until the end of training.

**Do not take this coupling** for other layers, whose gradients do not depend on the size of the
weights in this way.

**Source:** Aaron Defazio, "Why Gradients Rapidly Increase Near the End of Training",
arXiv:2506.02285, 2025. **Reference:** :class:`torchreg.optim.DecoupledDecay`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

pictures.couplings("corrected")

# %%
# The learning rate begins at 0.5, and the decay is 0.01. As the learning rate falls, the decay
# falls faster.
#
# The reason: a normalization undoes any scaling of the weights before it. So the gradient is at
# right angles to the weights, and smaller weights get larger gradients. Here such weights get
# random gradients, with a cosine learning rate:

import math

import torch
from torch import nn

from torchreg.optim import SGDW

ratios = {}
for coupling in ("lr", "corrected"):
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(100) / 8)
    optimizer = SGDW([w], lr=0.5, weight_decay=0.05, coupling=coupling)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / 1000)
    )
    ratios[f'"{coupling}"'] = []
    for _ in range(970):
        direction, noise = w.detach() / w.detach().norm(), torch.randn(100) / 10
        w.grad = (noise - (noise @ direction) * direction) / w.detach().norm()
        ratios[f'"{coupling}"'].append((w.grad.norm() / w.detach().norm()).item())
        optimizer.step()
        scheduler.step()

pictures.lines(
    "size of the gradient over size of the weights",
    {
        name: (range(0, 970, 10), torch.tensor(ratio).view(-1, 10).mean(1))
        for name, ratio in ratios.items()
    },
    size=(4.4, 2.6),
    colors=(pictures.FAINT, pictures.BLUE),
    xlabel="step",
    ylim=(0, 2),
)

# %%
# In a model:

from torch import nn

from torchreg.optim import AdamW

model = nn.Sequential(
    nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
)
normalized, others = [model[0].weight], [*model[1].parameters(), *model[3].parameters()]
groups = [
    {"params": normalized, "coupling": "corrected"},
    {"params": others, "weight_decay": 0.0},
]
optimizer = AdamW(groups, lr=1e-3, weight_decay=0.1)
