"""Large weights in chunks and small weights in bundles.

A chunk is small enough for intermediate results to stay in the cache; a bundle saves calls.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter

CHUNK = 1 << 18  # elements of a bundle, and of a piece of a mask: a megabyte in single precision
_PART = 1 << 20  # elements of a chunk: of smaller ones the calls, and the threads that meet after each, cost more


def chunks_of(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, all of one shape, as views of up to 2**20 elements; small or strided tensors as a whole.

    Example:
        >>> w = torch.zeros(2_200_000)
        >>> [len(chunk) for (chunk,) in chunks_of(w)]
        [1048576, 1048576, 102848]
    """
    first = tensors[0]
    if first.numel() <= _PART or first.device.type != "cpu" or torch.compiler.is_compiling():
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(_PART) for tensor in tensors), strict=True)
    else:
        yield tensors


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep memory that is freed in each step, which it would give back and take again, page by page.

    What is free at the end of its heap it gives back beyond twice the largest block that was freed before, up to
    64 megabytes. So this frees a block of 32 megabytes, whose pages were never used.
    """
    torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8, device="cpu")


def bundles(keys: Iterable[object], weights: Sequence[Tensor]) -> list[list[int]]:
    """The positions of the weights, in bundles of small consecutive weights with the same key, dtype and device.

    Example:
        >>> bundles("aab", [torch.zeros(2)] * 3)
        [[0, 1], [2]]
    """
    found: list[list[int]] = []
    last, left = None, 0
    for position, (key, w) in enumerate(zip(keys, weights, strict=True)):
        shared = (key, w.dtype, w.device) if type(w) in (Tensor, Parameter) else object()
        if shared == last and w.numel() <= left:
            found[-1].append(position)
            left -= w.numel()
        else:
            found.append([position])
            last, left = shared, CHUNK - w.numel()
    return found
