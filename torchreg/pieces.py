"""Large weights a piece at a time, so that what is computed on the way stays in the cache and costs no new memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

_SIZE = 1 << 18  # elements: a megabyte in single precision


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, which together are all of them; small or strided ones as they are.

    Example:
        >>> w = torch.zeros(600_000)
        >>> [len(piece) for (piece,) in pieces(w)]
        [262144, 262144, 75712]
    """
    first = tensors[0]
    if first.numel() <= _SIZE or first.device.type != "cpu" or torch.compiler.is_compiling():
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(_SIZE) for tensor in tensors), strict=True)
    else:
        yield tensors
