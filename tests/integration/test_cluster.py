"""Runs and searches on a cluster of Ray: the same records as elsewhere, whatever is killed, leaves or comes."""

import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from experiments.config import load
from experiments.errors import UserError
from experiments.report.summary import summarize
from experiments.running.engines import Local, Needs, Processes, Ray
from experiments.running.engines.cluster import _nodes as nodes_now
from experiments.running.engines.guard import descendants
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from experiments.training.record import Record
from tests.integration import studies
from tests.integration.studies import CPU, TREE, kill, small

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

HERE = __name__
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"
STORE = {"object_store_memory": 80_000_000}
LITTLE, MUCH = 1_000_000_000, 4_000_000_000  # bytes of memory that a node says to have
DROPOUT = {**TREE["model"], "dropout": {"name": "Dropout", "p": 0.5}}
ARMS = [
    {"name": "none"},
    {"name": "L2", "strengths": [0.1, 1.0], "regularizers": [{"penalty": "L2"}]},
    {"name": "dropout", "model": DROPOUT},
]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a CPU each."""
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "memory": LITTLE, "include_dashboard": False, **STORE}
    )
    found.add_node(num_cpus=1, memory=LITTLE, **STORE)
    yield found
    found.shutdown()


def on_ray(run, address, study, folder, device, resume=False, needs=None, jobs=None):
    """Makes a study on a cluster; without an address on one that is started for it."""
    with Ray(needs or Needs(), jobs, address).connected() as engine:
        return run(study, folder, device, resume, engine)


def results(folder):
    """All that records hold of runs, without how long they took."""
    found = studies.results(folder)
    return {path: (result, Record(folder / path).history) for path, result in found.items()}


def test_every_engine_makes_the_same_records(cluster, tmp_path):
    study = small(arms=ARMS, seeds=[0, 1], train={**TREE["train"], "stack": True})
    assert run_study(study, tmp_path / "local", CPU, engine=Local()) == []
    assert run_study(study, tmp_path / "processes", CPU, engine=Processes(2)) == []
    assert on_ray(run_study, cluster.address, study, tmp_path / "ray", CPU) == []
    assert len(results(tmp_path / "local")) == 8
    assert results(tmp_path / "processes") == results(tmp_path / "local")
    assert results(tmp_path / "ray") == results(tmp_path / "local")


@pytest.mark.slow
def test_the_quickstart_is_the_same_by_each_engine(cluster, tmp_path):
    study = load(QUICKSTART, ["train.epochs=10"])  # instead of 100, which take a minute
    assert run_study(study, tmp_path / "local", CPU, engine=Local()) == []
    assert run_study(study, tmp_path / "processes", CPU, engine=Processes(2)) == []
    assert on_ray(run_study, cluster.address, study, tmp_path / "ray", CPU) == []
    assert len(results(tmp_path / "local")) == len(study.runs) == 45
    assert results(tmp_path / "processes") == results(tmp_path / "local")
    assert results(tmp_path / "ray") == results(tmp_path / "local")


@pytest.mark.slow
def test_a_search_that_learns_and_prunes_is_the_same_one_run_after_another(cluster, tmp_path):
    study = small(
        train={"epochs": 4, "batch_size": 50},
        seeds=[0, 1],
        sweep={
            "space": {"optimizer.lr": {"low": 1e-6, "high": 1e-1, "log": True}},
            "trials": 6,
            "pruner": {"name": "MedianPruner", "n_startup_trials": 2},
        },
    )
    assert run_sweep(study, tmp_path / "local", CPU) == []
    assert on_ray(run_sweep, cluster.address, study, tmp_path / "ray", CPU, jobs=1) == []
    assert "pruned" in {cell.status for cell in summarize(tmp_path / "local").cells}
    assert results(tmp_path / "ray") == results(tmp_path / "local")


class Waits(nn.Sequential):
    """Does something in the middle of its first training: as long as the file is not there."""

    def __init__(self, file: str, fate: str) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.file, self.fate, self.calls = Path(file), fate, 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 25 and not self.file.exists():
            self.file.touch()
            print("note: of the model", file=sys.stderr)
            if self.fate == "dies":
                os._exit(3)
            if self.fate == "waits":
                time.sleep(60)
        return super().forward(x)


def waiting(file, fate):
    model = {"class": f"{HERE}:Waits", "args": {"file": str(file), "fate": fate}}
    train = {"epochs": 12, "batch_size": 10, "checkpoint_seconds": 0.0}
    return small(arms=[{"name": "arm", "model": model}], seeds=[0], train=train)


def undisturbed(study, folder, file):
    """The results without any disturbance."""
    file.touch()
    run_study(study, folder, CPU)
    file.unlink()
    return results(folder)


@pytest.mark.slow
def test_a_run_whose_worker_dies_goes_on_from_its_checkpoint(cluster, tmp_path, capfd):
    study = waiting(tmp_path / "mark", "dies")
    expected = undisturbed(study, tmp_path / "whole", tmp_path / "mark")
    capfd.readouterr()
    assert on_ray(run_study, cluster.address, study, tmp_path / "cut", CPU) == []
    assert said_in(capfd) == []  # Ray says nothing of its own
    assert results(tmp_path / "cut") == expected


@pytest.mark.slow
def test_what_a_run_prints_is_printed_once(cluster, tmp_path, capfd):
    assert on_ray(run_study, cluster.address, waiting(tmp_path / "mark", "lives"), tmp_path / "out", CPU) == []
    assert said_in(capfd) == ["note: of the model"]


@pytest.mark.slow
def test_a_node_that_leaves_is_replaced_by_one_that_comes(cluster, tmp_path, monkeypatch):
    study = waiting(tmp_path / "mark", "waits")
    expected = undisturbed(study, tmp_path / "whole", tmp_path / "mark")
    nodes = [cluster.add_node(num_cpus=1, memory=MUCH, **STORE)]

    def nodes_after(ray):
        if (tmp_path / "mark").exists() and len(nodes) == 1:
            cluster.remove_node(nodes[0], allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1, memory=MUCH, **STORE))
        return nodes_now(ray)

    monkeypatch.setattr("experiments.running.engines.cluster._nodes", nodes_after)
    assert on_ray(run_study, cluster.address, study, tmp_path / "cut", CPU, needs=Needs(memory=MUCH)) == []
    cluster.remove_node(nodes[1])
    assert results(tmp_path / "cut") == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_study_whose_driver_was_killed_goes_on_with_another_engine(tmp_path):
    study = small(arms=ARMS, seeds=[0, 1], train={"epochs": 60, "batch_size": 10, "checkpoint_seconds": 0.0})
    run_study(study, tmp_path / "whole", CPU)
    before, begun = set(descendants(os.getpid())), []

    def in_the_third_run() -> bool:
        if len(results(tmp_path / "cut")) < 2:
            return False
        begun.extend(
            pid for pid in descendants(os.getpid()) if pid not in before and "multiprocessing" not in name_of(pid)
        )
        return True

    kill(partial(on_ray, run_study, None), study, tmp_path / "cut", in_the_third_run)
    ended = time.monotonic()
    assert len(begun) > 4
    while (left := [name for name in map(name_of, begun) if name]) and time.monotonic() < ended + 5:
        time.sleep(0.05)
    assert left == []
    assert run_study(study, tmp_path / "cut", CPU, resume=True, engine=Processes(2)) == []
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def name_of(pid):
    """How a process was called; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


