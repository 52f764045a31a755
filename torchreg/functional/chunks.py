"""Weights of any size in portions of about one: what is computed on the way stays in the cache, at few calls.

Large weights are taken a piece at a time, small ones a bundle at a time.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

PIECE = 1 << 18  # elements: a megabyte in single precision


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, which together are all of them; small or strided ones as they are.

    Example:
        >>> w = torch.zeros(600_000)
        >>> [len(piece) for (piece,) in pieces(w)]
        [262144, 262144, 75712]
    """
    first = tensors[0]
    if first.numel() <= PIECE or first.device.type != "cpu" or torch.compiler.is_compiling():
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True)
    else:
        yield tensors


def bundles(keys: Iterable[object], weights: Sequence[Tensor]) -> list[list[int]]:
    """The positions of the weights, those together that have one key, dtype and device, are small and lie in a row.

    Example:
        >>> bundles("aab", [torch.zeros(2)] * 3)
        [[0, 1], [2]]
    """
    found: list[list[int]] = []
    last, room = None, 0
    for position, (key, w) in enumerate(zip(keys, weights, strict=True)):
        alike = (key, w.dtype, w.device) if type(w) in (Tensor, Parameter) else object()
        if alike == last and w.numel() <= room:
            found[-1].append(position)
            room -= w.numel()
        else:
            found.append([position])
            last, room = alike, PIECE - w.numel()
    return found
