r"""
towards="start": decay towards the first weights
================================================

With ``towards="start"`` weights decay towards what they were when the optimizer was made,
instead of zero.

.. math:: w \leftarrow w - r_t \lambda \, (w - w^0)

where :math:`r_t` follows from the coupling and :math:`\lambda` is ``weight_decay``.

**Take this decay** for fine-tuning: the weights stay near the pretrained ones.

**Do not take this decay** for layers that are new: give them a parameter group of their own.

**Source:** Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer
Learning with Convolutional Networks", ICML 2018. **Reference:**
:class:`torchreg.optim.DecoupledDecay`.
"""

import pictures

settings = {"gradient": lambda w: w - 2, "lr": 0.05, "weight_decay": 0.5}
paths = {
    f'towards="{towards}"': (range(201), pictures.decayed(towards=towards, **settings))
    for towards in ("start", "zero")
}
look = {"colors": (pictures.BLUE, pictures.FAINT), "xlabel": "step", "ylim": (0, 2.3)}
level = ("minimum of the loss", 2)
pictures.lines("a weight that begins at 1", paths, size=(4.4, 2.6), level=level, **look)

# %%
# A weight that begins at 1, with a loss that is least at 2. The decay draws it back to 1, or to
# 0.
#
# In a model:

from torch import nn

from torchreg.optim import AdamW

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, towards="start")
