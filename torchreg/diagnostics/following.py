"""One run of a model in which every call of torch is seen, and units that meet are joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from torchreg.diagnostics.calls import LEAVING, is_in_place, name_of
from torchreg.diagnostics.seen import Columns, Reader, Seen, along, tensors_in, thin_of


class Followed(TorchFunctionMode):
    """Follows the units of a model through the calls of torch.

    A unit is a row of a layer's weight. Units that are added, or that otherwise meet at one element, are joined: they
    can go only together. What a call with an unknown rule gets must stay, and so must outputs of the model.

    Args:
        model: the model in evaluation mode. Its units get numbers from 1.

    Attributes:
        axes: the unit of each index of a parameter or buffer, by tensor and dimension.
        written: the units of each layer's rows.
        read: those of ``axes`` along which a layer reads units.
        readers: the layers' weights.
        pinned: why a unit must stay.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.places: dict[Tensor, list[tuple[nn.Module, str]]] = {}
        self.names: dict[Tensor, str] = {}
        for prefix, module in model.named_modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self.places.setdefault(tensor, []).append((module, name))
                    self.names.setdefault(tensor, f"{prefix}.{name}".lstrip("."))
        self.axes: dict[tuple[Tensor, int], Tensor] = {}
        self.written: dict[Tensor, Tensor] = {}
        self.read: set[tuple[Tensor, int]] = set()
        self.readers: list[Reader] = []
        self.pinned: dict[int, str] = {}
        self.uses: Counter[Tensor] = Counter()
        self._blocked: dict[Tensor, str] = {}
        self._parents = [0]
        self._seen: dict[int, tuple[Tensor, int, Seen]] = {}
        self._before: dict[int, tuple[Seen | None, Tensor]] = {}
        self._modules: list[str] = []
        self._is_looking = False  # whether the calls are those of this class

    # -- units --------------------------------------------------------------------------------------------------------

    def roots(self, units: Tensor) -> Tensor:
        """The joined units by the number of the first of them."""
        for unit in range(len(self._parents)):
            self._parents[unit] = self._parents[self._parents[unit]]
        return torch.tensor([self._root(unit) for unit in range(len(self._parents))], device=units.device)[units]

    def _root(self, unit: int) -> int:
        while self._parents[unit] != unit:
            unit = self._parents[unit] = self._parents[self._parents[unit]]
        return unit

    def _join(self, one: Tensor, other: Tensor) -> Tensor:
        """Joins the units that meet; what meets no unit must stay. Returns the units of the outcome."""
        if one is other:
            return one
        thin = torch.broadcast_tensors(thin_of(one), thin_of(other))
        apart = thin[0] != thin[1]
        for a, b in torch.stack([t[apart] for t in thin], 1).unique(dim=0).tolist():
            if not a or not b:
                self._pin_units([a or b], "it is added to what is no unit")
            else:
                first, second = sorted((self._root(a), self._root(b)))
                self._parents[second] = first
        shape = torch.broadcast_shapes(one.shape, other.shape)
        return torch.maximum(*thin).expand(shape)

    def _pin(self, units: Tensor, reason: str) -> None:
        self._pin_units(thin_of(units).unique().tolist(), reason)

    def _pin_units(self, units: Sequence[int], reason: str) -> None:
        where = next((name for name in reversed(self._modules) if name), "")
        for unit in units:
            if unit:
                self.pinned.setdefault(unit, f"{where}: {reason}" if where else reason)

    def _new(self, count: int, device: torch.device) -> Tensor:
        first = len(self._parents)
        self._parents += range(first, first + count)
        return torch.arange(first, first + count, device=device)

    def _tie(self, tensor: Tensor, dim: int, units: Tensor) -> None:
        """The indices of a parameter belong to these units, and to those of an earlier call."""
        before = self.axes.get((tensor, dim))
        self.axes[tensor, dim] = units if before is None else self._join(before, units)

    # -- the run ------------------------------------------------------------------------------------------------------

    def follow(self, args: tuple[Any, ...]) -> Any:
        """Runs the model. Units of its outputs are pinned."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                stack.enter_context(self._inside(name, module))
            for tensor in tensors_in(args):
                self._set(tensor, self._nothing(tensor))
            with self, torch.no_grad():
                outputs = self.model(*args)
        for leaf in tree_leaves(outputs):
            if not isinstance(leaf, Tensor | bool | int | float | str | None):
                raise ValueError(f"its output holds a {type(leaf).__name__}, whose tensors are not seen")
        for tensor in tensors_in(outputs):
            seen = self._look(tensor)
            self._pin(seen.units, "it is an output of the model")
        for (tensor, _), units in self.axes.items():
            if tensor in self._blocked:
                self._pin(units, self._blocked[tensor])
        self._seen.clear()
        return outputs

    @contextmanager
    def _inside(self, name: str, module: nn.Module) -> Iterator[None]:
        """Knows when the module runs. What passes hooks that others registered stays as it is."""
        has_hooks = bool(module._forward_hooks or module._forward_pre_hooks)

        def enter(module: nn.Module, args: Any) -> None:
            self._modules.append(name)
            self._pin_seen(args if has_hooks else ())

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._pin_seen((args, output) if has_hooks else ())
            self._modules.pop()

        handles = module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _pin_seen(self, values: Any) -> None:
        self._is_looking = True
        for tensor in tensors_in(values):
            self._pin(self._look(tensor).units, "a hook sees it")
        self._is_looking = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, name_of(func)
        if self._is_looking:
            return func(*args, **kwargs)
        tensors = tensors_in((args, kwargs))
        if getattr(func, "__name__", "") in LEAVING and any(self._look(tensor).varies for tensor in tensors):
            where = f" in {self._modules[-1]}" if self._modules and self._modules[-1] else ""
            raise ValueError(f"what the model computes depends on the values of a tensor{where} (Tensor.{name})")
        changes = is_in_place(func, args, kwargs)
        self._before = {
            id(t): (self._look(t) if t not in self.places else None, t.clone() if changes else t) for t in tensors
        }
        output = func(*args, **kwargs)
        if name == "setitem":
            self._stop(name, tensors, tensors[:1])
        elif results := tensors_in(output):
            self.uses.update(tensor for tensor in tensors if tensor in self.places)
            if not self._apply(name, func, args, kwargs, output):
                self._stop(name, tensors, results)
        self._before = {}
        return output

    def _apply(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> bool:
        """Applies the rule of a call; returns whether there is one."""
        raise NotImplementedError

    def _stop(self, name: str, tensors: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """No rule: all that it gets stays."""
        for tensor in tensors:
            if tensor in self.places:
                self._blocked.setdefault(tensor, f"{name} uses {self.names[tensor]}")
            else:
                self._pin(self._earlier(tensor).units, f"{name} needs all of it")
        varies = any(t not in self.places and self._earlier(t).varies for t in tensors)
        for result in results:
            self._set(result, self._nothing(result)._replace(varies=varies))

    # -- what is known of tensors -------------------------------------------------------------------------------------

    def _columns(self, x: Tensor, dim: int) -> Columns | None:
        """What is known along a dimension; None if the units differ along another one."""
        seen, x = self._earlier(x), self._before[id(x)][1]
        units = along(seen.units, dim)
        if units is None:
            return None
        thin = thin_of(seen.constant).movedim(dim, 0).flatten(1).all(1)
        rows = x.movedim(dim, 0).flatten(1)
        rounding = torch.finfo(x.dtype).eps ** 0.75 if x.is_floating_point() else 0.0
        same = torch.isclose(rows, rows[:, :1], rounding, 0.0).all(1)  # of the same sums in another order
        return Columns(units, thin.expand(len(units)) & same, rows[:, 0])

    def _earlier(self, tensor: Tensor) -> Seen:
        """What was known of an argument before the call, which may have changed it."""
        seen, _ = self._before[id(tensor)]
        return self._nothing(tensor) if seen is None else seen

    def _look(self, tensor: Tensor) -> Seen:
        held, version, seen = self._seen.get(id(tensor), (None, 0, None))
        if held is not tensor or seen is None:
            return self._nothing(tensor)._replace(varies=False)
        if version != tensor._version:  # through another tensor with the same memory
            self._pin(seen.units, "it is changed in place")
            return self._nothing(tensor)
        return seen

    def _set(self, tensor: Tensor, seen: Seen) -> None:
        self._seen[id(tensor)] = tensor, tensor._version, seen

    def _nothing(self, tensor: Tensor) -> Seen:
        nothing = torch.zeros((), dtype=torch.long, device=tensor.device).expand(tensor.shape)
        return Seen(nothing, torch.zeros((), dtype=torch.bool, device=tensor.device).expand(tensor.shape))
