r"""
SpectralNorm: how much a layer can stretch
==========================================

SpectralNorm shrinks the largest singular value: the most that a layer can stretch its input.

.. math::

    R(W) &= \frac{s}{2} \sigma_1(W)^2 \\
    \operatorname{prox}_{tR}(W) &= \operatorname*{argmin}_U \tfrac12 \|U - W\|_F^2 + t R(U) \\
    &= U \min(\Sigma, \tau) V^H

with :math:`W = U \Sigma V^H` and :math:`\tau = \max_k (\sigma_1 + \dots + \sigma_k) / (k + ts)`.

**Take SpectralNorm** so that small changes of the input make small changes of the output.

**Do not take SpectralNorm** for convolutions where the bound must be exact:
:doc:`ConvolutionNorm <plot_convolution_norm>`.

**Source:** Yuichi Yoshida, Takeru Miyato, "Spectral Norm Regularization for Improving the
Generalizability of Deep Learning", arXiv:1705.10941, 2017. **Reference:**
:class:`torchreg.SpectralNorm`.
"""

import pictures

from torchreg import SpectralNorm

pictures.plane(SpectralNorm, pictures.diagonal)
pictures.singular_values(SpectralNorm)

# %%
# Left: a matrix with the singular values :math:`\sigma_1, \sigma_2`. The level sets are
# squares: only the larger one counts, and the minimum goes to where both are equal. Right: a
# regression with eight outputs. The largest singular value is pressed down on the next one,
# then both go down together. The small ones are left alone.
#
# In a model:

import torch
from torch import nn

from torchreg import Regularizer, SpectralNorm

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
regularizer = Regularizer(model, SpectralNorm(1e-2), mode="grad").attach(optimizer)
