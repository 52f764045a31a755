"""A group lasso whose groups reach over several layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.diagnostics.units import CoupledUnits, coupled_units
from torchreg.hooks import Carried, StepHooks, check_steps, gradient_scale, step_size
from torchreg.selection.modules import check_model

Mode = Literal["loss", "grad", "prox"]


class _Member(NamedTuple):
    """A parameter with the unit of each index along one of its dimensions."""

    param: nn.Parameter
    dim: int
    units: Tensor
    kept: Tensor  # the indices that belong to penalized units

    def rows(self, of: Tensor) -> Tensor:
        """A tensor of the parameter's shape with one row for each index; a view if that can be."""
        return of.movedim(self.dim, 0).flatten(1) if of.ndim > 1 else of.unsqueeze(1)


class _Stream(NamedTuple):
    members: list[_Member]
    roots: Tensor  # sqrt of the number of elements of each unit

    def norms(self, of: Callable[[nn.Parameter], Tensor]) -> Tensor:
        """The length of each unit's elements, with gradient 0 where it is 0."""
        squares = torch.zeros_like(self.roots)
        for member in self.members:
            own = member.rows(of(member.param)).square().sum(1)
            squares = squares.index_add(0, member.units, own[member.kept].to(squares.dtype))
        return squares.where(squares != 0, 1).sqrt().where(squares != 0, 0)


