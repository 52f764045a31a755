r"""
L1SP: a lasso towards a starting point
======================================

L1SP pulls every weight towards a reference with the same force. Many weights stay exactly where
they were.

.. math::

    R(w) &= s \|w - w^0\|_1 \\
    \operatorname{prox}_{tR}(w) &= \operatorname*{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u) \\
    &= w^0 + \operatorname{sign}(w - w^0) \max(|w - w^0| - ts, 0)

The reference :math:`w^0` is the weights that the model has when the regularizer is made, or a
``state_dict``, or a tensor.

**Take L1SP** for fine-tuning that changes few weights, so that the change is small to store.
Mode ``"prox"`` leaves the others exact.

**Do not take L1SP** where all weights must move a little: :doc:`L2SP <plot_l2sp>` spreads the
change.

**Source:** Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer
Learning with Convolutional Networks", ICML 2018. **Reference:** :class:`torchreg.L1SP`.
"""

from functools import partial

import pictures
import torch

from torchreg import L1SP

start = torch.tensor([[-0.8, 0.6]])
pretrained = torch.tensor([[2.0, -1.0, 2.0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0]])
diamonds = [(-0.8 + radius, 0.6) for radius in (0.4, 0.8, 1.2, 1.6, 2.0)]
pictures.plane(partial(L1SP, reference=start), through=diamonds)
pictures.coefficients(partial(L1SP, reference=pretrained), towards=pretrained)

# %%
# The level sets are diamonds around the reference. Each coefficient stops at its reference
# (strokes at the right) and stays there exactly.

pictures.curves(L1SP(1.0, reference=torch.tensor(1.0)))

# %%
# Value, gradient and proximal operator with a reference of 1.
#
# In a model:

import torch
from torch import nn

from torchreg import L1SP, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, L1SP(1e-3), mode="prox").attach(optimizer)
