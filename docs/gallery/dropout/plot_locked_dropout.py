r"""
LockedDropout: the same features at each time
=============================================

LockedDropout draws one mask for each sequence and keeps it over time.

.. math::

    y_{tnf} &= \frac{m_{nf}}{1 - p} x_{tnf} \\
    m_{nf} &\sim \operatorname{Bernoulli}(1 - p)

for time :math:`t`, sequence :math:`n` and feature :math:`f`. In evaluation mode it is the identity.

**Take LockedDropout** around recurrent networks, which would otherwise get the dropped features
back at the next time.

**Do not take LockedDropout** where the positions of a sequence are independent examples.

**Source:** Yarin Gal, Zoubin Ghahramani, "A Theoretically Grounded Application of Dropout in
Recurrent Neural Networks", NIPS 2016. Stephen Merity, Nitish Shirish Keskar, Richard Socher,
"Regularizing and Optimizing LSTM Language Models", ICLR 2018. **Reference:**
:class:`torchreg.nn.LockedDropout`.
"""

import pictures

from torchreg.nn import Dropout, LockedDropout

_, vectors = pictures.tokens()
both = (
    vectors.unsqueeze(1).expand(-1, 2, -1).contiguous()
)  # the same sentence twice: time, batch, features
output, dropped = pictures.drawn(LockedDropout(0.4), both, seed=0)
pictures.sequence(output[:, 0], "LockedDropout, sequence 1", dropped[:, 0])
pictures.sequence(output[:, 1], "LockedDropout, sequence 2", dropped[:, 1])
output, dropped = pictures.drawn(Dropout(0.4), both, seed=0)
pictures.sequence(output[:, 0], "Dropout", dropped[:, 0])

# %%
# A sentence, one row a word, one column a feature of its vector (orange: dropped). Each
# sequence loses its own features, at each time the same ones. Ordinary dropout draws anew at
# each time.
#
# In a model:

from torch import nn

from torchreg.nn import LockedDropout

embedding, drop, network = nn.Embedding(1000, 24), LockedDropout(0.4), nn.LSTM(24, 32)
