"""A penalty on what a function computes from several parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Never, final

from torch import Tensor, nn

from torchreg.penalties.base import Penalty
from torchreg.penalties.constraints import Constraint
from torchreg.penalties.described import Described
from torchreg.penalties.given import in_words
from torchreg.penalties.joint import whole_of
from torchreg.selection.effective import Called, Function, effective_weights, name_of
from torchreg.selection.modules import ModuleFilter
from torchreg.selection.parameters import ComputedInfo, ParamInfo


@final
@dataclass(frozen=True, repr=False, eq=False)
class Effective(Described, Penalty):
    r"""A penalty on an effective weight: on what a function computes from several parameters.

    .. math:: \sum_{\text{modules } m} R(f(m))

    :math:`f(m)` may be the update :math:`s B A` of LoRA, the product of the weights of two layers, or the sum of two.
    ``Regularizer(model, Effective(L2(0.1), function))`` finds by itself which parameters the function depends on; the
    argument ``select`` has no effect on it. It acts in modes "loss" and "grad", through autograd, on those that are not
    frozen. Each of the modules counts once.

    In ``Regularizer.entries`` the effective weight has the name of the module and of the function, such as
    ``"0.update()"``; that of a lambda is ``effective()``. Under this name a penalty with a reference takes it, by
    default the effective weight at the start. Its groups are rows (``"output"``) and columns (``"input"``) of it. An L2
    on it may stand beside the optimizer's weight decay, which acts on the parameters.

    Args:
        penalty: :math:`R`, any penalty on one tensor.
        function: :math:`f`: it takes a module and returns a tensor that can be differentiated by parameters of the
            module. It is called in evaluation mode, without autocast, in each step.
        modules: the modules that it is called with: a pattern on full names, a module, a type, a predicate
            ``(name, module) -> bool``, or several of these. By default it is the model, without the wrappers of
            torch.compile and of data parallel training.

    Raises:
        TypeError: ``penalty`` is no penalty, ``function`` is not callable, or it returns no tensor.
        ValueError: ``penalty`` is a constraint or acts on several parameters itself. When the regularizer is created:
            the function fails, or its result depends on no parameter of the module or on others; the mode is
            "decoupled" or "prox"; it is not the only penalty, or the model is a stack.

    Example:
        >>> import torch
        >>> from torchreg import L2, Regularizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 3, bias=False))
        >>> def product(model):
        ...     return model[1].weight @ model[0].weight
        >>> regularizer = Regularizer(model, Effective(L2(1.0), product))
        >>> torch.equal(regularizer.value(), (model[1].weight @ model[0].weight).square().sum() / 2)
        True
        >>> [a.status for a in regularizer.entries if a.penalty]
        ['L2(1.0) (computed by product of 0.weight, 1.weight)']

    References:
        Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen,
        "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (the update of a layer as a product).
    """

    penalty: Penalty
    function: Function
    modules: ModuleFilter | Iterable[ModuleFilter] | None = None

    _selects_itself: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Penalty):
            raise TypeError(
                f"Effective: penalty must be a Penalty, as in Effective(L2(0.1), f), got {in_words(self.penalty)}"
            )
        if not callable(self.function) or isinstance(self.function, type | nn.Module):
            raise TypeError(
                f"Effective: function must be a function of a module, such as lambda layer: layer.B @ layer.A, got "
                f"{self.function!r}"
            )
        if any(t._selects_itself or isinstance(t, Constraint) or whole_of(t) for t in self.penalty.terms):
            raise ValueError(
                f"Effective: penalty must be one on a single tensor that gradients reach, got {self.penalty!r}: use a "
                "penalty such as L2(0.1)"
            )
        if not (self.modules is None or isinstance(self.modules, str | type | nn.Module) or callable(self.modules)):
            if not isinstance(self.modules, Iterable):
                raise TypeError(
                    f"Effective: modules must be a pattern, type or predicate, or several of these, got "
                    f"{self.modules!r}"
                )
            object.__setattr__(self, "modules", tuple(self.modules))

    def __repr__(self) -> str:
        within = "" if self.modules is None else f", modules={_shown(self.modules)}"
        return f"Effective({self.penalty!r}, {name_of(self.function) or 'function'}{within})"

    def _weights_of(self, model: nn.Module) -> Iterator[ComputedInfo]:
        """The effective weights of the model."""
        return effective_weights("Effective", model, self.function, self.modules)  # type: ignore[arg-type]

    def _exempts(self, place: ParamInfo) -> str | None:
        computed = place._computed
        return None if computed is not None and isinstance(computed.compute, Called) else "no effective weight"

    def value(self, w: Tensor) -> Never:
        raise self._unbound()

    def gradient(self, w: Tensor) -> Never:
        raise self._unbound()

    def _unbound(self) -> TypeError:
        return TypeError("Effective: it is a function of modules, not of a tensor: give it to a Regularizer")

    def _times(self, factor: float) -> Penalty:
        return replace(self, penalty=factor * self.penalty)


def _shown(modules: object) -> str:
    if isinstance(modules, tuple):
        return f"({', '.join(map(_shown, modules))})"
    return modules.__name__ if isinstance(modules, type) else repr(modules)
