"""One run trained by several processes, those of ``torchrun``: all that knows of ``torch.distributed``.

Without torchrun there is one process, the first, and everything here does what one process needs: nothing.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..config import Run
from ..errors import UserError, oneline
from . import bars

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE = 30.0  # seconds for the other processes to come to where one of them is
_LOOKED = 0.05  # seconds between two looks whether they are there
_WATCHED = 0.5  # seconds between two looks whether torchrun is there

_store: Any = None  # of torchrun, which outlives every process
_errors = sys.stderr  # where a process says its last word
_failures = 0  # runs that failed in all processes
_is_alone = False  # whether the first process does what the others do not


class LostError(Exception):
    """Another process is gone, or this one failed where the others did not: none of them can go on."""


# -- the processes ------------------------------------------------------------------------------------------------


def is_several() -> bool:
    """Whether this is a process of torchrun, which may have started only one."""
    return dist.is_available() and dist.is_initialized()


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_several() else 1


def number() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if is_several() else 0


def is_launched() -> bool:
    """Whether torchrun has started this process."""
    return _store is not None


def listen() -> None:
    """Under torchrun: finds the other processes, silences all but the first, and ends when torchrun does."""
    global _store, _errors
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    env = os.environ
    is_host = env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), int(env["WORLD_SIZE"]), is_host)
    _store = PrefixStore(f"torchreg/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    _errors = sys.stderr
    if env["RANK"] != "0":
        bars.silence()
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCHED)
    os._exit(1)


@contextmanager
def begun(device: torch.device) -> Iterator[torch.device]:
    """Training in all processes, each on a device of its own; without torchrun, here.

    Raises:
        LostError: whatever is wrong in one process; of what the user can correct all processes know.
    """
    if not is_launched():
        yield device
        return
    env = os.environ
    if device.type == "cuda":
        device = torch.device("cuda", int(env["LOCAL_RANK"]))
        there, here = torch.cuda.device_count(), int(env["LOCAL_WORLD_SIZE"])
        if there < here:
            raise UserError(f"--device: needs a GPU for each of {here} processes, got {there}: start fewer, or use cpu")
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store, rank=int(env["RANK"]), world_size=int(env["WORLD_SIZE"]))
    try:
        yield device
    except (UserError, LostError):
        raise
    except Exception as error:
        raise LostError(oneline(error)) from error
    dist.destroy_process_group()


def leave(code: int) -> int:
    """The exit code, once the first process has said what it has to say: then torchrun ends the others."""
    if is_launched():
        with suppress(RuntimeError):
            if os.environ["RANK"] == "0":
                _store.set("ended", "")
            else:
                _wait(["ended"])
    return code


def end(line: str, code: int) -> NoReturn:
    """Ends this process at once, whatever the others do; the first one that comes here says why."""
    is_spoken = False
    with suppress(RuntimeError):  # torchrun itself is gone
        is_spoken = _store.add("last word", 1) > 1
    if not is_spoken:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            print(line, file=_errors, flush=True)
    os._exit(code)


def check_all_failed(error: BaseException) -> None:
    """Returns if all processes come here: the run is at fault, and the next one can begin.

    Raises:
        LostError: they do not.
    """
    global _failures
    if not is_several():
        return
    _failures += 1
    names = [f"failed/{_failures}/{other}" for other in range(count())]
    try:
        _store.set(names[number()], "")
        if _wait(names):
            return
    except (RuntimeError, KeyboardInterrupt):  # torchrun is gone, or ends all processes since it has lost one
        pass
    raise LostError(oneline(error)) from error


def _wait(names: list[str]) -> bool:
    started = time.monotonic()
    while not _store.check(names):
        if time.monotonic() - started > _PATIENCE:
            return False
        time.sleep(_LOOKED)
    return True


# -- what the first process does for all --------------------------------------------------------------------------


def told(value: T) -> T:
    """What the first process has there, in all processes."""
    if not is_several():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """The function, called in the first process alone; what it returns or raises, it does in all of them."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        global _is_alone
        if not is_several() or _is_alone:
            return function(*args, **kwargs)
        outcome: tuple[Any, Exception | None] = None, None
        if number() == 0:
            _is_alone = True
            try:
                outcome = function(*args, **kwargs), None
            except Exception as error:
                outcome = None, _sendable(error)
            finally:
                _is_alone = False
        result, raised = told(outcome)
        if raised is not None:
            raise raised
        return result  # type: ignore[no-any-return]

    return call


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class does that takes other arguments
        return RuntimeError(oneline(error))
    return error


@contextmanager
def held_by_first(context: AbstractContextManager[None]) -> Iterator[None]:
    """The context, in the first process alone; what it raises at its beginning, it raises in all of them."""
    with ExitStack() as stack:
        by_first(stack.enter_context)(context)
        yield


# -- a batch ------------------------------------------------------------------------------------------------------


def check(run: Run) -> None:
    """Whether all processes can train such a run.

    Raises:
        UserError: they cannot divide a batch, or shard what the run needs.
    """
    if not is_several():
        return
    if run.train.batch_size % count():
        raise UserError(
            f"train.batch_size: must be a multiple of torchrun's {count()} processes, got {run.train.batch_size}: "
            f"take {-(-run.train.batch_size // count()) * count()}, or another number of processes"
        )
    if run.train.compile:
        raise UserError("train.compile: is for one process, whose steps a graph can hold: set compile = false")
    if run.train.shard is not None:
        for key, value in {
            "train.average": run.train.average,
            "train.solve": run.train.solve,
            "optimizer.penalty": run.optimizer.penalty,
            "auto_strength": run.auto_strength,
        }.items():
            if value:
                raise UserError(f"{key}: needs whole weights in each process: remove it, or train.shard")


