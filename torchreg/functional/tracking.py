"""Singular values of a matrix that changes little from call to call, as a weight in training does."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from torchreg.functional.singular import svd

_SMALL = 128  # up to this side a decomposition takes no longer
_BLOCK = 16  # vectors that are followed; fewer take as long to multiply
_CHANCE = 4  # of these, which are there by chance: a new one in each call, and what became of the last ones
_SPARE = 12  # vectors that are followed beyond the rank
_FEW = 10  # rounds in which a low rank is found; it has changed if they do not suffice
_PROBES = 10  # vectors by chance that see a singular value above the threshold, but in one of 10^10 cases
_POWERS = 4  # of a matrix that they are multiplied by before a decomposition takes as long
_ROUNDS = 100  # twice as many take as long as a decomposition


class _Start(NamedTuple):
    basis: Tensor  # (columns, block), orthonormal
    draw: torch.Generator


# For each weight what the last call found. It is in no copy and in no checkpoint.
_starts = WeakTensorKeyDictionary()
_ranges = WeakTensorKeyDictionary()


def leading_triples(w: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    r"""``(U, sigma, V^H)`` of the largest singular value, by subspace iteration from those of the last call for ``w``.

    A round multiplies a block of vectors by the matrix and its adjoint. Rounds end when the largest Ritz value
    :math:`\theta_1 \approx \sigma_1^2` is certified: every Ritz value with its residual :math:`r_i`, whose square is
    divided by the distance to the smallest value :math:`\theta_k` that is followed, ends below :math:`\theta_1` up to
    rounding:

    .. math:: \max_i \Big( \theta_i + \frac{\|r_i\|^2}{\theta_1 - \theta_k} \Big) \le (1 + 16 \varepsilon)\, \theta_1

    That is right if no singular value outside the block is larger than those in it. Therefore the block has some
    vectors by chance, in which a larger one would appear within a few calls.

    Args:
        w: the weight; what was found is kept as long as it lives.
        matrix: what the weight is as a matrix.

    Returns:
        The triples whose values equal the largest up to rounding, with :math:`W^H u_i = \sigma_i v_i`. None if a
        decomposition is needed: the matrix is small, not finite, or not on the CPU; all values of the block are equal
        up to rounding; there is no certificate after 100 rounds.

    Example:
        >>> w = torch.diag(torch.arange(1.0, 201.0))
        >>> left, sigma, right = leading_triples(w, w)
        >>> round(sigma[-1].item(), 2)
        200.0

    References:
        Beresford N. Parlett, "The Symmetric Eigenvalue Problem", 1998, chapters 11 and 14.
    """
    if min(matrix.shape) <= _SMALL or not matrix.is_cpu or torch.compiler.is_compiling():
        return None
    start = _starts.get(w)
    if start is None or start.basis.dtype != matrix.dtype or len(start.basis) != matrix.shape[1]:
        draw = torch.Generator().manual_seed(0)
        start = _Start(_orthonormal(_noise(matrix, _BLOCK, draw).mH), draw)
    found, block = _iterate(matrix, start.basis)
    if block is not None:
        # In the order of their Ritz values: a vector by chance that found nothing leaves after so many calls.
        kept = [block[: _CHANCE - 1], block[_CHANCE:], _noise(matrix, 1, start.draw).mH]
        _starts[w] = _Start(_orthonormal(torch.cat(kept)), start.draw)
    return found


def _iterate(matrix: Tensor, basis: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor] | None, Tensor | None]:
    """The triples, if they are certified, and rows to go on from, if there are any."""
    precision = torch.finfo(matrix.dtype)
    equal = 8 * max(matrix.shape) * precision.eps
    block = None
    for _ in range(_ROUNDS):
        image = matrix @ basis
        back = matrix.mH @ image  # at once, while the threads are awake
        gram = image.mH @ image
        size = float(gram.diagonal().real.amax())
        if not precision.tiny / precision.eps < size < precision.max:  # it vanishes, overflows or is NaN
            return None, None
        ritz, turn = torch.linalg.eigh(gram / size)
        values = ritz.tolist()
        outside, most = values[_CHANCE], values[-1]
        if most - outside <= equal * most:
            return None, None
        back = back @ (turn / size)
        block = back.mH
        residual = (back - basis @ (turn * ritz)).abs().square_().sum(0)
        reached = most + float(residual[-1]) / most  # |W^H u|**2
        if float((ritz + residual / (most - outside)).amax()) <= (1 + 16 * precision.eps) * reached:
            many = sum(value >= (1 - equal) * most for value in values)
            left = image @ turn[:, -many:] / (ritz[-many:] * size).sqrt()
            right = block[-many:].contiguous()
            length = torch.linalg.vector_norm(right, dim=1, keepdim=True)
            return (left, length.squeeze(1) * (size / ritz[-many:]).sqrt(), right / length), block
        basis = _orthonormal(block)
    return None, block


def low_rank_threshold(w: Tensor, matrix: Tensor, threshold: float) -> Tensor | None:
    r""":func:`~torchreg.functional.singular_value_threshold`, by what is above the threshold alone if that is little.

    The right vectors of the last result for ``w`` and some by chance are multiplied by the matrix and its adjoint,
    until the triples above the threshold, :math:`X = U (\Sigma - t) V^H`, are certified. The problem is strongly
    convex, so that :math:`X` is as near to its minimum as its subdifferential is to 0:

    .. math:: \|X - X^*\|_F \le \|W V - U \Sigma\|_F + \|(\Sigma' - t)_+\|_F

    where :math:`\Sigma'` are the singular values of what is left, :math:`R = W - U \Sigma V^H`. The first term is
    computed and must vanish in rounding. The second one is 0 if :math:`\|R\|_2 \le t`. With ten vectors
    :math:`\omega_i` of normal numbers and :math:`A_q = (R R^H)^q R`

    .. math:: \|R\|_2^{2 q + 1} = \|A_q\|_2 \le 10 \sqrt{2 / \pi} \, \max_i \|A_q \omega_i\|

    holds but in one of :math:`10^{10}` cases. If that is above :math:`t^{2 q + 1}` for all :math:`q \le 3`, a Cholesky
    decomposition of :math:`I - R^H R / t^2` decides, which takes a twelfth of the time of one into singular values.

    Args:
        w: the weight; what was found is kept as long as it lives.
        matrix: what the weight is as a matrix.
        threshold: ``t > 0``.

    Returns:
        The matrix. None if the matrix is small, not finite, or not on the CPU.

    Example:
        >>> w = torch.diag(torch.tensor([3.0, 2.0] + [0.1] * 198))
        >>> low_rank_threshold(w, w, 0.5).diagonal()[:3]
        tensor([2.5000, 1.5000, 0.0000])

    References:
        Nathan Halko, Per-Gunnar Martinsson, Joel A. Tropp, "Finding Structure with Randomness: Probabilistic
        Algorithms for Constructing Approximate Matrix Decompositions", SIAM Review, 2011; lemma 4.1.
    """
    if min(matrix.shape) <= _SMALL or not matrix.is_cpu or torch.compiler.is_compiling():
        return None
    start = _ranges.get(w)
    triples = None
    if start is not None and start.basis.dtype == matrix.dtype and len(start.basis) == matrix.shape[1]:
        triples = _above(matrix, start, threshold)
    draw = torch.Generator().manual_seed(0) if start is None else start.draw
    left, sigma, right = svd(matrix) if triples is None else triples
    if not bool(sigma.isfinite().all()):
        return None
    rank = int((sigma > threshold).sum())
    if rank + _SPARE <= min(matrix.shape) // 8:
        kept = torch.cat([right[: rank + _SPARE - _CHANCE], _noise(matrix, _CHANCE, draw).mH])
        _ranges[w] = _Start(_orthonormal(kept), draw)
    else:
        _ranges.pop(w, None)
    return (left[:, :rank] * (sigma[:rank] - threshold)) @ right[:rank]


def _above(matrix: Tensor, start: _Start, threshold: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """The triples of the block in descending order, if those above the threshold are certified."""
    precision = torch.finfo(matrix.dtype)
    image = matrix @ start.basis
    for _ in range(_FEW):
        if not bool(image.isfinite().all()):
            return None
        span = torch.linalg.qr(image).Q
        back = torch.linalg.qr(matrix.mH @ span)
        if not bool(back.R.isfinite().all()):  # its largest singular value has overflowed
            return None
        right, sigma, left = torch.linalg.svd(back.R)
        left, right = span @ left.mH, back.Q @ right
        image = matrix @ right
        values = sigma.tolist()
        rank = sum(value > threshold for value in values)
        if rank > len(values) - _SPARE // 2:
            return None
        residual = torch.linalg.vector_norm(image - left * sigma, dim=0)
        below, rest = sigma[rank:] / threshold, residual[rank:] / threshold
        gap = 1 - float(below[-1]) ** 2
        is_exact = float(residual[:rank].square().sum()) ** 0.5 <= 16 * precision.eps * values[0]
        if is_exact and gap > 0 and float((below.square() + rest.square() / gap).amax()) <= 1:
            outside = matrix - (left[:, :rank] * sigma[:rank]) @ right[:, :rank].mH
            return (left, sigma, right.mH) if _is_below(outside, threshold, start.draw) else None
    return None


def _is_below(matrix: Tensor, bound: float, draw: torch.Generator) -> bool:
    """Whether no singular value is above it."""
    probes = matrix @ _noise(matrix, _PROBES, draw) / bound
    for _ in range(_POWERS):
        if 10 * math.sqrt(2 / math.pi) * float(torch.linalg.vector_norm(probes, dim=0).amax()) <= 1:
            return True
        probes = matrix @ (matrix.mH @ (probes / bound)) / bound
    tall = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mH) / bound
    gram = (tall.mH @ tall).neg_()
    gram.diagonal().add_(1)
    return int(torch.linalg.cholesky_ex(gram).info) == 0


def _orthonormal(rows: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(rows.contiguous().mH).Q  # on columns, which takes half as long
    return basis


def _noise(matrix: Tensor, count: int, draw: torch.Generator) -> Tensor:
    return torch.randn(matrix.shape[1], count, generator=draw, dtype=matrix.dtype, device=matrix.device)
