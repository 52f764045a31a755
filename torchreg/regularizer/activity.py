"""A penalty on the outputs of selected modules."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchreg.ensemble.stacked import Stacked
from torchreg.penalties import KLSparsity, Penalty
from torchreg.penalties.given import in_words
from torchreg.penalties.outputs import OfLogits
from torchreg.regularizer.recorded import OfPasses, first_in
from torchreg.selection.modules import ModuleFilter, check_model, select_modules


class ActivityRegularizer(OfPasses):
    r"""Penalizes the outputs of selected modules of an existing model, such as the activations of its hidden units.

    .. math:: \text{scale} \cdot \sum_{\text{calls } c} \frac{1}{n_c} R(a_c)

    where :math:`a_c` is the output of one call of a selected module in the model's last forward pass and :math:`n_c`
    its batch size. A strength therefore has the same effect at every batch size. If a module is called several times,
    each call counts. A tensor that several modules return (a ``Sequential`` and its last layer) counts once.

    Only forward passes in training mode with gradients enabled are recorded. Each pass of the model replaces the
    recorded outputs of the one before. Add ``value()`` to the loss of a forward pass before the next one.

    Forward hooks record the outputs until :meth:`remove` or the end of the regularizer's life. The model's parameters,
    buffers and ``state_dict`` do not change. A copy of the model alone is not recorded; a copy of model and regularizer
    is. If an output is a tuple, list or mapping, its first floating-point tensor is used (of an LSTM the sequence).
    A ``PackedSequence`` counts as the padded batch without its padding: :math:`n_c` is the number of sequences.
    Under activation checkpointing use ``use_reentrant=False``: reentrant checkpointing runs the forward pass without
    gradients.

    Args:
        model: any module. Call it, or a wrapper such as ``DistributedDataParallel``; calls of its submodules alone are
            not recorded. With ``torch.compile`` create the regularizer before the first call.
        penalty: a penalty; its ``value`` gets each output with the batch first.
        modules: which modules: a pattern on full module names (``*`` also matches dots, ``""`` is the model itself), a
            module, a type, a predicate ``(name, module) -> bool``, or several of these.
        batch_dim: the batch dimension of the outputs.

    Attributes:
        modules: the selected modules by name.
        scale: multiplies the penalty; a number or a 0-d tensor.

    Raises:
        ValueError: one of ``modules`` matches no module.
        TypeError: ``model`` is no module, ``penalty`` no penalty, or ``modules`` of another kind.

    Example:
        >>> from torchreg import L1
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> activity = ActivityRegularizer(model, L1(0.1), modules=nn.ReLU)
        >>> loss = model(torch.ones(8, 2)).square().mean() + activity.value()
        >>> criterion = activity.penalize(nn.MSELoss())  # or this: it adds the value in training mode only
        >>> activity
        ActivityRegularizer(L1(0.1), scale=1.0): 1 of 4 modules
          1  ReLU
        >>> activity.remove()

    References:
        Xavier Glorot, Antoine Bordes, Yoshua Bengio, "Deep Sparse Rectifier Neural Networks", AISTATS 2011.
    """

    _record: _Record

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty,
        modules: ModuleFilter | Iterable[ModuleFilter] = "*",
        *,
        batch_dim: int = 0,
    ) -> None:
        check_model("ActivityRegularizer", model)
        if any(isinstance(module, Stacked) for module in model.modules()):
            raise ValueError(
                "ActivityRegularizer: model must not be a stack, whose activities cannot be recorded: use members()"
            )
        if not isinstance(penalty, Penalty):
            raise TypeError(f"ActivityRegularizer: penalty must be a Penalty such as L1(1e-6), got {in_words(penalty)}")
        self.model = model
        self.penalty = penalty
        self.modules = select_modules("ActivityRegularizer", model, modules)
        self.batch_dim = batch_dim
        self._listen()

    def value(self) -> Tensor:
        """The penalty on the last forward pass, 0-d and differentiable; 0 if the pass was not recorded."""
        terms = list(self.terms().values())
        return sum((term.to(terms[0].device) for term in terms[1:]), start=terms[0]) if terms else torch.zeros(())

    def terms(self) -> dict[str, Tensor]:
        """The value of each kind of penalty, such as ``{"L1": tensor, "L2": tensor}``.

        Raises:
            ValueError: an output was changed in place after the module returned it, or has no batch dimension; packed
                sequences of different lengths under a penalty that is no sum over the elements.
            TypeError: an output holds no floating-point tensor.
        """
        totals: dict[str, Tensor] = {}
        for activation in self._activations():
            for term in self.penalty.terms:
                value = self.scale * activation.cost(term)
                before = totals.get(term.label)
                totals[term.label] = value if before is None else before + value.to(before.device)
        return totals

    def _listen(self) -> None:
        self._record = record = _Record()
        self._handles = (
            self.model.register_forward_pre_hook(record.begin),
            *(module.register_forward_hook(partial(record.add, name)) for name, module in self.modules.items()),
            self.model.register_forward_hook(record.end, always_call=True),  # last: the model may be chosen itself
        )

    def _activations(self) -> list[_Activation]:
        """The recorded tensors, each once, with the batch first and at least in single precision."""
        found: dict[tuple[int, int], _Activation] = {}
        for name, output, version, kept, packed in self._record.outputs:
            if kept.ndim == 0:
                raise ValueError(f"ActivityRegularizer: the output of {name!r} must have a batch dimension, is 0-d")
            if kept is output and output._version != version:
                raise ValueError(
                    f"ActivityRegularizer: the output of {name!r} must not be changed in place by a later operation: "
                    "select the module that changes it, or give that module inplace=False"
                )
            wide = kept.to(torch.promote_types(kept.dtype, torch.float32))
            found[id(output), version] = (
                _Activation.of(name, wide, packed) if packed else _Activation(name, wide.movedim(self.batch_dim, 0))
            )
        return list(found.values())

    def __repr__(self) -> str:
        width = max(map(len, self.modules))
        rows = [f"\n  {name:<{width}}  {type(module).__name__}" for name, module in self.modules.items()]
        count = len(list(self.model.modules()))
        head = f"ActivityRegularizer({self.penalty!r}, scale={self.scale!r}): {len(rows)} of {count} modules"
        return head + "".join(rows)


class _Output(NamedTuple):
    name: str  # of the module
    tensor: Tensor
    version: int  # of the tensor at that time: changes in place count it up
    kept: Tensor  # the tensor, or a copy
    packed: PackedSequence | None  # whose data the tensor is


class _Activation(NamedTuple):
    """An output with the batch first; of packed sequences of different lengths the rows of all time steps."""

    name: str  # of the module
    tensor: Tensor
    batch_sizes: list[int] | None = None  # the number of rows of each time step

    @classmethod
    def of(cls, name: str, data: Tensor, packed: PackedSequence) -> Self:
        sizes = packed.batch_sizes.tolist()
        if sizes[-1] < sizes[0]:
            return cls(name, data, sizes)
        padded = data.view(len(sizes), sizes[0], *data.shape[1:]).transpose(0, 1)
        return cls(name, padded if packed.unsorted_indices is None else padded[packed.unsorted_indices])

    def cost(self, term: Penalty) -> Tensor:
        """The penalty for each example."""
        if self.batch_sizes is None:
            return term.value(self.tensor) / max(len(self.tensor), 1)
        if term.is_separable:
            return term.value(self.tensor) / self.batch_sizes[0]
        if isinstance(term, OfLogits):  # a mean over the rows
            return term.value(self.tensor) / len(self.tensor)
        if isinstance(term, KLSparsity):  # each unit at each time has a mean, over the sequences that last so long
            return (
                torch.stack([term.value(rows) for rows in self.tensor.split(self.batch_sizes)]).sum()
                / (self.batch_sizes[0])
            )
        raise ValueError(
            f"ActivityRegularizer: {term.label} is no sum over the elements, so that sequences must have one length, "
            f"the output of {self.name!r} has packed ones of different lengths: select a module that puts out a tensor"
        )


@dataclass
class _Record:
    """The recorded outputs of one forward pass of a model.

    A copy is empty and records nothing until a copied regularizer reads it.
    """

    outputs: list[_Output] = field(default_factory=list)
    depth: int = 0  # running passes of the model: more than one if the model calls itself
    is_open: bool = False
    has_reader: bool = True

    def begin(self, model: nn.Module, args: Any) -> None:
        if self.depth and not _is_nested(model):
            self.depth = 0  # the last pass was interrupted from the keyboard, without a call of the hooks
        if self.depth == 0:
            self.outputs = []  # not cleared: a compiled model is compiled again if it finds a record that is not empty
        self.depth += 1
        self.is_open = model.training and self.has_reader

    def add(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.is_open and torch.is_grad_enabled():
            found = first_in(output, _is_activation)
            if found is None:
                raise TypeError(
                    f"ActivityRegularizer: the output of {name!r} must hold a floating-point tensor, got "
                    f"{type(output).__name__}: select other modules"
                )
            tensor, packed = (found.data, found) if isinstance(found, PackedSequence) else (found, None)
            # Compiled code does not count changes in place, so that the output must be copied.
            kept = tensor.clone() if torch.compiler.is_compiling() else tensor
            self.outputs.append(_Output(name, tensor, tensor._version, kept, packed))

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        self.depth -= 1
        self.is_open = self.is_open and self.depth > 0  # calls of checkpointing in the backward pass are not recorded

    def clear(self) -> None:
        self.outputs.clear()

    def __getstate__(self) -> dict[str, Any]:
        return vars(_Record(has_reader=False))


def _is_nested(model: nn.Module) -> bool:
    """Whether the call of the model that is about to begin is part of another call: it is on the stack twice then."""
    calls = [frame.f_code for frame, _ in traceback.walk_stack(None) if frame.f_locals.get("self") is model]
    return len(calls) > len(set(calls))


def _is_activation(value: Any) -> bool:
    if isinstance(value, PackedSequence):
        return _is_activation(value.data)
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
