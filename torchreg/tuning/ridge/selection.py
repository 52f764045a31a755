"""The choice of a strength from the examples that the head is fitted to."""

from __future__ import annotations

import math
import warnings

import torch

from torchreg.selection.modules import kind_of
from torchreg.tuning.path.selection import By, best
from torchreg.tuning.ridge.path import RidgePath, RidgePoint, points_at
from torchreg.tuning.ridge.spectrum import Spectrum

_RANGE = 1e-10, 1e8  # where the evidence is searched, in units of the largest eigenvalue
_PER_DECADE = 20
_HALVINGS = 60


def leave_one_out(path: RidgePath, by: By = "loss") -> RidgePoint:
    r"""The point at which the examples are predicted best, each by the head that is fitted to all others.

    .. math:: \operatorname{LOO}(s) = \frac{1}{n} \sum_i \Big(\frac{y_i - f_i}{1 - h_{ii}}\Big)^2

    where :math:`f` are the outputs, and the leverage :math:`h_{ii}` is the derivative of :math:`f_i` by :math:`y_i`,
    with the bias. The formula is exact, so no head is fitted again. This is ``best(path)`` under the name of the
    method. Choose the strongest point within its standard error with :func:`one_standard_error`.

    Args:
        path: a :func:`ridge_path`.
        by: ``"loss"``, the mean square, or ``"error"``, its root.

    Raises:
        TypeError: another path.

    Example:
        >>> import torch
        >>> from torchreg.tuning import ridge_path
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> y = x[:, :1] + torch.randn(60, 1, generator=torch.Generator().manual_seed(1))
        >>> path = ridge_path(torch.nn.Linear(5, 1), (x, y), strengths=[1.0, 0.1, 0.01])
        >>> leave_one_out(path).strength
        0.1

    References:
        David M. Allen, "The Relationship Between Variable Selection and Data Augmentation and a Method for Prediction",
        Technometrics, 1974.
    """
    _check("leave_one_out", path)
    return best(path, by)


def generalized_cv(path: RidgePath) -> RidgePoint:
    r"""The point with the lowest score of generalized cross-validation; of equal points the strongest.

    .. math:: \operatorname{GCV}(s) = \frac{n \, \|y - f\|^2}{(n - \operatorname{tr} H)^2}

    where :math:`f = H y` are the outputs, with the bias. The score is that of :func:`leave_one_out` with the mean
    leverage in the place of each example's own, so that an example with a large leverage does not decide.

    Args:
        path: a :func:`ridge_path`.

    Raises:
        TypeError: another path.

    Example:
        >>> import torch
        >>> from torchreg.tuning import ridge_path
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> y = x[:, :1] + torch.randn(60, 1, generator=torch.Generator().manual_seed(1))
        >>> path = ridge_path(torch.nn.Linear(5, 1), (x, y), strengths=[1.0, 0.1, 0.01])
        >>> generalized_cv(path).strength
        0.1

    References:
        Gene H. Golub, Michael Heath, Grace Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge
        Parameter", Technometrics, 1979.
    """
    _check("generalized_cv", path)
    sound = [point for point in path if math.isfinite(point.gcv)]
    if not sound:
        raise ValueError("generalized_cv: all scores are infinite: check the data")
    return min(sound, key=lambda point: (point.gcv, -point.strength))


def evidence(path: RidgePath) -> RidgePoint:
    r"""The point with the largest evidence over all strengths, whether the path has a point there or not.

    .. math:: \log p(y \mid \sigma^2, \tau^2), \qquad y = X w + b + \epsilon, \quad w \sim N(0, \tau^2), \quad
              \epsilon \sim N(0, \sigma^2), \qquad s = \frac{2 \sigma^2}{n k \tau^2}

    It is the density of the targets if the weights are drawn from their prior, and it is maximized in both variances.
    All outputs have the same two. There the noise is :math:`\sigma^2 = \|y - f\|^2 / (N - \gamma)` and the prior's
    variance is :math:`\tau^2 = \|w\|^2 / \gamma`, with the :math:`\gamma` parameters that the data determine. The prior
    of the bias is flat. So the targets count as :math:`N = (n - 1) k` numbers, and the density is that of their
    differences. scikit-learn's ``BayesianRidge`` has the same maximum without an intercept, with ``alpha_1``,
    ``alpha_2``, ``lambda_1`` and ``lambda_2`` at 0. With an intercept it counts the mean that it subtracts as known.

    The evidence assumes that the model is right: independent noise of one size, in features that were not trained on
    these targets. If you doubt that, take :func:`leave_one_out`.

    Args:
        path: a :func:`ridge_path`; its features and targets count, its strengths do not.

    Warns:
        UserWarning: the evidence grows up to the end of the search, because the features do not explain the targets,
            or explain them without noise.

    Raises:
        ValueError: the targets do not vary.
        TypeError: another path.

    Example:
        >>> import torch
        >>> from torchreg.tuning import ridge_path
        >>> x = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
        >>> y = x[:, :1] + 0.5 * torch.randn(600, 1, generator=torch.Generator().manual_seed(1))
        >>> point = evidence(ridge_path(torch.nn.Linear(5, 1), (x, y)))
        >>> round(point.noise ** 0.5, 1)
        0.5

    References:
        David J. C. MacKay, "Bayesian Interpolation", Neural Computation, 1992.
    """
    _check("evidence", path)
    spectrum = path._spectrum
    if not float(spectrum.y.abs().amax()) > 0:
        raise ValueError("evidence: targets must vary, got equal ones, which any strength explains")
    if not spectrum.largest > 0:
        raise ValueError("evidence: features must differ between examples, got equal ones, which explain nothing")
    alpha, end = _maximum(spectrum)
    if end:
        warnings.warn(f"evidence: it grows up to the {end}", stacklevel=2)
    return points_at(spectrum, [2 * alpha / (spectrum.examples * spectrum.outputs)])[0]


def _maximum(spectrum: Spectrum) -> tuple[float, str]:
    """The alpha of the largest evidence, and what it means if it lies at an end of the search."""
    low, high = (math.log(bound * spectrum.largest) for bound in _RANGE)
    steps = round((high - low) / math.log(10) * _PER_DECADE)
    grid = [low + (high - low) * step / steps for step in range(steps + 1)]
    found = int(torch.cat([spectrum.evidence([math.exp(at)])[1] for at in grid]).argmax())
    rises = spectrum.evidence_slope(math.exp(grid[found])) > 0
    if found == steps and rises:
        return math.exp(high), "largest strength: the features do not explain the targets"
    if found == 0 and not rises:
        return math.exp(low), "smallest strength: the features explain the targets without noise"
    left, right = (grid[found], grid[found + 1]) if rises else (grid[found - 1], grid[found])
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        if spectrum.evidence_slope(math.exp(middle)) > 0:
            left = middle
        else:
            right = middle
    return math.exp((left + right) / 2), ""


def _check(owner: str, path: object) -> None:
    if not isinstance(path, RidgePath):
        raise TypeError(
            f"{owner}: path must be that of ridge_path, for squared errors, got {kind_of(path)}: choose by best() or "
            "one_standard_error() from a path of another loss"
        )
