r"""
EmbeddingDropout: word types
============================

EmbeddingDropout drops words of the vocabulary: all occurrences of a word in a sequence go
together, or none does.

.. math::

    y_{nt} &= \frac{m_{n, w}}{1 - p} E_w \\
    w &= x_{nt}, \quad m_{nw} \sim \operatorname{Bernoulli}(1 - p)

In evaluation mode it is the embedding itself.

**Take EmbeddingDropout** in language models, so that none depends on a single word.

**Do not take EmbeddingDropout** for a sequence of one word, or for embeddings whose every entry
is needed, such as positions.

**Source:** Yarin Gal, Zoubin Ghahramani, "A Theoretically Grounded Application of Dropout in
Recurrent Neural Networks", NIPS 2016. Stephen Merity, Nitish Shirish Keskar, Richard Socher,
"Regularizing and Optimizing LSTM Language Models", ICLR 2018. **Reference:**
:class:`torchreg.nn.EmbeddingDropout`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch
from torch import nn

from torchreg.nn import EmbeddingDropout

numbers, vectors = pictures.tokens()
embedding = nn.Embedding(int(numbers.max()) + 1, 24)
embedding.weight.data[numbers] = vectors
layer = EmbeddingDropout(embedding, 0.4)
torch.manual_seed(9)
both = layer(numbers.unsqueeze(1).expand(-1, 2)).detach()

pictures.sequence(vectors, "input")
for number in range(2):
    pictures.sequence(both[:, number], f"sequence {number + 1}", both[:, number] == 0)

# %%
# A sentence, one row a word, one column a feature of its vector (orange: dropped), and the same
# sentence twice in a batch. Equal words share their fate within a sequence.
#
# In a model:

from torch import nn

from torchreg.nn import EmbeddingDropout

layer = EmbeddingDropout(nn.Embedding(1000, 24), p=0.1)
network = nn.LSTM(24, 32)
