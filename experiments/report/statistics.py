"""Statistics of seeds and test images: standard errors, intervals of paired differences, what choosing costs.

A test error varies with the seed of the run and with the images of the test set. Both are counted. Two arms are
compared seed by seed and image by image, so that what a seed or an image does to both arms cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, median, stdev
from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95


class Mean(NamedTuple):
    """A mean over seeds and its standard error; None, unknown, for a single seed."""

    mean: float
    se: float | None


def mean(values: Sequence[float]) -> Mean:
    """The mean, and the sample's standard deviation divided by the square root of the number of values, if several.

    Example:
        >>> mean([1.0, 3.0]), mean([1.0])
        (Mean(mean=2.0, se=1.0), Mean(mean=1.0, se=None))
    """
    return Mean(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None)


@dataclass(frozen=True)
class Difference:
    """A mean difference over the seeds that two arms have in common.

    Args:
        mean: the mean over seeds.
        seeds: how many.
        of_seeds: its standard error by other seeds; None, unknown, for a single one.
        of_images: its standard error by other test images; 0 for a figure that does not depend on them.
    """

    mean: float
    seeds: int
    of_seeds: float | None
    of_images: float = 0.0

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """The confidence interval; None, unknown, for a single seed.

        Student's t has ``seeds - 1`` degrees of freedom for the seeds, and the normal quantile serves for the images.
        The half-width is the root of the sum of both squares (W. G. Howe, "Approximate confidence limits on the mean
        of X + Y", 1974). It is the t interval of the paired differences where the images do not count.
        """
        if self.of_seeds is None:
            return None
        t, z = _quantiles(level, self.seeds - 1)
        half = math.hypot(t * self.of_seeds, z * self.of_images)
        return self.mean - half, self.mean + half

    def excludes_zero(self, level: float = LEVEL) -> bool:
        """Whether the interval is known and lies on one side of zero."""
        found = self.interval(level)
        return found is not None and (found[0] > 0 or found[1] < 0)


@cache
def _quantiles(level: float, freedom: int) -> tuple[float, float]:
    tail = (1 - level) / 2
    return -float(special.stdtrit(freedom, tail)), -float(special.ndtri(tail))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], of_images: float = 0.0) -> Difference | None:
    """Ours less theirs, over the seeds that both have; None if there is none."""
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    middle, error = mean([ours[seed] - theirs[seed] for seed in common])
    return Difference(middle, len(common), error, of_images)


def bootstrap(differences: Sequence[float], level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """The interval of a mean difference over seeds by the bootstrap (BCa), for comparison.

    Reports do not use it: over ten seeds or fewer it is too narrow (docs/coverage.md).
    """
    if min(differences) == max(differences):  # nothing to resample; scipy would return NaN
        return differences[0], differences[0]
    from scipy import stats  # 60 MB, which a report need not load

    found = stats.bootstrap(
        (differences,), np.mean, n_resamples=2000, confidence_level=level, method="BCa", rng=np.random.default_rng(seed)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def binomial_error(share: float, count: int) -> float:
    """The standard error of a share of so many images, by other images; of none or all of them that of a single one.

    Example:
        >>> binomial_error(0.5, 100), binomial_error(0.0, 100) == binomial_error(0.01, 100)
        (0.05, True)
    """
    share = min(max(share, 1 / count), 1 - 1 / count)
    return math.sqrt(share * (1 - share) / count)


def rms_error(size: float, count: int) -> float:
    """The standard error of a root mean square of so many normal numbers, by other numbers.

    Example:
        >>> rms_error(2.0, 50)
        0.2
    """
    return size / math.sqrt(2 * count)


def image_error(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The standard error, by other images, of a difference of two errors, measured image by image.

    Where no run errs on any image, it is that of one image on which one arm would.

    Args:
        ours: for each seed, whether each image was wrong.
        theirs: the same of the same seeds and images.
    """
    each = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    if len(each) < 2:
        return 0.0
    if not np.any(ours) and not np.any(theirs):
        return 1 / len(each)
    return float(np.std(each, ddof=1) / math.sqrt(len(each)))


def example_error(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    r"""The standard error, by other examples, of a difference of two root mean squares, measured example by example.

    By the delta method: an example of residual e moves a root mean square r by :math:`e^2 / (2 r n)`.

    Args:
        ours: for each seed, the residual of each example.
        theirs: the same of the same seeds and examples.
    """
    each = np.mean([_influence(one) - _influence(two) for one, two in zip(ours, theirs, strict=True)], axis=0)
    return float(np.std(each, ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0


def _influence(residuals: np.ndarray) -> np.ndarray:
    squares = residuals.astype(np.float64) ** 2
    found: np.ndarray = squares / (2 * math.sqrt(squares.mean()) or 1.0)
    return found


class McNemar(NamedTuple):
    """The images that only one of two models errs on, and the exact p-value that these are one half each."""

    only_ours: int
    only_theirs: int
    p: float


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> McNemar:
    """McNemar's exact test of two single runs on the same images.

    It tells whether these two models differ on other images, and nothing of other seeds.
    """
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    discordant = only_ours + only_theirs
    # Of one half each the binomial distribution is symmetric, so that both tails are equal.
    p = min(2 * float(special.bdtr(min(only_ours, only_theirs), discordant, 0.5)), 1.0) if discordant else 1.0
    return McNemar(only_ours, only_theirs, p)


def holm(are_shown: Sequence[Callable[[float], bool]], level: float = LEVEL) -> list[bool]:
    """Which of several comparisons are shown, so that any is shown by chance in 1 - ``level`` of all studies at most.

    Args:
        are_shown: for each comparison, whether it is shown at a given level of its own.
        level: of all together.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    shown = [False] * len(are_shown)
    while not all(shown):
        own = 1 - (1 - level) / shown.count(False)
        found = [before or is_shown(own) for before, is_shown in zip(shown, are_shown, strict=True)]
        if found == shown:
            break
        shown = found
    return shown


@cache
def expected_maximum(count: int) -> float:
    """The expected maximum of so many independent standard normal numbers (David and Nagaraja, "Order Statistics").

    Example:
        >>> [round(expected_maximum(k), 3) for k in (1, 2, 10)]
        [0.0, 0.564, 1.539]
    """

    def density(x: float) -> float:
        return x * count * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * float(special.ndtr(x)) ** (count - 1)

    from scipy import integrate

    return float(integrate.quad(density, -10, 10)[0]) if count > 1 else 0.0


def optimism(errors: Sequence[float]) -> float:
    """How much too low the lowest of several validation errors is expected to be, if in truth all are equal.

    The lowest of k equal errors, each with noise s of its own, is ``expected_maximum(k) * s`` too low. Noise that all
    have in common does not count, so s is the standard error of a paired difference divided by the square root of 2.

    Args:
        errors: the standard errors of the differences of the other k - 1 to the lowest, of which the median is taken;
            without those that are clearly worse, which would not have been chosen.
    """
    return expected_maximum(len(errors) + 1) * median(errors) / math.sqrt(2) if errors else 0.0
