"""Ridge regression by one eigendecomposition, for all strengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 2048  # rows or columns that are converted to double precision at a time
_COLUMNS = 512  # outputs times strengths that are computed at a time


@dataclass(frozen=True, eq=False)
class Residuals:
    """The squared residuals at several strengths, as sums over the outputs."""

    total: Tensor  # (strengths,)
    left_out: Tensor  # of each example by the fit to all others: (examples, strengths)


class Spectrum:
    r"""Centered features :math:`X = U \operatorname{diag}(\sqrt\lambda) V^\top` and targets :math:`Z = U^\top Y`.

    The smaller of the two Gram matrices is decomposed: :math:`X X^\top` if there are no more examples than features,
    else :math:`X^\top X`. It is summed up in double precision, from chunks of features in a precision of their own.
    Eigenvalues that are only rounding are 0.

    For :math:`X X^\top` the basis spans everything that the bias leaves, also where :math:`\lambda = 0`. So what ought
    to be tiny, as :math:`1 - h_{ii}` at a weak strength, is a sum of tiny terms and no difference of large ones.

    Args:
        x: features, ``(examples, features)``.
        y: targets in double precision, ``(examples, outputs)``.
        has_bias: whether features and targets are centered.
    """

    def __init__(self, x: Tensor, y: Tensor, has_bias: bool) -> None:
        self.x, self.has_bias = x, has_bias
        self.examples, self.outputs = y.shape
        self.free = self.examples - has_bias  # the dimensions of the targets that the bias leaves
        self.is_dual = self.free <= x.shape[1]
        self._first_x, self._mean_x = self._center_of(x)  # two parts: less rounding for features far from 0
        self._first_y, self._mean_y = self._center_of(y)
        self.y = (y - self._first_y) - self._mean_y
        _check_squares("targets", self.y)
        with torch.no_grad():
            self.values, self._basis = self._from_examples() if self.is_dual else self._from_features()
            if self.is_dual:
                self.z = self._basis.T @ self.y
                self.rest = 0.0
            else:
                cross = sum((x.T @ y for x, y in self._row_chunks()), torch.zeros_like(self.y[:1]))
                self.z = self._basis.T @ cross / self.values.sqrt()[:, None]
                weight = self._basis @ (self.z / self.values.sqrt()[:, None])  # without a penalty
                self.rest = sum(float((y - x @ weight).square().sum()) for x, y in self._row_chunks())

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values.amax()) if len(self.values) else 0.0

    @property
    def squares(self) -> Tensor:
        """The squares of the targets in each direction, as sums over the outputs."""
        return self.z.square().sum(1)

    def shrinkage(self, alphas: Sequence[float]) -> Tensor:
        r"""What is left of the targets in each direction, :math:`\alpha / (\lambda + \alpha)`, for each alpha."""
        alpha = torch.tensor(alphas, dtype=torch.float64, device=self.values.device)
        return alpha / (self.values[:, None] + alpha)

    @torch.no_grad()
    def residuals(self, alphas: Sequence[float]) -> Residuals:
        r"""The squared residuals :math:`e_i^2` and those of the fit to all others, :math:`e_i^2 / (1 - h_{ii})^2`."""
        shrinkage = self.shrinkage(alphas)
        total, left_out = torch.zeros_like(shrinkage[:1].sum(0)), []
        at_once = max(1, _COLUMNS // self.outputs)
        for u, y in self._rows():
            rest, room = torch.zeros_like(y), torch.zeros_like(y[:, :1])
            if not self.is_dual:  # else the basis is complete
                rest = y - u @ self.z
                room = (self.free / self.examples - u.square().sum(1, keepdim=True)).clamp(min=0)
            sizes = torch.cat([self._sizes(u, rest, left) for left in shrinkage.split(at_once, 1)], 1)
            total += sizes.square().sum(0)
            left_out.append((sizes / (room + u.square() @ shrinkage)).square())
        return Residuals(total, torch.cat(left_out))

    def _sizes(self, u: Tensor, rest: Tensor, shrinkage: Tensor) -> Tensor:
        """The norms of the residuals of some examples over the outputs, for each strength."""
        shrunk = shrinkage[:, :, None] * self.z[:, None]
        outputs = (u @ shrunk.flatten(1)).view(-1, *shrunk.shape[1:])
        sizes: Tensor = torch.linalg.vector_norm(outputs + rest[:, None], dim=2)
        return sizes

    def evidence(self, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The variance of the noise with the largest evidence, and the logarithm of the evidence, for each alpha."""
        shrinkage, count = self.shrinkage(alphas), self.free * self.outputs
        noise = self._misfit(shrinkage) / count
        fit = -count / 2 * ((2 * math.pi * noise).log() + 1)
        return noise, fit + self.outputs / 2 * shrinkage.log().sum(0)

    def evidence_slope(self, alpha: float) -> float:
        """The derivative of the logarithm of the evidence by that of alpha."""
        shrinkage = self.shrinkage([alpha])
        growth = self.squares @ (shrinkage * (1 - shrinkage))
        fit = self.free * self.outputs * growth / self._misfit(shrinkage)
        return float((self.outputs * (1 - shrinkage).sum(0) - fit) / 2)

    def norms(self, alphas: Sequence[float]) -> Tensor:
        """The norm of the weight for each alpha."""
        alpha = torch.tensor(alphas, dtype=torch.float64, device=self.values.device)
        factors = self.values.sqrt()[:, None] / (self.values[:, None] + alpha)
        return (self.squares @ factors.square()).sqrt()

    def _misfit(self, shrinkage: Tensor) -> Tensor:
        """The squared residuals plus alpha times the squared weights, at the solution."""
        return self.rest + self.squares @ shrinkage

    @torch.no_grad()
    def solution(self, alpha: float) -> tuple[Tensor, Tensor]:
        """The weight ``(outputs, features)`` and the bias."""
        if self.is_dual:
            dual = self._basis @ (self.z * ((self.values > 0) / (self.values + alpha))[:, None])
            weight = torch.cat([x.T @ dual for x in self._column_chunks()]).T
        else:
            weight = (self._basis @ (self.z * (self.values.sqrt() / (self.values + alpha))[:, None])).T
        bias = self._first_y + (self._mean_y - weight @ self._mean_x)
        return weight.contiguous(), bias - weight @ self._first_x

    def _center_of(self, of: Tensor) -> tuple[Tensor, Tensor]:
        """The first row, and the mean of the rows less the first: exactly 0 for what is the same in all examples."""
        zero = torch.zeros(of.shape[1], dtype=torch.float64, device=of.device)
        if not self.has_bias:
            return zero, zero
        first = of[0].double()
        return first, torch.cat([(part.double() - part[0].double()).mean(0) for part in of.split(_CHUNK, 1)])

    def _column_chunks(self) -> Iterator[Tensor]:
        centers = self._first_x.split(_CHUNK), self._mean_x.split(_CHUNK)
        for part, first, mean in zip(self.x.split(_CHUNK, 1), *centers, strict=True):
            yield (part.double() - first) - mean

    def _row_chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(self.x.split(_CHUNK), self.y.split(_CHUNK), strict=True):
            yield (x.double() - self._first_x) - self._mean_x, y

    def _rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of U, with the centered targets."""
        if self.is_dual:
            yield from zip(self._basis.split(_CHUNK), self.y.split(_CHUNK), strict=True)
            return
        for x, y in self._row_chunks():
            yield x @ self._basis / self.values.sqrt(), y

    def _from_examples(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of X Xᵀ and U, with a column for every direction but that of the bias."""
        gram = self.y.new_zeros(self.examples, self.examples)
        for x in self._column_chunks():
            gram.addmm_(x, x.T)
        _check_squares("features", gram)
        size = gram.norm()
        if self.has_bias:  # the eigenvalue of its direction, 0, becomes the largest, so that it is left out below
            gram += torch.where(size > 0, 2 * size, 1.0) / self.examples
        values, basis = torch.linalg.eigh(gram)
        values, basis = values[: self.free], basis[:, : self.free]
        return values * (_is_more_than_rounding(values) & (size > 0)), basis

    def _from_features(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of Xᵀ X that are more than rounding, and V."""
        gram = self.y.new_zeros(self.x.shape[1], self.x.shape[1])
        for x, _ in self._row_chunks():
            gram.addmm_(x.T, x)
        _check_squares("features", gram)
        values, basis = torch.linalg.eigh(gram)
        counted = _is_more_than_rounding(values)
        return values[counted], basis[:, counted]


def _is_more_than_rounding(eigenvalues: Tensor) -> Tensor:
    return eigenvalues > len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.amax()


def _check_squares(name: str, values: Tensor) -> None:
    if not math.isfinite(float(values.norm().square())):
        raise ValueError(f"ridge_path: {name} must have finite squares, got too large ones: divide them by their size")
