r"""
HoyerSquare: counting weights at any scale
==========================================

HoyerSquare measures how many weights are not zero, without regard to their scale. Small weights
are pulled to zero, large ones are pushed up.

.. math::

    R(w) = s \frac{\left(\sum_i |w_i|\right)^2}{\sum_i w_i^2}, \qquad R(0) = 0

It lies between :math:`s`, where one weight is not zero, and :math:`s` times the number of
weights, where all are equally large. It has no proximal operator in closed form.

**Take HoyerSquare** for sparse weights whose overall scale shall stay free.

**Do not take HoyerSquare** to make weights small: twice the weights cost the same. It makes no
exact zeros by itself, so cut what is nearly zero after training.

**Source:** Huanrui Yang, Wei Wen, Hai Li, "DeepHoyer: Learning Sparser Neural Network with
Differentiable Scale-Invariant Sparsity Measures", ICLR 2020. **Reference:**
:class:`torchreg.HoyerSquare`.
"""

import pictures
import torch

from torchreg import HoyerSquare

pictures.plane(HoyerSquare, through=[(1, 0.03), (1, 0.1), (1, 0.2), (1, 0.4)])
pictures.coefficients(HoyerSquare)

# %%
# The level sets are cones along the axes: only the direction of the weights counts. The minimum
# goes to an axis and does not shrink there. In the regression one coefficient after another
# approaches zero, and the largest keeps its size.

w = torch.linspace(-3, 3, 1200)
pair = torch.stack([w, torch.ones_like(w)], -1)
penalty = HoyerSquare(1.0)
axes = {"xlabel": "$w$", "size": (2.9, 2.3)}
pictures.lines(
    "value beside a weight of 1",
    {"": (w, torch.vmap(penalty.value)(pair))},
    ylim=(-0.15, 4.15),
    **axes,
)
pictures.lines(
    "gradient beside a weight of 1",
    {"": (w, torch.vmap(penalty.gradient)(pair)[:, 0])},
    ylim=(-2.15, 2.15),
    **axes,
)

# %%
# Beside another weight of size 1, a smaller weight is pulled to zero and a larger one is pushed
# away from zero.
#
# In a model:

import torch
from torch import nn

from torchreg import HoyerSquare, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, HoyerSquare(1e-5), mode="grad").attach(optimizer)
