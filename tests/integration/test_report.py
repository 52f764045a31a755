"""The report: its numbers against NumPy's, its claims against what the runs did, its page by itself."""

import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from experiments.errors import UserError
from experiments.report import page as report
from experiments.report.summary import summarize
from experiments.report.vega import bundle
from experiments.running.study import run_study
from experiments.training.record import open_study
from tests.helpers import assert_close
from tests.integration.studies import small

L2 = {"penalty": "L2"}
L1 = {"regularizers": [{"penalty": "L1", "mode": "prox"}]}
ARMS = [
    {"name": "none"},
    {"name": "L2", "strengths": [0.0, 1.0], "regularizers": [L2]},
    {"name": "L1 <prox>", "regularizers": [{"penalty": "L1", "strength": 0.3, "mode": "prox"}]},
    {"name": "L2, far too strong", "regularizers": [{"penalty": "L2", "strength": 1e3}]},
    {"name": "broken", "optimizer": {"name": "SGD", "lr": 1e30}},
]
SEEDS = list(range(6))


class Bias(nn.Module):
    """A model without a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, x):
        return self.bias.expand(len(x), 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run_study(small(arms=ARMS, seeds=SEEDS), folder, torch.device("cpu"))
    return folder


@pytest.fixture(scope="module")
def summary(folder):
    return summarize(folder)


def test_means_and_standard_errors_are_numpys(summary):
    cell = summary.cells[0]
    errors = np.array([result["test_error"] for result in cell.results])
    assert_close(tuple(cell.mean("test_error")), (errors.mean(), errors.std(ddof=1) / np.sqrt(6)))
    norms = [np.sqrt(sum(norm**2 for norm in result["norms"].values())) for result in cell.results]
    assert_close(cell.norm.mean, np.mean(norms))


def test_a_record_tells_which_images_were_wrong(summary):
    for cell in summary.cells[:3]:
        for split, size in (("valid", 100), ("test", 797)):
            assert {len(wrong) for wrong in cell.wrong(split).values()} == {size}
            shares = {seed: wrong.mean() for seed, wrong in cell.wrong(split).items()}
            assert shares == pytest.approx(cell.by_seed(f"{split}_error"), rel=1e-12)


def test_an_arm_is_judged_at_the_strength_with_the_lowest_validation_error(summary):
    path = summary.paths[0]
    lowest = min(path, key=lambda cell: cell.mean("valid_error").mean)
    assert summary.chosen[1].mean("valid_error") == lowest.mean("valid_error")
    assert [cell.strength for cell in path] == [0.0, 1.0]


def test_every_weight_is_a_zero_or_in_the_histogram_or_beside_it(summary):
    for cell in summary.chosen[:3]:
        for result in cell.whole:
            shares = result["histogram"]
            assert_close(
                result["zeros"] + sum(shares["shares"]) + shares["below"] + shares["above"], 1.0, tolerance=1e-6
            )
    assert summary.chosen[2].mean("zeros").mean > 0.05  # L1 by prox
    assert summary.chosen[0].mean("zeros").mean == 0


def test_strength_0_is_told_to_be_the_plain_loss(summary):
    zero, *_, strong = report.claims(summary)
    assert zero.evidence == "L2 at strength 0 ends with the unregularized weights, bit for bit."
    assert strong.title == "Too strong, and the network under-fits."
    assert strong.evidence.startswith("L2, far too strong at 1000: training error")
    cell, plain = next(cell for cell in summary.cells if cell.strength == 1e3), summary.plain
    middle = 100 * (cell.mean("test_error").mean - plain.mean("test_error").mean)
    assert f"Test error {middle:+.1f} points (95 % interval +" in strong.evidence


def test_a_report_of_a_single_seed_speaks_of_no_mean(tmp_path):
    run_study(small(arms=ARMS[:2]), tmp_path, torch.device("cpu"))
    summary = summarize(tmp_path)
    assert {cell.mean("test_error").se for cell in summary.cells} == {None}
    texts = report.table(summary), report.write_page(summary, tmp_path).read_text()
    for text in texts:
        assert "±" not in text
        assert not re.search("mean over|over [0-9]+ seeds", text, re.IGNORECASE)
        assert "A single seed: no standard errors" in text


@pytest.mark.parametrize(
    "arms",
    [
        [{"name": "plain", "optimizer": {"lr": 1e30, "name": "SGD"}}, {"name": "L1", "strengths": [0.0, 1.0], **L1}],
        [{"name": "$\\foo$"}, {"name": "日本 🦊"}, {"name": "L1", "strengths": [0.0], **L1}],
        [{"name": "no weights", "model": {"class": "tests.integration.test_report:Bias"}}],
        [{"name": "broken", "optimizer": {"lr": 1e30, "name": "SGD"}}],
        [{"name": "huge", "optimizer": {"lr": 300.0, "name": "SGD"}, "train": {"epochs": 1}}],
    ],
    ids=["diverged plain arm", "names", "no weights", "all diverged", "huge weights"],
)
def test_every_study_has_a_report(arms, tmp_path):
    run_study(small(arms=arms), tmp_path, torch.device("cpu"))
    summary = summarize(tmp_path)
    assert report.table(summary)
    assert report.write_page(summary, tmp_path).stat().st_size > 1000


def test_an_unfinished_study_says_so(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "runs" / "broken")
    assert "Not finished: these are 30 of 36 runs." in report.table(summarize(tmp_path / "part"))


def test_the_table_has_a_line_an_arm_and_says_who_diverged(summary):
    lines = report.table(summary).splitlines()
    assert [line.split("  ")[0] for line in lines[2:7]] == [arm["name"] for arm in ARMS]
    assert "diverged" in lines[6]
    assert "6 seeds" in lines[7]


def test_the_page_needs_nothing_but_itself(folder, summary):
    page = report.write_page(summary, folder).read_text()
    page = page.replace(bundle(), "")
    assert page.count("<svg") == 2 * 7  # for wide and for narrow pages
    assert not re.search(r"<(link|iframe)\b|\bsrc=\"(?!data:)", page)
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
    with open_study(small(), tmp_path, resume=False):
        pass
    with pytest.raises(UserError, match="no run of this study is finished yet: 'run --resume'"):
        summarize(tmp_path)
