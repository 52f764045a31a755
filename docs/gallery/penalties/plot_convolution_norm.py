r"""
ConvolutionNorm: how much a convolution can stretch
===================================================

ConvolutionNorm shrinks the norm of a convolution as an operator on images. It is exact for
circular padding.

.. math::

    R(K) &= \frac{s}{2} \max_\omega \sigma_1\big(\hat K(\omega)\big)^2 \\
    \hat K(\omega)_{oi} &= \sum_x K_{oix} \, e^{-2 \pi \mathrm{i} \langle \omega, x \rangle}

over the frequencies :math:`\omega` of images of the given size. It has no proximal operator in closed form.

**Take ConvolutionNorm** for convolutions whose Lipschitz constant matters.

**Do not take ConvolutionNorm** for strides above 1 where the value must be exact: there it is
an upper bound. Take :doc:`SpectralNorm <plot_spectral_norm>` for linear layers.

**Source:** Hanie Sedghi, Vineet Gupta, Philip M. Long, "The Singular Values of Convolutional
Layers", ICLR 2019. **Reference:** :class:`torchreg.ConvolutionNorm`.
"""

import pictures
import torch

from torchreg import ConvolutionNorm

kernel = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(2)) / 4 + 0.08
strengths = [0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0]


def stretch(k):
    """The largest singular value at each frequency of images of 16 x 16 pixels, the lowest in the middle."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(k, s=(16, 16)), dim=(-2, -1))
    return torch.linalg.svdvals(spectrum.movedim((0, 1), (-2, -1)))[..., 0]


along = pictures.follow(
    lambda s: ConvolutionNorm(s, (16, 16)), lambda k: k - kernel, kernel, strengths, 1.0, 30
)
most = stretch(kernel).max().item()
words = {"most": most, "xlabel": "horizontal frequency", "ylabel": "vertical frequency"}
pictures.matrix(stretch(kernel), "stretch by frequency, s = 0", **words)
pictures.matrix(stretch(along[5]), "stretch by frequency, s = 0.3", **words)
largest, median = (
    [f(stretch(k)).item() for k in (kernel, *along)] for f in (torch.max, torch.median)
)
pictures.lines(
    "stretch along the strength",
    {"largest": ([0, *strengths], largest), "median": ([0, *strengths], median)},
    size=(2.35, 2.4),
    xlabel="strength",
    ylim=(0, 4),
)

# %%
# How much a convolution with four channels stretches images of each frequency (blue: the more,
# the darker), before and after the minimum of :math:`\tfrac12 \|K - K_0\|^2 + R(K)` is found.
# The peaks are cut, the rest stays.
#
# In a model:

import torch
from torch import nn

from torchreg import ConvolutionNorm, Regularizer, in_modules

model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
penalty = ConvolutionNorm(1e-2, input_size=(28, 28))
regularizer = Regularizer(model, penalty, mode="grad", select=in_modules(nn.Conv2d)).attach(
    optimizer
)
