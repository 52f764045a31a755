"""The table of penalties against properties, written by the tests that show them.

``TORCHREG_CONFORMANCE=docs/conformance.md make test-all`` writes it. A test joins with
``@pytest.mark.shows("prox")`` if it runs over the cases of :mod:`tests.cases`.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.cases import CONSTRAINTS, PENALTIES

PROPERTIES = {
    "value": "equals its formula written a second time; never negative; finite where the sum leaves half precision",
    "gradient": "equals autograd's of value and of formula; is a subgradient; 0 at the kink; second derivatives",
    "prox": "minimizes its objective (points around it, a grid, golden section); step 0 is the identity; firmly "
    "non-expansive where R is convex",
    "certificate": "the distance to the subdifferential is 0 at proximal points, no more than to any subgradient, and "
    "the residual where R is smooth; `strength_max` is the smallest strength that holds 0",
    "tensors": "any shape, empty, strided, half precision, complex, meta; arguments left alone",
    "algebra": "sums, multiples, equality, copies, pickles, `repr` is the constructor, wrong parameters refused",
    "loss": "mode `loss` in training: autograd's gradient of the written-out loss; does lower R",
    "grad": "the same in mode `grad`, equal to mode `loss` under each optimizer; LBFGS",
    "decoupled": "the same in mode `decoupled`: one step is the formula",
    "prox step": "the same in mode `prox`",
    "removal": "attached and removed is never attached, bit for bit",
    "compile": "`torch.compile` of the penalized loss without graph breaks or recompilation",
    "DDP": "two processes end with the weights of one",
    "FSDP2": "the same with sharded weights",
}


class Conformance:
    """Counts, for each case and property, the tests that passed and the others."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.passed: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        marker, params = item.get_closest_marker("shows"), getattr(item, "callspec", None) and item.callspec.params
        if marker and params and "case" in params and (report.when == "call" or report.failed) and not report.skipped:
            report.user_properties.append(("shows", _shown(marker.args[0], params)))
        return report

    def pytest_runtest_logreport(self, report):
        """With several processes, the one that hears of all tests counts."""
        for name, shown in report.user_properties:
            if name == "shows":
                (self.passed if report.passed else self.failed)[tuple(shown)] += 1

    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput"):
            self.file.write_text(self.table())

    def table(self) -> str:
        names = [case.name for case in (*PENALTIES, *CONSTRAINTS)]
        shown = [p for p in PROPERTIES if any((name, p) in self.passed | self.failed for name in names)]
        passed, failed = (sum(c[name, p] for name in names for p in shown) for c in (self.passed, self.failed))
        lines = [
            "# What the tests show of each penalty",
            "",
            f"{passed:,} checks passed, {failed:,} failed. A number counts the tests behind it, of which those",
            "that draw weights at random stand for a hundred draws each; a dot: there is no such thing.",
            "Made by `TORCHREG_CONFORMANCE=docs/conformance.md make test-all`.",
            "",
            "| penalty | " + " | ".join(shown) + " |",
            "|---" * (len(shown) + 1) + "|",
        ]
        lines += [f"| `{name}` | " + " | ".join(self._cell(name, p) for p in shown) + " |" for name in names]
        lines += ["", *(f"- **{p}**: {PROPERTIES[p]}." for p in shown)]
        return "\n".join(lines) + "\n"

    def _cell(self, name: str, shown: str) -> str:
        if failed := self.failed[name, shown]:
            return f"**{failed} failed**"
        return str(self.passed[name, shown] or "·")


def _shown(shown: str | None, params: dict) -> tuple[str, str]:
    """The case's name and the property; by default that is the mode, or how the processes share the model."""
    case = params["case"]
    if isinstance(case, str):  # of two processes
        return case, params["wrap"]
    if shown is None:
        shown = {"prox": "prox step"}.get(params["mode"], params["mode"])
    assert shown in PROPERTIES, f"{shown!r} is no property"
    return case.name, shown
