"""The benches: their figures, their files, and that what they compare is the same work. No test measures time."""

import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchreg
from experiments.benches import command as benches
from experiments.benches import memory
from experiments.benches.dropout import with_dropout
from experiments.benches.epoch import Loop
from experiments.benches.memory import Allocations
from experiments.benches.overhead import MODES, _checked, deep
from experiments.benches.steps import CHECKED, mlp, step
from experiments.benches.timing import Row, Table, growing, laps, race, tabulate
from experiments.errors import UserError
from experiments.training.data import Split
from torchreg import L1

SMALL = partial(mlp, (20, 30, 10))


@pytest.fixture
def split():
    draw = torch.Generator().manual_seed(0)
    return Split(torch.randn(300, 1, 4, 5, generator=draw), torch.randint(10, (300,), generator=draw))


def test_a_ratio_is_the_median_over_rounds_of_the_ratio_within_one():
    table = tabulate("t", ["a", "b"], [[1.0, 2.0], [10.0, 30.0], [2.0, 8.0]])
    assert table["a"] == Row("a", 1.0, 1.0, 1.0, 2.0)
    assert (table["b"].ratio, table["b"].seconds) == (3.0, 8.0)
    assert table["b"].low <= 3.0 <= table["b"].high


def test_all_contenders_run_in_each_round():
    calls = []
    table = race("t", {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, warmup=1)
    assert calls == ["a", "b", "b", "a", "a", "b"]  # each round begins with the next one
    assert [row.name for row in table.rows] == ["a", "b"]


def test_the_laps_that_warm_up_are_not_among_the_figures():
    calls = []
    taken = laps("t", {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4, warmup=3)
    assert [len(times) for times in taken] == [2] * 4
    assert len(calls) == 2 * 7


def test_the_figures_are_printed_and_written(tmp_path, monkeypatch, capsys):
    table = Table("the title", (Row("bare", 1.0, 1.0, 1.0, 0.002), Row("other", 1.234, 1.1, 1.3, 0.0025)), "a note")
    monkeypatch.setattr(benches, "BENCHES", {"one": lambda: [table]})
    benches.run(["one"], tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["benches"]["one"][0]["rows"][1]["ratio"] == 1.234
    assert written["machine"]["torch"] == torch.__version__.split("+")[0]
    out = capsys.readouterr().out
    assert "other   1.234   1.100 to 1.300" in out
    assert "a note" in out
    page = (tmp_path / "out.md").read_text()
    assert str(table) in page


def test_a_second_run_keeps_what_the_file_has_of_this_machine(tmp_path, monkeypatch, capsys):
    one, two, three = (Table(name, (Row("bare", 1.0, 1.0, 1.0, 0.002),)) for name in ("one", "two", "three"))
    file = tmp_path / "out.json"
    monkeypatch.setattr(benches, "BENCHES", {"a": lambda: [one], "b": lambda: [two]})
    benches.run(["b"], file)
    benches.run(["a"], file)
    monkeypatch.setattr(benches, "BENCHES", {"a": lambda: [three], "b": lambda: [two]})
    benches.run(["a"], file)
    held = json.loads(file.read_text())["benches"]
    assert {name: [table["title"] for table in tables] for name, tables in held.items()} == {
        "a": ["three"],
        "b": ["two"],
    }
    assert file.with_suffix(".md").read_text().index("## a") < file.with_suffix(".md").read_text().index(str(two))
    monkeypatch.setattr(benches, "machine", lambda: {"processor": "another"})
    benches.run(["a"], file)
    assert list(json.loads(file.read_text())["benches"]) == ["a"]


def test_what_was_measured_before_it_is_stopped_is_kept(tmp_path, monkeypatch, experiments):
    def stopped():
        yield Table("whole", (Row("bare", 1.0, 1.0, 1.0, 0.002),))
        yield from growing("half", [Row("first", 1.5, 1.0, 2.0, 0.002)])
        raise KeyboardInterrupt

    def rows():
        yield Row("first", 1.5, 1.0, 2.0, 0.002)
        yield Row("second", 2.5, 2.0, 3.0, 0.002)
        raise KeyboardInterrupt

    for name, bench, kept in (
        ("tables", stopped, [["bare"], ["first"]]),
        ("rows", lambda: growing("the rows", rows()), [["first", "second"]]),
    ):
        monkeypatch.setattr(benches, "BENCHES", {"a": bench, "b": lambda: pytest.fail("goes on")})
        code, out, err = experiments("bench", "a", "b", "--json", f"{name}.json")
        assert (code, err) == (130, f"measuring a\n\nstopped; what was measured is in {name}.json\n")
        held = json.loads((tmp_path / f"{name}.json").read_text())["benches"]["a"]
        assert [[row["name"] for row in table["rows"]] for table in held] == kept
        assert all(out.count(f"  {row} ") == 1 for table in kept for row in table)


@pytest.mark.parametrize("options", [(), ("--json", "out.json")], ids=["no file", "a file"])
def test_where_nothing_was_measured_no_file_is_named(options, monkeypatch, experiments, tmp_path):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(benches, "BENCHES", {"a": stopped})
    assert experiments("bench", "a", *options)[::2] == (130, "measuring a\n\nstopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_grows_is_one_table(tmp_path, monkeypatch, capsys):
    rows = [Row(name, 1.0, 1.0, 1.0, 0.002) for name in ("one", "two", "three")]
    monkeypatch.setattr(benches, "BENCHES", {"a": lambda: growing("t", rows)})
    benches.run(["a"], tmp_path / "out.json")
    (table,) = json.loads((tmp_path / "out.json").read_text())["benches"]["a"]
    assert [row["name"] for row in table["rows"]] == ["one", "two", "three"]
    out, err = capsys.readouterr()
    assert out.endswith(f"\n\n{Table('t', tuple(rows))}\n")
    assert err == "measuring a\n"


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"machine": {}, "benches": {"a": [{"rows": []}]}}'])
def test_a_file_of_another_kind_is_refused_before_anything_is_timed(content, tmp_path, monkeypatch):
    file = tmp_path / "other.json"
    file.write_text(content)
    monkeypatch.setattr(benches, "BENCHES", {"a": lambda: pytest.fail("timed")})
    with pytest.raises(UserError, match="must name a new file, or one that bench wrote"):
        benches.run(["a"], file)
    assert file.read_text() == content
    with pytest.raises(UserError, match="a folder that exists"):
        benches.run(["a"], tmp_path / "none" / "out.json")


def test_ratios_are_to_the_contender_asked_for():
    table = tabulate("t", ["a", "b"], [[1.0, 2.0], [3.0, 4.0], [5.0, 20.0]], to=1)
    assert [row.ratio for row in table.rows] == [0.5, 1.0]
    assert table["a"].seconds == 3.0


def test_equal_ways_come_to_the_same_loss_and_unequal_work_is_refused():
    contenders = {
        "naive": step(SMALL, naive=True),
        "mode 'loss'": step(SMALL, "loss"),
        "mode 'grad'": step(SMALL, "grad"),
    }
    table = race("t", contenders, rounds=CHECKED)
    assert "differ by" in _checked(table, contenders).note
    contenders["mode 'grad'"] = step(SMALL, "grad", penalty=L1(1.0))
    table = race("t", contenders, rounds=CHECKED)
    with pytest.raises(RuntimeError, match="must have the same loss"):
        _checked(table, contenders)


def test_every_weight_of_the_deep_network_gets_a_gradient():
    work = step(partial(deep, 5, 500), "loss")
    work()
    assert all(w.grad is not None and w.grad.any() for w in work.weights)


def test_allocations_counts_what_is_alive():
    x = torch.ones(1000)
    with Allocations() as seen:
        y = x + 1
        z = y.view(10, 100)  # no memory of its own
        x.add_(1)
        del y, z
        for _ in range(3):
            x * 2
    assert seen.peak == 4000


def test_no_mode_but_the_loss_takes_the_memory_of_the_largest_parameter():
    shares = {row.name: row.ratio for row in memory.tables()[0].rows}
    assert shares.keys() == {f"mode {mode!r}" for mode in MODES}
    assert all(share <= 1 for name, share in shares.items() if name != "mode 'loss'")
    assert shares["mode 'loss'"] >= 1  # the gradients themselves


class Reads(TorchDispatchMode):
    """Counts the numbers read from tensors: on a GPU each would wait for all that is under way."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [None, "grad", "decoupled", "prox"])
def test_the_loop_reads_one_number_an_epoch(split, mode):
    loop = Loop(partial(with_dropout, SMALL, torchreg.nn.Dropout), split, mode=mode)
    with Reads() as seen:
        loop()
    assert seen.count == 1  # the mean of the losses, after the last step


def test_the_naive_loop_and_mode_grad_train_to_the_same_loss(split):
    ours, theirs = Loop(SMALL, split, mode="grad"), Loop(SMALL, split, naive=True)
    ours()
    theirs()
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)  # the loss by hand holds the penalty
    for p, q in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-6)
    assert isinstance(ours.net[0], nn.Flatten)
