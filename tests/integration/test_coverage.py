"""Simulated studies: their rates are those asked for, and reports claim what is so and seldom what is not."""

import numpy as np
import pytest

from experiments.report import coverage
from experiments.report.coverage import HELPFUL, PLAIN, WORLDS, compare_bootstrap, count, simulated
from experiments.report.statistics import LEVEL


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
@pytest.mark.parametrize("effect", [0.0, 0.05])
def test_simulated_errors_are_those_that_the_world_says(world, effect):
    draw = np.random.default_rng(0)
    found = [simulated(world, 10, effect, draw, 797) for _ in range(30)]
    for arm, expected in ((PLAIN, world.error), (HELPFUL, world.error - effect)):
        errors = [cell.mean("test_error").mean for summary in found for cell in summary.cells if cell.arm == arm]
        assert np.mean(errors) == pytest.approx(expected, abs=5 * np.std(errors) / np.sqrt(len(errors)))
        wrong = [cell.wrong("test") for summary in found for cell in summary.cells if cell.arm == arm]
        assert np.mean([list(one.values()) for one in wrong]) == pytest.approx(np.mean(errors), rel=1e-9)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
@pytest.mark.parametrize("seeds", [2, 5])
def test_studies_without_an_effect_seldom_claim_any(world, seeds):
    found = count(world, seeds, studies=100, seed=1)
    assert found.claimed <= 0.1  # of 100 at 5 %, 11 or more are seen in 1 %
    assert found.covered > 0.93


def test_an_effect_is_seen_and_a_report_that_claims_everything_is_caught(monkeypatch):
    assert count(WORLDS[0], 10, effect=0.05, studies=20).claimed >= 0.8
    monkeypatch.setattr("experiments.report.claims.holm", lambda tests: [test(LEVEL) for test in tests])
    assert count(WORLDS[2], 3, studies=60).claimed > 0.15  # each comparison by itself


def test_the_bootstrap_over_few_seeds_is_too_narrow():
    by_t, by_bootstrap = compare_bootstrap(3, studies=300)
    assert by_t > 0.9 > by_bootstrap


def test_the_page_has_a_row_for_each_world(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coverage, "STUDIES", 10)
    coverage.main([str(tmp_path / "coverage.md")])
    page = (tmp_path / "coverage.md").read_text(encoding="utf-8")
    assert page == capsys.readouterr().out
    assert [page.count(f"| {world.name} |") for world in WORLDS] == [6, 5, 5]


@pytest.mark.parametrize("arguments", [["missing/page.md"], ["one.md", "two.md"]])
def test_a_page_that_cannot_be_written_is_told_before_the_simulation(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        coverage.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: coverage: needs no more than a file")
