r"""
"constant": decay follows nothing
=================================

With ``coupling="constant"`` each step takes the same share of the weight, whatever the learning
rate.

.. math:: w \leftarrow (1 - \lambda) \, w

where :math:`\lambda` is ``weight_decay``.

**Take this coupling** to give the decay a schedule of its own, with ``decay_schedule``.

**Do not take this coupling** with a learning rate that ends at zero and without a
``decay_schedule``: the last steps only decay.

**Source:** the constant case of Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay
Regularization", ICLR 2019. **Reference:** :class:`torchreg.optim.DecoupledDecay`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

pictures.couplings("constant")

# %%
# The learning rate begins at 0.5, and the decay is 0.01. The three curves are the same.
#
# In a model:

from torch import nn

from torchreg.optim import AdamW

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, coupling="constant")
