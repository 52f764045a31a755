"""Studies at addresses: the records are those of a local folder, on a server of S3's that runs here."""

import logging
import os
import re
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch

from experiments.config import load
from experiments.errors import RecordError, UserError
from experiments.report import summarize
from experiments.running.study import run_study
from experiments.training import locks
from experiments.training.locks import InUseError, Lease, lock
from experiments.training.progress import Progress
from experiments.training.record import Log, Record, load_sealed, open_study, read_runs
from experiments.training.storage import exists, files_below, get, is_local, names_in, place, put
from tests.integration.studies import CPU, kill, small, stopped_after

boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

L1 = {"name": "L1", "strengths": [0.1, 0.3], "regularizers": [{"penalty": "L1", "mode": "prox"}]}
AVERAGED = {"epochs": 4, "batch_size": 30, "average": {"name": "ema", "decay": 0.9}}
OFTEN = {"checkpoint_seconds": 0.0}


@contextmanager
def serving(port=0):
    """A server of S3's; what it holds stays for the next one in this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    one = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    one.start()
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="module")
def s3():
    """A client of the server, which the environment names as it does elsewhere."""
    with serving() as one, pytest.MonkeyPatch.context() as patched:
        host, port = one.get_host_and_port()
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "testing")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield boto3.client("s3")
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()  # the next server is another one


@pytest.fixture
def folder(s3, request):
    """An address that nothing has been written to, in a bucket of its own."""
    bucket = f"test{abs(hash(request.node.nodeid))}"
    s3.create_bucket(Bucket=bucket)
    return place(f"s3://{bucket}/studies/mine")


@pytest.fixture
def hasty(monkeypatch):
    """Leases that last for a second."""
    monkeypatch.setattr(locks, "RENEWED", 0.1)
    monkeypatch.setattr(locks, "LASTS", 1.0)


def made(study, folder):
    """What the records of a study hold, without how long it took."""
    found = {}
    for run in study.runs:
        for one in (run, run.average):
            if one is not None:
                record = Record(folder / "runs" / one.folder, one)
                result = {key: value for key, value in record.result.items() if key != "seconds"}
                result["files"] = sorted(names_in(record.folder))
                found[one.folder] = result, record.history, record.environments
    return found


def weights(study, folder):
    return [load_sealed(folder / "runs" / run.folder / "checkpoint.pt")[0]["model"] for run in study.runs]


def same(study, ours, theirs):
    torch.testing.assert_close(weights(study, ours), weights(study, theirs), rtol=0, atol=0)
    return made(study, ours) == made(study, theirs)


@pytest.mark.parametrize("stack", [False, True])
def test_a_study_has_the_same_records_at_an_address(stack, folder, tmp_path):
    study = small(arms=[L1], train={**AVERAGED, **OFTEN, "stack": stack})
    run_study(study, tmp_path, CPU)
    run_study(study, folder, CPU)
    assert same(study, folder, tmp_path)
    ours, theirs = ({*map(str, files_below(one, "runs/*/*/*"))} for one in (folder, tmp_path))
    assert ours == theirs != set()
    assert set(names_in(folder)) == {"runs", "study.json", ".lock-1"}


def test_the_command_line_takes_an_address_where_it_takes_a_folder(experiments, folder, tmp_path):
    (tmp_path / "small.toml").write_text(TOML)
    code, table, _ = experiments("run", "small.toml", "--out", str(tmp_path / "mine"))
    assert code == 0
    code, out, _ = experiments("run", "small.toml", "--out", str(folder))
    assert code == 0
    assert out.splitlines()[-1] == f"Report: {folder}/report.html"
    assert without_place(out) == without_place(table)
    assert get(folder / "report.html").startswith(b"<!doctype html>")
    assert without_place(experiments("report", str(folder))[1]) == without_place(table)
    code, out, _ = experiments("compare", str(folder), "mine", "--html", f"{folder.parent}/both.html")
    assert code == 0
    assert out.splitlines()[-1] == f"Page: {folder.parent}/both.html"
    assert re.findall(r"^(\w+) +mine +(\S+) ", out, re.M) == [("none", "+0.0"), ("L2", "+0.0")]
    assert get(folder.parent / "both.html").startswith(b"<!doctype html>")


def without_place(out):
    """The tables of a report, which say nothing of where it is."""
    return out[out.index("\narm ") if not out.startswith("arm ") else 0 :].partition("Report: ")[0].strip()


TOML = """
name = "small"
seeds = [0]
data = { name = "digits", train_size = 100, valid_size = 100, label_noise = 0.2 }
model = { name = "mlp", hidden = [16] }
optimizer = { name = "AdamW", lr = 1e-2 }
train = { epochs = 2, batch_size = 30, stack = false }
arms = [{ name = "none" }, { name = "L2", optimizer.weight_decay = 0.1 }]
"""


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stack", [False, True])
def test_a_killed_study_goes_on_with_the_same_bits(stack, kills, folder, tmp_path, hasty):
    train = {"epochs": 12 + 3 * kills, "batch_size": 30, **OFTEN, "stack": stack}
    study = small(seeds=[0, 1], train=train)
    run_study(study, tmp_path, CPU)
    history = folder / "runs" / study.runs[0].folder / "history.jsonl"
    for number in range(kills):
        kill(
            partial(run_hastily, dict(os.environ)),
            study,
            folder,
            lambda at=3 * number + 2: exists(history) and len(lines_of(history)) >= at,
        )
    run_study(study, folder, CPU, resume=True)
    assert same(study, folder, tmp_path)


def run_hastily(environment, *args, **options):
    """For another process, which does not wait a minute for the lock of the one killed before it.

    The server from which processes are forked may have begun before there were credentials.
    """
    os.environ.update(environment)
    locks.RENEWED, locks.LASTS = 0.1, 1.0
    run_study(*args, **options)


def lines_of(path):
    return get(path).splitlines()


def test_a_server_that_stops_ends_the_study_with_a_line_and_it_goes_on(folder, s3, tmp_path, monkeypatch, hasty):
    study = small(train={"epochs": 4, "batch_size": 30, **OFTEN})
    run_study(study, tmp_path, CPU)
    with serving() as one, monkeypatch.context() as patched:
        port = one.get_host_and_port()[1]
        patched.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patched.setenv("AWS_MAX_ATTEMPTS", "1")
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
        there, advance = place(str(folder)), Progress.advance

        def stop(self, *args):
            if self.epoch == 1:
                one.stop()
            advance(self, *args)

        with patched.context() as stopping:
            stopping.setattr(Progress, "advance", stop)
            with pytest.raises(RecordError, match=r"history.jsonl: cannot be read: \w+: Could not connect"):
                run_study(study, there, CPU)
    with serving(port):
        run_study(study, there, CPU, resume=True)
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
    assert same(study, folder, tmp_path)


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_search_has_the_same_points_and_results_at_an_address(jobs, experiments, folder, tmp_path):
    (tmp_path / "search.toml").write_text(f"{TOML}{SEARCH}")
    assert experiments("sweep", "search.toml", "--out", "mine")[0] == 0
    options = ["--out", str(folder), "--storage", f"sqlite:///{tmp_path}/search.db", "--jobs", jobs]
    assert experiments("sweep", "search.toml", *options)[0] == 0
    study = load(tmp_path / "search.toml")
    asked, local = (
        [event["values"] for event in Log(one / "trials.jsonl").events] for one in (folder, tmp_path / "mine")
    )
    assert asked == local
    assert len(asked) == 3
    runs = read_runs(study, folder)
    results = [
        [Record(one / "runs" / run.folder, run).result["sha256"] for run in runs] for one in (folder, tmp_path / "mine")
    ]
    assert results[0] == results[1]


SEARCH = """
[sweep]
sampler = { name = "RandomSampler" }
trials = 3
arms = ["L2"]
[sweep.space]
"optimizer.lr" = { low = 1e-4, high = 1e-1, log = true }
"""


def test_a_damaged_object_is_noticed(experiments, folder, tmp_path, capsys):
    study = small(seeds=[0, 1])
    run_study(study, folder, CPU)
    history = folder / "runs" / "none" / "seed0" / "history.jsonl"
    put(history, get(history).replace(b"0", b"1", 1))
    code, _, err = experiments("report", str(folder))
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {history}: is damaged: remove {history.parent}")


def test_a_damaged_checkpoint_starts_the_run_afresh(folder, tmp_path, capsys, hasty):
    study = small(train={"epochs": 4, "batch_size": 30, **OFTEN})
    run_study(study, tmp_path, CPU)
    with stopped_after(2):
        run_study(study, folder, CPU)
    checkpoint = folder / "runs" / "none" / "seed0" / "checkpoint.pt"
    put(checkpoint, get(checkpoint)[:-100])
    run_study(study, folder, CPU, resume=True)
    assert f"{checkpoint} is damaged: the run starts afresh" in capsys.readouterr().err
    assert same(study, folder, tmp_path)


def test_what_other_machines_write_is_seen_at_once(folder, s3):
    bucket, _, prefix = folder.path.partition("/")
    assert (names_in(folder), exists(folder / "a" / "b")) == ([], False)
    s3.put_object(Bucket=bucket, Key=f"{prefix}/a/b", Body=b"one")
    assert (names_in(folder), exists(folder / "a" / "b"), get(folder / "a" / "b")) == (["a"], True, b"one")
    s3.put_object(Bucket=bucket, Key=f"{prefix}/a/b", Body=b"longer")
    s3.put_object(Bucket=bucket, Key=f"{prefix}/a/c", Body=b"")
    assert get(folder / "a" / "b") == b"longer"
    assert sorted(map(str, files_below(folder, "a/*"))) == ["a/b", "a/c"]


# -- locks ------------------------------------------------------------------------------------------------------------


def test_of_two_drivers_the_second_is_refused_and_told_who_the_first_is(folder, hasty, capsys):
    study = small()
    with open_study(study, folder, resume=False):
        there = rf"--out: {folder} is in use by process {os.getpid()} on \S+: wait for it, or choose another folder"
        with pytest.raises(UserError, match=there):
            run_study(study, folder, CPU, resume=True)
    assert f"is held by process {os.getpid()}" in capsys.readouterr().err
    run_study(study, folder, CPU, resume=True)


def test_only_one_of_many_has_the_lock(folder, hasty):
    inside, most, errors = 0, 0, []

    def work():
        nonlocal inside, most
        try:
            for _ in range(3):
                with lock(folder):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.05)
                    inside -= 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, errors) == (1, [])
    assert names_in(folder) == [".lock-12"]


def test_a_lock_whose_holder_is_dead_is_free_after_a_while_and_one_that_is_renewed_is_not(folder, hasty, monkeypatch):
    with ExitStack() as stack, monkeypatch.context() as patched:
        patched.setattr(locks.Lease, "_renew", lambda self: None)
        stack.enter_context(lock(folder))
        with lock(folder, waits=False):
            assert names_in(folder) == [".lock-2"]
            patched.undo()
    with lock(folder), pytest.raises(InUseError, match=f"process {os.getpid()}"), lock(folder, waits=False):
        pass


def test_whoever_loses_the_lock_is_stopped(folder, hasty):
    def work():
        with lock(folder):
            put(folder / ".lock-2", b"")  # of another process, which took this one for dead
            threading.Event().wait(30)
            pytest.fail("it was not stopped")

    with pytest.raises(RecordError, match=f"^{folder}: the lock was lost"):
        work()


def test_a_lock_created_late_gives_way_to_those_after_it(folder, hasty):
    put(folder / ".lock-7", b"another's")
    assert not Lease(folder)._takes(3)
    assert names_in(folder) == [".lock-7"]


# -- other addresses, and wrong ones ----------------------------------------------------------------------------------


def test_a_file_address_is_a_local_folder(tmp_path):
    assert place(tmp_path.as_uri()) == tmp_path
    assert is_local(place(tmp_path.as_uri()))


def test_a_study_runs_in_any_of_fsspecs_file_systems(tmp_path):
    upath = pytest.importorskip("upath")
    study, folder = small(train={**AVERAGED, **OFTEN}), upath.UPath("memory://addresses/mine")
    run_study(study, folder, CPU)
    run_study(study, tmp_path, CPU)
    assert same(study, folder, tmp_path)
    ours, theirs = (summarize(one).cells[0].results[0]["sha256"] for one in (folder, tmp_path))
    assert ours == theirs


WRONG = {
    "protocol": (["run", "small.toml", "--out", "s4://bucket/mine"], "unknown protocol 's4', did you mean 's3'?"),
    "package": (["run", "small.toml", "--out", "gs://bucket/mine"], "pip install gcsfs"),
    "bucket": (["run", "small.toml", "--out", "s3://absent/mine"], "cannot be written: The specified bucket does not"),
    "chain": (["report", "simplecache::s3://bucket/mine"], "must be one address, is a chain"),
    "memory": (["run", "small.toml", "--out", "memory://mine"], "ends with this process"),
    "two slashes": (["run", "small.toml", "--out", "file://mine"], "must be file:/// and an absolute path"),
    "no listing": (["run", "small.toml", "--out", "{server}/absent/mine"], "cannot be written"),
    "study": (["run", "s3://bucket/small.toml"], "CONFIG: must be a file of this machine or a shipped study"),
    "report": (["report", "s3://absent/mine"], "holds no study (no study.json)"),
    "storage": (["sweep", "search.toml", "--out", "s3://absent/mine"], "--storage: is needed"),
    "logger": (["run", "small.toml", "--out", "s3://absent/mine", "--log", "tensorboard"], "needs a local folder"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_address_is_told_in_one_line(arguments, said, experiments, s3, tmp_path):
    (tmp_path / "small.toml").write_text(TOML)
    (tmp_path / "search.toml").write_text(f"{TOML}{SEARCH}")
    code, out, err = experiments(*(word.format(server=os.environ["AWS_ENDPOINT_URL"]) for word in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert said in err


def test_without_credentials_there_is_one_line(experiments, s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
    code, out, err = experiments("report", "s3://bucket/mine")
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot be read: NoCredentialsError" in err
