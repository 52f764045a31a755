r"""
cautious: decay only where the update agrees
============================================

With ``cautious=True`` a weight decays only in steps whose update moves it towards zero as well.

.. math:: w_i \leftarrow w_i - r_t \lambda \, w_i \cdot \mathbb{1}[u_i w_i \le 0]

where :math:`u` is the optimizer's update of the step, :math:`r_t` follows from the coupling and :math:`\lambda` is
``weight_decay``.

**Take cautious decay** to keep decay from working against the loss.

**Do not take cautious decay** to make weights small: where the loss wants a weight to be large,
it stays large.

**Source:** Lizhang Chen, Jonathan Li, Kaizhao Liang and others, "Cautious Weight Decay", ICLR
2026. **Reference:** :class:`torchreg.optim.DecoupledDecay`.
"""

import pictures

settings = {"gradient": lambda w: w - 2, "lr": 0.05, "weight_decay": 0.5}
look = {"colors": (pictures.BLUE, pictures.FAINT), "xlabel": "step", "ylim": (0, 3.2)}
for start in (1.0, 3.0):
    paths = {
        name: (range(121), pictures.decayed(cautious=cautious, start=start, **settings)[:121])
        for name, cautious in {"cautious": True, "ordinary": False}.items()
    }
    title = f"a weight that begins at {start:g}"
    pictures.lines(title, paths, level=("minimum of the loss", 2), **look)

# %%
# A weight with a loss that is least at 2. Ordinary decay ends below 2 in both. Cautious decay
# does not act on a weight that grows, and helps one that shrinks until the loss pulls it back.
#
# In a model:

from torch import nn

from torchreg.optim import AdamW

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, cautious=True)
