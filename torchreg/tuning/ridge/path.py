"""A path of ridge strengths for the last layer of a model, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from torchreg.selection.modules import kind_of
from torchreg.tuning.path.problem import Examples, check_pairs, descending, is_classes
from torchreg.tuning.path.selection import By, Mean, best, one_standard_error
from torchreg.tuning.path.table import aligned, nearest, shown
from torchreg.tuning.ridge.features import head_and_features
from torchreg.tuning.ridge.spectrum import Spectrum

_STRONGEST = 10.0  # the first strength of a path, in units of the largest curvature


@dataclass(frozen=True)
class RidgePoint:
    """One strength of a :class:`RidgePath`.

    Attributes:
        strength: that of the :class:`~torchreg.L2` penalty.
        train_loss: the mean square over all examples and outputs.
        valid_loss, valid_error: the mean square and its root over the examples, each predicted by the head that is
            fitted to all others; with the standard error over the examples.
        gcv: the score of :func:`generalized_cv`, a mean square.
        log_evidence: the logarithm of the density of the targets that :func:`evidence` maximizes.
        noise: the variance of the noise at which the evidence of this strength is largest.
        degrees_of_freedom: the sum of the leverages, for each output; with the bias.
        norm: the norm of the weight.

    Example:
        >>> x, y = torch.eye(4), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> point = ridge_path(nn.Linear(4, 1), (x, y), strengths=[0.5])[0]
        >>> point.strength, round(point.degrees_of_freedom, 6)
        (0.5, 2.5)
    """

    strength: float
    train_loss: float
    valid_loss: Mean
    valid_error: Mean
    gcv: float
    log_evidence: float
    noise: float
    degrees_of_freedom: float
    norm: float

    @property
    def diverged(self) -> bool:
        """Whether a loss is not finite."""
        return not all(map(math.isfinite, (self.train_loss, self.valid_loss.mean)))

    def valid(self, by: By) -> Mean:
        """The loss or the error of the examples that were left out."""
        return self.valid_loss if by == "loss" else self.valid_error


@dataclass(frozen=True, eq=False)
class RidgePath(Sequence[RidgePoint]):
    """The points of a ridge path, from the strongest to the weakest strength. It prints as a table.

    It is a sequence of :class:`RidgePoint`; :func:`ridge_path` returns it.

    Attributes:
        points: the points.
        head: the name of the last layer, "" if it is the model itself.

    Example:
        >>> from torchreg.tuning import generalized_cv
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> path = ridge_path(model, (x, x[:, :1]))
        >>> chosen = generalized_cv(path)
        >>> model.get_submodule(path.head).load_state_dict(path.state_at(chosen.strength))
        <All keys matched successfully>
    """

    points: tuple[RidgePoint, ...]
    head: str
    _spectrum: Spectrum = field(repr=False)
    _like: Tensor = field(repr=False)  # the head's weight

    def __getitem__(self, index: int) -> RidgePoint:  # type: ignore[override]
        return self.points[index]

    def __len__(self) -> int:
        return len(self.points)

    def at(self, strength: float) -> RidgePoint:
        """The point with the nearest strength, on a logarithmic scale."""
        return nearest("ridge_path", self.points, strength)

    def state_at(self, strength: float) -> dict[str, Tensor]:
        """The head's ``state_dict`` at any strength, whether the path has a point there or not."""
        descending("ridge_path", [strength])
        weight, bias = self._spectrum.solution(_alpha(self._spectrum, strength))
        state = {"weight": weight, **({"bias": bias} if self._spectrum.has_bias else {})}
        return {name: value.to(self._like) for name, value in state.items()}

    def __repr__(self) -> str:
        sound = [point for point in self.points if not point.diverged]
        marks: dict[int, list[str]] = {}
        if sound:
            lowest = min(sound, key=lambda point: point.gcv)
            for name, found in (("best", best(self)), ("1 SE", one_standard_error(self)), ("GCV", lowest)):
                marks.setdefault(id(found), []).append(name)
        rows = [["strength", "train loss", "left-out loss", "GCV", "log evidence", "freedom", "norm", ""]]
        for point in self.points:
            numbers = (point.gcv, point.log_evidence, point.degrees_of_freedom, point.norm)
            cells = [f"{point.strength:.4g}", f"{point.train_loss:.4g}", shown(point.valid_loss)]
            cells += [f"{number:.4g}" for number in numbers]
            rows.append([*cells, "diverged" if point.diverged else ", ".join(marks.get(id(point), []))])
        return aligned(rows)


