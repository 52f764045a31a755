"""A small slice of what ``make fuzz`` tries; and that a fuzzer sees a fault."""

from unittest.mock import patch

from experiments import cli
from tests.fuzz import configurations, records


def test_mutated_configurations_end_in_lines_and_exit_code_2(tmp_path):
    found = list(configurations.faults(120, tmp_path, seed=1))
    assert found == [None] * 120


def test_corrupted_records_end_in_a_line_and_exit_code_2(tmp_path):
    with patch.object(cli.report, "write_page", lambda summary, folder: folder / "report.html"):  # it takes seconds
        found = list(records.faults(60, tmp_path, seed=1))
    assert found == [None] * 60


def test_a_traceback_is_a_fault(tmp_path):
    def raises(*_: object) -> None:
        raise KeyError("name")

    with patch("experiments.config.load", raises):
        (found,) = configurations.faults(1, tmp_path)
    assert "KeyError: 'name'" in found[1]


def test_a_record_that_was_altered_and_is_accepted_is_a_fault(tmp_path):
    case = next(case for case in records.cases(tmp_path) if case.is_sealed)
    name = "runs/L1/seed0/result.json"
    altered = case.files[name].replace(b'"seconds": 0', b'"seconds": 9')
    assert altered != case.files[name]
    assert records.fault_of(case, {name: altered}, tmp_path / "damaged") == ""
    with patch("experiments.training.record.unsealed", lambda path: {**records.json.loads(path.read_bytes())}):
        assert records.fault_of(case, {name: altered}, tmp_path / "damaged") != ""
