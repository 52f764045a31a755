"""Large weights in chunks and small weights in bundles.

A chunk is small enough for intermediate results to stay in the cache; a bundle saves calls.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter

CHUNK = 1 << 18  # elements: a megabyte in single precision


def chunks_of(*tensors: Tensor, size: int = CHUNK) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, all of one shape, as views of ``size`` elements; strided ones and up to two such views as a whole.

    Calls, and the threads that meet after each, cost more than two chunks save.

    Example:
        >>> w = torch.zeros(600_000)
        >>> [len(chunk) for (chunk,) in chunks_of(w)]
        [262144, 262144, 75712]
    """
    first = tensors[0]
    if first.numel() <= 2 * size or first.device.type != "cpu" or torch.compiler.is_compiling():
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
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
