r"""
MultiheadAttention: weights, keys or heads
==========================================

MultiheadAttention is a drop-in replacement of :class:`torch.nn.MultiheadAttention` with a
generator. ``drop`` chooses what it drops, with probability :math:`p`.

.. math::

    \texttt{"weights"}: \quad & \frac{m}{1 - p} \operatorname{softmax}(z) \\
    \texttt{"keys"}: \quad & \operatorname{softmax}(z + \log m) \\
    \texttt{"heads"}: \quad & \frac{m_h}{1 - p} \operatorname{softmax}(z)

for the logits :math:`z` of a head and :math:`m \sim \operatorname{Bernoulli}(1 - p)`. In
evaluation mode it is torch's layer.

**Take MultiheadAttention** in transformers: ``"weights"`` as torch does, ``"keys"`` in vision,
``"heads"`` if few heads do all the work.

**Do not take MultiheadAttention** with a generator on a GPU for long sequences: the weights are
then held in memory. Without a generator torch's fused kernels are used.

**Source:** Bonan Li and others, "DropKey for Vision Transformer", CVPR 2023. Wangchunshu Zhou
and others, "Scheduled DropHead: A Regularization Method for Transformer Models", Findings of
EMNLP 2020. **Reference:** :class:`torchreg.nn.MultiheadAttention`.
"""

# sphinx_gallery_thumbnail_number = 2

import pictures
import torch

from torchreg.nn import MultiheadAttention

torch.manual_seed(0)
words = 4 * (pictures.tokens()[1][:7] - 0.5)[None]
layer = MultiheadAttention(24, 4, dropout=0.3, batch_first=True)


def heads(drop: str, seed: int = 3) -> torch.Tensor:
    """The weights of four heads beside each other; no dropout in evaluation mode."""
    torch.manual_seed(seed)
    layer.drop = drop
    _, weights = layer(words, words, words, average_attn_weights=False)
    return torch.nn.functional.pad(weights[0], (0, 1)).permute(1, 0, 2).flatten(1)[:, :-1]


shape = {"size": (4.2, 1.7), "rows": pictures.SENTENCE[:7], "most": 0.7, "xlabel": "keys"}
layer.eval()
plain = heads("weights")
pictures.matrix(plain, "four heads without dropout", **shape)
layer.train()
for drop in ("weights", "keys", "heads"):
    found = heads(drop)
    pictures.matrix(found, f'drop="{drop}"', dropped=(found == 0) & (plain != 0), **shape)

# %%
# The weights of each word (rows) for the words of a sentence, in four heads. Dropped are
# weights, of which the others are scaled (blue); keys, of which the others still add up to 1;
# and heads.
#
# In a model:

from torch import nn

from torchreg.nn import MultiheadAttention, replace_dropout

model = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
replace_dropout(
    model, {nn.MultiheadAttention: lambda old: MultiheadAttention.of(old, drop="keys")}
)
