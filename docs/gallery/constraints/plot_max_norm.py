r"""
MaxNorm: no unit's weights are longer than a bound
==================================================

MaxNorm scales the incoming weights of a unit back where they are longer than the bound. Shorter
ones stay as they are.

.. math::

    C &= \{ w : \|w_g\|_2 \le c \text{ for every group } g \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2 \\
    P(w)_g &= w_g \min(1, c / \|w_g\|_2)

By default a group is the weights into an output unit.

**Take MaxNorm** together with dropout and large learning rates: weights cannot run away.

**Do not take MaxNorm** to make all weights smaller: those within the bound are not touched
(:class:`torchreg.L2`).

**Source:** Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan
Salakhutdinov, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", Journal of
Machine Learning Research 15, 2014, section 5.1. **Reference:** :class:`torchreg.MaxNorm`.
"""

import pictures

from torchreg import L2Ball, MaxNorm

pictures.projections(MaxNorm(1.0))
pictures.coefficients(MaxNorm, bounds=[5 - 0.1 * k for k in range(50)])

# %%
# Left: the two weights into one unit. Right: the coefficients of a regression, which is one
# unit with twelve inputs, as the bound gets smaller. Below the length of the least squares fit
# all coefficients shrink together.

pictures.before_and_after({"MaxNorm(1.5)": MaxNorm(1.5), "L2Ball(3)": L2Ball(3.0)})

# %%
# Weights of six units (blue: positive, orange: negative). MaxNorm shortens the units that are
# longer than 1.5. :doc:`L2Ball <plot_l2_ball>` bounds the matrix as a whole, so it shortens
# all.
#
# In a model:

import torch
from torch import nn

from torchreg import MaxNorm, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
regularizer = Regularizer(model, MaxNorm(3.0), mode="prox").attach(optimizer)
