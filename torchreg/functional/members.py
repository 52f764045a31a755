"""Random numbers for the members of a stack, each from its own generator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

_current = threading.local()  # member: the number of the computed member; under vmap the batched numbers of all


class Generators:
    """A generator for each member of a stack, used like the generator of one layer."""

    def __init__(self, each: Sequence[Generator]) -> None:
        self.each = tuple(each)

    @property
    def device(self) -> torch.device:
        return self.each[0].device

    def get_state(self) -> Tensor:
        """The states of all generators, one in each row."""
        return torch.stack([generator.get_state() for generator in self.each])

    def set_state(self, states: Tensor) -> None:
        for generator, state in zip(self.each, states, strict=True):
            generator.set_state(state.clone())  # torch reads views from a wrong position

    def draw(self, drawn: Callable[[Generator], Tensor]) -> Tensor:
        """``drawn(generator)`` for the computed member; under ``torch.func.vmap`` for all members."""
        member = getattr(_current, "member", 0)
        if isinstance(member, int):
            return drawn(self.each[member])
        result: Tensor = _Each.apply(member, self.each, drawn)
        return result


Source: TypeAlias = Generator | Generators | None  # of random numbers; torch's global generator if None


@contextmanager
def computing(member: int | Tensor) -> Iterator[None]:
    """Marks the member of a stack that is computed; under ``vmap`` all members, with ``member`` as their number."""
    before = getattr(_current, "member", 0)
    _current.member = member
    try:
        yield
    finally:
        _current.member = before


class _Each(torch.autograd.Function):
    """A function that is only called under ``vmap``; its argument is the batched number of the members."""

    @staticmethod
    def forward(member: Tensor, each: Sequence[Generator], drawn: Callable[[Generator], Tensor]) -> Tensor:
        raise NotImplementedError("this function is called under vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, member: Tensor, each: Sequence[Generator], drawn: Callable[[Generator], Tensor]
    ) -> tuple[Tensor, int]:
        return torch.stack([drawn(generator) for generator in each]), 0
