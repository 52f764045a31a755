"""Executors that train many models: stacked, in worker processes, or one after another."""

from __future__ import annotations

import io
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchreg.ensemble.stacked import Stacked

Executor = Literal["stacked", "processes", "one after another"]
Job = Callable[[Stacked, Sequence[float]], None]  # trains a stack at its members' strengths
State = dict[str, Tensor]

_LARGE, _WAITING = 1 << 19, 1.3  # with so many weights processes wait for memory; the factor of their time
_NO_FORK = "Unable to handle autograd's threading in combination with fork"  # of torch
_LOOKS = 3  # the number of steps that are timed for each executor


def train_all(
    models: Sequence[nn.Module], strengths: Sequence[float], job: Job, executor: Executor, jobs: int
) -> list[State]:
    """Trains each model at its strength and returns the states in order. The models do not change."""
    if executor == "processes":
        return _in_processes(models, strengths, job, jobs)
    if executor == "stacked":
        return _stacked(models, strengths, job)
    return [state for pair in zip(models, strengths, strict=True) for state in _stacked([pair[0]], [pair[1]], job)]


def fastest(models: Sequence[nn.Module], strengths: Sequence[float], step: Job, jobs: int) -> tuple[Executor, str]:
    """The executor that is fastest in a few steps, and a line with the times.

    Args:
        step: makes one step of training.
    """
    count, share = len(models), -(-len(models) // jobs)
    costs: dict[Executor, float] = {
        "stacked": _cost(models, strengths, step),
        "one after another": count * _cost(models[:1], strengths[:1], step),
    }
    if can_fork(models) and jobs > 1 and count > 1:
        with _one_thread():
            large = sum(param.numel() for param in models[0].parameters()) > _LARGE
            costs["processes"] = _cost(models[:share], strengths[:share], step) * (_WAITING if large else 1.0)
    executor = min(costs, key=lambda name: costs[name])
    shown = ", ".join(f"{name} {1e3 * cost:.3g} ms" for name, cost in costs.items())
    return executor, f"{described(executor, count)}, the fastest in a trial step (of all models: {shown})"


def described(executor: Executor, count: int) -> str:
    """What the executor does, in words."""
    where = {"stacked": "as one stack", "processes": "in worker processes", "one after another": "one after another"}
    return f"training {count} models {where[executor]}"


def can_fork(models: Sequence[nn.Module]) -> bool:
    """Whether worker processes can use the memory of this process."""
    values = (value for model in models for value in (*model.parameters(), *model.buffers()))
    on_cpu = all(value.device.type == "cpu" for value in values)
    return on_cpu and "fork" in multiprocessing.get_all_start_methods() and not torch.cuda.is_initialized()


def _cost(models: Sequence[nn.Module], strengths: Sequence[float], step: Job) -> float:
    """The seconds for one step of all models."""
    stack = Stacked(models, vectorize=len(models) > 1)
    seconds = []
    for _ in range(_LOOKS + 1):
        start = time.perf_counter()
        step(stack, strengths)
        if torch.accelerator.is_available():  # which goes on by itself
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _stacked(models: Sequence[nn.Module], strengths: Sequence[float], job: Job) -> list[State]:
    stack = Stacked(models, vectorize=len(models) > 1)
    job(stack, strengths)
    return [stack.state_of(member) for member in range(len(stack))]


def _in_processes(models: Sequence[nn.Module], strengths: Sequence[float], job: Job, jobs: int) -> list[State]:
    """Each process trains a stack of every ``jobs``-th model, on one thread."""
    context = multiprocessing.get_context("fork")
    workers = []
    for first in range(min(jobs, len(models))):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (theirs, models[first::jobs], strengths[first::jobs], job)
        worker = context.Process(target=_work, args=arguments, daemon=True)
        with warnings.catch_warnings(action="ignore"):  # about threads, which the children do not use
            worker.start()
        theirs.close()
        workers.append((worker, ours))
    states: list[State] = [{}] * len(models)
    try:
        for first, (worker, ours) in enumerate(workers):
            found = _received(worker, ours)
            states[first::jobs] = found or _stacked(models[first::jobs], strengths[first::jobs], job)
    finally:
        for worker, _ in workers:
            worker.terminate()
            worker.join()
    return states


def _received(worker: Any, pipe: Any) -> list[State]:
    """What the worker has made; nothing, with a warning, if it could not differentiate."""
    try:
        content = pipe.recv_bytes()
    except EOFError:
        worker.join()
        raise RuntimeError(f"strength_path: a worker process ended with exit code {worker.exitcode}") from None
    result = torch.load(io.BytesIO(content), weights_only=False)
    if isinstance(result, str) and _NO_FORK in result:
        warnings.warn(
            "strength_path: worker processes cannot differentiate, because something in this process has started "
            "autograd's threads: training in this process instead",
            RuntimeWarning,
            stacklevel=2,
        )
        return []
    if isinstance(result, str):
        raise RuntimeError(f"strength_path: a worker process failed: {result.strip().splitlines()[-1]}\n{result}")
    states: list[State] = result
    return states


def _work(pipe: Any, models: Sequence[nn.Module], strengths: Sequence[float], job: Job) -> None:
    torch.set_num_threads(1)
    result: Any
    try:
        result = _stacked([deepcopy(model) for model in models], strengths, job)
    except Exception:
        result = traceback.format_exc()
    buffer = io.BytesIO()
    torch.save(result, buffer)
    pipe.send_bytes(buffer.getvalue())
    pipe.close()
    os._exit(0)  # without the exit handlers of the parent


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
