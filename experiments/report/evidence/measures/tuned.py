"""Strengths that were tuned in one run, beside the best of a grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean

from ....config import Run
from ....config.published import Tuned
from ....errors import UserError
from ...cells import best_of
from ...numbers import rounded
from ...statistics import Mean
from ..formulas import exceeds
from ..found import Check, Figure, Found, Picture, Scalar, Table, figure
from .common import (
    Arms,
    apart_check,
    check_pair,
    difference,
    exact,
    mean_of,
    missing_check,
    names_of,
    percent,
    strength,
)


def check_tuned(settings: Tuned, runs: Sequence[Run]) -> None:
    """Refuses a study without the arms that the measure needs; see :func:`_pairs`."""
    _pairs(settings, names_of(runs))


def _pairs(settings: Tuned, names: Collection[str]) -> dict[str, str]:
    """Of each arm with a grid the one that is tuned.

    Raises:
        UserError: there is none, or one has no arm with a grid.
    """
    end = f", {settings.suffix}"
    found = {name.removesuffix(end): name for name in names if name.endswith(end)}
    if not found:
        raise UserError(f"published.tuned: no arm's name ends in {end!r}: name one so, or change suffix")
    for name, other in found.items():
        check_pair("tuned", other, name, names)
    return found


def of_tuned(settings: Tuned, arms: Arms, metric: str) -> Found:
    """The loss and error of strengths that were tuned in one run, less those of the grid's best by validation."""
    pairs = _pairs(settings, arms)
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    gaps: dict[str, list[Mean | None]] = {"test_loss": [], "test_error": []}
    costs: list[float] = []
    for name, other in pairs.items():
        best, tuned = best_of(arms[name], metric), best_of(arms[other], metric)
        if best is None or tuned is None:
            continue
        cost = tuned.seconds / fmean(cell.seconds for cell in arms[name] if cell.is_done)
        costs.append(cost)
        for key, found in gaps.items():
            found.append(difference(tuned, best, key))
        rows.append(
            [
                name,
                strength(best),
                strength(tuned),
                percent(best, "test_error", 1),
                percent(tuned, "test_error", 1),
                figure(difference(tuned, best, "test_error", 100), 2),
                figure(difference(tuned, best, "test_loss"), 4),
                f"{cost:.2f}",
            ]
        )
        for kind, cell in (("best of the grid", best), ("tuned", tuned)):
            error = mean_of(cell, "test_error", 100)
            loss = mean_of(cell, "test_loss")
            row: dict[str, Scalar] = {"setting": name, "kind": kind, "error": rounded(error.mean)}
            row |= {
                "error_se": rounded(error.se or 0.0),
                "loss": rounded(loss.mean),
                "loss_se": rounded(loss.se or 0.0),
            }
            points.append(row)
    needed = [arm for pair in pairs.items() for arm in pair]
    is_whole = len(rows) == len(pairs)
    errors = "one standard error" if settings.errors == 1 else f"{exact(settings.errors)} standard errors"
    checks = []
    for key, noun in (("test_loss", "loss"), ("test_error", "error")):
        must = f"{noun}: at most {errors} above the grid's best, everywhere"
        check = _no_worse(must, gaps[key], settings.errors) if is_whole else missing_check(must, arms, needed)
        checks.append(check)
    must = f"time: at most {exact(settings.cost)} runs at one strength"
    worst = max(costs, default=0.0)
    ours = f"at most {worst:.2f} runs"
    checks.append(
        Check(must=must, ours=ours, value=rounded(worst), is_reached=not exceeds(worst, settings.cost))
        if is_whole
        else missing_check(must, arms, needed)
    )
    columns = [
        *("setting", "grid's best", "tuned", "error of the grid's best, %", "error tuned, %"),
        *("difference, points", "difference of the loss", "time, runs"),
    ]
    shows = "Test errors and losses at the grid's best strength by validation and at the tuned one."
    picture = Picture(kind="tuned", shows=shows, rows=points)
    return Found(checks=checks, tables=[Table(title="Settings", columns=columns, rows=rows)], picture=picture)


def _no_worse(must: str, gaps: Sequence[Mean | None], errors: float) -> Check:
    known = [gap for gap in gaps if gap is not None]
    if len(known) < len(gaps):
        return apart_check(must)
    if any(gap.se is None for gap in known):
        return Check(must=must, ours="one seed: no standard error")
    within = sum(not exceeds(gap.mean, errors * (gap.se or 0.0)) for gap in known)
    return Check(must=must, ours=f"{within} of {len(known)} settings", is_reached=within == len(known))
