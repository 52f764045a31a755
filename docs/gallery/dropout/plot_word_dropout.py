r"""
WordDropout: an unknown word in the place of words
==================================================

WordDropout replaces words of the input, given as token numbers, by the number of an unknown
word.

.. math::

    y_t &= \begin{cases} x_t & m_t = 1 \\ \text{unknown} & m_t = 0 \end{cases} \\
    m_t &\sim \operatorname{Bernoulli}(1 - p)

each word on its own, whatever its type. In evaluation mode it is the identity.

**Take WordDropout** for texts with rare words, and for decoders that shall look at the code
instead of the last word.

**Do not take WordDropout** for padding and for marks of beginning and end: name those in
``keep``.

**Source:** Mohit Iyyer, Varun Manjunatha, Jordan Boyd-Graber, Hal Daumé III, "Deep Unordered
Composition Rivals Syntactic Methods for Text Classification", ACL 2015. Samuel R. Bowman, Luke
Vilnis, Oriol Vinyals, Andrew M. Dai, Rafal Jozefowicz, Samy Bengio, "Generating Sentences from
a Continuous Space", CoNLL 2016. **Reference:** :class:`torchreg.nn.WordDropout`.
"""

import pictures
import torch

from torchreg.nn import WordDropout

words = pictures.SENTENCE
numbers, _ = pictures.tokens()
unknown = int(numbers.max()) + 1
names = dict(zip(numbers.tolist(), words, strict=True)) | {unknown: "unk"}
layer = WordDropout(0.3, unknown=unknown)
torch.manual_seed(0)
draws = {
    f"draw {k}": [names[number] for number in layer(numbers).tolist()] for k in range(1, 6)
}
pictures.sentences({"input": words, **draws}, "unk")

# %%
# Five draws at a rate of 0.3.
#
# In a model:

from torch import nn

from torchreg.nn import WordDropout

model = nn.Sequential(WordDropout(0.1, unknown=1, keep=[0]), nn.Embedding(1000, 24))
