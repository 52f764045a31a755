"""What the calls of torch do to units: names of functions whose rules are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Each element of the output depends on the elements at its place, and on nothing else.
ELEMENTWISE = _words(
    """
    abs absolute add celu clamp clamp_max clamp_min clip cos div dropout dropout1d dropout2d dropout3d
    alpha_dropout feature_alpha_dropout elu erf exp expm1 floor gelu hardshrink hardsigmoid hardswish hardtanh
    leaky_relu lerp log1p logsigmoid log_sigmoid maximum minimum mish mul multiply neg negative nan_to_num pow
    prelu radd rdiv relu relu6 rmul rrelu rsqrt rsub rtruediv selu sigmoid sign silu sin softplus softshrink
    softsign sqrt square sub subtract tanh tanhshrink threshold truediv true_divide iadd isub imul itruediv rpow
    clone contiguous detach to float double half bfloat16 type_as data requires_grad
    """
)
PRODUCTS = _words("mul multiply rmul imul")  # 0 times anything is 0

# The elements move, and are not changed.
MOVING = _words(
    """
    cat concat concatenate stack view reshape flatten unflatten permute transpose swapaxes swapdims movedim
    moveaxis t T mT squeeze unsqueeze expand expand_as repeat tile flip chunk split tensor_split unbind getitem
    select narrow index_select roll channel_shuffle native_channel_shuffle pixel_shuffle pixel_unshuffle view_as
    reshape_as
    """
)
# They refer to numbers of elements, which other elements would have after a removal.
NUMBERED = _words(
    """
    split tensor_split unbind getitem select narrow index_select roll pixel_shuffle
    """
)
NUMBERED |= _words(
    """
    channel_shuffle native_channel_shuffle pixel_unshuffle
    """
)

REDUCTIONS = _words(
    """
    mean amax amin sum
    """
)

# Pooling and its like: over the last dimensions, in each channel by itself.
OVER_MAPS: Mapping[str, int] = {
    **{f"{kind}_pool{n}d": n for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)},
    "interpolate": 0, "upsample": 0, "pad": 0,
}  # fmt: skip

# The values leave torch, so that what the model does next depends on them.
LEAVING = _words(
    "item tolist numpy __bool__ __int__ __float__ __index__ __array__ __contains__ equal allclose is_nonzero"
)

CONVOLUTIONS: Mapping[str, int] = {f"conv{n}d": n for n in (1, 2, 3)}
TRANSPOSED: Mapping[str, int] = {f"conv_transpose{n}d": n for n in (1, 2, 3)}


def name_of(func: Callable[..., Any]) -> str:
    """The name of a function, method, operator or property, without the marks of its kind: ``__iadd__`` is ``iadd``."""
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":  # of a property
        name = str(getattr(getattr(func, "__self__", None), "__name__", ""))
    return name.strip("_")


def is_in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the call may change its arguments."""
    name = str(getattr(func, "__name__", ""))
    marked = name.startswith(("__i", "__set")) or (name.endswith("_") and not name.endswith("__"))
    return marked or "out" in kwargs or bool(kwargs.get("inplace")) or any(arg is True for arg in args)


def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], at: int, name: str, default: Any = None) -> Any:
    """An argument by place or name."""
    return kwargs.get(name, args[at] if len(args) > at else default)


def is_random(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the call is dropout that drops, or another that draws in training."""
    at = {"rrelu": 3}.get(name, 2 if "dropout" in name else None)
    return at is not None and bool(argument(args, kwargs, at, "training", name != "rrelu"))


def keeps_constants(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a constant map stays the same constant, wherever a window lies: if no window counts padding as zeros."""

    def given(at: int, word: str, default: Any = None) -> Any:
        return argument(args, kwargs, at, word, default)

    if name.startswith("max_pool"):  # a dilated window may contain padding only
        return not _any(given(3, "padding", 0)) or not _any(given(4, "dilation", 1), above=1)
    if name.startswith("avg_pool"):
        is_padded = bool(given(5, "count_include_pad", True)) and _any(given(3, "padding", 0))
        return not is_padded and given(6, "divisor_override") is None
    if name == "pad":
        return bool(given(2, "mode", "constant") != "constant")
    return True


def pads_with_zeros(weight: Tensor, padding: Any) -> bool:
    """Whether a convolution reads zeros around its input."""
    if isinstance(padding, str):
        return padding != "valid" and _any(tuple(weight.shape[2:]), above=1)
    return _any(padding)


def _any(sizes: Any, above: int = 0) -> bool:
    return any(size > above for size in ((sizes,) if isinstance(sizes, int) else sizes or ()))