def ridge_path(
    model: nn.Module,
    train: Examples,
    *,
    strengths: Sequence[float] | None = None,
    count: int = 30,
    ratio: float = 1e-8,
    batch_size: int = 1024,
) -> RidgePath:
    r"""The last layer of a model at many strengths of :class:`~torchreg.L2`, in closed form, for squared errors.

    .. math:: w(s) = \operatorname{argmin}_{w, b} \frac{1}{n k} \sum_{i=1}^n \|W \phi(x_i) + b - y_i\|^2
              + \frac{s}{2} \|W\|^2

    where :math:`\phi` is the model before its last layer, in evaluation mode, which is run once over the examples, and
    :math:`k` is the number of outputs. This is the minimum of :class:`torch.nn.MSELoss` and ``L2(s)`` on the weight of
    that layer; scikit-learn's ``Ridge`` reaches it with ``alpha = s * n * k / 2``. For an ``nn.Linear`` alone, the
    features are the inputs.

    One eigendecomposition of the smaller Gram matrix, in double precision, serves all strengths. So each point also
    contains the loss of every example under the head that is fitted to all others, with the same ``alpha``. From the
    path :func:`leave_one_out`, :func:`generalized_cv` and :func:`evidence` choose a strength without held-out examples.
    :func:`best` and :func:`one_standard_error` take it too.

    Args:
        model: a module that ends in an ``nn.Linear``; it is not changed.
        train: inputs, and targets in the shape of the outputs: ``(examples, outputs)``.
        strengths: positive numbers; by default ``count`` numbers in geometric progression from ten times the largest
            second derivative of the loss to ``ratio`` times this.
        batch_size: how many examples go through the model at once.

    Returns:
        The path, from the strongest to the weakest strength. It refers to the features.

    Raises:
        ValueError: a model that does not end in a linear layer, classes as targets, fewer than two examples, numbers
            that are not finite, or no ``strengths`` for features that are the same in all examples.
        TypeError: no model, or examples that are no pair of tensors.

    Example:
        >>> from torchreg.tuning import leave_one_out
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> y = x[:, :1] + torch.randn(60, 1, generator=torch.Generator().manual_seed(1))
        >>> path = ridge_path(nn.Linear(5, 1), (x, y), strengths=[1.0, 0.1, 0.01])
        >>> path.state_at(0.1)["weight"].shape
        torch.Size([1, 5])
        >>> leave_one_out(path).strength
        0.1

    References:
        Arthur E. Hoerl, Robert W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems",
        Technometrics, 1970.
    """
    check_pairs("ridge_path", train=train)
    x, y = train
    _check(model, x, y, count, ratio, batch_size)
    name, head, features = head_and_features(model, x, batch_size)
    if is_classes(y) or y.is_complex() or y.shape != (len(features), head.out_features):
        kind = "class numbers" if is_classes(y) else f"{tuple(y.shape)}"
        hint = f"torch.nn.functional.one_hot(y, {head.out_features}).float()" if is_classes(y) else "y[:, None]"
        raise ValueError(
            f"ridge_path: targets of a squared error must be real with the outputs' shape (n, {head.out_features}), "
            f"got {kind}: {hint} makes it"
        )
    y = y.detach().to(device=features.device, dtype=torch.float64)
    if not y.isfinite().all():
        raise ValueError("ridge_path: targets must be finite, got NaN or infinite ones")
    spectrum = Spectrum(features, y, head.bias is not None)
    if strengths is None:
        curvature = spectrum.largest / _alpha(spectrum, 1.0)
        if not curvature > 0:
            raise ValueError("ridge_path: features must differ between examples, got equal ones: give strengths")
        strengths = [_STRONGEST * curvature * ratio ** (k / max(count - 1, 1)) for k in range(count)]
    return RidgePath(points_at(spectrum, descending("ridge_path", strengths)), name, spectrum, head.weight.detach())


def points_at(spectrum: Spectrum, strengths: Sequence[float]) -> tuple[RidgePoint, ...]:
    """The points of these strengths."""
    n, k = spectrum.examples, spectrum.outputs
    alphas = [_alpha(spectrum, strength) for strength in strengths]
    shrinkage, residuals = spectrum.shrinkage(alphas), spectrum.residuals(alphas)
    outside = spectrum.free - len(spectrum.values)  # directions that the features do not reach
    spread = residuals.left_out.std(0) / k / n**0.5
    noise, log_evidence = spectrum.evidence(alphas)
    columns = {
        "train_loss": residuals.total / (n * k),
        "loss": residuals.left_out.mean(0) / k,
        "se": spread,
        "gcv": n * residuals.total / k / (outside + shrinkage.sum(0)).square(),
        "log_evidence": log_evidence,
        "noise": noise,
        "degrees_of_freedom": int(spectrum.has_bias) + (1 - shrinkage).sum(0),
        "norm": spectrum.norms(alphas),
    }
    points = []
    for strength, *row in zip(strengths, *(column.tolist() for column in columns.values()), strict=True):
        figures = dict(zip(columns, row, strict=True))
        loss = Mean(figures.pop("loss"), figures.pop("se"))
        root = math.sqrt(loss.mean)
        error = Mean(root, loss.se / max(2 * root, 1e-300))
        points.append(RidgePoint(strength=strength, valid_loss=loss, valid_error=error, **figures))
    return tuple(points)


def _alpha(spectrum: Spectrum, strength: float) -> float:
    """What is added to the eigenvalues of the Gram matrix."""
    return strength * spectrum.examples * spectrum.outputs / 2


def _check(model: object, x: object, y: object, count: int, ratio: float, batch_size: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"ridge_path: the first argument must be a torch.nn.Module, got {kind_of(model)}")
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise TypeError(f"ridge_path: train must be two tensors, got {type(x).__name__} and {type(y).__name__}")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(y) < 2:
        raise ValueError(
            f"ridge_path: train must hold as many targets as inputs and at least two, got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    for name, value in {"count": count, "batch_size": batch_size}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"ridge_path: {name} must be a whole number >= 1, got {value!r}")
    if not 0 < ratio < 1:
        raise ValueError(f"ridge_path: ratio must be in (0, 1), got {ratio!r}")
