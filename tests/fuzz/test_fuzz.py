"""A small slice of what ``make fuzz`` tries; and that a fuzzer sees a fault."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from experiments import cli
from tests.fuzz import configurations, records


@pytest.fixture
def no_page(monkeypatch):
    """Reports without their page, which takes a second."""
    monkeypatch.setattr(cli.report, "write_page", lambda summary, folder, trusted: folder / "report.html")


def test_mutated_configurations_end_in_lines_and_exit_code_2(tmp_path):
    found = list(configurations.faults(60, tmp_path, seed=1))
    assert found == [None] * 60


def test_corrupted_records_end_in_a_line_and_exit_code_2(tmp_path, no_page):
    found = list(records.faults(40, tmp_path, seed=1))
    assert found == [None] * 40


def test_a_traceback_is_a_fault(tmp_path):
    def raises(*_: object) -> None:
        raise KeyError("name")

    with patch("experiments.config.load", raises):
        (found,) = configurations.faults(1, tmp_path)
    assert "KeyError: 'name'" in found[1]


def without_checksum(path: Path, *_: Any) -> dict[str, Any]:
    tree = json.loads(path.read_bytes())
    return {key: value for key, value in tree.items() if key != "checksum"}


def test_a_record_that_was_altered_and_is_accepted_is_a_fault(tmp_path, no_page, monkeypatch):
    (case, *_), where = records.cases(tmp_path), tmp_path / "damaged"
    name = "runs/L1/seed0/result.json"
    altered = {name: case.files[name].replace(b'"test_error": 0.', b'"test_error": 0.0')}
    assert records.fault_of(case, altered, where) == ""  # it is refused
    monkeypatch.setattr("experiments.training.record.unsealed", without_checksum)
    assert records.fault_of(case, altered, where).startswith("accepted, and tells something else")
