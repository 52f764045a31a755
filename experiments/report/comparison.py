"""The same arms in several studies: on other data, with another version of torch, with another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.errors import UserError
from experiments.report.canvas import PLAIN, STYLE, TEST, TRAIN, VALID, svg
from experiments.report.claims import Table, in_units, never, written
from experiments.report.numbers import PERCENT, Unit
from experiments.report.page import aligned
from experiments.report.statistics import LEVEL, Difference, holm
from experiments.report.summary import Cell, Summary, difference, summarize
from experiments.training.files import write

_COLORS = (TRAIN, TEST, VALID, "#7c3aed", PLAIN)


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
        return difference(cell, plain, "test_error", is_same=_same_data(cell, plain))

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
        return difference(ours, theirs, "test_error", is_same=_same_data(ours, theirs))


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
    environment = Environment(
        loader=PackageLoader("experiments.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("compare.html")
    page = template.render(title=" / ".join(found.studies), found=found, picture=_picture(found))
    write(path, page)
    return path


def _picture(found: Comparison) -> Markup:
    """Test errors, and beside them what each arm changes, study by study."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.2 + len(found.arms) * (0.2 + 0.2 * len(found.studies))), layout="constrained")
        errors, effects = figure.subplots(1, 2, sharey=True)
        for at, label in enumerate(found.studies):
            offset = 0.6 * ((at + 0.5) / len(found.studies) - 0.5)
            style = {"fmt": "o", "color": _COLORS[at % len(_COLORS)], "markersize": 5.5, "elinewidth": 1.4}
            for y, arm in enumerate(found.arms):
                cell, effect = found.cell(label, arm), found.effect(label, arm)
                if cell is not None:
                    middle, error = cell.mean("test_error")
                    errors.errorbar(middle, y + offset, xerr=error, **style)
                if effect is not None:
                    low, high = effect.interval() or (effect.mean, effect.mean)
                    ends = [[effect.mean - low], [high - effect.mean]]
                    effects.errorbar(effect.mean, y + offset, xerr=ends, **style)
            errors.errorbar([], [], label=label, **style)
        errors.set_yticks(range(len(found.arms)), found.arms)
        errors.set_ylim(len(found.arms) - 0.5, -0.5)
        errors.set_title(f"test {found.first.error}, one SE")
        effects.set_title(f"less the unregularized arm, {100 * LEVEL:g} % interval")
        effects.axvline(0, color=PLAIN, linestyle=":", linewidth=1.2, zorder=0)
        for axes in (errors, effects):
            if not found.first.is_regression:
                axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=3)
        return svg(figure)


def _same_data(ours: Cell, theirs: Cell) -> bool:
    """Whether two arms have the same data, wherever it lies."""
    one, two = (cell.runs[0].data.model_copy(update={"root": None}) for cell in (ours, theirs))
    return one == two


def _error(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return cell.unit.mean(cell.mean("test_error")) + ("" if cell.strength is None else f" (at {cell.strength:.3g})")
