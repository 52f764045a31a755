"""The engine of a cluster: Ray, on machines that see one folder, or on this machine alone."""

from __future__ import annotations

import io
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import torchreg

from ... import IS_INSTALLED
from ...errors import RecordError, UserError, oneline
from ...training import bars, denormals, loggers
from ...training.files import checksum, content_of
from ...training.storage import exists, is_local
from ..tasks import Outcome, Task
from . import guard
from .processes import TRIES

_ANSWER = 5.0  # seconds in which a cluster must answer
_START = 120.0  # seconds in which each node must start a process that imports torch
_LOOK = 2.0  # seconds between two looks for nodes that came or left
_STORE = 100_000_000  # bytes for what tasks return, which is little: Ray would take a third of the memory


@dataclass(frozen=True)
class Needs:
    """What a task needs: CPUs, which are its threads too, GPUs or a part of one, and bytes of memory, if they count."""

    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0

    def fit(self, resources: Mapping[str, float]) -> int:
        """How many tasks a node has room for."""
        rooms = [resources.get("CPU", 0.0) // self.cpus]
        if self.gpus:
            gpus = resources.get("GPU", 0.0)
            rooms.append(gpus // self.gpus if self.gpus >= 1 else gpus * (1 // self.gpus))  # none is on two GPUs
        if self.memory:
            rooms.append(resources.get("memory", 0.0) // self.memory)
        return int(min(rooms))

    @property
    def options(self) -> dict[str, Any]:
        """The same in Ray's words."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory or None}


@dataclass(frozen=True)
class Ray:
    """Tasks on the nodes of a cluster, as many at a time as there is room for.

    Args:
        needs: what each task needs.
        jobs: tasks at a time. Ray queues those that find no room, for which an autoscaler may add nodes.
        address: of the cluster, ``auto`` for one that runs here; without one, Ray is started here and ended again.
    """

    needs: Needs = field(default_factory=Needs)
    jobs: int | None = None
    address: str | None = None

    @contextmanager
    def connected(self) -> Iterator[Ray]:
        """The engine while it is connected to its cluster.

        Raises:
            UserError: there is no such cluster, or no node of it has what a task needs.
        """
        ray = _library()
        with _signals_kept():
            _connect(ray, self.address)
        with _guarded() if self.address is None else nullcontext():
            try:
                _check_needs(self.needs, [node["Resources"] for node in _nodes(ray)])
                yield self
            finally:
                ray.shutdown()

    @contextmanager
    def open(self, folder: Path, device: torch.device) -> Iterator[_Pool]:
        """Asks each node that has room for a task whether it sees the folder."""
        place = _Place.of(folder, torch.device("cuda") if self.needs.gpus else device, self.needs.cpus)
        pool = _Pool(_library(), place, self.needs, self.jobs)
        pool.check_nodes()
        try:
            yield pool
        finally:
            pool.end()


class _Pool:
    def __init__(self, ray: Any, place: _Place, needs: Needs, jobs: int | None) -> None:
        self._ray, self._needs, self._jobs = ray, needs, jobs
        self._place = ray.put(place)
        options = {**needs.options, "max_retries": TRIES - 1}  # a task whose node is lost begins on another one
        self._perform = ray.remote(**options)(_perform)
        self._busy: dict[Any, Task] = {}
        self._room = self._count_room()

    @property
    def has_room(self) -> bool:
        return not self._busy or len(self._busy) < (self._jobs or self._room)

    @property
    def is_idle(self) -> bool:
        return not self._busy

    def submit(self, task: Task) -> None:
        reference = self._perform.options(name=task.runs[0].folder).remote(self._place, task)
        self._busy[reference] = task

    def ended(self) -> list[Outcome]:
        """None has ended if there may be room for another one, because a node came."""
        done, _ = self._ray.wait(list(self._busy), timeout=_LOOK)
        self._room = self._count_room()
        return [self._outcome(reference, self._busy.pop(reference)) for reference in done]

    def check_nodes(self) -> None:
        """Sees that tasks can be made on each node.

        Raises:
            UserError: on one they cannot.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self._ray.remote(num_cpus=0, max_retries=0)(_versions)
        nodes = [node for node in _nodes(self._ray) if self._needs.fit(node["Resources"])]
        asked = [
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                self._place
            )
            for node in nodes
        ]
        for node, reference in zip(nodes, asked, strict=True):
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                found = self._ray.get(reference, timeout=_START)
            except Exception as error:  # whatever keeps a process from starting there
                raise UserError(f"--engine ray: node {name} cannot make runs: {_cause(error)}") from None
            if isinstance(found, UserError):
                raise found
            if found != torch.__version__:
                print(f"note: node {name} has torch {found}, not {torch.__version__}", file=sys.stderr)

    def end(self) -> None:
        """Ends the tasks that are under way; all files that they have written are complete."""
        for reference in self._busy:
            self._ray.cancel(reference, force=True)
        if self._busy:
            self._ray.wait(list(self._busy), num_returns=len(self._busy), timeout=_ANSWER)

    def _outcome(self, reference: Any, task: Task) -> Outcome:
        try:
            result, said = self._ray.get(reference)
        except Exception as error:  # Ray's own: whatever a task raises is in its result
            return Outcome(task, None, f"its process died: {type(error).__name__}")
        sys.stderr.write(said)
        if isinstance(result, UserError):
            raise result
        return Outcome(task, *result)

    def _count_room(self) -> int:
        return sum(self._needs.fit(node["Resources"]) for node in _nodes(self._ray))


@dataclass(frozen=True)
class _Place:
    """What a process on any node must know before it makes runs."""

    folder: Path
    study: str  # the checksum of its file
    device: torch.device
    threads: int
    here: str
    path: list[str]
    data: str | None
    version: str
    log: tuple[str | None, str]

    @staticmethod
    def of(folder: Path, device: torch.device, threads: int) -> _Place:
        folder, data = folder.resolve() if is_local(folder) else folder, os.environ.get("TORCHREG_DATA")
        study = checksum(content_of(folder / "study.json"))
        here, path, log = str(Path.cwd()), list(filter(None, sys.path)), loggers.chosen()
        data = data and str(Path(data).resolve())
        return _Place(folder, study, device, threads, here, path, data, torchreg.__version__, log)

    def enter(self) -> None:
        """Makes this process like the one that the study was started in.

        Raises:
            RecordError: runs must not be made on this node.
        """
        name = f"node {platform.node()} ({_library().util.get_node_ip_address()})"
        if torchreg.__version__ != self.version:
            raise RecordError(f"--engine ray: {name} has torchreg {torchreg.__version__}, not {self.version}")
        file = self.folder / "study.json"
        if not exists(file) or checksum(content_of(file)) != self.study:
            raise RecordError(f"--out: {self.folder} must be a folder that all nodes share, {name} does not see it")
        if Path(self.here).is_dir():  # for paths of data
            os.chdir(self.here)
        sys.path += [entry for entry in self.path if entry not in sys.path]  # for the user's own modules
        if self.data is not None:
            os.environ.setdefault("TORCHREG_DATA", self.data)
        denormals.flush()
        torch.set_num_threads(self.threads)
        bars.silence()
        try:
            loggers.choose(*self.log)
        except UserError as error:
            raise RecordError(f"{error}, on {name}") from None


def _perform(place: _Place, task: Task) -> tuple[Any, str]:
    """What a task brings, or why it brings nothing, and what it has printed; in a process of any node."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        found: Any
        try:
            place.enter()
            found = task.perform(place.folder, place.device), None
        except UserError as error:
            found = error
        except Exception as error:  # whatever is wrong with a task is its own fault, and not that of the others
            found = None, oneline(error)
    return found, said.getvalue()


def _versions(place: _Place) -> str | RecordError:
    """The version of torch in a process of any node, or why no task can be made there."""
    try:
        place.enter()
    except RecordError as error:
        return error
    return torch.__version__


def _library() -> Any:
    """Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU may see one
    try:
        import ray
    except ModuleNotFoundError:
        what = ".[cluster]" if IS_INSTALLED else "-e .[cluster]"
        raise UserError(f"--engine ray: needs Ray, which is not installed: pip install '{what}'") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address is None:
        ray.init(address="local", include_dashboard=False, object_store_memory=_STORE, **quiet)
        return
    _check_address(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    ours = [Path(torchreg.__file__).parent] + ([] if IS_INSTALLED else [Path(__file__).parents[2]])
    try:
        ray.init(address=address, runtime_env={"py_modules": list(map(str, ours))}, **quiet)
    except (Exception, SystemExit) as error:
        raise UserError(f"--address: no cluster answers at {address}: {oneline(error)}") from None


def _check_address(address: str) -> None:
    """Asks a cluster for an answer: Ray itself would wait for minutes."""
    import grpc

    if address == "auto" or os.environ.get("RAY_USE_TLS") == "1":
        return
    with grpc.insecure_channel(address.removeprefix("ray://")) as channel:
        try:
            grpc.channel_ready_future(channel).result(_ANSWER)
        except grpc.FutureTimeoutError:
            raise UserError(
                f"--address: no cluster answers at {address}: give auto, HOST:6379 or ray://HOST:10001"
            ) from None


def _check_needs(needs: Needs, nodes: list[dict[str, float]]) -> None:
    """Refuses what no node has, for which Ray would wait for ever."""
    if any(map(needs.fit, nodes)):
        return
    for option, key, unit, wanted in (
        ("--cpus", "CPU", "CPUs", needs.cpus),
        ("--gpus", "GPU", "GPUs", needs.gpus),
        ("--memory", "memory", "bytes", needs.memory),
    ):
        if wanted > (most := max((node.get(key, 0.0) for node in nodes), default=0.0)):
            raise UserError(f"{option}: must be at most {most:g} {unit}, which the largest node has, got {wanted:g}")
    raise UserError("--cpus, --gpus, --memory: no node has all of them: ask for less")


def _nodes(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _cause(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    return oneline(cause if isinstance(cause, Exception) else error)[:300]


@contextmanager
def _guarded() -> Iterator[None]:
    """What is started within ends with this process, in whatever way that ends."""
    if sys.platform != "linux":
        yield
        return
    process = subprocess.Popen([sys.executable, guard.__file__, str(os.getpid())], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keeps the handlers of signals, which Ray replaces by its own."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items() if is_main else ():
            signal.signal(number, handler)
