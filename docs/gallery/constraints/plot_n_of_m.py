r"""
NofM: the pattern that GPUs compute with
========================================

NofM keeps the n largest weights in each run of m inputs. Two of four is the pattern of the sparse
tensor cores.

.. math::

    C &= \{ w : \|w_g\|_0 \le n \text{ for every run } g \text{ of } m \text{ weights} \} \\
    P(w) &= \operatorname*{argmin}_{u \in C} \|u - w\|_2

A run is :math:`m` consecutive weights into one unit, :math:`m` divides their number, and
:math:`\|w_g\|_0` counts those that are not zero.

**Take NofM** for weights that are to be compressed by
:func:`torch.sparse.to_sparse_semi_structured`.

**Do not take NofM** for fewer weights alone: :doc:`Sparsest <plot_sparsest>` with the same number
keeps larger ones.

**Source:** Aojun Zhou, Yukun Ma, Junnan Zhu, Jianbo Liu, Zhijie Zhang, Kun Yuan, Wenxiu Sun,
Hongsheng Li, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR
2021. **Reference:** :class:`torchreg.NofM`.
"""

import pictures

from torchreg import NofM, Sparsest

pictures.before_and_after({"NofM(2, 4)": NofM(2, 4), "Sparsest(0.5)": Sparsest(0.5)})

# %%
# Weights of six units (blue: positive, orange: negative). Of each four in a row two stay. Half of
# the weights wherever they are (right) leaves more in some runs than in others.
#
# In a model:

import torch
from torch import nn

from torchreg import NofM, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, NofM(2, 4), mode="prox").attach(optimizer)
