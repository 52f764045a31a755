"""The rules by which units go through the calls of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from torchreg.diagnostics.calls import (
    CONVOLUTIONS,
    ELEMENTWISE,
    MOVING,
    NUMBERED,
    OVER_MAPS,
    PRODUCTS,
    REDUCTIONS,
    TRANSPOSED,
    argument,
    is_random,
    keeps_constants,
    pads_with_zeros,
)
from torchreg.diagnostics.following import Followed
from torchreg.diagnostics.seen import (
    Columns,
    Reader,
    Seen,
    alias,
    along,
    at_places_of,
    spread,
    tensors_in,
    thin_of,
    varying_dims,
)


class Trace(Followed):
    """A run with the rules of torch's functions."""

    def _apply(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> bool:
        """Applies the rule of a call; returns whether there is one."""
        if name in ELEMENTWISE and isinstance(output, Tensor) and not is_random(name, args, kwargs):
            return self._elementwise(name, tensors_in((args, kwargs)), output)
        if name in MOVING:
            return self._move(name, func, args, kwargs, output)
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x in self.places:
            return False
        if name == "linear":
            weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
            return self._weigh(x, weight, bias, x.ndim - 1, 1, False, output)
        if name in CONVOLUTIONS or name in TRANSPOSED:
            weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
            dim = x.ndim - 1 - {**CONVOLUTIONS, **TRANSPOSED}[name]
            if name in TRANSPOSED:
                groups = argument(args, kwargs, 6, "groups", 1)
                return groups == 1 and self._weigh(x, weight, bias, dim, 1, True, output, swapped=True)
            pads = pads_with_zeros(weight, argument(args, kwargs, 4, "padding", 0))
            return self._weigh(x, weight, bias, dim, argument(args, kwargs, 6, "groups", 1), pads, output)
        if name == "batch_norm":
            return not argument(args, kwargs, 5, "training", False) and self._normalize(x, args, kwargs, output)
        if name in OVER_MAPS:
            return self._pool(x, OVER_MAPS[name], keeps_constants(name, args, kwargs), output)
        if name in REDUCTIONS:
            return self._reduce(name, x, output, args, kwargs)
        return False

    # -- the rules ----------------------------------------------------------------------------------------------------

    def _weigh(
        self,
        x: Tensor,
        weight: Any,
        bias: Any,
        dim: int,
        groups: int,
        pads: bool,
        output: Tensor,
        swapped: bool = False,
    ) -> bool:
        if weight not in self.places or not (bias is None or bias in self.places) or not weight.numel():
            return False
        found = self._columns(x, dim)
        if found is None:
            self._pin(self._earlier(x).units, "a layer does not read it as its features")
            nothing = torch.zeros(x.shape[dim], dtype=torch.long, device=x.device)
            found = Columns(nothing, nothing > 0, nothing.to(x.dtype))
        matrix = weight.detach().transpose(0, 1) if swapped else weight.detach()
        count, width = matrix.shape[:2]
        matrix = matrix.reshape(groups, count // groups, width, -1)
        steady = found.constant & (found.values == 0 if pads else found.values.isfinite())
        if groups > 1 and width == 1:  # each row reads one column, and is its unit
            copies = count // groups
            rows = found.units.repeat_interleave(copies)
            self._tie(weight, 0, rows)
            constant = steady.repeat_interleave(copies) | ~matrix.reshape(count, -1).any(1)
        else:
            rows = self._rows(weight, int(swapped), count, groups)
            columns, values, steady = (t.view(groups, width) for t in (found.units, found.values, steady))
            for other in columns[1:]:
                self._join(columns[0], other)
            self._tie(weight, 1 - int(swapped), columns[0])
            self.read.add((weight, 1 - int(swapped)))
            constant = ~(matrix.any(3) & ~steady[:, None]).any(2).flatten()
            (layer, _), *_ = self.places[weight]
            own = rows.view(groups, -1)
            self.readers.append(Reader(layer, weight, bias, matrix, own, columns, values, steady))
        if bias is not None:
            self._tie(bias, 0, rows)
        self._set(output, Seen(spread(rows, dim, output.shape), spread(constant, dim, output.shape)))
        return True

    def _rows(self, weight: Tensor, dim: int, count: int, groups: int) -> Tensor:
        """The units of a weight's rows. Those at one place of all groups are joined, so that groups stay equal."""
        rows = self.written.get(weight)
        if rows is None:
            rows = self.written[weight] = self._new(count, weight.device)
            first, *others = rows.view(groups, -1)
            for other in others:
                self._join(first, other)
        self._tie(weight, dim, rows)
        return rows

    def _normalize(self, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> bool:
        found = self._columns(x, 1)
        own = [
            argument(args, kwargs, at, name)
            for at, name in enumerate(("running_mean", "running_var", "weight", "bias"), 1)
        ]
        if found is None or not all(t is None or t in self.places for t in own):
            return False
        for tensor in own:
            if tensor is not None:
                self._tie(tensor, 0, found.units)
        constant = found.constant if own[2] is None else found.constant | (own[2] == 0)
        self._set(output, Seen(spread(found.units, 1, output.shape), spread(constant, 1, output.shape)))
        return True

    def _elementwise(self, name: str, tensors: Sequence[Tensor], output: Tensor) -> bool:
        shape = output.shape
        others = [t for t in tensors if t not in self.places and (t.numel() != 1 or self._earlier(t).varies)]
        own = [t for t in tensors if t in self.places]
        if not others:
            return False
        seen = {id(t): self._earlier(t) for t in others}
        varying = {d - t.ndim + len(shape) for t in others for d in varying_dims(seen[id(t)].units)}
        if any(t.ndim > len(shape) for t in tensors) or (name == "prelu" and own and own[0].numel() > 1):
            return False
        units: Tensor | None = None
        constant, zero, varies = torch.tensor(True, device=output.device), None, False
        for t in others:
            each, value = seen[id(t)], self._before[id(t)][1]
            varies |= each.varies
            constant = torch.logical_and(constant, thin_of(each.constant))
            if name in PRODUCTS:
                is_zero = thin_of(each.constant) & (at_places_of(value, thin_of(each.constant)) == 0)
                zero = is_zero if zero is None else torch.logical_or(zero, is_zero)
            missing = [d for d in varying if d < len(shape) - t.ndim or (t.shape[d - len(shape)] == 1 < shape[d])]
            if missing:  # one number for many units
                self._pin(each.units, f"{name} spreads it over other units")
            else:
                units = each.units.expand(shape) if units is None else self._join(units, each.units.expand(shape))
        if units is None:
            return False
        for t in own:
            held = [d for d in varying if d >= len(shape) - t.ndim and t.shape[d - len(shape)] > 1]
            own_units = along(units, held[0]) if len(held) == 1 else None
            if own_units is not None:
                self._tie(t, held[0] - len(shape) + t.ndim, own_units)
            elif held or not varying:
                self._pin(units, f"{name} with {self.names[t]}")
                self._blocked.setdefault(t, f"{name} with it")
        constant = constant if zero is None else torch.logical_or(constant, zero)
        if own:  # the constant is to be the same at all places of its unit
            constant = constant & ~torch.tensor(
                any(t.shape[d] > 1 and d - t.ndim + len(shape) not in varying for t in own for d in range(t.ndim)),
                device=output.device,
            )
        self._set(output, Seen(units, constant.expand(shape), varies))
        return True

    def _move(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> bool:
        tensors = tensors_in((args, kwargs))
        if any(t in self.places for t in tensors) or any(tensors_in(i) for i in args[1:] if name == "getitem"):
            return False
        if name == "chunk" and isinstance(args[0], Tensor):
            self._join_halves(args[0], output)
        move = Tensor.reshape if name == "view" else func  # what is known need not be contiguous
        units, constant = (
            move(*tree_map_only(Tensor, get, args), **tree_map_only(Tensor, get, kwargs))
            for get in (lambda t: alias(self._earlier(t).units), lambda t: alias(self._earlier(t).constant))
        )
        results, units, constant = tensors_in(output), tensors_in(units), tensors_in(constant)
        before = [self._earlier(t).units for t in tensors]
        if name in NUMBERED and isinstance(args[0], Tensor):
            kept = {
                unit
                for t in units[: 1 if name in ("unbind", "split", "tensor_split") else None]
                for unit in t.unique().tolist()
            }
            lost = [unit for unit in before[0].unique().tolist() if unit not in kept]
            if lost or "shuffle" in name:
                self._pin(before[0], f"{name} takes some of it by number")
        elif max(len(varying_dims(t)) for t in units) > max([1, *(len(varying_dims(t)) for t in before)]):
            for t in before:
                self._pin(t, f"{name} {'joins it to what is no unit' if len(before) > 1 else 'splits it'}")
        varies = any(self._earlier(t).varies for t in tensors)
        for result, own, fixed in zip(results, units, constant, strict=True):
            self._set(result, Seen(own, fixed, varies))
        return True

    def _join_halves(self, x: Tensor, chunks: Sequence[Tensor]) -> None:
        """Units at one place of all chunks are joined, so that the chunks stay equal."""
        dims = [d for d in range(x.ndim) if chunks[0].shape[d] != x.shape[d]]
        units = self._earlier(x).units
        if not dims or dims[0] not in varying_dims(units):
            return
        if any(chunk.shape != chunks[0].shape for chunk in chunks):
            self._pin(units, "chunk makes unequal parts")
            return
        first, *others = units.chunk(len(chunks), dims[0])
        for other in others:
            self._join(first, other)

    def _pool(self, x: Tensor, dims: int, keeps: bool, output: Tensor) -> bool:
        seen = self._earlier(x)
        varying = varying_dims(seen.units)
        over = {d for d in range(x.ndim) if d >= x.ndim - dims or x.shape[d] != output.shape[d : d + 1].numel()}
        kept = varying or [d for d in range(x.ndim) if d not in over]
        if x.ndim != output.ndim or len(varying) > 1 or over.intersection(varying) or not kept:
            return False
        dim = kept[-1]
        found = self._columns(x, dim)
        if found is None:
            return False
        constant = found.constant & (keeps | (found.values == 0))
        self._set(
            output, Seen(spread(found.units, dim, output.shape), spread(constant, dim, output.shape), seen.varies)
        )
        return True

    def _reduce(self, name: str, x: Tensor, output: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        seen, dims = self._earlier(x), argument(args, kwargs, 1, "dim")
        if dims is None:
            return False
        dims = [d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)]
        if set(dims).intersection(varying_dims(seen.units)):
            return False
        keep = bool(argument(args, kwargs, 2, "keepdim", False))
        constant = seen.constant & (x == 0) if name == "sum" else seen.constant
        units, constant = seen.units.amax(dims, keep), ~(~constant).any(dims, keep)
        self._set(output, Seen(units, constant, seen.varies))
        return True
