r"""
L1: the lasso
=============

L1 pulls every weight towards zero with the same force. Weights that the data do not need become
exactly zero.

.. math::

    R(w) &= s \sum_i |w_i| \\
    \operatorname{prox}_{tR}(w) &= \operatorname*{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u) \\
    &= \operatorname{sign}(w) \max(|w| - ts, 0)

**Take L1** to find which weights the data need, or to prune single weights. In mode ``"prox"``
the zeros are exact.

**Do not take L1** where large weights must keep their size (:doc:`MCP <plot_mcp>`, :doc:`SCAD
<plot_scad>`), where inputs are strongly correlated (:doc:`ElasticNet <plot_elastic_net>`), or
where whole units shall go (:doc:`GroupLasso <plot_group_lasso>`).

**Source:** Robert Tibshirani, "Regression Shrinkage and Selection via the Lasso", Journal of
the Royal Statistical Society B, 1996. **Reference:** :class:`torchreg.L1`.
"""

import pictures

from torchreg import L1

pictures.plane(L1)
pictures.coefficients(L1)

# %%
# The level sets have corners on the axes. The minimum reaches an axis there: one weight is
# exactly zero while the other is not yet. In the regression the coefficients that are truly
# zero vanish first. The others shrink as well, all by about the same amount.

pictures.curves(L1(1.0))

# %%
# The slope is the same for small and for large weights. The proximal operator takes this slope
# from every weight (dashed: no change) and leaves exact zeros in between.
#
# The adaptive lasso gives each weight a penalty of its own, which is small where the weights of
# a first fit are large. In the same regression, with the least squares fit as the first one:

from functools import partial

import torch

first = pictures.regression.one_output().fit
pictures.coefficients(partial(L1, weights=first.abs().clamp(min=1e-6).reciprocal()))

# %%
# Large coefficients now keep their values while those that are truly zero vanish. In a model
# these weights are ``weights=adaptive(fitted)``; see :func:`torchreg.adaptive` (Hui Zou, "The
# Adaptive Lasso and Its Oracle Properties", 2006).
#
# In a model:

import torch
from torch import nn

from torchreg import L1, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, L1(1e-3), mode="prox").attach(optimizer)
