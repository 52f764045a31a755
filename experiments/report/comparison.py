"""The same arms in several studies: on other data, with another version of torch, with another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..training.files import write
from . import page
from .cells import Cell, difference, same_test
from .claims import Table, in_units, never, written
from .datasets import Rows
from .numbers import PERCENT, Unit
from .page import aligned
from .statistics import LEVEL, Difference, holm
from .summary import Summary, summarize
from .vega import SOFT, TEST, TRAIN, VALID, Picture, Spec, shares_of

_COLORS = (TRAIN, TEST, VALID, "var(--fourth)", SOFT)


class Comparison(NamedTuple):
    """Studies by their labels, and the arms that the first one shares with any other."""

    studies: Mapping[str, Summary]
    arms: Sequence[str]

    def cell(self, label: str, arm: str) -> Cell | None:
        """The arm in a study, at the strength chosen there; None if it lacks it, or did not finish it."""
        chosen = (cell for cell in self.studies[label].chosen if cell.arm == arm and cell.is_done)
        return next(chosen, None)

    @property
    def first(self) -> Summary:
        """The first study."""
        return next(iter(self.studies.values()))

    @property
    def lines(self) -> list[str]:
        """A line for each study: its data and where it ran."""
        return [
            f"{label}: {summary.subtitle} "
            + ", ".join(f"{key} {summary.environment.get(key)}" for key in ("torch", "torchreg", "device"))
            for label, summary in self.studies.items()
        ]

    @property
    def tables(self) -> list[Table]:
        """The test errors; in each study the differences to its unregularized arm; the differences between studies."""
        return [table for table in (self._errors(), self._effects(), self._between()) if table.rows]

    def _errors(self) -> Table:
        rows = [[arm, *(_error(self.cell(label, arm)) for label in self.studies)] for arm in self.arms]
        unit = "" if self.first.is_regression else " in percent"
        errors = f"Test {self.first.error}s"
        text = f"{errors}{unit}, with one standard error over seeds, and the strength that validation chose."
        return Table(errors, ["arm", *self.studies], rows, text)

    def _effects(self) -> Table:
        rows = []
        for arm in self.arms:
            found = [self._effect_as_text(label, arm) for label in self.studies]
            if any(found):
                rows.append([arm, *found])
        text = (
            f"In each study: the test {self.first.error} less that of its unregularized arm,{in_units(self.first)}, "
            f"with the {100 * LEVEL:g} % interval."
        )
        return Table("What each arm changes", ["less the unregularized arm", *self.studies], rows, text)

    def _effect_as_text(self, label: str, arm: str) -> str:
        cell, found = self.cell(label, arm), self.effect(label, arm)
        return "" if cell is None or found is None else "{} ({})".format(*written(found, cell.unit))

    def effect(self, label: str, arm: str) -> Difference | None:
        """The arm's test error less the unregularized one of the same study; None if either is missing."""
        cell, plain = self.cell(label, arm), self.studies[label].plain
        if cell is None or plain is None or cell.is_plain():
            return None
        return difference(cell, plain, "test_error", is_same=same_test(cell, plain))

    def _between(self) -> Table:
        first, *others = self.studies
        found = [(arm, label, self._difference(label, first, arm)) for arm in self.arms for label in others]
        known = [(arm, label, one) for arm, label, one in found if one is not None]
        shown = holm([one.excludes_zero if one.of_seeds is not None else never for *_, one in known])
        rows = []
        for (arm, label, one), is_shown in zip(known, shown, strict=True):
            unit = self._unit(first, arm)
            errors = ["unknown" if error is None else unit.size(error) for error in (one.of_seeds, one.of_images)]
            rows.append([arm, label, *written(one, unit), *errors, str(one.seeds), "yes" if is_shown else "no"])
        interval = f"{100 * LEVEL:g} % interval"
        error, noun = f"test {self.first.error}", self.first.noun
        heads = [f"less {first}", "study", error, interval, "SE: seeds", noun, "seeds", "beyond"]
        text = (
            f"Between studies,{in_units(self.first)}, over the seeds that both have. Test {noun} count as the same "
            "only if the two studies have the same data. Beyond: the interval excludes zero also where all rows are "
            "counted (Holm)."
        )
        return Table("Between studies", heads, rows, text)

    def _unit(self, label: str, arm: str) -> Unit:
        cell = self.cell(label, arm)
        return PERCENT if cell is None else cell.unit

    def _difference(self, label: str, first: str, arm: str) -> Difference | None:
        ours, theirs = self.cell(label, arm), self.cell(first, arm)
        if ours is None or theirs is None:
            return None
        return difference(ours, theirs, "test_error", is_same=same_test(ours, theirs))


def compare(folders: Sequence[Path]) -> Comparison:
    """Reads several studies.

    Raises:
        UserError: there are fewer than two folders, one is given twice or holds no finished study, or no arm of the
            first is in any other.
    """
    if len(folders) < 2:
        raise UserError(f"compare: needs the folders of two studies or more, got {len(folders)}")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"compare: needs different folders, got {folder} twice: remove one")
    summaries = [summarize(folder) for folder in folders]
    names = [place.name for place in places]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    found = Comparison(dict(zip(labels, summaries, strict=True)), [])
    first, *others = labels
    arms = list(dict.fromkeys(cell.arm for cell in summaries[0].chosen))
    common = [arm for arm in arms if found.cell(first, arm) and any(found.cell(other, arm) for other in others)]
    if not common:
        theirs = sorted({cell.arm for summary in summaries[1:] for cell in summary.chosen})
        raise UserError(
            f"compare: the studies need a finished arm in common: {first} has {', '.join(arms)}; "
            f"the others have {', '.join(theirs)}"
        )
    tasks = {
        label: summary.is_regression
        for label, summary in found.studies.items()
        if any(cell.is_done for cell in summary.cells)
    }
    if len(set(tasks.values())) > 1:
        named = ", ".join(f"{label} is {'a regression' if one else 'of classes'}" for label, one in tasks.items())
        raise UserError(f"compare: the studies need the same task, {named}: leave out those of the other task")
    return found._replace(arms=common)