FAULTS = {
    "nobody answers": (["--address", "127.0.0.1:1"], "--address: no cluster answers at 127.0.0.1:1"),
    "no client answers": (["--address", "ray://127.0.0.1:1"], "--address: no cluster answers at ray://127.0.0.1:1"),
    "GPUs": (["--gpus", "4"], "--gpus: must be at most 0 GPUs, which the largest node has, got 4"),
    "CPUs": (["--cpus", "3"], "--cpus: must be at most 1 CPUs, which the largest node has, got 3"),
    "memory": (["--memory", "2TB"], "--memory: must be at most 1e+09 bytes, which the largest node has, got 2e+12"),
    "a size": (["--memory", "much"], "--memory: must be a size such as 2GB, got 'much'"),
    "a part of two GPUs": (["--gpus", "1.5"], "--gpus: must be a whole number, or a part of one GPU such as 0.25"),
    "another engine": (["--engine", "local", "--cpus", "1"], "--cpus: is for --engine ray, not for --engine local"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_what_the_cluster_lacks_is_said_at_once_and_nothing_is_written(name, cluster, experiments, tmp_path):
    options, message = FAULTS[name]
    address = [] if "--address" in options or "--engine" in options else ["--address", cluster.address]
    code, out, err = experiments("run", "quickstart", "--device", "cpu", "--engine", "ray", *address, *options)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_extra_is_named(experiments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = experiments("run", "quickstart", "--device", "cpu", "--engine", "ray")
    assert (code, err) == (2, "error: --engine ray: needs Ray, which is not installed: pip install '-e .[cluster]'\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_node_that_sees_another_folder_is_named(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.running.engines.cluster.checksum", lambda _: "another study's")
    with pytest.raises(UserError, match=r"--out: .* must be a folder that all nodes share, node .* does not see it"):
        on_ray(run_study, cluster.address, small(), tmp_path, CPU)
    assert not (tmp_path / "runs").exists()


def said_in(capfd):
    """The lines on standard error without those that tell of the progress."""
    return [line for line in capfd.readouterr().err.splitlines() if " runs, " not in line]


def test_a_node_has_room_for_whole_tasks():
    assert Needs(cpus=2).fit({"CPU": 5.0}) == 2
    assert Needs(gpus=0.4).fit({"CPU": 9.0, "GPU": 2.0}) == 4  # two on each, and none on both
    assert Needs(gpus=2).fit({"CPU": 9.0, "GPU": 3.0}) == 1
    assert Needs(memory=3).fit({"CPU": 9.0, "memory": 10.0}) == 3
    assert Needs(gpus=0.5).fit({"CPU": 9.0}) == 0
