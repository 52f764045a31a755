"""Penalties on a weight as a matrix with one row for each output unit, and on its Gram matrix.

The kernel of a convolution is the matrix (outputs, everything else): its rows are the filters. In transposed
convolutions and embeddings the outputs are the second dimension of the weight. A :class:`~torchreg.Regularizer` knows
that; elsewhere pass ``dim=1``. A weight with fewer than two dimensions is a column. Half precision is computed in
float32.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.base import Term
from torchreg.penalties.described import Described
from torchreg.penalties.partition import Partition, output_dim, split
from torchreg.selection.parameters import ParamInfo


class AsMatrix(Described):
    """Mixin for what acts on a weight as a matrix; the field ``dim`` says on which dimension its rows are.

    Args:
        dim: the dimension of the output units, which become the rows of the matrix. ``None``: the dimension that the
            module has them on; without a module the first.

    Raises:
        TypeError: ``dim`` is not a whole number.
        ValueError: the weight has no such dimension.
    """

    dim: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim is not None and (isinstance(self.dim, bool) or not isinstance(self.dim, int)):
            raise TypeError(f"{type(self).__name__}: dim must be a whole number or None, got {self.dim!r}")

    def bind(self, place: ParamInfo) -> Self:
        second = self.dim is None and place.param.ndim > 1 and output_dim(place.module)
        return replace(self, dim=1) if second else self  # type: ignore[type-var]  # the final classes are dataclasses

    def _matrix(self, w: Tensor) -> Tensor:
        return f.wide(self._rows(w))

    def _weight(self, matrix: Tensor, w: Tensor) -> Tensor:
        return self._split(w).join([matrix]).to(w.dtype)

    def _rows(self, w: Tensor) -> Tensor:
        (part,) = self._split(w).parts
        return part.rows

    def _split(self, w: Tensor) -> Partition:
        return split(w, self.dim or 0, type(self).__name__)


@dataclass(frozen=True, repr=False, eq=False)
class Matrix(AsMatrix, Term):
    """A penalty on the weight as a matrix.

    Args:
        strength: ``s``, finite and not negative.
        dim: the dimension of the output units, if not the module's own; see :class:`AsMatrix`.

    Raises:
        TypeError: ``dim`` is not a whole number.
        ValueError: the weight has no such dimension.
    """

    dim: int | None = None


class Orthogonality(Matrix):
    """The squared distance of the Gram matrix of the rows, the columns, or both, from the identity.

    Only the smaller Gram matrix is computed. The larger one has the same eigenvalues and additional zeros, as many as
    the difference of the numbers of rows and columns.
    """

    @property
    @abstractmethod
    def _sides(self) -> tuple[bool, bool]:
        """Whether the Gram matrix of the rows counts, and whether that of the columns counts."""

    def value(self, w: Tensor) -> Tensor:
        matrix = self._matrix(w)
        (rows, columns), (by_rows, by_columns) = matrix.shape, self._sides
        beyond = by_rows * max(rows - columns, 0) + by_columns * max(columns - rows, 0)
        square = 2 * f.half_square(self._excess(matrix))
        return (self.strength * (sum(self._sides) * square + beyond)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        matrix = self._matrix(w)
        excess = self._excess(matrix)
        product = excess @ matrix if len(excess) == len(matrix) else matrix @ excess
        return self._weight(product * (4 * self.strength * sum(self._sides)), w)

    def _excess(self, matrix: Tensor) -> Tensor:
        rows, columns = matrix.shape
        gram = matrix @ matrix.mH if rows <= columns else matrix.mH @ matrix
        return gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


@final
@dataclass(frozen=True, repr=False, eq=False)
class SoftOrthogonality(Orthogonality):
    r"""Soft orthogonality: draws the weight vectors of the output units towards an orthonormal system.

    .. math:: R(W) = s \|W W^H - I\|_F^2, \qquad \nabla R(W) = 4 s (W W^H - I) W

    With more outputs than inputs the vectors cannot be orthonormal: then ``R >= s * (outputs - inputs)``, with equality
    where the vectors of the inputs are. The penalty is not convex and has no proximal operator in closed form.

    Args:
        strength: ``s``, finite and not negative.
        dim: the dimension of the output units in the weight, if not the module's own.

    Raises:
        ValueError: the weight has no such dimension.

    Example:
        >>> import torch
        >>> SoftOrthogonality(1.0).value(torch.diag(torch.tensor([2.0, 1.0])))
        tensor(9.)

    References:
        Nitin Bansal, Xiaohan Chen, Zhangyang Wang, "Can We Gain More from Orthogonality Regularizations in Training
        Deep CNNs?", NeurIPS 2018.
    """

    @property
    def _sides(self) -> tuple[bool, bool]:
        return True, False


@final
@dataclass(frozen=True, repr=False, eq=False)
class DoubleSoftOrthogonality(Orthogonality):
    r"""Double soft orthogonality: draws the weight vectors of both outputs and inputs towards orthonormal systems.

    .. math:: R(W) = s \big( \|W W^H - I\|_F^2 + \|W^H W - I\|_F^2 \big)

    The two terms differ by a constant, the difference of the numbers of outputs and inputs. The gradient is therefore
    that of ``SoftOrthogonality(2 * s)``.

    Args:
        strength, dim: as for :class:`SoftOrthogonality`.

    Raises:
        ValueError: the weight has no such dimension.

    Example:
        >>> import torch
        >>> DoubleSoftOrthogonality(1.0).value(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        tensor(19.)

    References:
        Nitin Bansal, Xiaohan Chen, Zhangyang Wang, "Can We Gain More from Orthogonality Regularizations in Training
        Deep CNNs?", NeurIPS 2018.
    """

    @property
    def _sides(self) -> tuple[bool, bool]:
        return True, True