def part(size: int) -> slice:
    """This process's share of so many examples; of fewer than there are processes, it may be empty."""
    return slice(number() * size // count(), (number() + 1) * size // count())


def size_of(part: slice) -> int:
    """The number of examples in a share."""
    return int(part.stop - part.start)


def shares(batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of the positions in each batch those of this process; where there are none the first, which counts nothing."""
    if not is_several():
        return batches
    return [batch[part(len(batch))] if size_of(part(len(batch))) else batch[:1] for batch in batches]


def weight(size: int) -> float:
    """What the mean over this process's share of so many examples counts, where that of all processes counts 1."""
    return count() * size_of(part(size)) / size


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a model in evaluation mode, of which each process computes its share."""
    if not is_several():
        return model(x)  # type: ignore[no-any-return]
    own, size = part(len(x)), len(x)
    computed = model(x[own] if size_of(own) else x[:1])
    most = -(-size // count())
    padded = computed.new_zeros(most, *computed.shape[1:])
    padded[: size_of(own)] = computed[: size_of(own)]
    found = [torch.empty_like(padded) for _ in range(count())]
    dist.all_gather(found, padded)
    ends = [other * size // count() for other in range(count() + 1)]
    return torch.cat([each[: end - start] for each, start, end in zip(found, ends, ends[1:], strict=False)])


def total(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if is_several():
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean(values: Tensor) -> Tensor:
    """The mean over all processes."""
    return total(values) / count() if is_several() else values


def seed_of(seed: int, epoch: int) -> int:
    """The seed of what this process draws in an epoch, so that no state but the epoch is needed to go on from it."""
    digest = hashlib.sha256(f"{seed} {epoch} {number()}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


# -- the model ----------------------------------------------------------------------------------------------------


class _Calls(nn.Module):
    """Computes anything by a model, so that what is computed has the whole graph: the loss, and its penalties."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


class Gradients:
    """Makes the gradient of a loss the mean over all processes.

    ``find_unused_parameters`` also keeps the buckets of gradients as they are from the first step on: a run that is
    resumed adds the processes' parts in the same order as one that was not stopped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sharded: Any = model if is_sharded(model) else None
        self._wrapped = None
        if self._sharded is None:
            self._wrapped = DistributedDataParallel(_Calls(model), find_unused_parameters=True)

    def of(self, compute: Callable[[], Tensor], is_last: bool) -> Tensor:
        """The loss; the processes' gradients are averaged after the last one of a step."""
        if self._wrapped is None:
            self._sharded.set_requires_gradient_sync(is_last)
            return compute()
        with nullcontext() if is_last else self._wrapped.no_sync():
            loss: Tensor = self._wrapped(compute)
            return loss


def gradients_of(model: nn.Module) -> Gradients | None:
    """What averages the gradients, if there are several processes."""
    return Gradients(model) if is_several() else None


def prepared(model: nn.Module, run: Run) -> nn.Module:
    """The model as all processes train it: sharded if the run wants it, with batches normalized over all GPUs."""
    if not is_several():
        return model
    if next(model.parameters(), torch.empty(0)).is_cuda:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if run.train.shard == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for module in reversed(list(model.modules())):
            if isinstance(module, (nn.Sequential, nn.ModuleList)):
                for block in module:
                    if any(True for _ in block.parameters()) and not is_sharded(block):
                        fully_shard(block)
        fully_shard(model)
    return model


@torch.no_grad()
def equalize(model: nn.Module) -> None:
    """Gives all processes the buffers of the first one, such as the statistics of batch normalization."""
    if is_several():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the weights."""
    return hasattr(model, "set_requires_gradient_sync")


def whole(state: Any) -> Any:
    """A state with whole tensors in the place of sharded ones."""
    if isinstance(state, Mapping):
        made = {key: whole(value) for key, value in state.items()}
        return made if any(made[key] is not value for key, value in state.items()) else state
    if type(state) in (list, tuple):
        listed = type(state)(whole(value) for value in state)
        return listed if any(new is not old for new, old in zip(listed, state, strict=True)) else state
    return state.full_tensor() if hasattr(state, "full_tensor") else state


def load(part: Any, state: Any) -> None:
    """Loads a state of whole tensors into a model, an optimizer or another part, whose own tensors may be sharded."""
    if isinstance(part, Optimizer):
        params = [param for group in part.param_groups for param in group["params"]]
        state = {**state, "state": {i: _as(params[i], own) for i, own in state["state"].items()}}
    elif isinstance(part, nn.Module) and is_sharded(part):
        own = part.state_dict()
        state = {key: _as(own.get(key), value) for key, value in state.items()}
    part.load_state_dict(state)


def _as(like: Any, state: Any) -> Any:
    """The state with those tensors sharded that have the shape of a sharded one."""
    if isinstance(state, Mapping):
        return {key: _as(like, value) for key, value in state.items()}
    if not hasattr(like, "device_mesh") or not isinstance(state, Tensor) or state.shape != like.shape:
        return state
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(state.to(like.device), like.device_mesh, like.placements)
