"""Random numbers for several models that are computed as one, each from the generator that it would have alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

_current = threading.local()  # member: which one is computed, a number; or all of them, as vmap sees their numbers


class Generators:
    """A generator for each member of a stack, in the place of a layer's one."""

    def __init__(self, each: Sequence[Generator]) -> None:
        self.each = tuple(each)

    @property
    def device(self) -> torch.device:
        return self.each[0].device

    def get_state(self) -> Tensor:
        """The states of all, one a row."""
        return torch.stack([generator.get_state() for generator in self.each])

    def set_state(self, states: Tensor) -> None:
        for generator, state in zip(self.each, states, strict=True):
            generator.set_state(state.clone())  # torch reads a view of several from a wrong place

    def draw(self, drawn: Callable[[Generator], Tensor]) -> Tensor:
        """``drawn(generator)`` for the member that is computed, or for each, as ``torch.func.vmap`` stacks them."""
        member = getattr(_current, "member", 0)
        if isinstance(member, int):
            return drawn(self.each[member])
        result: Tensor = _Each.apply(member, self.each, drawn)
        return result


Source: TypeAlias = Generator | Generators | None  # of random numbers; torch's global generator if None


@contextmanager
def computing(member: int | Tensor) -> Iterator[None]:
    """Within it, a member of a stack is computed, or all of them under ``vmap``, where ``member`` is their number."""
    before = getattr(_current, "member", 0)
    _current.member = member
    try:
        yield
    finally:
        _current.member = before


class _Each(torch.autograd.Function):
    """What ``vmap`` makes of it is all it is for: its argument is the members' number, so it always comes stacked."""

    @staticmethod
    def forward(member: Tensor, each: Sequence[Generator], drawn: Callable[[Generator], Tensor]) -> Tensor:
        raise NotImplementedError("is called under vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, member: Tensor, each: Sequence[Generator], drawn: Callable[[Generator], Tensor]
    ) -> tuple[Tensor, int]:
        return torch.stack([drawn(generator) for generator in each]), 0
