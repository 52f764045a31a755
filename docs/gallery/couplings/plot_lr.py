r"""
"lr": decay follows the learning rate
=====================================

With ``coupling="lr"`` the decay is multiplied by the learning rate of the step, as in PyTorch's
AdamW.

.. math:: w \leftarrow (1 - \eta_t \lambda) \, w

where :math:`\eta_t` is the learning rate and :math:`\lambda` is ``weight_decay``.

**Take this coupling** to reproduce runs of ``torch.optim.AdamW``: it is the default.

**Do not take this coupling** where the learning rate is still to be tuned: each change of it
changes the decay as well (:doc:`"independent" <plot_independent>`, :doc:`"constant"
<plot_constant>`).

**Source:** ``torch.optim.AdamW``, after Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay
Regularization", ICLR 2019. **Reference:** :class:`torchreg.optim.DecoupledDecay`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

pictures.couplings("lr")

# %%
# The learning rate begins at 0.5, and the decay is 0.01. Where the learning rate falls, the
# decay falls with it.
#
# In a model:

from torch import nn

from torchreg.optim import AdamW

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, coupling="lr")
