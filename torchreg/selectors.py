"""WHICH parameters are penalized, and why the others are not.

A selector answers one question of a parameter: is it penalized, and if not, what is the reason? The default,
:data:`weights`, exempts intercepts: biases, normalization layers' parameters, and everything with fewer than two
dimensions. :func:`named` and :func:`in_modules` narrow that; they never lift an exemption. To penalize a bias, start
from :data:`everything`; a predicate of your own decides alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from torch import nn

from torchreg.parameters import ParamInfo

_NORMALIZATIONS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


class Selector(ABC):
    """Decides which parameters are penalized, with a reason for each that is not."""

    @abstractmethod
    def reason(self, info: ParamInfo) -> str | None:
        """Why the parameter is exempt, in a word or two; None if it is penalized."""

    def __call__(self, info: ParamInfo) -> bool:
        return self.reason(info) is None


@final
class _Everything(Selector):
    """Every parameter, biases and normalization layers' among them."""

    def reason(self, info: ParamInfo) -> str | None:
        return None

    def __repr__(self) -> str:
        return "everything"


@final
class _Weights(Selector):
    """All but the intercepts: no biases, no normalization layers' parameters, none with fewer than two dimensions."""

    def reason(self, info: ParamInfo) -> str | None:
        own_name = info.name.rpartition(".")[2]
        if own_name == "bias" or own_name.startswith("bias_") or own_name.endswith("_bias"):
            return "bias"
        if isinstance(info.module, _NORMALIZATIONS):
            return "normalization"
        if info.param.ndim < 2:
            return f"{info.param.ndim}-D"
        return None

    def __repr__(self) -> str:
        return "weights"


everything = _Everything()
weights = _Weights()


@final
@dataclass(frozen=True)
class _Named(Selector):
    patterns: tuple[str, ...]

    def reason(self, info: ParamInfo) -> str | None:
        if not any(fnmatchcase(info.name, pattern) for pattern in self.patterns):
            return f"not named {' or '.join(self.patterns)}"
        return weights.reason(info)


@final
@dataclass(frozen=True)
class _InModules(Selector):
    types: tuple[type[nn.Module], ...]

    def reason(self, info: ParamInfo) -> str | None:
        if not isinstance(info.module, self.types):
            return f"in {type(info.module).__name__}"
        return weights.reason(info)


@final
@dataclass(frozen=True)
class _Predicate(Selector):
    predicate: Callable[[ParamInfo], bool]

    def reason(self, info: ParamInfo) -> str | None:
        if self.predicate(info):
            return None
        return f"not {getattr(self.predicate, '__name__', 'selected')}"


def named(*patterns: str) -> Selector:
    """The weights whose full name matches one of the patterns (``*`` and ``?`` as in a shell; ``*`` crosses dots).

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> named("conv*")(ParamInfo("head.weight", layer.weight, layer))
        False
    """
    return _Named(patterns)


def in_modules(*types: type[nn.Module]) -> Selector:
    """The weights owned by a module of one of the types.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> in_modules(nn.Conv2d)(ParamInfo("head.weight", layer.weight, layer))
        False
    """
    return _InModules(types)


def as_selector(select: Selector | Callable[[ParamInfo], bool]) -> Selector:
    """The selector itself, or one that asks the predicate."""
    if isinstance(select, Selector):
        return select
    if not callable(select):
        raise TypeError(f"select must be a selector or a predicate on ParamInfo, got {select!r}")
    return _Predicate(select)
