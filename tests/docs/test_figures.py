"""The figures in README and the documentation are those of the files that the benches wrote."""

import json

import pytest

from experiments.benches import files
from tests import gpu_check
from tests.docs.figures import COSTS, PROFILE, README, rewritten, unknown
from tests.docs.pages import ROOT, name_of

PAGES = pytest.mark.parametrize("page", [README, COSTS, PROFILE], ids=name_of)


@PAGES
def test_a_page_quotes_the_committed_files(page):
    text = page.read_text(encoding="utf-8")
    assert rewritten(page, text) == text, "python -m tests.docs.figures writes the figures into the pages"


@PAGES
def test_no_table_holds_a_figure_that_no_quote_checks(page):
    assert unknown(page, page.read_text(encoding="utf-8")) == []


def test_other_figures_are_replaced_and_others_in_tables_are_found():
    text = COSTS.read_text(encoding="utf-8")
    old = text.replace('| mode `"grad"` | 1.', '| mode `"grad"` | 9.').replace("| 0.97 |", "| 0.11 |")
    assert old != text
    assert rewritten(COSTS, old) == text
    rows = '| mode `"new"` | 1.23 | `4` |\n'
    assert unknown(COSTS, text.replace('| mode `"grad"`', f'{rows}| mode `"grad"`')) == [rows]
    with pytest.raises(AssertionError, match="holds 0 times"):
        rewritten(COSTS, text.replace("Keras on JAX", "Keras"))


def test_the_pages_beside_the_files_are_what_these_say():
    docs = ROOT / "docs"
    assert (docs / "benchmarks.md").read_text() == files.markdown(*files.load(docs / "benchmarks.json"))
    assert (docs / "gpu.md").read_text() == gpu_check.markdown(json.loads((docs / "gpu.json").read_text()))
