"""Random masks with one byte for each element, and the random numbers for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from torchreg.functional.chunks import CHUNK
from torchreg.functional.internals import is_batched, is_in_backward, is_transformed
from torchreg.functional.members import Generators, Source

_SHARING = 16  # the number of elements that share eight random bits
_UNSEEDED = Generator().initial_seed()  # of every unseeded generator: its upper bits are not needed

_replay = threading.local()  # generators: those that are in their state of the forward pass


def check_probability(owner: str, p: float) -> None:
    """Raises ``TypeError`` unless ``p`` is a number, ``ValueError`` unless it is in [0, 1]."""
    if type(p) is float and 0 <= p <= 1:
        return
    if isinstance(p, bool) or not isinstance(p, Real):
        raise TypeError(f"{owner}: p, the probability of dropping, must be a number in [0, 1], got {p!r}")
    if not 0 <= p <= 1:
        raise ValueError(f"{owner}: p, the probability of dropping, must be in [0, 1], got {p!r}")


def check_generator(owner: str, generator: Generator | Generators, device: torch.device) -> None:
    """Raises ``ValueError`` unless the generator draws on the device, ``RuntimeError`` if it drew this mask before."""
    if device.type not in (generator.device.type, "meta"):
        raise ValueError(
            f"{owner}: generator must be on the input's device {device}, got one on {generator.device}; "
            f"make it with torch.Generator({device.type!r})"
        )
    if not torch.compiler.is_compiling() and is_in_backward() and not is_replaying(generator):
        raise RuntimeError(
            f"{owner}: activation checkpointing must restore the layer's own generator to compute the same mask again: "
            "call checkpoint(..., use_reentrant=False, context_fn=torchreg.nn.same_masks(module))"
        )


def is_replaying(generator: Generator | Generators) -> bool:
    return any(generator is other for other in getattr(_replay, "generators", ()))


@contextmanager
def replaying(generators: Sequence[Generator | Generators], states: Sequence[Tensor]) -> Iterator[None]:
    """Sets the states of the generators, and restores their current states afterwards."""
    before, outer = [generator.get_state() for generator in generators], getattr(_replay, "generators", ())
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    _replay.generators = (*outer, *generators)
    try:
        yield
    finally:
        _replay.generators = outer  # checkpointed blocks may hold others
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is a dense tensor on the CPU, outside of compilers and transforms of ``torch.func``."""
    return (
        type(x) in (Tensor, Parameter)
        and x.is_cpu
        and x.is_floating_point()
        and x.layout == torch.strided
        and not torch.compiler.is_compiling()
        and not is_transformed()
        and not is_batched(x)
    )


def representable(p: float, is_rare: bool = False) -> float:
    """The rate of :func:`keep_mask` on the CPU: ``p`` rounded to the nearest ``2**-16``, or ``2**-32`` if rare."""
    levels = 1 << (32 if is_rare else 16)
    return round(float(p) * levels) / levels


def draws_bits(x: Tensor, generator: Source) -> bool:
    """Whether a mask for ``x`` is made of random bits, with a :func:`representable` rate."""
    return is_plain(x) or (isinstance(generator, Generators) and x.device.type == "cpu" and x.is_floating_point())


def keep_mask(x: Tensor, p: float, shape: Sequence[int], generator: Source, is_rare: bool = False) -> Tensor:
    """A mask of ones, with zeros with probability ``p``: int8 if ``x`` is plain, else in ``x``'s dtype.

    For a plain ``x`` one 64-bit random number decides about eight elements (two if zeros are rare), which is many times
    faster than ``Tensor.bernoulli_``. If ``shape`` is ``x``'s shape, the mask has the strides of ``empty_like(x)``.
    """
    if isinstance(generator, Generators):
        like = x if is_plain(x) else torch.empty(x.shape, dtype=x.dtype, device=x.device)  # as for a member alone
        return generator.draw(lambda own: keep_mask(like, p, shape, own, is_rare))
    if not is_plain(x):  # out of place, so that torch.func.vmap can draw one for each example
        return (drawn(torch.rand, shape, x.device, generator) >= p).to(x.dtype)
    return plain_mask(x, p, shape, generator, is_rare)


