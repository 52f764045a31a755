"""Whole training steps as CUDA graphs: each is recorded once, and then one call starts all its kernels."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from torchreg import Stacked
from torchreg.nn.seeded import Seeded

from ..config import Run
from ..errors import UserError, oneline

KEY = "train.compile"
Batches = Sequence[tuple[Tensor, Tensor]]
Step = Callable[[Batches], Tensor]
_WARMUP = 3  # steps before a recording, in which torch and its libraries allocate what they keep
_EACH_STEP = ("auto_strength", "sparsity", "dropout_schedule")  # settings that act anew in each step


def check(run: Run, optimizer: Optimizer) -> None:
    """Refuses what a graph cannot hold.

    Raises:
        UserError: a part of the step computes numbers in Python, which a graph would keep as they were.
    """
    if run.train.compile and (reason := _obstacle(run, optimizer)) is not None:
        raise UserError(f"{KEY}: a graph cannot hold {reason}, or set compile = false")


def _obstacle(run: Run, optimizer: Optimizer) -> str | None:
    name = type(optimizer).__name__
    for key in _EACH_STEP:
        if getattr(run, key) is not None:
            return f"{key}, which computes numbers in each step: remove it"
    for i, regularizer in enumerate(run.regularizers):
        for key in ("schedule", "activity"):
            if getattr(regularizer, key) is not None:
                return f"regularizers.{i}.{key}, which computes numbers in each step: remove it"
    if not can_hold(optimizer):
        return f"the steps of {name}, which counts them in Python: take SGD or one that has 'capturable'"
    if run.train.amp and not optimizer.defaults.get("fused"):
        return f"the steps of {name} under amp, which waits to see whether they overflow: take a fused one"
    if run.scheduler is not None and run.scheduler.interval == "step":
        if run.scheduler.options.get("cycle_momentum", True) and run.scheduler.name in ("OneCycleLR", "CyclicLR"):
            return f"the momentum that {run.scheduler.name} sets in each step: set cycle_momentum = false"
        if not _takes_tensor(optimizer):
            return f"the learning rate of {name} while it changes in each step: take interval = 'epoch'"
    return None


def can_hold(optimizer: Optimizer) -> bool:
    """Whether a graph can hold the optimizer's steps: they count on the device, or not at all."""
    return "capturable" in optimizer.defaults or isinstance(optimizer, torch.optim.SGD)


def _takes_tensor(optimizer: Optimizer) -> bool:
    """Whether its learning rate may be a tensor on the device."""
    return "capturable" in optimizer.defaults or bool(optimizer.defaults.get("fused"))


def graphs(run: Run, model: nn.Module, optimizer: Optimizer, device: torch.device) -> Graphs | None:
    """The graphs of a training that wants them, on a device that has them."""
    if not run.train.compile or run.train.solve:
        return None
    if device.type != "cuda":
        _note_other_device(device.type)
        return None
    check(run, optimizer)
    changes = run.scheduler is not None or (run.train.average is not None and run.train.average.lr is not None)
    return Graphs(model, optimizer, device, rate_changes=changes and _takes_tensor(optimizer))


@cache  # one line for all runs of a study
def _note_other_device(kind: str) -> None:
    # On a CPU torch.compile of the model and its loss took 0.95 to 1.9 times as long as without: dropout's random
    # numbers break its graphs, and products of matrices, the most of a step, it leaves as they are.
    print(f"note: {KEY}: is for CUDA, on {kind} steps are made as without it", file=sys.stderr)


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    held: Batches  # where the graph reads its batches
    losses: Tensor  # where it writes its losses

    def __call__(self, batches: Batches) -> Tensor:
        for given, held in zip(batches, self.held, strict=True):
            for source, target in zip(given, held, strict=True):
                target.copy_(source)
        self.graph.replay()
        return self.losses.clone()


