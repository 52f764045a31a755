r"""
L2SP: a ridge towards a starting point
======================================

L2SP pulls every weight towards a reference instead of zero, in proportion to the distance.

.. math::

    R(w) &= \frac{s}{2} \|w - w^0\|_2^2 \\
    \operatorname{prox}_{tR}(w) &= \operatorname*{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u) \\
    &= \frac{w + ts\, w^0}{1 + ts}

The reference :math:`w^0` is the weights that the model has when the regularizer is made, or a
``state_dict``, or a tensor.

**Take L2SP** for fine-tuning: the weights stay near the pretrained ones.

**Do not take L2SP** for layers that are new: there is nothing to stay near. Give those layers
:doc:`L2 <plot_l2>` by a dict of patterns.

**Source:** Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer
Learning with Convolutional Networks", ICML 2018. **Reference:** :class:`torchreg.L2SP`.
"""

from functools import partial

import pictures
import torch

from torchreg import L2SP

start = torch.tensor([[-0.8, 0.6]])
pretrained = torch.tensor([[2.0, -1.0, 2.0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0]])
circles = [(-0.8 + radius, 0.6) for radius in (0.4, 0.8, 1.2, 1.6, 2.0)]
pictures.plane(partial(L2SP, reference=start), through=circles)
pictures.coefficients(partial(L2SP, reference=pretrained), towards=pretrained)

# %%
# The level sets are circles around the reference. As the strength grows, each coefficient goes
# from its least squares value to its reference (strokes at the right).

pictures.curves(L2SP(1.0, reference=torch.tensor(1.0)))

# %%
# Value, gradient and proximal operator with a reference of 1.
#
# With ``weights`` each element has a strength of its own. Here the first one is held nine times
# as much as the second one:

pictures.plane(
    partial(L2SP, reference=start, weights=torch.tensor([[9.0, 1.0]])),
    through=[(-0.8, 0.6 + radius) for radius in (0.4, 0.8, 1.2, 1.6, 2.0)],
)

# %%
# With the Fisher information of an earlier task (:func:`torchreg.fisher`) this is elastic weight
# consolidation (James Kirkpatrick and others, "Overcoming Catastrophic Forgetting in Neural
# Networks", 2017): what that task needs stays, the rest is free.
#
# In a model:

import torch
from torch import nn

from torchreg import L2, L2SP, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
parts = {
    "0.*": L2SP(1e-2),
    "2.*": L2(1e-2),
}  # the first layer is pretrained, the last one is new
regularizer = Regularizer(model, parts, mode="decoupled").attach(optimizer)
