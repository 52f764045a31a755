"""The benches: their figures, their files, and that what they compare is the same work. No test measures time."""

import json
from functools import partial
from textwrap import dedent

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchreg
from experiments.benches import command as benches
from experiments.benches import cuda, denormals, dropout, files, memory, optimizer, overhead, ridge
from experiments.benches.dropout import with_dropout
from experiments.benches.epoch import Loop
from experiments.benches.memory import Allocations
from experiments.benches.overhead import MODES, checked, deep
from experiments.benches.steps import CHECKED, l1_l2, mlp, step
from experiments.benches.timing import Clock, Row, Table, growing, tabulate
from experiments.errors import UserError
from experiments.training.data import Split
from torchreg import L1
from torchreg.tuning import ridge_path

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
    contenders = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    empty, table = Clock().race("t", contenders, rounds=2, warmup=1)
    assert empty == Table("t")  # whose title is shown before the first round
    assert calls == ["a", "b", "b", "a", "a", "b"]  # each round begins with the next one
    assert [row.name for row in table.rows] == ["a", "b"]


def test_the_laps_that_warm_up_are_not_among_the_figures():
    calls = []
    contenders = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    ((taken, stopped),) = Clock().laps("t", contenders, rounds=4, warmup=3)
    assert [len(times) for times in taken] == [2] * 4
    assert (len(calls), stopped) == (2 * 7, "")


def test_the_figures_are_printed_and_written(tmp_path, monkeypatch, capsys):
    table = Table("the title", (Row("bare", 1.0, 1.0, 1.0, 0.002), Row("other", 1.234, 1.1, 1.3, 0.0025)), "a note")
    monkeypatch.setattr(benches, "BENCHES", {"one": lambda clock: [table]})
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
    monkeypatch.setattr(benches, "BENCHES", {"a": lambda clock: [one], "b": lambda clock: [two]})
    benches.run(["b"], file)
    benches.run(["a"], file)
    monkeypatch.setattr(benches, "BENCHES", {"a": lambda clock: [three], "b": lambda clock: [two]})
    benches.run(["a"], file)
    held = json.loads(file.read_text())["benches"]
    assert {name: [table["title"] for table in tables] for name, tables in held.items()} == {
        "a": ["three"],
        "b": ["two"],
    }
    assert file.with_suffix(".md").read_text().index("## a") < file.with_suffix(".md").read_text().index(str(two))
    monkeypatch.setattr(benches, "machine", lambda clock: {"processor": "another"})
    benches.run(["a"], file)
    assert list(json.loads(file.read_text())["benches"]) == ["a"]


def test_what_was_measured_before_it_is_stopped_is_kept(tmp_path, monkeypatch, experiments):
    def stopped(clock):
        yield Table("whole", (Row("bare", 1.0, 1.0, 1.0, 0.002),))
        yield from growing("half", [Row("first", 1.5, 1.0, 2.0, 0.002)])
        raise KeyboardInterrupt

    def rows():
        yield Row("first", 1.5, 1.0, 2.0, 0.002)
        yield Row("second", 2.5, 2.0, 3.0, 0.002)
        raise KeyboardInterrupt

    for name, bench, kept in (
        ("tables", stopped, [["bare"], ["first"]]),
        ("rows", lambda clock: growing("the rows", rows()), [["first", "second"]]),
    ):
        monkeypatch.setattr(benches, "BENCHES", {"a": bench, "b": lambda clock: pytest.fail("goes on")})
        code, out, err = experiments("bench", "a", "b", "--json", f"{name}.json")
        assert (code, err) == (130, f"measuring a\n\nstopped; what was measured is in {name}.json\n")
        held = json.loads((tmp_path / f"{name}.json").read_text())["benches"]["a"]
        assert [[row["name"] for row in table["rows"]] for table in held] == kept
        assert all(out.count(f"  {row} ") == 1 for table in kept for row in table)


def test_a_row_is_printed_before_the_next_one_is_measured(monkeypatch, capsys):
    def rows():
        assert capsys.readouterr().out.endswith("\n\nt\n          ratio   quartiles\n")  # as wide as the names to come
        yield Row("one", 1.0, 1.0, 1.0, 0.002)
        assert capsys.readouterr().out == "  one     1.000   1.000 to 1.000         2 ms\n"
        yield Row("three", 2.0, 1.0, 3.0, 4e-6)

    monkeypatch.setattr(benches, "BENCHES", {"a": lambda clock: growing("t", rows(), ["one", "three"])})
    benches.run(["a"])
    assert capsys.readouterr().out == "  three   2.000   1.000 to 3.000         4 us\n"


