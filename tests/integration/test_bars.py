"""Progress: what it says, and where. The clock is the test's own; no test measures time."""

import io
import re
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from experiments.config import resolve
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from experiments.training import bars
from experiments.training.bars import Bar
from tests.integration.studies import CPU, TREE


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves on."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_the_time_left_is_that_of_the_units_left(clock):
    with Bar("study", 10, "run") as bar:
        assert str(bar) == "0 of 10 runs, less than 1 s"
        clock.seconds += 30
        bar.update()
        assert str(bar) == "1 of 10 runs, 30 s, about 4 min 30 s left"
        bar.update(4)
        assert str(bar) == "5 of 10 runs, 30 s, about 30 s left"
        clock.seconds += 0.01
        bar.update(4)
        assert str(bar) == "9 of 10 runs, 30 s, about 3 s left"
        bar.note = "best 3 %"
        bar.update()
        assert str(bar) == "10 of 10 runs, 30 s, best 3 %"


@pytest.mark.parametrize("before", ["at the start", "in passing"])
def test_units_that_were_done_before_do_not_count_as_fast_ones(before, clock):
    with Bar("study", 10, "run", done=6 if before == "at the start" else 0) as bar:
        for _ in range(6 if before == "in passing" else 0):
            bar.update(is_new=False)
        assert bar.left is None
        clock.seconds += 20
        bar.update(2)
        assert str(bar) == "8 of 10 runs, 20 s, about 20 s left"


def test_a_part_counts_while_it_is_under_way(clock):
    with Bar("study", 2, "run") as study:
        with Bar("first", 4, "epoch") as run:
            clock.seconds += 5
            run.update()
            assert str(study) == "0 of 2 runs, 5 s, about 35 s left"
        assert study.left == 5  # its part has come to its end, though early
        study.update()
        assert study.left == 5
        with Bar("second", 4, "epoch", done=2) as run:  # it was resumed: half of it took no time
            assert study.left == 5 * 0.5
            run.update()
            assert study.left == 5 * 0.25 / 1.25


def test_a_unit_of_several_parts(clock):
    with Bar("search", 9, "run") as search:
        for _ in range(2):
            with Bar("seed", 1, "epoch") as seed:
                clock.seconds += 10
                seed.update()
        assert search.left == 70
        search.update(3)  # the third one was spared
        assert search.left == 20 * 6 / 3


def test_a_stack_counts_for_all_of_its_runs(clock):
    with Bar("study", 10, "run") as study:
        with Bar("8 runs", 4, "epoch", stands_for=8) as stack:
            clock.seconds += 10
            stack.update()
            assert study.left == 10 * 8 / 2
            stack.update(3)
        assert study.left == 10 * 2 / 8
        study.update(8)
        assert study.left == 10 * 2 / 8
        with Bar("2 runs", 4, "epoch", done=2, stands_for=2) as stack:
            stack.update()
            assert study.left == 10 * 0.5 / 8.5


def test_a_stack_that_failed_counts_for_nothing(clock):
    with Bar("study", 10, "run") as study:
        with suppress(ValueError), Bar("8 runs", 4, "epoch", stands_for=8) as stack:
            clock.seconds += 10
            stack.update()
            raise ValueError
        assert study.left is None


def test_parts_are_no_more_than_the_whole(clock):
    with Bar("study", 1, "run") as study:
        for _ in range(3):
            with Bar("part", 1, "epoch") as part:
                clock.seconds += 1
                part.update()
        assert study.left == 0


@pytest.mark.parametrize("names", [["study"], ["study", "run"]])
def test_in_a_pipe_there_is_a_line_now_and_then(names, monkeypatch):
    monkeypatch.setattr(bars, "_EVERY", 0.001)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with Bar("study", 3, "run") as bar:
        bar.update()
        if "run" in names:
            with Bar("run", 5, "epoch"):
                wait_for(stream)
        wait_for(stream)
    assert all(re.match("study: [01] of 3 runs, ", line) for line in stream.getvalue().splitlines())
    count = stream.getvalue()
    bars.threading.Event().wait(0.02)
    assert stream.getvalue() == count  # it ends with the bar


