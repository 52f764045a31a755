"""The report: its numbers against NumPy's, its claims against what the runs did, its page by itself."""

import re

import numpy as np
import pytest
import torch

from experiments import report
from experiments.errors import UserError
from experiments.record import open_study
from experiments.study import run_study
from experiments.summary import summarize
from tests.helpers import assert_close
from tests.integration.studies import small

L2 = {"penalty": "L2", "strength": 0.0}
ARMS = [
    {"name": "none"},
    {"name": "L2", "strengths": [0.0, 1.0], "regularizers": [L2]},
    {"name": "L1 <prox>", "regularizers": [{"penalty": "L1", "strength": 0.3, "mode": "prox"}]},
    {"name": "L2, far too strong", "regularizers": [{"penalty": "L2", "strength": 1e3}]},
    {"name": "broken", "optimizer": {"name": "SGD", "lr": 1e30}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run_study(small(arms=ARMS, seeds=[0, 1, 2]), folder, torch.device("cpu"))
    return folder


@pytest.fixture(scope="module")
def summary(folder):
    return summarize(folder)


def test_means_and_standard_errors_are_numpys(summary):
    cell = summary.cells[0]
    errors = np.array([result["test_error"] for result in cell.results])
    assert_close(tuple(cell.mean("test_error")), (errors.mean(), errors.std(ddof=1) / np.sqrt(3)))
    norms = [np.sqrt(sum(norm**2 for norm in result["norms"].values())) for result in cell.results]
    assert_close(cell.norm.mean, np.mean(norms))


def test_an_arm_is_judged_at_the_strength_with_the_lowest_validation_error(summary):
    path = summary.paths[0]
    lowest = min(path, key=lambda cell: cell.mean("valid_error").mean)
    assert summary.chosen[1].mean("valid_error") == lowest.mean("valid_error")
    assert [cell.strength for cell in path] == [0.0, 1.0]


def test_every_weight_is_a_zero_or_in_the_histogram_or_tiny(summary):
    for cell in summary.chosen[:3]:
        for result in cell.results:
            assert 0.9 < result["zeros"] + sum(result["histogram"]["shares"]) < 1 + 1e-6
    assert summary.chosen[2].mean("zeros").mean > 0.05  # L1 by prox
    assert summary.chosen[0].mean("zeros").mean == 0


def test_the_claims_are_what_the_runs_did(summary):
    zero, between, strong = report.claims(summary)
    assert zero.evidence == "L2 at strength 0 ends with the unregularized weights, bit for bit."
    assert "Unregularized: training error" in between.evidence
    assert strong.evidence.startswith("L2, far too strong at 1000: training error")


def test_no_claim_is_made_that_the_study_does_not_show(tmp_path):
    run_study(small(arms=ARMS[1:3]), tmp_path, torch.device("cpu"))
    assert report.claims(summarize(tmp_path)) == []


def test_the_table_has_a_line_an_arm_and_says_who_diverged(summary):
    lines = report.table(summary).splitlines()
    assert [line.split("  ")[0] for line in lines[2:7]] == [arm["name"] for arm in ARMS]
    assert "diverged" in lines[6]
    assert "3 seeds" in lines[7]


def test_the_page_needs_nothing_but_itself(folder, summary):
    page = report.write_page(summary, folder).read_text()
    assert page.count("<svg") == 5
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    addresses = set(re.findall(r"https?://[^\"'<> ]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "L1 &lt;prox&gt;" in page
    assert "<prox>" not in page


def test_the_page_is_the_same_at_every_rendering(folder, summary):
    first = report.write_page(summary, folder).read_bytes()
    assert report.write_page(summarize(folder), folder).read_bytes() == first


def test_a_folder_without_a_finished_run_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        summarize(tmp_path)
    open_study(small(), tmp_path, resume=False)
    with pytest.raises(UserError, match="no run of this study is finished yet: 'run --resume'"):
        summarize(tmp_path)
