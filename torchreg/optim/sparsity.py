"""A controller that reaches a given share of zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg import functional as f
from torchreg.hooks import Carried, StepHooks, checked_steps
from torchreg.optim.proximal import Proximal
from torchreg.penalties.partition import Groups, Partition, check_groups, resolve, split
from torchreg.schedules import of_steps, share_at
from torchreg.selection.modules import kind_of
from torchreg.selection.parameters import ParamInfo
from torchreg.steps.steered import Steered

_NUMBERS = {"sparsity": "sparsity", "log_scale": "_log_scale", "error": "_error", "pace": "_pace"}
_LOOKS = 500  # how often the zeros are counted before the support is fixed
_GAIN = 8.0  # how far the log-strength moves until the support is fixed, at pace 1 and with a mean error of 1
_FASTER, _FASTEST = 1.05, 16.0  # the pace grows while the error keeps its sign
_SPAN = (0.0, 0.6)  # the shares of these steps between which the goal rises
_SHAPES: dict[str, Callable[[float], float]] = {
    "cubic": lambda x: 1 - (1 - x) ** 3,
    "linear": lambda x: x,
    "constant": lambda x: 1.0,
}


class TargetSparsity:
    r"""Adapts the strength of a proximal optimizer or regularizer so that training ends with a given share of zeros.

    .. math:: \log c_{t+1} = \log c_t + k_t \log(n_t / g_t)

    where :math:`c_t` is its ``scale``, :math:`n_t` the share of nonzero weights and :math:`1 - g_t` the goal, which
    rises from 0 to the target. The pace :math:`k_t` grows while the error keeps its sign, and is halved
    when the sign changes.

    .. math:: 1 - g_t = \text{target} \cdot s(x), \qquad
              x = \min\Big(\max\Big(\frac{t / T - a}{b - a}, 0\Big), 1\Big)

    for the :math:`T` steps until the support is fixed, the ``span`` :math:`(a, b)` and the ``schedule`` :math:`s`: the
    cubic :math:`s(x) = 1 - (1 - x)^3`, which makes most zeros early, the linear :math:`s(x) = x`, the constant
    :math:`s(x) = 1`, or a function.

    After ``fix_at`` of the steps the share is made exact: the smallest weights of all become zero, or the zeros with
    the largest gradients become nonzero. Of equal ones the first stay. Then the support is fixed, and the remaining
    steps fit it without the penalty; see :meth:`Proximal.fix_support`. Of a regularizer the scale is then 0, and the
    controller keeps the zeros.

    The strength of the penalty is only the start of the search and may be wrong by orders of magnitude. It should
    rather be too small, because a unit that has become zero may stay zero. The controller never waits for the device.
    The optimizer's ``state_dict`` contains its state.

    Args:
        optimizer: a :class:`ProxSGD` or :class:`ProxAdam` whose penalty makes zeros, or a
            :class:`~torchreg.Regularizer` in mode "prox" that is attached to one optimizer.
        target: the share of zeros among the penalized weights, in (0, 1); with ``groups`` that of zero groups.
        steps: the number of steps of the training.
        fix_at: the share of the steps after which the support is fixed, in (0, 1]. With 1 it is never fixed, and the
            target is reached approximately.
        groups: what is counted: ``None`` for single weights; otherwise groups, as for :class:`~torchreg.GroupLasso`, of
            which all weights are zero. A proximal optimizer does not know the modules: ``"output"`` is the first
            dimension there.
        schedule: how the goal rises: ``"cubic"``, ``"linear"``, ``"constant"``, or a function from the progress, in
            [0, 1], to the share of the target that is reached by then, in [0, 1].
        span: where the rise begins and ends, as shares of the steps until the support is fixed; with ``"constant"``
            the goal is the target from the first step.

    Attributes:
        sparsity: the last measured share of zeros, a 0-d tensor.

    Raises:
        TypeError: ``optimizer`` is neither a proximal optimizer nor a regularizer.
        ValueError: ``target``, ``steps``, ``fix_at``, ``schedule`` or ``span`` out of range, groups that do not fit, or
            a regularizer in another mode, that is not attached to one optimizer, or that has a schedule, a constraint
            or a stack.

    Example:
        >>> from torchreg import L1
        >>> from torchreg.optim import ProxSGD
        >>> w = torch.nn.Parameter(torch.linspace(-1, 1, 200).view(1, -1))
        >>> optimizer = ProxSGD([w], L1(1e-3), lr=0.1)
        >>> controller = TargetSparsity(optimizer, 0.9, steps=300)
        >>> for _ in range(300):
        ...     w.grad = w.detach() - torch.linspace(-1, 1, 200)
        ...     optimizer.step()
        >>> w.count_nonzero()
        tensor(20)

    References:
        Michael Zhu, Suyog Gupta, "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model
        Compression", ICLR 2018 workshop (the schedule of the goal). Utku Evci, Trevor Gale, Jacob Menick, Pablo Samuel
        Castro, Erich Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020 (growth by the gradient).
    """

    def __init__(
        self,
        optimizer: Proximal | Steered,
        target: float,
        *,
        steps: int,
        fix_at: float = 0.7,
        groups: Groups | None = None,
        schedule: Literal["cubic", "linear", "constant"] | Callable[[float], float] = "cubic",
        span: tuple[float, float] = _SPAN,
    ) -> None:
        if not isinstance(optimizer, Steered):
            raise TypeError(
                f"TargetSparsity: optimizer must be a ProxSGD, a ProxAdam or a Regularizer, got {kind_of(optimizer)}"
            )
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"TargetSparsity: steps must be a whole number >= 1, got {steps!r}")
        if not (_is_number(target) and 0 < target < 1):
            is_percent = _is_number(target) and 1 < target < 100
            advice = f": a share, {target / 100:g} for {target:g} %" if is_percent else ""
            raise ValueError(f"TargetSparsity: target must be in (0, 1), got {target!r}{advice}")
        if not (_is_number(fix_at) and 0 < fix_at <= 1):
            raise ValueError(f"TargetSparsity: fix_at must be in (0, 1], got {fix_at!r}")
        if schedule not in list(_SHAPES) and (not callable(schedule) or of_steps(schedule)):
            raise ValueError(
                f"TargetSparsity: schedule must be one of {', '.join(_SHAPES)}, or a function of the progress, "
                f"got {schedule!r}" + (", which is one of the step number" if of_steps(schedule) else "")
            )
        is_pair = isinstance(span, Sequence) and len(span) == 2 and all(map(_is_number, span))
        if not (is_pair and 0 <= span[0] < span[1] <= 1):
            raise ValueError(f"TargetSparsity: span must be two increasing shares in [0, 1], got {span!r}")
        stepping = optimizer._steered_in("TargetSparsity")
        self.optimizer, self.target, self.steps, self.fix_at = optimizer, target, steps, fix_at
        self.schedule, self.span = schedule, span
        self.groups = None if groups is None else check_groups("TargetSparsity", groups)
        places = optimizer._steered_places()
        if not sum(self._nonzero(place)[1] for place in places):  # an error if the groups do not fit
            what = "no elements" if places else "none"
            raise ValueError(f"TargetSparsity: a penalized parameter must be trained, got {what}")
        self.sparsity = torch.zeros((), dtype=torch.float64, device=places[0].param.device)
        self._log_scale, self._error, self._pace = (self.sparsity + start for start in (0, 0, 1))
        self._scales = optimizer._steered_scales()
        self._rescale()  # tensors from the start, as in checkpoints to be loaded
        self._made = 0
        self._zeros: dict[Tensor, Tensor] = {}  # which weights are zero before a step, if the controller keeps them
        self._hooks: tuple[StepHooks | Carried, ...] = (
            Carried(stepping, self),
            StepHooks(stepping, self._before_step, self._after_step, owner="TargetSparsity"),
        )

    def remove(self) -> None:
        """Detaches from the optimizer, which keeps its current scale."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks = ()

    @property
    def _is_counting(self) -> bool:
        return True

    @property
    def _steered(self) -> int:
        """The number of steps before the support is fixed."""
        return max(1, round(self.fix_at * self.steps))

    def _before_step(self, optimizer: Optimizer, evaluation: int) -> None:
        if self._keeps_zeros and evaluation == 0:
            self._zeros = {p: p.detach() == 0 for p in self._params() if p.grad is not None}

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        for param, zeros in self._zeros.items():
            param.masked_fill_(zeros, 0)
        self._zeros = {}
        self._made += 1
        every = max(1, self._steered // _LOOKS)
        if self._made == self._steered and self.fix_at < 1:
            self._fix_support()
        elif self._made <= self._steered and self._made % every == 0:
            self._steer(every)

    @property
    def _keeps_zeros(self) -> bool:
        """Whether the support is fixed, and not by the optimizer itself."""
        return self.fix_at < 1 and self._made >= self._steered and not isinstance(self.optimizer, Proximal)

    def _params(self) -> Sequence[Tensor]:
        return [place.param for place in self.optimizer._steered_places()]

    def _split(self, place: ParamInfo, tensor: Tensor) -> Partition | None:
        """A tensor of the parameter's shape with a row for each group; None if single weights are counted."""
        if self.groups is None:
            return None
        return split(tensor, resolve(self.groups, place, "TargetSparsity"), "TargetSparsity")

    def _rescale(self) -> None:
        self.optimizer._steer([scale * self._log_scale.exp() for scale in self._scales])

    def goal(self) -> float:
        """The intended share of zeros at the current step."""
        first, last = self.span
        progress = min(max((self._made / self._steered - first) / (last - first), 0.0), 1.0)
        shape = self.schedule if callable(self.schedule) else _SHAPES[self.schedule]
        return self.target * share_at("TargetSparsity", shape, progress)

    @torch.no_grad()
    def _steer(self, every: int) -> None:
        found = [self._nonzero(place) for place in self.optimizer._steered_places()]
        nonzero = torch.stack([many for many, _ in found]).sum().double() / sum(number for _, number in found)
        self.sparsity = 1 - nonzero
        error = (nonzero.clamp(min=1e-6) / (1 - self.goal())).log().clamp(-1, 1)
        swings = error * self._error < 0  # the sign of the error changes: the pace is too fast
        self._error, self._pace = error, torch.where(swings, self._pace / 2, (self._pace * _FASTER).clamp(max=_FASTEST))
        self._log_scale = self._log_scale + self._pace * _GAIN * every / self._steered * error
        self._rescale()

    def _nonzero(self, place: ParamInfo) -> tuple[Tensor, int]:
        """How many weights or groups of a parameter are not zero, 0-d, and how many there are."""
        groups = self._split(place, place.param)
        if groups is None:
            return place.param.count_nonzero(), place.param.numel()
        rows = [part.rows for part in groups.parts]
        return torch.stack([each.any(1).sum() for each in rows]).sum(), sum(map(len, rows))

    @torch.no_grad()
    def _fix_support(self) -> None:
        places = self.optimizer._steered_places()
        scores = [self._scores(place) for place in places]
        every = torch.cat([score.flatten() for score in scores])
        gone = max(1, round(self.target * every.numel()))
        stays = f.are_largest(every, every.numel() - gone)
        for place, score, own in zip(places, scores, stays.split([score.numel() for score in scores]), strict=True):
            param = place.param
            if self.groups is None:
                kept = torch.where(param == 0, torch.finfo(param.dtype).tiny, param)
                param.copy_(torch.where(own.view_as(score), kept, 0))
            else:
                param.copy_(self._with_groups(place, own))
        self.sparsity = (~stays).double().mean()
        self.optimizer._end_penalty()

    def _scores(self, place: ParamInfo) -> Tensor:
        """The order in which the weights or groups of a parameter are kept."""
        param, grad = place.param, place.param.grad
        slope = torch.zeros_like(param) if grad is None else grad.to_dense()
        groups, slopes = self._split(place, param), self._split(place, slope)
        if groups is None or slopes is None:
            return _score(param.abs().double(), slope.abs().double())
        sizes, steep = (
            torch.cat([f.row_norms(part.rows).squeeze(1) for part in each.parts]).double() for each in (groups, slopes)
        )
        return _score(sizes, steep)

    def _with_groups(self, place: ParamInfo, stays: Tensor) -> Tensor:
        """The parameter without the groups that do not stay; of those that do, none is zero."""
        groups = self._split(place, place.param)
        assert groups is not None
        each = iter(stays[:, None].split([len(part.rows) for part in groups.parts]))
        tiny = torch.finfo(place.param.dtype).tiny
        return groups.map(
            lambda part: torch.where(next(each), part.rows.masked_fill(~part.rows.any(1, keepdim=True), tiny), 0)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": (), "_zeros": {}}  # a copy is detached

    def state_dict(self) -> dict[str, Any]:
        """The state of the controller; it can be loaded with ``torch.load(weights_only=True)``."""
        numbers = {key: getattr(self, name).clone() for key, name in _NUMBERS.items()}
        return {"made": self._made, "scales": list(self._scales), **numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` saved. Load the optimizer's own state separately."""
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise ValueError(f"TargetSparsity: state must have the keys {', '.join(expected)}, got {sorted(state)}")
        numbers = {name: torch.as_tensor(state[key]).to(self.sparsity) for key, name in _NUMBERS.items()}
        if len(state["scales"]) != len(self._scales):
            raise ValueError(
                f"TargetSparsity: state must hold a scale for each of {len(self._scales)} groups, got {state['scales']}"
            )
        self._made, self._scales = checked_steps("TargetSparsity", state["made"]), list(state["scales"])
        vars(self).update(numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _score(size: Tensor, slope: Tensor) -> Tensor:
    """The order of sizes, the same for all parameters: zeros stand below them, by their gradients."""
    return torch.where(size != 0, size, -1 / slope)
