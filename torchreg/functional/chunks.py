"""Weights of any size in portions of about one: what is computed on the way stays in the cache, at few calls.

Large weights are taken a piece at a time, small ones a bundle at a time.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

CHUNK = 1 << 18  # elements: a megabyte in single precision


def chunks_of(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, which together are all of them; small or strided ones as they are.

    Example:
        >>> w = torch.zeros(600_000)
        >>> [len(chunk) for (chunk,) in chunks_of(w)]
        [262144, 262144, 75712]
    """
    first = tensors[0]
    if first.numel() <= CHUNK or first.device.type != "cpu" or torch.compiler.is_compiling():
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors), strict=True)
    else:
        yield tensors


def bundles(keys: Iterable[object], weights: Sequence[Tensor]) -> list[list[int]]:
    """The positions of the weights, those together that have one key, dtype and device, are small and lie in a row.

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