def plain_mask(x: Tensor, p: float, shape: Sequence[int], generator: Generator | None, is_rare: bool = False) -> Tensor:
    """:func:`keep_mask` of a plain ``x``."""
    count = torch.Size(shape).numel()
    keep = (_rarely_zero if is_rare else _kept_by_bytes)(count, p, _source(generator))
    if x.shape != shape:
        return keep.view(-1)[:count].view(shape)
    return keep.as_strided(shape, x.stride() if x.is_contiguous() else torch.empty_like(x, device="meta").stride())


def drawn(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    device: torch.device,
    generator: Source,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``torch.rand`` or ``torch.randn``; with symbolic sizes, in a compiler, they accept no generator argument."""
    if isinstance(generator, Generators):
        return generator.draw(lambda own: draw(shape, generator=own, dtype=dtype, device=device))
    if generator is None or device.type == "meta":
        return draw(shape, dtype=dtype, device=device)
    return draw(shape, generator=generator, dtype=dtype, device=device)


def _kept_by_bytes(count: int, p: float, source: Generator | None) -> Tensor:
    """At least ``count`` elements in a row: eight random bits for each, eight more that :data:`_SHARING` of them share.

    The shared bits decide if the first eight are at the border, so that the rate is ``p`` to ``2**-16``. Elements are
    nearly independent: their correlation is at most ``2**-18 / p / (1 - p)``, and 0 unless they share bits.
    """
    chunks, left = divmod(count, CHUNK)
    if chunks and left:
        parts = [_kept_by_bytes(size, p, source).view(-1)[:size] for size in (count - left, left)]
        return torch.cat(parts)
    columns = -(-(CHUNK if chunks else count) // _SHARING)
    inverse = p > 0.5  # then kept elements are compared, so that all thresholds are in the range of a signed byte
    level, rest = divmod(round(float(1 - p if inverse else p) * (1 << 16)), 1 << 8)
    rows = _SHARING + bool(rest)
    bits = _bits(max(chunks, 1) * rows * columns, source).view(torch.int8)
    own = bits.as_strided((max(chunks, 1), _SHARING, columns), (rows * columns, columns, 1))
    threshold: int | Tensor = level - 128
    if rest:
        shared = own.as_strided((max(chunks, 1), 1, columns), own.stride(), _SHARING * columns)
        threshold = shared.lt_(rest - 128).add_(level - 128)
    keep = own if own.is_contiguous() else torch.empty(own.shape, dtype=torch.int8, device="cpu")
    compare = torch.lt if inverse else torch.ge
    return compare(own, threshold, out=keep)  # in place where it can be, because new memory is slow


def _rarely_zero(count: int, p: float, source: Generator | None) -> Tensor:
    """32 random bits for each element."""
    keep = torch.empty(count, dtype=torch.int8, device="cpu")
    bits = _bits(4 * count, source).view(torch.int32)[:count]
    return torch.ge(bits, round(float(p) * (1 << 32)) - (1 << 31), out=keep)


def _bits(size: int, source: Generator | None) -> Tensor:
    """At least so many random bytes, as 64-bit numbers of the full range (by default the top bit would be 0)."""
    return torch.empty(-(-size // 8), dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=source)


def _source(generator: Generator | None) -> Generator | None:
    """The generator; for a generator with a long seed another one that uses the whole seed.

    torch's generator on the CPU uses 32 bits of its seed. Seeds that differ in the other bits would give the same
    masks.
    """
    seed = (torch.default_generator if generator is None else generator).initial_seed()
    if not seed >> 32 or seed == _UNSEEDED:
        return generator
    word = torch.empty((), dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=generator)
    return Generator().manual_seed(mixed(seed ^ int(word)))


def mixed(number: int) -> int:
    """32 bits that each depend on all of the lowest 64 bits of the number.

    References:
        Guy L. Steele Jr., Doug Lea, Christine H. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    word = number % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> shift) * factor % 2**64
    return (word ^ word >> 31) >> 32