class Graphs:
    """Makes the steps of a training: each kind of batches first as it is, then as the graph that was recorded of it.

    A graph does what it did when it was recorded, with the same memory and the same numbers. So batches are copied to
    where those of the recording were. Random generators are registered with the graph, whose masks are those that the
    step would draw without it. A learning rate that a schedule sets is a tensor. If another number of the optimizer has
    changed, the step is recorded again. What the step does in Python, as counting in hooks, happens only when it is
    recorded.

    All steps are made with the settings that a recording needs, so that a training that goes on from a checkpoint,
    where others are replayed, has the same bits. Outside of steps the optimizer has the settings that it was made with:
    a checkpoint is one that a training without graphs can go on from, and the other way round.

    Args:
        model: what is trained.
        optimizer: of its parameters.
        device: where they are.
        rate_changes: whether a schedule sets the learning rate.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device, rate_changes: bool) -> None:
        self._model, self._optimizer = model, optimizer
        self._stream = torch.cuda.Stream(device)
        groups = optimizer.param_groups
        self._rates = [torch.zeros((), device=device) for _ in groups] if rate_changes else []
        self._set: list[float] = [0.0] * len(groups)  # what the rates are
        self._numbers: Any = None
        self._made: Counter[Any] = Counter()
        self._recorded: dict[Any, _Recorded] = {}

    def __call__(self, step: Step, batches: Batches) -> Tensor:
        """The losses of ``step(batches)``, which is made."""
        self._set_rates()
        numbers = self._numbers_of_optimizer()
        if numbers != self._numbers:
            self._recorded.clear()
            self._numbers = numbers
        kind = tuple((tensor.shape, tensor.dtype) for batch in batches for tensor in batch)
        if kind not in self._recorded:
            if self._made[kind] < _WARMUP:
                self._made[kind] += 1
                return self._made_eagerly(step, batches)
            self._recorded[kind] = self._record(step, batches)
        return self._recorded[kind](batches)

    def _set_rates(self) -> None:
        for i, rate in enumerate(self._rates):
            lr = self._optimizer.param_groups[i]["lr"]
            if lr != self._set[i]:
                rate.fill_(lr)
                self._set[i] = lr

    def _numbers_of_optimizer(self) -> list[dict[str, Any]]:
        """What the optimizer reads in Python."""
        rates = {"lr", "initial_lr"} if self._rates else set()
        return [
            {key: value for key, value in group.items() if key not in rates and isinstance(value, float | int | tuple)}
            for group in self._optimizer.param_groups
        ]

    def _made_eagerly(self, step: Step, batches: Batches) -> Tensor:
        """On the stream of the recording, to which torch binds the gradients' accumulation."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), self._capturable():
            losses = step(batches)
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses

    def _record(self, step: Step, batches: Batches) -> _Recorded:
        held = [(x.clone(), y.clone()) for x, y in batches]
        graph = torch.cuda.CUDAGraph()
        for generator in _generators(self._model):
            graph.register_generator_state(generator)
        try:
            # Of this thread alone: one that reads a stream's next batches into pinned memory would spoil the recording.
            mode = "thread_local"
            with self._capturable(), torch.cuda.graph(graph, stream=self._stream, capture_error_mode=mode):
                losses = step(held)
        except Exception as error:  # whatever a user's model raises if it reads a value from the device
            raise UserError(f"{KEY}: the step cannot be recorded ({oneline(error)}): set compile = false") from error
        # Before it records, torch sets the generators' places on the device to 0, on this stream. A replay sets them to
        # where they are, on another one: if that came first, its masks would be those of other steps.
        torch.cuda.current_stream().wait_stream(self._stream)
        return _Recorded(graph, held, losses)

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """The optimizer counts on the device, and its learning rates are tensors if they change."""
        groups = self._optimizer.param_groups
        before: list[dict[str, Any]] = [
            {key: group[key] for key in ("lr", "capturable") if key in group} for group in groups
        ]
        for i, group in enumerate(groups):
            if "capturable" in group:
                group["capturable"] = True
            if self._rates:
                group["lr"] = self._rates[i]
        for param, state in self._optimizer.state.items():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(param.device)  # a checkpoint may come from a training without graphs
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
                yield
        finally:
            for group, own in zip(groups, before, strict=True):
                group.update(own)


def _generators(model: nn.Module) -> list[Generator]:
    """The generators of torchreg's layers, each once."""
    layers = (layer for layer in model.modules() if isinstance(layer, Seeded))
    found = model.generators if isinstance(model, Stacked) else [layer.generator for layer in layers]
    return list({id(own): own for own in found if isinstance(own, Generator)}.values())