class CoupledGroupLasso:
    r"""The group lasso on the units that can only go together, such as the channels of a residual stream.

    .. math:: R(w) = s \sum_u \sqrt{n_u} \, \|w_u\|_2, \qquad
              \operatorname{prox}_{tR}(w)_u = w_u \max\!\left(1 - \frac{ts \sqrt{n_u}}{\|w_u\|_2}, 0\right)

    where :math:`w_u` are the :math:`n_u` elements that make unit :math:`u`: its rows in all layers that write it, with
    their biases and the weights and biases of normalization. The groups do not overlap, so that the proximal operator
    is exact. A group that is zero can be removed by :func:`~torchreg.compress`, in a residual network too, where a
    :class:`~torchreg.GroupLasso` on each layer would empty other channels in each of them. Units that must stay are not
    penalized.

    Args:
        model: any module that :func:`~torchreg.diagnostics.coupled_units` can follow.
        example: an input of the model; None for a ``Sequential``.
        strength: ``s``, finite and not negative.
        mode: ``"loss"``, where you add :meth:`value` to the loss; ``"grad"``, where each step's gradients get that of
            the penalty; ``"prox"``, where the proximal operator follows each step.
        select: called with each :class:`~torchreg.diagnostics.CoupledUnits`; those for which it returns a true value
            are penalized.

    Attributes:
        strength: may be changed between steps.

    Raises:
        ValueError: the strength or the mode is another; nothing is selected; the model cannot be followed.
        TypeError: ``model`` is no module, or is no ``Sequential`` and comes without an example.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> penalty = CoupledGroupLasso(model, None, 1.0).attach(optimizer)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(3, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> int(penalty.norms()["0.weight"].count_nonzero())
        0

    References:
        Ming Yuan, Yi Lin, "Model Selection and Estimation in Regression with Grouped Variables", Journal of the Royal
        Statistical Society B, 2006. Gongfan Fang, Xinyin Ma, Mingli Song, Michael Bi Mi, Xinchao Wang, "DepGraph:
        Towards Any Structural Pruning", CVPR 2023.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        strength: float,
        *,
        mode: Mode = "prox",
        select: Callable[[CoupledUnits], bool] = lambda units: True,
    ) -> None:
        check_model("CoupledGroupLasso", model)
        if mode not in get_args(Mode):
            raise ValueError(f"CoupledGroupLasso: mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.model, self.mode = model, mode
        self.strength = strength
        params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._streams: dict[str, _Stream] = {}
        self._hooks: list[StepHooks | Carried] = []
        self._alive: dict[str, Tensor] | None = None  # once the support is fixed
        for units in coupled_units(model, example):
            if select(units) and (stream := _stream(units, params)) is not None:
                self._streams[" + ".join(units.layers)] = stream
        if not self._streams:
            raise ValueError(
                "CoupledGroupLasso: no units are selected that could go: print coupled_units(model, example), "
                "which says why they must stay"
            )

    @property
    def strength(self) -> float:
        """The factor of the penalty."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        if not 0 <= strength < float("inf"):
            raise ValueError(f"CoupledGroupLasso: strength must be finite and >= 0, got {strength!r}")
        self._strength = strength

    def norms(self) -> dict[str, Tensor]:
        """The length of each unit's weights, by the names of the layers that write it."""
        with torch.no_grad():
            return {name: stream.norms(lambda p: p) for name, stream in self._streams.items()}

    def value(self) -> Tensor:
        """The penalty, differentiable."""
        totals = [(stream.roots * stream.norms(lambda p: p)).sum() for stream in self._streams.values()]
        return self.strength * torch.stack(totals).sum()

    @torch.no_grad()
    def add_gradients(self, scale: float | Tensor = 1.0) -> None:
        """Adds the penalty's gradient times ``scale`` to the gradients that there are; 0 in a group of zeros."""
        for stream in self._streams.values():
            lengths = stream.norms(lambda p: p)
            slopes = scale * self.strength * stream.roots / lengths.masked_fill(lengths == 0, float("inf"))
            for member in stream.members:
                if member.param.grad is not None:
                    member.param.grad.add_(_scaled(member, member.param, slopes, 0.0))

    @torch.no_grad()
    def prox(self, step: float | Tensor) -> None:
        """Replaces the parameters by the outcome of the proximal operator."""
        for stream in self._streams.values():
            _shrink(stream, step * self.strength)

    def fix_support(self) -> None:
        """Ends the penalty of mode "prox": units that are zero now stay zero, and the others are fitted without it."""
        self._alive = {name: lengths != 0 for name, lengths in self.norms().items()}

    # -- in an optimizer ----------------------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> Self:
        """Applies the penalty in every step of the optimizer from now on.

        Raises:
            ValueError: the mode is "loss"; the optimizer lacks some of the parameters; it is already attached.
        """
        if self.mode == "loss":
            raise ValueError("CoupledGroupLasso: in mode 'loss' add value() to the loss, or take 'grad' or 'prox'")
        if self._hooks:
            raise ValueError("CoupledGroupLasso: already attached: remove() it first, or make another one")
        check_steps("CoupledGroupLasso", optimizer, self.mode)
        held = {p for group in optimizer.param_groups for p in group["params"]}
        if any(m.param not in held for stream in self._streams.values() for m in stream.members):
            raise ValueError(
                "CoupledGroupLasso: the optimizer lacks some of the parameters of the groups: "
                "give it all of model.parameters()"
            )
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise ValueError(
                "CoupledGroupLasso: the optimizer must minimize, got maximize=True: negate the loss instead"
            )
        hooks = StepHooks(optimizer, self._on_gradients, self._after, owner="CoupledGroupLasso")
        self._hooks += [hooks, Carried(optimizer, self)]
        return self

    def remove(self) -> None:
        """Detaches from the optimizer."""
        while self._hooks:
            self._hooks.pop().remove()

    def state_dict(self) -> dict[str, Any]:
        """The strength, and the fixed support; while it is attached, the optimizer's ``state_dict`` contains it."""
        alive = {} if self._alive is None else {name: own.clone() for name, own in self._alive.items()}
        return {"strength": self.strength, "alive": alive}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` saved."""
        alive = state["alive"]
        if alive and alive.keys() != self._streams.keys():
            raise ValueError(
                f"CoupledGroupLasso: state must hold the units of {', '.join(self._streams)}, got {', '.join(alive)}"
            )
        self.strength = state["strength"]
        self._alive = {name: own.to(self._streams[name].roots.device) for name, own in alive.items()} or None

    @property
    def _is_counting(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _on_gradients(self, optimizer: Optimizer, evaluation: int) -> None:
        if self.mode == "grad":
            self.add_gradients(gradient_scale(optimizer))

    @torch.no_grad()
    def _after(self, optimizer: Optimizer) -> None:
        if self.mode != "prox":
            return
        if self._alive is not None:
            for name, alive in self._alive.items():
                for member in self._streams[name].members:
                    member.param.copy_(_scaled(member, member.param, alive.to(member.param.dtype), 1.0))
            return
        sizes = {p: group for group in optimizer.param_groups for p in group["params"]}
        for name, stream in self._streams.items():
            steps = [step_size(optimizer, sizes[m.param]) for m in stream.members]
            if any(step is not steps[0] and step != steps[0] for step in steps):
                raise ValueError(
                    f"CoupledGroupLasso: {name} needs one learning rate for all its parameters, got several"
                )
            _shrink(stream, steps[0] * self.strength)


def _stream(units: CoupledUnits, params: dict[str, nn.Parameter]) -> _Stream | None:
    """The trained parameters that make units which can go."""
    members, size = [], torch.zeros(units.size, dtype=torch.float64)
    free = torch.ones(units.size, dtype=torch.bool)
    free[list(units.reasons)] = False
    for (name, dim), index in units.written.items():
        param = params.get(name)
        if param is None or param.shape[dim] == 0:
            continue
        kept = ((index >= 0) & free.to(index.device)[index]).nonzero()[:, 0]
        if len(kept):
            members.append(_Member(param, dim, index[kept], kept))
            each = torch.full(kept.shape, param.numel() / param.shape[dim], dtype=torch.float64)
            size.index_add_(0, index[kept].cpu(), each)
    if not members:
        return None
    first = members[0].param
    dtype = torch.promote_types(first.dtype, torch.float32)
    return _Stream(members, size.sqrt().to(dtype).to(first.device))


def _shrink(stream: _Stream, threshold: float | Tensor) -> None:
    lengths = stream.norms(lambda p: p)
    share = (1 - threshold * stream.roots / lengths).clamp(min=0).masked_fill(lengths == 0, 0)
    for member in stream.members:
        member.param.copy_(_scaled(member, member.param, share, 1.0))


def _scaled(member: _Member, of: Tensor, factors: Tensor, rest: float) -> Tensor:
    """A tensor of the parameter's shape with its slices times the factors of their units, the others times ``rest``."""
    each = factors.new_full((of.shape[member.dim],), rest)
    each[member.kept] = factors[member.units]
    return of * each.to(of.dtype).view([-1 if d == member.dim else 1 for d in range(of.ndim)])