def text_of(found: Comparison) -> str:
    """The comparison as text."""
    parts = [[*aligned([table.heads, *table.rows]), table.text] for table in found.tables]
    return "\n\n".join("\n".join(lines) for lines in (found.lines, *parts))


def write_comparison(found: Comparison, path: Path) -> Path:
    """Renders the comparison as a page; returns its path."""
    data = {"studies": _rows(found)}
    made = page.rendered(
        "compare.html",
        {"title": " / ".join(found.studies), "found": found, "tables": [page.Named(one) for one in found.tables]},
        [Picture("The studies side by side", _PICTURE, lambda width: _picture(found, width), _shown(found))],
        data,
    )
    write(path, made)
    return path


_PICTURE = (
    "Test errors with one standard error, and beside them what each arm changes, with its interval, study by study."
)


def _shown(found: Comparison) -> str:
    return f"Studies {', '.join(found.studies)}; arms {', '.join(found.arms)}. The tables hold the same figures."


def _rows(found: Comparison) -> Rows:
    """Of each arm in each study the test error, and the difference to the unregularized arm."""
    rows: Rows = []
    for arm in found.arms:
        for label in found.studies:
            cell, effect = found.cell(label, arm), found.effect(label, arm)
            row: dict[str, Any] = {"arm": arm, "study": label, "strength": "", "error": "", "low": "", "high": ""}
            row |= {"less": "", "less_low": "", "less_high": ""}
            if cell is not None:
                middle, error = cell.mean("test_error")
                row |= {"error": middle, "low": middle - (error or 0.0), "high": middle + (error or 0.0)}
                row["strength"] = "" if cell.strength is None else cell.strength
            if effect is not None:
                low, high = effect.interval() or (effect.mean, effect.mean)
                row |= {"less": effect.mean, "less_low": low, "less_high": high}
            rows.append(row)
    return rows


def _picture(found: Comparison, width: int) -> Spec:
    studies, is_wide = list(found.studies), width > 600
    longest = min(220 if is_wide else 110, 7 * max(map(len, found.arms)))
    each = (width - longest - 30) // 2 if is_wide else width - longest - 10
    color = {
        "field": "study",
        "type": "nominal",
        "title": None,
        "scale": {"domain": studies, "range": [_COLORS[at % len(_COLORS)] for at in range(len(studies))]},
        "legend": {"columns": 3 if is_wide else 1, "labelLimit": 300},
    }

    def panel(prefix: str, title: str, is_first: bool) -> Spec:
        names = {"": ("error", "low", "high"), "less": ("less", "less_low", "less_high")}[prefix]
        axis = {"labelLimit": longest, "grid": False, "labelFontSize": 13} if is_first or not is_wide else None
        x = {
            "type": "quantitative",
            "title": title,
            "axis": {**shares_of(found.first), "tickCount": 6 if is_wide else 4},
        }
        style = ".4~g" if found.first.is_regression else ".3~%"
        tips = [{"field": name, "title": name, "format": style} for name in names]
        offset = {"field": "study", "type": "nominal", "scale": {"domain": studies}}
        zero = {
            "data": {"values": [{}]},
            "mark": {"type": "rule", "strokeDash": [2, 3]},
            "encoding": {"x": {"datum": 0}},
        }
        y = {"field": "arm", "type": "nominal", "scale": {"domain": [*found.arms]}, "title": None, "axis": axis}
        here = {"y": y, "yOffset": offset, "color": color}
        known = {"transform": [{"filter": f"isValid(datum.{names[0]}) && datum.{names[0]} !== ''"}]}
        rule: Spec = {"x": {**x, "field": names[1], "scale": {"zero": False}}, "x2": {"field": names[2]}}
        point: Spec = {"x": {**x, "field": names[0]}, "shape": {**color, "scale": {"domain": studies}}}
        point["tooltip"] = [{"field": "arm"}, {"field": "study"}, *tips]
        return {
            "width": each,
            "height": {"step": 14 if len(studies) > 1 else 26, "for": "offset"},
            "layer": [
                *([zero] if prefix else []),
                {**known, "mark": {"type": "rule", "strokeWidth": 1.6}, "encoding": {**here, **rule}},
                {
                    **known,
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                    "encoding": {**here, **point},
                },
            ],
        }

    panels = [
        panel("", f"test {found.first.error}", True),
        panel("less", f"less the unregularized arm, {100 * LEVEL:g} % interval", False),
    ]
    return {"data": {"name": "studies"}, "concat": panels, "columns": 2 if is_wide else 1, "spacing": 20}


def _error(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return cell.unit.mean(cell.mean("test_error")) + ("" if cell.strength is None else f" (at {cell.strength:.3g})")
