r"""
"timescale": decay as a number of steps
=======================================

With ``coupling="timescale"`` the strength is a number of steps: so many steps without a gradient
leave about 37 % of a weight, whatever the learning rate is. The decay follows the schedule of the
learning rate.

.. math:: w \leftarrow \Big(1 - \frac{\eta_t}{\eta_{\max}} \cdot \frac1\tau\Big) \, w

where :math:`\eta_t` is the learning rate now, :math:`\eta_{\max}` its peak and :math:`\tau` is ``timescale``.

**Take this coupling** to choose the decay in epochs, and to keep it when the data, the batch or
the model grows: a weight is an average over the updates of the last :math:`\tau` steps.

**Do not take this coupling** to reproduce runs of ``torch.optim.AdamW``, whose timescale is
:math:`1 / (\eta\lambda)` (:doc:`"lr" <plot_lr>`).

**Source:** Xi Wang, Laurence Aitchison, "How to Set AdamW's Weight Decay as You Scale Model and
Dataset Size", arXiv:2405.13698, 2024. **Reference:** :class:`torchreg.optim.DecoupledDecay`.
"""

# sphinx_gallery_thumbnail_number = 4

import pictures

pictures.couplings("timescale")

# %%
# The learning rate begins at 0.5. The timescale is 100 steps, which is the decay of
# ``coupling="independent"`` with ``weight_decay=0.01``.
#
# A weight whose gradient changes its sign at step 100, with three timescales, at a constant
# learning rate that is the same for all:

import torch
from torch import nn

from torchreg.optim import SGDW

paths = {}
for timescale in (10, 50, 250):
    w = nn.Parameter(torch.zeros(1))
    optimizer = SGDW([w], lr=0.1, coupling="timescale", timescale=timescale)
    paths[f"$\\tau = {timescale}$"] = sizes = []
    for step in range(200):
        w.grad = torch.full_like(w, (-10.0 if step < 100 else 10.0) / timescale)
        optimizer.step()
        sizes.append(w.item())

pictures.lines(
    "a weight whose gradient changes its sign",
    {name: (range(200), sizes) for name, sizes in paths.items()},
    size=(4.4, 2.6),
    colors=(pictures.FAINT, pictures.BLUE, pictures.FAINT),
    xlabel="step",
    ylim=(-1.1, 1.1),
)

# %%
# With a short timescale the weight soon forgets the first gradients. With a long one it is an
# average over nearly all steps. The gradients are scaled so that each weight tends to 1 or -1.
#
# In a model:

from torch import nn

from torchreg.optim import AdamW

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
steps_per_epoch = 1000
optimizer = AdamW(
    model.parameters(), lr=1e-3, coupling="timescale", timescale=5 * steps_per_epoch
)
