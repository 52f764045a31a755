"""What a penalty changes in the steps of an optimizer: found once, and kept until something changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.functional.chunks import CHUNK
from torchreg.hooks import Group
from torchreg.penalties import Penalty
from torchreg.penalties.joint import by_whole, whole_of

Penalties = Mapping[nn.Parameter, Penalty]
ScaleOf = Callable[[nn.Parameter], float | Tensor]
Gradients = Sequence[Any]  # a tensor for each parameter; of one that the step does not change, perhaps None

Row = tuple[int, Group, nn.Parameter, Penalty]  # the parameter's position among those of a plan

PLAIN = (nn.Parameter, Tensor)
_FEW = 4  # for fewer weights the calls cost less than a bundle
_SMALL = 1 << 14, CHUNK  # elements, on the CPU and elsewhere: of larger weights the calls cost less than more copies
_BUNDLE = 1 << 16, 1 << 22  # elements of a bundle: on the CPU it stays in the cache, elsewhere each call has its price


class Batch(NamedTuple):
    """Consecutive parameters of a group with the same penalty and the same scale."""

    group: Group
    penalty: Penalty
    first: nn.Parameter  # whose scale is that of all
    bundles: list[Bundle]
    whole: list[int]  # positions among the plan's parameters: those that are processed as they are
    others: list[int]  # sharded ones, and those that are processed in chunks or by a kernel


class Plan:
    """The penalized parameters that a step of an optimizer changes, in as few batches as their order allows.

    Args:
        optimizer: the optimizer.
        penalties: the penalty of each penalized parameter.
        scale_of: the scale of a parameter. The scales may change later, but not which parameters share one.
        takes_gradients: whether the penalty changes gradients, and not weights.
    """

    def __init__(self, optimizer: Optimizer, penalties: Penalties, scale_of: ScaleOf, takes_gradients: bool) -> None:
        is_compiling = torch.compiler.is_compiling()
        self.optimizer = optimizer
        self._groups = list(optimizer.param_groups)
        self._held = [param for group in self._groups for param in group["params"]]
        pairs = [(param, group) for group in self._groups for param in group["params"] if param in penalties]
        self.params: list[nn.Parameter] = [param for param, _ in pairs]
        self._is_on_cuda = any(param.is_cuda for param in self.params)
        self._takes_gradients = takes_gradients
        self.changed = [
            (i, group, param, penalties[param])
            for i, (param, group) in enumerate(pairs)
            if param.grad is not None and param.requires_grad
        ]
        alone = [row for row in self.changed if whole_of(row[3]) is None]
        self.batches = [_batch(rows, takes_gradients) for rows in _alike(alone, scale_of)]
        trained = [(penalties[p], (group, p, p.grad is not None)) for p, group in pairs if p.requires_grad]
        self.joint = by_whole(trained) if len(alone) < len(self.changed) else {}
        bundles = [bundle for batch in self.batches for bundle in batch.bundles]
        self._bundled = [self.params[i] for bundle in bundles for i in bundle.where]
        self._kept = [param.detach() for param in self._bundled]
        bundled = set(self._bundled)
        self._plain = [p for p in self.params if p not in bundled and type(p) in PLAIN and not is_compiling]
        self._state = self._present([param.grad for param in self.params])

    def gradients(self) -> Gradients | None:
        """The gradients of all parameters now; None if the plan holds no longer."""
        if self._is_on_cuda and self.is_captured():
            return None
        groups = self.optimizer.param_groups
        held = [param for group in groups for param in group["params"]]
        if len(groups) != len(self._groups) or len(held) != len(self._held):
            return None
        gradients = [param.grad for param in self.params]
        is_same = all(map(is_, groups, self._groups)) and all(map(is_, held, self._held))
        is_same = is_same and all(map(Tensor.is_set_to, self._bundled, self._kept))
        return gradients if is_same and self._present(gradients) == self._state else None

    def is_captured(self) -> bool:
        """Whether a CUDA graph captures the present calls."""
        return self._is_on_cuda and torch.cuda.is_current_stream_capturing()

    def _present(self, gradients: Gradients) -> Any:
        """What a plan depends on: which parameters have a gradient, which are frozen, and where their values are.

        What is bundled must also have the shape and strides that it had, which :meth:`gradients` looks at.
        """
        if self._takes_gradients:
            kinds: list[object] = [None if gradient is None else gradient.dtype for gradient in gradients]
        else:
            kinds = [gradient is None for gradient in gradients]
        return kinds, [p.requires_grad for p in self.params], [p.data_ptr() for p in self._plain]


class Plans:
    """The plan of each optimizer, kept until it holds no longer.

    While a compiler or a CUDA graph records a step, its plan is not kept: what they record has memory of its own.
    """

    def __init__(self) -> None:
        self._kept: dict[Optimizer, Plan] = {}

    def now(
        self, optimizer: Optimizer, penalties: Penalties, scale_of: ScaleOf, takes_gradients: bool
    ) -> tuple[Plan, Gradients]:
        """What a step of the optimizer changes, and the gradients of these parameters now."""
        is_compiled = torch.compiler.is_compiling()
        plan = None if is_compiled else self._kept.get(optimizer)
        if plan is not None and (gradients := plan.gradients()) is not None:
            return plan, gradients
        plan = Plan(optimizer, penalties, scale_of, takes_gradients)
        if not (is_compiled or plan.is_captured()):
            self._kept[optimizer] = plan
        return plan, [param.grad for param in plan.params]

    def clear(self) -> None:
        self._kept.clear()


class Bundle:
    """Small weights that are processed as one flat tensor: a few calls for all of them.

    Args:
        where: their positions among the plan's parameters.
        params: the weights, of one dtype, on one device, none in the memory of another.
        takes_gradients: whether gradients are changed.
    """

    def __init__(self, where: Sequence[int], params: Sequence[nn.Parameter], takes_gradients: bool) -> None:
        self.where = where
        self._views = [param.detach().view(-1) for param in params]
        self._weights = torch.cat(self._views)
        self._parts = self._weights.split([view.numel() for view in self._views])
        self._gradients: Tensor | None = None
        if takes_gradients:
            self._gradients = torch.empty_like(self._weights)
            parts = self._gradients.split([view.numel() for view in self._views])
            self._parts = tuple(part.view(param.shape) for part, param in zip(parts, params, strict=True))

    def update(self, act: Callable[..., object], number: float | Tensor, gradients: Gradients) -> None:
        """Calls ``act(weights, number)``, which changes the weights; or ``act(gradients, weights, number)``."""
        torch.cat(self._views, out=self._weights)
        if self._gradients is None:
            act(self._weights, number)
            torch._foreach_copy_(self._views, self._parts)
        else:
            own = [gradients[i] for i in self.where]
            torch._foreach_copy_(self._parts, own)
            act(self._gradients, self._weights, number)
            torch._foreach_copy_(own, self._parts)


def _alike(rows: Sequence[Row], scale_of: ScaleOf) -> list[list[Row]]:
    """Consecutive rows with the same group, penalty and scale."""
    found: list[list[Row]] = []
    last: tuple[object, ...] = ()
    for row in rows:
        _, group, param, penalty = row
        scale = scale_of(param)
        if not last or last[0] is not group or last[1] is not penalty or last[2] is not scale:
            found.append([])
            last = group, penalty, scale
        found[-1].append(row)
    return found


def _batch(rows: Sequence[Row], takes_gradients: bool) -> Batch:
    _, group, first, penalty = rows[0]
    batch = Batch(group, penalty, first, [], [], [])
    small: dict[object, list[tuple[int, nn.Parameter]]] = {}
    for i, _, param, _ in rows:
        if type(param) not in PLAIN or param.numel() >= CHUNK:
            batch.others.append(i)
        elif penalty.is_uniform and _is_small(param) and not (takes_gradients and _has_other_gradient(param)):
            small.setdefault((param.dtype, param.device), []).append((i, param))
        else:
            batch.whole.append(i)
    for some in small.values():
        apart = _apart(some)
        batch.whole.extend({i for i, _ in some}.difference(i for i, _ in apart))
        for part in _parts(apart):
            where, params = zip(*part, strict=True)
            if len(part) < _FEW or torch.compiler.is_compiling():
                batch.whole.extend(where)
            else:
                with torch.inference_mode(False):  # its memory is for later steps too
                    batch.bundles.append(Bundle(where, params, takes_gradients))
    return batch


def _is_small(param: nn.Parameter) -> bool:
    return param.numel() <= _SMALL[not param.is_cpu] and param.is_contiguous() and not param.is_meta


def _has_other_gradient(param: nn.Parameter) -> bool:
    """Whether the gradient has another dtype, in which it must stay: a bundle would round it."""
    return param.grad is not None and param.grad.dtype != param.dtype


def _apart(small: Sequence[tuple[int, nn.Parameter]]) -> list[tuple[int, nn.Parameter]]:
    """The weights without those that lie in the memory of another one: what is shared must take a step for each."""
    if torch.compiler.is_compiling():
        return list(small)
    kept, end = set(), 0
    for i, param in sorted(small, key=lambda pair: pair[1].data_ptr()):
        if param.data_ptr() >= end:
            kept.add(i)
            end = param.data_ptr() + param.numel() * param.element_size()
    return [(i, param) for i, param in small if i in kept]


def _parts(small: Sequence[tuple[int, nn.Parameter]]) -> list[list[tuple[int, nn.Parameter]]]:
    """The weights, all on one device, in parts of at most ``_BUNDLE`` elements."""
    first = small[0][1]
    most = _BUNDLE[not first.is_cpu]
    parts, left = [[small[0]]], most - first.numel()
    for i, param in small[1:]:
        if param.numel() > left:
            parts.append([])
            left = most
        parts[-1].append((i, param))
        left -= param.numel()
    return parts