def wait_for(stream: io.StringIO) -> None:
    for _ in range(5000):
        if "\n" in stream.getvalue():
            return
        bars.threading.Event().wait(0.002)
    pytest.fail("no line")


def test_lines_are_10_seconds_apart_and_later_more(clock, monkeypatch):
    waits = []
    with Bar("study", 3, "run") as bar:
        ended = SimpleNamespace(wait=lambda seconds: waits.append(seconds) or len(waits) > 3)
        own = bar._ended
        monkeypatch.setattr(bar, "_ended", ended)
        for seconds in (0, 100, 1000):
            waits.clear()
            clock.seconds = 100.0 + seconds
            bar._tell(is_terminal=False)
            assert waits == [max(10, seconds / 20)] * 4
        monkeypatch.setattr(bar, "_ended", own)


def test_in_a_terminal_there_are_bars(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    monkeypatch.setattr(bars, "_SHOWN", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    with Bar("study", 2, "run") as bar, Bar("first", 4, "epoch") as run:
        run.update()
        bar.update()
    shown = stream.getvalue()
    assert re.search(r"50%\|.+\| study: 1 of 2 runs, less than 1 s, less than 1 s left", shown)
    assert re.search(r"25%\|.+\| first: 1 of 4 epochs, less than 1 s", shown)


def test_a_bar_is_not_drawn_for_each_of_many_epochs(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with Bar("study", 1000, "epoch") as bar:
        drawn = stream.getvalue().count("study: ")
        for _ in range(1000):
            clock.seconds += 0.01
            bar.update()
    assert 90 <= stream.getvalue().count("study: ") - drawn <= 105  # ten seconds, ten times a second
    assert "1000 of 1000 epochs, 10 s" in stream.getvalue()  # and at the end


def test_nothing_is_shown_in_a_process_beside_others(monkeypatch):
    monkeypatch.setattr(bars, "_is_silent", False)
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    bars.silence()
    with Bar("study", 2, "run") as bar:
        bar.update()
    assert stream.getvalue() == ""
    assert bars._open == []


@pytest.mark.parametrize("closed", [None, "closed"])
def test_nobody_may_read_it(closed, monkeypatch):
    monkeypatch.setattr(bars, "_EVERY", 0.001)
    stream = None if closed is None else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar("study", 2, "run") as bar:
        if stream is not None:
            stream.isatty = lambda: False
            stream.close()
        bars.threading.Event().wait(0.02)
        assert bar._thread.is_alive()
        bar.update()


def test_a_line_is_written_at_once(monkeypatch):
    flushed = []
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(stream, "flush", lambda: flushed.append(stream.getvalue()))
    with Bar("study", 1, "run") as bar:
        bar.write("a run is done")
    assert flushed[-1] == "a run is done\n"


def test_an_error_ends_it():
    with pytest.raises(ValueError, match="x"), Bar("study", 1, "run") as bar:
        raise ValueError("x")
    assert bars._open == []
    assert not bar._thread.is_alive()


def test_a_resumed_study_counts_its_runs(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Bar, "_show", lambda self: said.append((self.name, self.done, self._known)))
    study = resolve({**TREE, "seeds": [0, 1]})
    run_study(study, tmp_path, CPU)
    assert [one for one in said if one[0] == "small"] == [("small", 1, 0), ("small", 2, 0)]
    assert [one[1] for one in said if one[0] == "none/seed1"] == [1, 2, 3, 4]
    said.clear()
    run_study(study, tmp_path, torch.device("cpu"), resume=True)
    assert said == [("small", 1, 1), ("small", 2, 2)]


def test_a_search_counts_the_runs_of_all_points(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Bar, "_show", lambda self, at_once=False: said.append((self.name, self.done, self.total)))
    arms = [{"name": "none"}, {"name": "searched"}]
    space = {"space": {"optimizer.lr": [0.1, 0.2, 0.3]}, "arms": ["searched"]}
    study = resolve({**TREE, "seeds": [0, 1], "arms": arms, "sweep": space})
    run_sweep(study, tmp_path, CPU)
    assert [one for one in said if one[0] == "small"] == [("small", done, 8) for done in (2, 4, 6, 8)]
    said.clear()
    run_sweep(study, tmp_path, CPU, resume=True)  # the points are known, and the other arm is looked at again
    assert said == [("small", 8, 8)]
