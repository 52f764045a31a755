r"""
Box: two bounds on each weight
==============================

Box clips every weight to an interval, which need not be symmetric.

.. math::

    C &= \{ w : l \le w_i \le h \} \\
    P(w)_i &= \min(\max(w_i, l), h)

**Take Box** where the hardware or the model says what a weight can be: conductances, shares,
quantized ranges.

**Do not take Box** for weights that shall only be small: :class:`torchreg.L2`. For a symmetric
interval :doc:`LinfBall <plot_linf_ball>` says the same.

**Source:** Neal Parikh, Stephen Boyd, "Proximal Algorithms", Foundations and Trends in
Optimization, 2014, section 6.2.4. **Reference:** :class:`torchreg.Box`.
"""

import pictures

from torchreg import Box

pictures.projections(Box(-0.5, 1.0))
pictures.compare(Box(-0.5, 1.0), "between -0.5 and 1")

# %%
# Left: in two weights the set is a square, and points beside a side go straight to it. Right: the
# coefficients of a regression by least squares, and between the bounds. The others adapt.

pictures.before_and_after({"Box(-0.5, 1)": Box(-0.5, 1.0), "Box(0)": Box(0.0)})

# %%
# Weights of six units (blue: positive, orange: negative). With one bound the other side is free.
#
# In a model:

import torch
from torch import nn

from torchreg import Box, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, Box(-0.1, 0.2), mode="prox").attach(optimizer)
