r"""
"independent", "schedule": decay follows the schedule only
==========================================================

With ``coupling="independent"`` the decay is multiplied by the learning rate's share of its peak.
So it follows the schedule, and is independent of the size of the learning rate. ``"schedule"`` is
another name of this coupling.

.. math:: w \leftarrow \Big(1 - \frac{\eta_t}{\eta_{\max}} \lambda\Big) \, w

where :math:`\eta_t` is the learning rate now, :math:`\eta_{\max}` its peak and :math:`\lambda` is ``weight_decay``.

**Take this coupling** to tune learning rate and decay one after the other: twice the learning
rate leaves the decay as it is.

**Do not take this coupling** to reproduce runs of ``torch.optim.AdamW`` (:doc:`"lr"
<plot_lr>`).

**Source:** Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", ICLR 2019;
Mitchell Wortsman, Peter J. Liu, Lechao Xiao and others, "Small-scale Proxies for Large-scale
Transformer Training Instabilities", ICLR 2024. **Reference:**
:class:`torchreg.optim.DecoupledDecay`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

pictures.couplings("independent")

# %%
# The learning rate begins at 0.5, and the decay is 0.01. The decay begins at full strength,
# whatever the learning rate is, and then falls as the learning rate falls.
#
# In a model:

import torch
from torch import nn

from torchreg.optim import AdamW

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, coupling="independent")
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)