class Stops:
    """Work during whose last call Ctrl-C is pressed."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_the_rounds_of_a_race_that_is_stopped_are_kept(tmp_path, monkeypatch, experiments):
    def race(clock):
        return clock.race("t", {"bare": int, "other": Stops(6)}, rounds=60, note="after all")

    def duels(clock):
        rows = (row for name in ("2^8", "2^9") for row in clock.duel(name, int, Stops(6), rounds=60))
        return growing("t", rows)

    for bench, names, note in (
        (race, ["bare", "other"], "after all; stopped after 2 of 60 rounds"),
        (duels, ["2^8, stopped after 2 of 60 rounds"], ""),
    ):
        monkeypatch.setattr(benches, "BENCHES", {"a": bench})
        code, out, err = experiments("bench", "a", "--json", f"{bench.__name__}.json")
        assert (code, err) == (130, f"measuring a\n\nstopped; what was measured is in {bench.__name__}.json\n")
        (table,) = json.loads((tmp_path / f"{bench.__name__}.json").read_text())["benches"]["a"]
        assert ([row["name"] for row in table["rows"]], table["note"]) == (names, note)
        assert out.count("stopped after 2 of 60 rounds") == 1


def test_nothing_is_kept_of_a_race_that_is_stopped_while_it_warms_up():
    race = Clock().race("t", {"bare": int, "other": Stops(3)}, rounds=60)
    assert next(race) == Table("t")
    with pytest.raises(KeyboardInterrupt):
        next(race)


def test_a_quick_look_takes_few_rounds_and_goes_into_a_file_of_its_own(tmp_path, monkeypatch, experiments):
    calls = []

    def bench(clock):
        return clock.race("t", {"bare": lambda: calls.append(clock.is_quick)}, rounds=60, warmup=0)

    monkeypatch.setattr(benches, "BENCHES", {"memory": bench, "scale": lambda clock: pytest.fail("is not quick")})
    assert experiments("bench", "--quick", "--json", "quick.json")[0] == 0
    assert calls == [True] * 15
    assert json.loads((tmp_path / "quick.json").read_text())["machine"]["quick"] == "yes"
    assert experiments("bench", "memory", "--json", "full.json")[0] == 0
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    code, out, err = experiments("bench", "memory", "--quick", "--json", "full.json")
    said = "holds figures with quick no, these have quick yes: name another file"
    assert (code, out, err) == (2, "", f"error: bench: full.json {said}\n")
    assert experiments("bench", "memory", "--json", "quick.json")[0] == 2
    assert experiments("bench", "scale", "--quick")[::2] == (
        2,
        "error: bench, --quick: scale is not among these benches, valid: memory\n",
    )
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def bench_file(file, machine, **tables):
    """A file as bench writes it: by title the rows, each a name with its quartiles and its ratio between them."""
    found = [
        Table(title, tuple(Row(name, (low + high) / 2, low, high, 0.002) for name, low, high in rows))
        for title, rows in tables.items()
    ]
    files.save(file, {"date": "today", **machine}, {"bench": found})


def test_two_files_are_compared_row_by_row(tmp_path, experiments):
    rows = [("bare", 1.0, 1.0), ("better", 1.4, 1.6), ("alike", 1.4, 1.6), ("old", 1.0, 2.0)]
    bench_file(tmp_path / "a.json", {"torch": "2.13", "processor": "one"}, steps=rows, gone=rows[:1])
    rows = [("bare", 1.0, 1.0), ("better", 1.1, 1.3), ("alike", 1.5, 1.9), ("new", 1.0, 2.0)]
    bench_file(tmp_path / "b.json", {"torch": "2.14", "processor": "one", "quick": "yes"}, steps=rows, come=rows[:1])
    code, out, err = experiments("bench", "compare", "a.json", "b.json")
    assert (code, err) == (0, "")
    assert out == dedent(
        """\
        A: a.json
        B: b.json
        torch  A 2.13, B 2.14
        quick  A -, B yes

        bench: steps
                       A       B   B / A
          bare     1.000   1.000   1.000
          better   1.500   1.200   0.800  *
          alike    1.500   1.700   1.133
          old     in A alone
          new     in B alone

        in A alone: bench: gone
        in B alone: bench: come
        * the quartiles do not overlap
        """
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.json"], "bench compare: takes two files that bench --json wrote, got 1"),
        (["a.json", "a.json", "a.json"], "bench compare: takes two files that bench --json wrote, got 3"),
        (["a.json", "none.json"], "bench compare: there is no file none.json"),
        (["other.json", "a.json"], "bench compare: other.json is no file that bench --json wrote"),
        (["a.json", "a.json", "--quick"], "bench compare: takes two files, and no options"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(arguments, said, tmp_path, experiments):
    bench_file(tmp_path / "a.json", {}, steps=[("bare", 1.0, 1.0)])
    (tmp_path / "other.json").write_text('{"tables": []}')
    assert experiments("bench", "compare", *arguments) == (2, "", f"error: {said}\n")


def test_on_cuda_the_clock_waits_for_the_device_after_a_few_calls(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    ((taken, _),) = Clock("cuda").laps("t", {"a": lambda: done.append("a")}, rounds=60, warmup=1, repeat=3)
    assert done == ["a", "a", "a", "wait"] * 21  # each round has several calls: 20 of them are enough
    assert len(taken) == 20


def test_the_benches_of_cuda_are_run_where_there_is_one(monkeypatch, experiments):
    monkeypatch.setattr(benches, "ON_CUDA", {"graphs": lambda clock: [Table(clock.device, (Row("a", 1, 1, 1, 0),))]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = experiments("bench", "--device", "cuda")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cuda is not available here" in err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    code, out, _ = experiments("bench", "--device", "cuda")
    assert code == 0
    assert "device: a GPU\n" in out
    assert "\ncuda\n" in out
    assert experiments("bench", "epoch", "--device", "cuda")[::2] == (
        2,
        "error: bench, --device cuda: epoch is not among these benches, valid: graphs\n",
    )


@pytest.mark.parametrize("part", [overhead.small, overhead.thin], ids=lambda part: part.__name__)
def test_small_networks_are_timed_by_all_modes_and_by_hand(part, monkeypatch):
    monkeypatch.setattr(Clock, "_rounds", lambda *_: 1)
    *_, table = part(Clock())
    assert [row.name for row in table.rows] == ["bare", "naive", *(f"mode {mode!r}" for mode in MODES)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [overhead.tables, optimizer.tables, dropout.tables, denormals.tables],
    ids=["overhead", "optimizer", "dropout", "denormals"],
)
def test_a_quick_bench_makes_whole_tables(part, monkeypatch):
    monkeypatch.setattr(Clock, "_rounds", lambda *_: 1)
    tables = {table.title: table for table in part(Clock(is_quick=True))}
    assert all(table.rows for table in tables.values())
    assert len(tables) == {overhead.tables: 7, optimizer.tables: 1, dropout.tables: 5, denormals.tables: 1}[part]


def test_the_parts_of_a_gpu_check_are_given_their_clock():
    clock = Clock("cuda")
    assert all(clock in part.args for part in cuda.parts(clock))


@pytest.mark.parametrize("options", [(), ("--json", "out.json")], ids=["no file", "a file"])
def test_where_nothing_was_measured_no_file_is_named(options, monkeypatch, experiments, tmp_path):
    def stopped(clock):
        raise KeyboardInterrupt

    monkeypatch.setattr(benches, "BENCHES", {"a": stopped})
    assert experiments("bench", "a", *options)[::2] == (130, "measuring a\n\nstopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_grows_is_one_table(tmp_path, monkeypatch, capsys):
    rows = [Row(name, 1.0, 1.0, 1.0, 0.002) for name in ("one", "two", "three")]
    monkeypatch.setattr(benches, "BENCHES", {"a": lambda clock: growing("t", rows, ["three"])})
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
    monkeypatch.setattr(benches, "BENCHES", {"a": lambda clock: pytest.fail("timed")})
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
        "naive": step(SMALL, by_hand=l1_l2),
        "mode 'loss'": step(SMALL, "loss"),
        "mode 'grad'": step(SMALL, "grad"),
    }
    *_, table = Clock().race("t", contenders, rounds=CHECKED, note=partial(checked, contenders))
    assert "differ by" in table.note
    contenders["mode 'grad'"] = step(SMALL, "grad", penalty=L1(1.0))
    with pytest.raises(RuntimeError, match="must have the same loss"):
        list(Clock().race("t", contenders, rounds=CHECKED, note=partial(checked, contenders)))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_a_ridge_head_by_hand_is_that_of_the_path(shape):
    x, y = ridge.examples_of(*shape)
    path = ridge_path(nn.Linear(shape[1], 10), (x, y), strengths=[0.1])
    assert torch.allclose(ridge.by_hand(x, y, 0.1).float(), path.state_at(0.1)["weight"], rtol=1e-5, atol=1e-6)
    assert len(ridge.chosen(x, y)) == 3


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
    shares = {row.name: row.ratio for row in memory.tables(Clock())[0].rows}
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
