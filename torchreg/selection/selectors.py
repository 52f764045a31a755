"""Selectors: which parameters are penalized, and why the others are not.

The default, :data:`weights`, exempts biases, parameters of normalization layers, position embeddings, learned tokens
such as ``cls_token``, learned queries, scales of channels, the dynamics of state space models, learned drop rates, and
everything with fewer than two dimensions. A model can exempt further parameters: with a method ``no_weight_decay()``
that returns their names, as timm's models have it, or with an attribute ``_no_weight_decay`` of the parameter. If a
module's type does not say what a parameter is, whole words of its name do. :func:`named` and :func:`in_modules` narrow
this selection; they never lift an exemption. To penalize biases too, use :data:`everything`, or a predicate of your
own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from torch import Tensor, nn

from torchreg.selection.modules import listed
from torchreg.selection.naming import BIAS_WORDS, class_of, is_vector, no_weight, telling_name, words_of
from torchreg.selection.parameters import ParamInfo

_NORMALIZATIONS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

_NORMALIZATION_WORDS = {
    "norm",
    "grn",
}  # in the name of a class; GRN is the global response normalization of ConvNeXt V2


class Selector(ABC):
    """Decides which parameters are penalized, with a reason for each exempt one.

    A selector of your own defines :meth:`reason`. Where no reason is needed, pass a function of :class:`ParamInfo` that
    returns True or False instead.

    Example:
        >>> from torchreg import L2, Regularizer
        >>> class Large(Selector):
        ...     def reason(self, info):
        ...         return None if info.param.numel() >= 10 else "small"
        >>> regularizer = Regularizer(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), L2(1.0), select=Large())
        >>> [a.name for a in regularizer.entries if a.penalty]
        ['0.weight']
    """

    @abstractmethod
    def reason(self, info: ParamInfo) -> str | None:
        """Why the parameter is exempt, in a few words; None if it is penalized."""

    def __call__(self, info: ParamInfo) -> bool:
        return self.reason(info) is None


@final
class _Everything(Selector):
    """Selects every parameter, also biases and those of normalization layers.

    Example:
        >>> from torchreg import L2, Regularizer
        >>> regularizer = Regularizer(nn.Linear(4, 3), L2(1.0), select=everything)
        >>> [a.name for a in regularizer.entries if a.penalty]
        ['weight', 'bias']
    """

    def reason(self, info: ParamInfo) -> str | None:
        return None

    def __repr__(self) -> str:
        return "everything"


@final
class _Weights(Selector):
    """The default: all parameters except those that usually must not be penalized.

    Exempt are biases, parameters of normalization layers, position embeddings, learned tokens such as ``cls_token``,
    virtual tokens, learned queries, scales, frequencies, the dynamics of state space models, learned drop rates,
    everything with fewer than two dimensions, and what the model itself exempts by a method ``no_weight_decay()`` or an
    attribute ``_no_weight_decay`` of the parameter.

    Example:
        >>> from torchreg import L2, Regularizer
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> {a.name: a.reason for a in Regularizer(model, L2(1.0), select=weights).entries}
        {'0.weight': None, '0.bias': 'bias', '1.weight': 'normalization', '1.bias': 'bias'}
    """

    def reason(self, info: ParamInfo) -> str | None:
        if info.exemption is not None:
            return info.exemption
        words = words_of(telling_name(info))
        if not BIAS_WORDS.isdisjoint(words):
            return "bias"
        if _is_normalization(info):
            return "normalization"
        if (other := no_weight(words, info)) is not None:
            return other
        return f"{info.param.ndim}-D" if info.param.ndim < 2 else None

    def __repr__(self) -> str:
        return "weights"


def _is_normalization(info: ParamInfo) -> bool:
    if isinstance(info.module, _NORMALIZATIONS):
        return True
    return not _NORMALIZATION_WORDS.isdisjoint(words_of(class_of(info.module).__name__)) and is_vector(info)


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
            return f"in {class_of(info.module).__name__}"
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
    """Selects the weights whose full name matches one of the patterns.

    Args:
        patterns: with ``*`` and ``?`` as in a shell; ``*`` also matches dots.

    Raises:
        TypeError: there is no pattern, or one of them is no string.
        ValueError: where it is used, a pattern matches none of the model's parameters.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> named("conv*")(ParamInfo("head.weight", layer.weight, layer))
        False
    """
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"named: patterns must be strings, as in named('0.*', '*.weight'), got {patterns}")
    return _Named(patterns)


def in_modules(*types: type[nn.Module]) -> Selector:
    """Selects the weights of modules of the given types.

    Args:
        types: classes of modules; instances of subclasses count too.

    Raises:
        TypeError: there is no class, or one of the arguments is no class of modules.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> in_modules(nn.Conv2d)(ParamInfo("head.weight", layer.weight, layer))
        False
    """
    if not types or not all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in types):
        raise TypeError(f"in_modules: types must be classes of modules, as in in_modules(nn.Linear), got {types}")
    return _InModules(types)


def check_patterns(owner: str, given: Iterable[str] | Selector, names: Sequence[str], what: str = "") -> None:
    """Raises ``ValueError`` if a name pattern, of a selector or a dict, matches none of the names."""
    patterns = given if not isinstance(given, Selector) else given.patterns if isinstance(given, _Named) else ()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{owner}: the pattern {pattern!r}{what} matches none of the parameters "
                f"{listed(list(dict.fromkeys(names)))}: a pattern matches whole names, as '*.weight' does"
            )


def as_selector(select: Selector | Callable[[ParamInfo], bool]) -> Selector:
    """The selector itself, or a selector made of the predicate."""
    if isinstance(select, Selector):
        return select
    expected = "select must be a selector or a predicate on ParamInfo"
    if isinstance(select, str):
        raise TypeError(f"{expected}, got {select!r}: use torchreg.named({select!r})")
    given: object = select
    if isinstance(given, type) and issubclass(given, nn.Module):
        raise TypeError(f"{expected}, got the class {given.__name__}: use torchreg.in_modules({given.__name__})")
    if isinstance(given, type):
        raise TypeError(f"{expected}, got the class {given.__name__}")
    if isinstance(select, nn.Module):
        kind = type(select).__name__
        raise TypeError(f"{expected}, got a module {kind}: use torchreg.named with its name, such as named('0.*')")
    if isinstance(select, list | tuple | set | frozenset):
        raise TypeError(f"{expected}, got a {type(select).__name__}: use {_several_meant(list(select))}")
    if isinstance(select, Tensor):
        raise TypeError(f"{expected}, got a {type(select).__name__}: use torchreg.named with its name")
    if not callable(select):
        raise TypeError(f"{expected}, got {select!r}")
    return _Predicate(select)


def _several_meant(given: list[object]) -> str:
    """The selector for what is in a list."""
    rest = ", ..." * (len(given) > 3)
    if given and all(isinstance(each, str) for each in given):
        return f"torchreg.named({', '.join(map(repr, given[:3]))}{rest})"
    classes = [each.__name__ for each in given if isinstance(each, type) and issubclass(each, nn.Module)]
    if given and len(classes) == len(given):
        return f"torchreg.in_modules({', '.join(classes[:3])}{rest})"
    return "torchreg.named with the names of the parameters"
