r"""
decay="L1": decay that leaves zeros
===================================

With ``decay="L1"`` each step takes the same amount from every weight instead of the same share,
and stops at zero.

.. math:: w \leftarrow \operatorname{sign}(w) \max(|w| - r_t \lambda, 0)

where :math:`r_t` follows from the coupling and :math:`\lambda` is ``weight_decay``. It comes after the optimizer's
update.

**Take this decay** for exact zeros with the optimizer that you have.

**Do not take this decay** to solve the lasso exactly under Adam:
:class:`torchreg.optim.ProxAdam` uses Adam's own step sizes.

**Source:** Robert Tibshirani, "Regression Shrinkage and Selection via the Lasso", Journal of
the Royal Statistical Society B, 1996, in the manner of Ilya Loshchilov, Frank Hutter,
"Decoupled Weight Decay Regularization", ICLR 2019. **Reference:**
:class:`torchreg.optim.DecoupledDecay`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures

for decay, color in (("L2", pictures.FAINT), ("L1", pictures.BLUE)):
    paths = {
        f"{start}": (range(201), pictures.decayed(start=start, decay=decay))
        for start in (1.0, 0.6, 0.2)
    }
    pictures.lines(
        f'decay="{decay}"',
        paths,
        colors=[color] * 3,
        labels=False,
        xlabel="step",
        ylim=(0, 1.05),
    )

# %%
# Three weights without a gradient, with a learning rate of 0.5 and a decay of 0.01. With L2
# they become small together; with L1 one after another becomes exactly zero.
#
# In a model:

from torch import nn

from torchreg.optim import AdamW

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, decay="L1")
