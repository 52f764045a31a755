r"""
SLOPE: a lasso that controls false discoveries
==============================================

SLOPE penalizes the largest weight most, the next one less, and so on. What is selected by chance
stays a small share of what is selected.

.. math::

    R(w) &= s \sum_{i=1}^p \lambda_i |w|_{(i)}, \quad |w|_{(1)} \ge |w|_{(2)} \ge \dots \\
    \lambda_i &= \Phi^{-1}\Big(1 - \frac{iq}{2p}\Big)

The :math:`\lambda_i` are the thresholds by which Benjamini and Hochberg test :math:`p` hypotheses at
the false discovery rate :math:`q`. The proximal operator is an isotonic regression of the sorted
magnitudes.

**Take SLOPE** to select inputs where the number of true ones is not known, or where correlated
inputs shall get equal weights.

**Do not take SLOPE** where the large weights must keep their size: they shrink most
(:doc:`MCP <plot_mcp>`).

**Source:** Małgorzata Bogdan, Ewout van den Berg, Chiara Sabatti, Weijie Su, Emmanuel J. Candès,
"SLOPE - Adaptive Variable Selection via Convex Optimization", Annals of Applied Statistics, 2015.
**Reference:** :class:`torchreg.SLOPE`.
"""

import pictures

from torchreg import L1, SLOPE

pictures.plane(lambda s: SLOPE(s, q=0.8))
pictures.coefficients(lambda s: SLOPE(s, q=0.8))

# %%
# Left: the level sets are octagons. Their corners on the axes make zeros, and those between the
# axes make weights of equal size: the minimum (orange) goes along. Right: coefficients of a
# regression meet, and shrink together from there.

pictures.coefficients(L1, twins=True, title="L1, two inputs nearly the same")
pictures.coefficients(
    lambda s: SLOPE(s, q=0.8), twins=True, title="SLOPE, two inputs nearly the same"
)

# %%
# Of two inputs that are nearly the same L1 chooses one. SLOPE gives both the same coefficient.
#
# In a model:

import torch
from torch import nn

from torchreg import SLOPE, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, SLOPE(1e-4, q=0.1), mode="prox").attach(optimizer)
