r"""
UnitNorm: every unit's weights have length 1
============================================

UnitNorm scales the incoming weights of every unit to length 1, so that only their direction is
learned.

.. math::

    C &= \{ w : \|w_g\|_2 = 1 \text{ for every group } g \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2 \\
    P(w)_g &= w_g / \|w_g\|_2

The set is a sphere, so it is not convex. A zero vector has no direction and is left alone.

**Take UnitNorm** where the length of the weights means nothing: dictionaries, cosine
similarity, layers before a normalization.

**Do not take UnitNorm** for layers whose outputs must have a scale of their own (:doc:`MaxNorm
<plot_max_norm>`).

**Source:** P.-A. Absil, R. Mahony, R. Sepulchre, "Optimization Algorithms on Matrix Manifolds",
Princeton University Press, 2008. **Reference:** :class:`torchreg.UnitNorm`.
"""

import pictures

from torchreg import MaxNorm, UnitNorm

pictures.projections(UnitNorm())
pictures.compare(UnitNorm(), "UnitNorm")

# %%
# Left: points go to the nearest point of the circle, from outside and from inside. Right: the
# coefficients of a regression by least squares, and the best ones of length 1.

pictures.before_and_after({"MaxNorm(1)": MaxNorm(1.0), "UnitNorm": UnitNorm()})

# %%
# Weights of six units (blue: positive, orange: negative). MaxNorm shortens the long units;
# UnitNorm also lengthens the short ones.
#
# In a model:

import torch
from torch import nn

from torchreg import Regularizer, UnitNorm

model = nn.Sequential(
    nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, {"0.*": UnitNorm()}, mode="prox").attach(optimizer)
