"""Records that were damaged, exchanged or altered, and how files are written."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from experiments.errors import RecordError, UserError
from experiments.report import page as report
from experiments.report import summarize
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from experiments.training.files import append, compressed, write
from experiments.training.record import Record
from tests.integration.studies import CPU, small

FILES = ["config.json", "environment.json", "history.jsonl", "checkpoint.pt", "result.json"]
STUDY = small(seeds=[0, 1], train={"epochs": 2, "batch_size": 50})
SEARCH = small(sweep={"space": {"optimizer.lr": [0.1, 0.2]}}, train={"epochs": 1, "batch_size": 50})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run_study(STUDY, folder, CPU)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "study"))


@pytest.fixture
def run(folder):
    return folder / "runs" / "none" / "seed0"


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("file", [*FILES, "../../../study.json"])
def test_a_flipped_bit_is_named(file, folder, run):
    path = run / file
    whole = path.read_bytes()
    for place in range(3, len(whole), len(whole) // 12):
        flip(path, place, place % 8)
        with pytest.raises(RecordError, match=f"{path.resolve().name}: is damaged") as error:
            summarize(folder)
        assert "\n" not in str(error.value)
        path.write_bytes(whole)
    assert summarize(folder)


def test_a_flipped_bit_in_letters_beyond_ascii_is_named(tmp_path):
    run_study(small(name="日本é", train={"epochs": 1, "batch_size": 50}), tmp_path, CPU)
    path = tmp_path / "study.json"
    whole = path.read_bytes()
    for place in (place for place, byte in enumerate(whole) if byte > 127):
        for bit in range(8):
            flip(path, place, bit)
            with pytest.raises(RecordError, match=r"study.json: is damaged"):
                summarize(tmp_path)
            path.write_bytes(whole)


@pytest.mark.parametrize("file", [*FILES, "../../../study.json"])
def test_a_pipe_in_the_place_of_a_file_is_told_and_not_waited_for(file, folder, run):
    (run / file).unlink()
    os.mkfifo(run / file)
    with pytest.raises(RecordError, match=r"is not a file|study.json: is damaged"):
        summarize(folder)


@pytest.mark.parametrize("file", [file for file in FILES if file != "environment.json"])  # which both have in common
def test_a_file_of_another_run_is_noticed(file, folder, run):
    other = run.with_name("seed1") / file
    taken = other.read_bytes()
    shutil.copy(run / file, other)
    (run / file).write_bytes(taken)
    with pytest.raises(RecordError, match=r"is damaged|is of another run"):
        summarize(folder)


def test_runs_that_were_exchanged_are_noticed(folder, run):
    run.rename(folder / "aside")
    run.with_name("seed1").rename(run)
    (folder / "aside").rename(run.with_name("seed1"))
    with pytest.raises(RecordError, match=r"config.json: is of another run: remove"):
        summarize(folder)
    with pytest.raises(RecordError, match=r"config.json: is of another run: remove"):
        run_study(STUDY, folder, CPU, resume=True)


@pytest.mark.parametrize("file", ["history.jsonl", "environment.json", "config.json"])
def test_a_file_that_is_missing_is_named(file, folder, run):
    (run / file).unlink()
    with pytest.raises(RecordError, match=f"{file}: is missing: remove"):
        summarize(folder)


def test_a_checkpoint_of_a_finished_run_may_be_deleted(folder, run):
    table = report.table(summarize(folder))
    (run / "checkpoint.pt").unlink()
    assert report.table(summarize(folder)) == table


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b"\0", b"[" * 100_000, b"9" * 5000, b"\xff\xfe", b"NaN"]
)
@pytest.mark.parametrize("file", ["result.json", "../../../study.json", "environment.json"])
def test_whatever_stands_in_a_file_is_told_in_a_line(content, file, folder, run):
    (run / file).write_bytes(content)
    with pytest.raises(RecordError, match="is damaged"):
        summarize(folder)


def without_checksums(folder: Path) -> None:
    """Makes of the records what earlier versions wrote."""
    for path in [folder / "study.json", *folder.glob("runs/**/result.json")]:
        tree = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in tree.items() if key not in ("checksum", "files")}))
    for path in folder.glob("runs/**/checkpoint.pt"):
        state = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in state.items() if key not in ("run", "history")}, path)


CLASSIFIED = {
    "count": 24,
    "wrong": "AAAA",
    "classes": 3,
    **dict.fromkeys(("true", "predicted", "confidence"), compressed(bytes([2] * 24))),
    "bins": {"count": [24], "correct": [0], "confidence": [1.0]},
}


def test_records_without_outcomes_are_read(folder):
    assert summarize(folder).cells[0].wrong("test").keys() == {0, 1}
    without_checksums(folder)
    for path in folder.glob("runs/**/result.json"):
        tree = json.loads(path.read_text())
        del tree["outcomes"]
        path.write_text(json.dumps(tree))
    found = summarize(folder)
    assert found.cells[0].wrong("test") == {}
    assert report.table(found)


@pytest.mark.parametrize(
    "outcomes",
    [
        {"test": {"count": 797, "wrong": "AAAA"}},
        {"test": {"count": 24, "wrong": "AA?A"}},
        {"test": {"count": 0, "wrong": ""}},
        {"train": {"count": 24, "wrong": "AAAA"}},
        {"test": {"count": 24}},
        {"test": {"count": 24, "wrong": "AAAA", "predicted": "AAAA"}},
        {"test": {**CLASSIFIED, "predicted": compressed(bytes(23))}},
        {"test": {**CLASSIFIED, "predicted": compressed(bytes(25))}},
        {"test": {**CLASSIFIED, "predicted": compressed(bytes([3] * 24))}},
        {"test": {**CLASSIFIED, "predicted": "AAAA"}},
        {"test": {**CLASSIFIED, "confidence": compressed(bytes(10**7))}},
        {"test": {**CLASSIFIED, "bins": {"count": [23], "correct": [0], "confidence": [1.0]}}},
        {"test": {**CLASSIFIED, "bins": {"count": [24], "correct": [0, 0], "confidence": [1.0]}}},
        {"test": {"count": 1, "values": compressed(bytes(4)), "true": compressed(bytes([0, 0, 192, 127]))}},
        {"test": {"count": 1, "values": compressed(bytes(4))}},
        None,
    ],
)
def test_outcomes_that_are_none_are_told(outcomes, folder, run):
    without_checksums(folder)
    tree = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**tree, "outcomes": {"test": {"count": 24, "wrong": "AAAA"}}}))
    assert summarize(folder)
    (run / "result.json").write_text(json.dumps({**tree, "outcomes": {"test": CLASSIFIED}}))
    assert summarize(folder)
    (run / "result.json").write_text(json.dumps({**tree, "outcomes": outcomes}))
    with pytest.raises(RecordError, match=r"result.json: is damaged"):
        summarize(folder)


def test_records_of_earlier_versions_are_read_and_continued(folder, run):
    table = report.table(summarize(folder))
    whole = Record(run).result["sha256"]
    without_checksums(folder)
    assert report.table(summarize(folder)) == table
    (run / "result.json").unlink()
    assert run_study(STUDY, folder, CPU, resume=True) == []
    assert Record(run).result["sha256"] == whole


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test_error", 1.5),
        ("test_error", "0.1"),
        ("train_error", None),
        ("zeros", -0.5),
        ("norms", [1.0]),
        ("norms", {"linear1.weight": "x"}),
        ("histogram", {"edges": [0.0], "shares": [0.0], "below": 0.0, "above": 0.0}),
        ("status", "finished"),
        ("epochs", 3),
        ("seconds", -1.0),
    ],
)
def test_a_wrong_value_is_told_where_no_checksum_tells(key, value, folder, run):
    without_checksums(folder)
    tree = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**tree, key: value}))
    with pytest.raises(RecordError, match="is damaged"):
        summarize(folder)
    del tree[key]
    (run / "result.json").write_text(json.dumps(tree))
    with pytest.raises(RecordError, match=r"result.json: is damaged"):
        summarize(folder)


# A scaler that is off loads nothing, no best epoch is known, and a tensor may be a number of seconds.
HARMLESS = {("scaler", dict), ("scaler", str), ("scaler", torch.Tensor), ("best", dict), ("seconds", torch.Tensor)}
KEYS = ["model", "optimizer", "scaler", "epoch", "best", "seconds", "shuffle", "rng"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, "x", {}, torch.zeros(1)], ids=["missing", "text", "empty", "tensor"])
def test_a_checkpoint_that_lacks_something_is_told_in_a_line(key, value, folder, run, capsys):
    (run / "result.json").unlink()
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert set(KEYS) <= state.keys()
    del state[key]
    if value is not None:
        state[key] = value
    torch.save(state, run / "checkpoint.pt")
    if key not in ("epoch", "scaler"):  # without its own checksum, but with those that came with it
        with pytest.raises(RecordError, match=r"checkpoint.pt: was altered: remove"):
            run_study(STUDY, folder, CPU, resume=True)
    del state["run"], state["history"]  # as earlier versions wrote it
    torch.save(state, run / "checkpoint.pt")
    if key == "epoch":  # without it there is nothing to continue
        assert run_study(STUDY, folder, CPU, resume=True) == []
        assert "checkpoint.pt is damaged: the run starts afresh" in capsys.readouterr().err
    elif (key, type(value)) in HARMLESS:
        assert run_study(STUDY, folder, CPU, resume=True) == []
    else:
        with pytest.raises(RecordError, match=r"checkpoint.pt: does not fit the run") as error:
            run_study(STUDY, folder, CPU, resume=True)
        assert "\n" not in str(error.value)


def test_a_history_that_was_altered_before_the_checkpoint_is_not_continued(folder, run, capsys):
    (run / "result.json").unlink()
    lines = (run / "history.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "test_error": 0.0})
    (run / "history.jsonl").write_text("\n".join(lines) + "\n")
    assert run_study(STUDY, folder, CPU, resume=True) == []
    assert "is damaged: the run starts afresh" in capsys.readouterr().err
    assert Record(run).history[0]["test_error"] > 0.0


def test_a_checkpoint_of_another_run_is_refused(folder, run):
    (run / "result.json").unlink()
    for file in ("checkpoint.pt", "history.jsonl"):
        shutil.copy(run.with_name("seed1") / file, run / file)
    with pytest.raises(RecordError, match=r"checkpoint.pt: is of another run"):
        run_study(STUDY, folder, CPU, resume=True)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    run_sweep(SEARCH, folder, CPU)
    return folder


@pytest.mark.parametrize("alteration", ["removed", "doubled", "exchanged", "changed", "renamed"])
@pytest.mark.parametrize("is_sealed", [True, False])
def test_the_log_of_a_search_that_was_altered_is_told(alteration, is_sealed, search, tmp_path):
    folder = Path(shutil.copytree(search, tmp_path / "search"))
    path = folder / "trials.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    if not is_sealed:
        for event in events:
            del event["checksum"]
    if alteration == "removed":
        del events[0]
    elif alteration == "doubled":
        events.insert(1, events[1])
    elif alteration == "exchanged":
        events[0], events[1] = events[1], events[0]
    elif alteration == "changed":
        events[0]["values"] = {"optimizer.lr": 0.3, "optimizer": 3}
    else:
        events[0]["numbr"] = events[0].pop("number")
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(UserError, match=r"trials.jsonl: is damaged"):
        run_sweep(SEARCH, folder, CPU, resume=True)


def test_a_damaged_record_ends_a_search_and_is_no_failure_of_a_point(search, tmp_path):
    folder = Path(shutil.copytree(search, tmp_path / "search"))
    (folder / "optuna.log").unlink()  # all points are asked for again
    for path in folder.glob("runs/**/result.json"):
        flip(path, 100, 7)
    with pytest.raises(RecordError, match=r"result.json: is damaged"):
        run_sweep(SEARCH, folder, CPU, resume=True)


@pytest.mark.parametrize("lines", [0, 1])
def test_a_log_that_lost_its_end_is_told_by_the_report_and_mended_by_resuming(lines, search, tmp_path):
    folder = Path(shutil.copytree(search, tmp_path / "search"))
    log = folder / "trials.jsonl"
    whole, table = log.read_text(), report.table(summarize(folder))
    log.write_text("".join(whole.splitlines(keepends=True)[:lines]))
    with pytest.raises(RecordError, match=r"trials.jsonl: lacks points that were tried: 'sweep --resume' adds them"):
        summarize(folder)
    assert run_sweep(SEARCH, folder, CPU, resume=True) == []
    assert (log.read_text(), report.table(summarize(folder))) == (whole, table)


def test_seeds_of_different_layers_have_a_report(tmp_path):
    arm = {"name": "L1", "strengths": [0.1, 1.0], "regularizers": [{"penalty": "L1", "mode": "prox"}]}
    run_study(small(arms=[arm], seeds=[0, 1], train={"epochs": 1, "batch_size": 50}), tmp_path, CPU)
    without_checksums(tmp_path)
    path = next(tmp_path.glob("runs/*/seed1/result.json"))
    tree = json.loads(path.read_text())
    del tree["sparsity"]["output.weight"], tree["norms"]["output.weight"]
    path.write_text(json.dumps(tree))
    assert report.write_page(summarize(tmp_path), tmp_path).exists()


def test_half_a_line_of_a_killed_process_is_none_of_the_log(search, tmp_path):
    folder = Path(shutil.copytree(search, tmp_path / "search"))
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"arm": "none", "ev')
    assert run_sweep(SEARCH, folder, CPU, resume=True) == []


@pytest.mark.parametrize("target", ["a file", "nothing", "a folder", "itself"])
def test_a_link_at_the_name_of_a_temporary_file_is_not_followed(target, tmp_path):
    victim = tmp_path / "victim"
    if target == "a file":
        victim.write_text("precious")
    elif target == "a folder":
        victim.mkdir()
    (tmp_path / "page.html.part").symlink_to(tmp_path / "page.html.part" if target == "itself" else victim)
    write(tmp_path / "page.html", "a page")
    assert (tmp_path / "page.html").read_text() == "a page"
    assert not (tmp_path / "page.html").is_symlink()
    assert not (tmp_path / "page.html.part").is_symlink()
    assert (victim.read_text() == "precious") if target == "a file" else (victim.exists() == (target == "a folder"))


@pytest.mark.parametrize(
    "file", ["result.json", "history.jsonl", "checkpoint.pt", "config.json", "../../../study.json"]
)
def test_links_in_a_folder_that_is_continued_are_not_followed(file, folder, run):
    victim = folder.with_name("victim")
    victim.write_text("precious")
    (run / "result.json").unlink()
    for name in (file, f"{file}.part"):
        path = run / name
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
    with contextlib.suppress(RecordError):
        run_study(STUDY, folder, CPU, resume=True)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("linked", ["runs", "runs/none", "runs/none/seed1"])
def test_a_link_in_the_place_of_a_folder_of_runs_is_refused(linked, folder):
    victim = (folder / linked).rename(folder.with_name("victim"))
    for path in victim.rglob("result.json"):
        path.unlink()
    (folder / linked).symlink_to(victim)
    before = {path: path.stat().st_mtime_ns for path in victim.rglob("*")}
    with pytest.raises(RecordError, match=f"{linked}: must be a folder, is a symbolic link: remove it"):
        run_study(STUDY, folder, CPU, resume=True)
    assert {path: path.stat().st_mtime_ns for path in victim.rglob("*")} == before
    victim.rename(folder.with_name("elsewhere"))  # now the link leads to nothing
    with pytest.raises(RecordError, match=f"{linked}: must be a folder"):
        run_study(STUDY, folder, CPU, resume=True)


def test_a_study_in_a_folder_that_is_a_link_goes_on(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert run_study(STUDY, tmp_path / "link", CPU, resume=True) == []


def test_a_link_in_the_place_of_the_lock_is_refused(folder):
    victim = folder.with_name("victim")
    victim.write_text("precious")
    (folder / ".lock").unlink(missing_ok=True)
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(RecordError, match=r"\.lock: must be a file, is a symbolic link: remove it"):
        run_study(STUDY, folder, CPU, resume=True)
    assert victim.read_text() == "precious"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append(os.fstat(number).st_size), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append(to.name), replace(self, to)))
    write(tmp_path / "a", "content")
    assert done == [7, "a"]


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "result.json").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"result.json: cannot be written: No space left on device"):
        write(tmp_path / "result.json", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "before"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_told_where_a_line_is_added(tmp_path):
    (tmp_path / "history.jsonl").symlink_to("/dev/full")
    with pytest.raises(RecordError, match=r"history.jsonl: cannot be written: No space left on device"):
        append(tmp_path / "history.jsonl", {"epoch": 1})


def test_a_full_disk_ends_the_study_and_is_no_failure_of_a_run(tmp_path, monkeypatch):
    def full(self: Record, row: dict[str, object]) -> None:
        raise RecordError(f"{self.folder / 'history.jsonl'}: cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Record, "append", full)
        with pytest.raises(RecordError, match="No space left"):
            run_study(STUDY, tmp_path, CPU)
    assert not list(tmp_path.glob("runs/**/result.json"))
    assert run_study(STUDY, tmp_path, CPU, resume=True) == []
