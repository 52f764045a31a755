"""Weight decay that is decoupled from the gradient, for any optimizer class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from torchreg import functional as f
from torchreg.functional.chunks import chunks_of
from torchreg.hooks import Group, is_no_step, step_share, step_size
from torchreg.optim import couplings
from torchreg.optim.options import Coupling, Decay, Target
from torchreg.optim.step_wrapper import StepWrapper, Weights, base_optimizer, options_of, with_gradients
from torchreg.schedules import Schedule, check_scale

Amounts = list[float | Tensor]

_LR_COUPLED = (torch.optim.AdamW, torch.optim.Adafactor, torch.optim.Muon)  # their own decay is this rule "lr"
_TAKE_SPARSE = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam)


class DecoupledDecay(StepWrapper):
    r"""Mixin that decouples an optimizer's ``weight_decay``: ``class SGDW(DecoupledDecay, torch.optim.SGD)``.

    .. math::
        \begin{array}{l}
            \hline
            \textbf{input}: \text{the base optimizer},\ w_0 \text{ (params)},\ \lambda \text{ (weight decay)}, \\
            \quad r_t \text{ (coupling)},\ c_t \text{ (decay schedule)} \\
            \hline
            \textbf{for}\ t = 1, 2, \dots \\
            \quad g_t \leftarrow \nabla L(w_{t-1}) \\
            \quad w' \leftarrow (1 - r_t \lambda c_t)\, w_{t-1} \\
            \quad w_t \leftarrow w' + \text{the base's update for } g_t \text{, without decay} \\
            \hline
        \end{array}

    Gradients and moments do not contain the decay. Weights whose ``grad`` is None do not decay, as in ``torch.optim``.
    :math:`\lambda` is the group's ``weight_decay``, :math:`c_t` the value of ``decay_schedule`` (or 1). The group's
    ``coupling`` determines :math:`r_t`:

    =============  ==================================  ======================================================
    coupling       :math:`r_t`                         source
    =============  ==================================  ======================================================
    "lr"           :math:`\eta_t`                      ``torch.optim.AdamW``
    "independent"  :math:`\eta_t / \eta_{\max}`        Loshchilov and Hutter 2019, Wortsman and others 2024
    "timescale"    :math:`\eta_t / (\eta_{\max}\tau)`  Wang and Aitchison 2024
    "constant"     :math:`1`                           the same decay in every step
    "corrected"    :math:`\eta_t^2/\eta_{\max}`        Defazio 2025, for layers before a normalization
    =============  ==================================  ======================================================

    "schedule" is another name of "independent": the decay follows the schedule of the learning rate and is independent
    of its size. "timescale" gives the decay as a number of steps :math:`\tau`, the group's ``timescale``: a step
    without gradient leaves :math:`1 - 1/\tau` of a weight, so :math:`\tau` steps leave about :math:`1/e`. Weights are
    then an average over the updates of the last :math:`\tau` steps. There ``weight_decay`` is 1, or 0 for a group that
    does not decay; see also :func:`transfer`. :math:`\eta_t` is the group's current ``lr``. :math:`\eta_{\max}` is the
    group's ``max_lr`` if it has one (OneCycleLR sets it), else its ``initial_lr`` (the ``lr`` that any other scheduler
    was given), else the ``lr`` with which the group was added. If the learning rate rises above that, as under
    CyclicLR, set ``max_lr`` in the group. The next table shows a weight of 1 after 1000 steps with gradient 0 and
    ``weight_decay=0.001``, or ``timescale=1000``:

    =============  ======  ========  ==================
    coupling       lr = 1  lr = 0.1  lr falls from 1 to 0
    =============  ======  ========  ==================
    "lr"           0.368   0.905     0.606
    "independent"  0.368   0.368     0.606
    "timescale"    0.368   0.368     0.606
    "constant"     0.368   0.368     0.368
    "corrected"    0.368   0.905     0.716
    =============  ======  ========  ==================

    Given parameters, as in ``SGDW(model.parameters())``, all of them decay, biases too, as in ``torch.optim``. Given
    the model, as in ``SGDW(model)``, only its weights do: the groups are those of :func:`param_groups`, with ``select``
    and ``layer_decay``, and ``weight_decay`` and ``lr`` may be dicts of name patterns to numbers.

    There are other forms of decay. Each is an option of the group:

    - ``decay="L1"``: a soft threshold after the update,
      :math:`w \leftarrow \operatorname{sign}(w) \max(|w| - r_t \lambda c_t, 0)`. It makes exact zeros.
    - ``towards="start"``: decay towards the weights at the time when the group was added, instead of 0 (L2-SP). These
      weights become part of the optimizer's state.
    - ``cautious=True``: decay only where the update moves the weight in the direction of the decay. The decay, of the
      old weights, then comes after the update.

    Args:
        coupling: how the learning rate scales the decay.
        timescale: :math:`\tau` of coupling "timescale", in steps, at least 1.
        decay: ``"L2"`` or ``"L1"``.
        towards: ``"zero"`` or ``"start"``.
        cautious: whether to decay only where update and decay agree.
        decay_schedule: a function from the number of steps made to :math:`c_t`; see :mod:`torchreg.schedules`. Each
            group counts its steps in ``decay_steps``, which checkpoints contain. Steps that a fused optimizer skips
            under a scaler are counted too.

    Raises:
        ValueError: an unknown coupling or form; a decay that is negative or not finite, or with coupling "independent"
            or "constant" above 1 or not given, where the base's own is above 0, since there it is the share that a step
            takes; coupling "timescale" without a timescale, or with a decay other than 0 and 1; a
            coupling that divides by :math:`\eta_{\max}` with ``lr=0``, and in a step with a learning rate above
            :math:`\eta_{\max}`; a sparse gradient for which the base has no rule; in loading a checkpoint of a class
            whose ``weight_decay`` means something else. A learning rate in a tensor on another device is not read;
            there :math:`\eta_t / \eta_{\max}` is at most 1.

    Example:
        >>> class SGDW(DecoupledDecay, torch.optim.SGD):
        ...     pass
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> w.grad = torch.zeros(1)
        >>> SGDW([w], lr=0.1, weight_decay=0.5, coupling="independent").step()
        >>> w.data
        tensor([0.5000])

    References:
        Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
        Mitchell Wortsman, Peter J. Liu, Lechao Xiao and others, "Small-scale Proxies for Large-scale Transformer
        Training Instabilities", ICLR 2024.
        Xi Wang, Laurence Aitchison, "How to Set AdamW's Weight Decay as You Scale Model and Dataset Size",
        arXiv:2405.13698, 2024.
        Aaron Defazio, "Why Gradients Rapidly Increase Near the End of Training", arXiv:2506.02285, 2025.
        Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
        Networks", ICML 2018.
        Lizhang Chen, Jonathan Li, Kaizhao Liang and others, "Cautious Weight Decay", ICLR 2026.
    """

    _of_all_groups = ("decay_schedule",)
    _default_decay: float = 0.0  # the base's, if no other is given

    def __init__(
        self,
        *args: Any,
        coupling: Coupling = "lr",
        timescale: float | None = None,
        decay: Decay = "L2",
        towards: Target = "zero",
        cautious: bool = False,
        decay_schedule: Schedule | None = None,
        **kwargs: Any,
    ) -> None:
        owner, base = type(self).__name__, base_optimizer(type(self))
        if base is None:
            raise TypeError(f"{owner}: it must be mixed into an optimizer class, as in SGDW: use decoupled(cls)")
        if "decoupled_weight_decay" in kwargs:
            raise ValueError(
                f"{owner}: decoupled_weight_decay must not be given, got {kwargs['decoupled_weight_decay']!r}: "
                "weight_decay is always decoupled here; set coupling instead"
            )
        if decay_schedule is not None and not callable(decay_schedule):
            raise TypeError(f"{owner}: decay_schedule must be a function of the step number, got {decay_schedule!r}")
        self.decay_schedule = decay_schedule
        self._starts: dict[Tensor, Tensor] = {}
        self._add_options(coupling=coupling, decay=decay, towards=towards, cautious=cautious)
        if decay_schedule is not None:
            self._add_options(decay_steps=0)
        if timescale is not None:
            if coupling != "timescale":
                raise ValueError(
                    f"{owner}: timescale is for coupling 'timescale', got timescale={timescale!r} with coupling "
                    f"{coupling!r}: set coupling='timescale'"
                )
            self._add_options(timescale=timescale)
        if coupling == "timescale":
            kwargs.setdefault("weight_decay", 1.0)
        options = options_of(base)
        if "decoupled_weight_decay" in options:
            kwargs["decoupled_weight_decay"] = True  # so that the base's kernel can apply it
        if "weight_decay" not in options:
            self._add_options(weight_decay=kwargs.pop("weight_decay", 0.0))
        else:
            is_given = "weight_decay" in (*kwargs, *list(inspect.signature(base).parameters)[: len(args)])
            default = options["weight_decay"].default
            self._default_decay = default if isinstance(default, int | float) and not is_given else 0.0
        super().__init__(*args, **kwargs)
        given, taken = kwargs.get("weight_decay"), self.defaults.get("weight_decay")
        if isinstance(given, int | float) and isinstance(taken, int | float) and given != taken:
            raise ValueError(
                f"{owner}: weight_decay must be handed on by {base.__name__}, got {given!r}, of which its groups have "
                f"{taken!r}: use a Regularizer"
            )

    def _with_groups(self, model: nn.Module, args: Sequence[Any], *rest: Any) -> dict[str, Any]:
        couplings.check_default(type(self).__name__, self._default_decay, self._own_options["coupling"])
        return super()._with_groups(model, args, *rest)

    def add_param_group(self, param_group: Group) -> None:
        if isinstance(param_group, dict):
            if param_group.get("coupling") == "timescale":
                param_group.setdefault("weight_decay", 1.0)
            elif "weight_decay" not in param_group:
                coupling = param_group.get("coupling", self._own_options["coupling"])
                couplings.check_default(type(self).__name__, self._default_decay, coupling)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if self.decay_schedule is not None:
            group["decay_steps"] = self.param_groups[0]["decay_steps"]
        couplings.remember_lr(group)
        if group["towards"] == "start":
            self._starts.update({p: p.detach().clone() for p in group["params"]})

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        owner = type(self).__name__
        for key, choices in (("coupling", Coupling), ("decay", Decay), ("towards", Target)):
            if group[key] not in get_args(choices):
                raise ValueError(f"{owner}: {key} must be one of {', '.join(get_args(choices))}, got {group[key]!r}")
        if "lr" not in group:
            raise ValueError(f"{owner}: the base class must have an lr to couple the decay to: use a Regularizer")
        couplings.check_group(owner, group)

    # -- the step -------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns what the closure returned, if there is one."""
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            loss = super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        if self.decay_schedule is not None and not is_no_step(self):
            for group in self.param_groups:
                group["decay_steps"] += 1
        return loss

    def _needed_later(self, group: Group) -> Sequence[Tensor]:
        own = self._to_decay(group) if group["cautious"] and _is_on(group) else ()
        return [*super()._needed_later(group), *own]

    def _to_decay(self, group: Group) -> list[Tensor]:
        """The group's parameters that decay after the update, if it has no such decay of its own."""
        return with_gradients(group)

    def _before_update(self) -> Amounts:
        decays = [self._decay(group) for group in self.param_groups]
        for group in filter(_is_on, self.param_groups):
            self._refuse_sparse(group)
            couplings.check_rate(type(self).__name__, group)
            if group["towards"] == "start":
                for param in with_gradients(group):
                    self._start(param)  # before the update moves it
        one = step_share(self)
        amounts: Amounts = []
        for group, decay in zip(self.param_groups, decays, strict=True):
            amounts.append(couplings.rate(group, step_size(self, group), one) * decay if _is_on(group) else 0.0)
            kernels = self._kernels_part(group, decay)
            if _is_on(group) and _is_first(group) and kernels == 0:
                self._shrink_(with_gradients(group), amounts[-1], group)
            group["weight_decay"] = kernels
        return amounts

    def _after_update(self, old: Weights, plan: Amounts) -> None:
        for group, amount in zip(self.param_groups, plan, strict=True):
            on = isinstance(amount, Tensor) or amount > 0
            if on and group["cautious"]:
                self._shrink_cautiously_(self._to_decay(group), amount, group, old)
            elif on and not _is_first(group):
                self._threshold_(self._to_decay(group), amount, group)

    def _decay(self, group: Group) -> float | Tensor:
        """The weight decay of this step before the coupling."""
        owner = type(self).__name__
        decay: float | Tensor = group["weight_decay"]
        couplings.check_decay(owner, decay, group["coupling"])  # it may have been set since the group was added
        if self.decay_schedule is None or not _is_on(group):
            return decay
        scale = check_scale(f"{owner}: decay_schedule", self.decay_schedule(group["decay_steps"]))
        couplings.check_decay(owner, decay * scale, group["coupling"])
        return decay * scale

    def _kernels_part(self, group: Group, decay: float | Tensor) -> float:
        """The ``weight_decay`` for the base's own kernel; 0 if that has no decoupled decay."""
        has_one = group.get("decoupled_weight_decay", isinstance(self, _LR_COUPLED))
        if not (has_one and _is_first(group) and group["towards"] == "zero"):
            return 0
        ratio: Any = 1.0  # of our rate to lr, because the kernel multiplies with lr
        if group["coupling"] != "lr" and _is_on(group):
            lr = group["lr"]
            if isinstance(lr, Tensor):  # to compare it with 0 would be to wait for its device
                return 0
            ratio = couplings.rate(group, lr, 1.0) / lr if lr != 0 else 0.0
        part = decay * ratio
        return part if isinstance(part, float) else 0

    def _shrink_(self, params: list[Tensor], amount: float | Tensor, group: Group) -> None:
        if group["towards"] == "start":
            for param in params:
                f.axpy_(param, param - self._start(param), -amount)
        elif isinstance(amount, Tensor):  # perhaps on another device than the parameters, which foreach refuses
            for param in params:
                param.mul_(1 - amount)
        elif params:
            torch._foreach_mul_(params, 1 - amount)

    def _threshold_(self, params: list[Tensor], amount: float | Tensor, group: Group) -> None:
        for param in params:
            if group["towards"] == "start":
                param.copy_(f.soft_threshold_towards(param, self._start(param), amount))
            else:
                f.soft_threshold_(param, amount)

    def _shrink_cautiously_(self, params: list[Tensor], amount: float | Tensor, group: Group, old: Weights) -> None:
        for param in params:
            if param not in old:  # its gradient came later than the first evaluation of the closure
                continue
            start = [self._start(param)] if group["towards"] == "start" else []
            for chunk in chunks_of(param, old[param], *start):
                _shrink_where_it_agrees_(*chunk, amount=amount, decay=group["decay"])

    def _start(self, param: Tensor) -> Tensor:
        if param not in self._starts:  # the option was set after the group was added
            self._starts[param] = param.detach().clone()
        return self._starts[param]

    def _refuse_sparse(self, group: Group) -> None:
        for param in with_gradients(group):
            sparse = param.grad is not None and param.grad.layout != torch.strided
            if sparse and not isinstance(self, _TAKE_SPARSE):
                raise ValueError(
                    f"{type(self).__name__}: gradients must be dense, got a sparse one for the parameter of shape "
                    f"{tuple(param.shape)}: use SGDW, or an embedding with sparse=False"
                )

    # -- saving and copying ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base's state, with the starting weights of groups with ``towards="start"``."""
        packed = super().state_dict()
        params = [(param, group) for group in self.param_groups for param in group["params"]]
        for number, (param, group) in enumerate(params):
            if group["towards"] == "start":
                packed["state"][number] = {**packed["state"].get(number, {}), "start": self._start(param)}
        return packed

    def __getstate__(self) -> dict[str, Any]:
        own = ("decay_schedule", "_starts", "_default_decay")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._refuse_another_rule(state["param_groups"])
        for param, its in list(state["state"].items()):  # torch takes a state that is not empty as its own
            if "start" in its:
                self._starts[param] = its.pop("start")
            if not its:
                del state["state"][param]
        super().__setstate__(state)
        for group in self.param_groups:
            couplings.remember_lr(group)

    def _refuse_another_rule(self, groups: list[Group]) -> None:
        """Raises ``ValueError`` if ``weight_decay`` has another meaning in the checkpoint."""
        for mine, group in zip(self.__dict__.get("param_groups", ()), groups, strict=False):
            if "coupling" in group or not group.get("weight_decay"):
                continue
            is_lr = group.get("decoupled_weight_decay", isinstance(self, _LR_COUPLED))
            theirs, ours = ("lr", "L2") if is_lr else ("coupled to the gradient",), (mine["coupling"], mine["decay"])
            if theirs != ours:
                raise ValueError(
                    f"{type(self).__name__}: weight_decay must mean the same in the checkpoint, got "
                    f"{group['weight_decay']!r} for {', '.join(theirs)} instead of {', '.join(ours)}: set "
                    "'weight_decay' and 'coupling' in its param_groups"
                )


def _shrink_where_it_agrees_(
    w: Tensor, old: Tensor, start: Tensor | None = None, *, amount: float | Tensor, decay: Decay
) -> None:
    away = old if start is None else old - start
    if decay == "L2" and not w.is_complex() and not torch.is_grad_enabled():
        # 1 where they agree, 0 elsewhere, in the dtype of w: a mask of another dtype takes several times as long
        agrees = (old - w).mul_(away.sgn()).ge_(0)
        f.axpy_(w, agrees.mul_(away), -amount)
        return
    now = w.clone() if torch.is_grad_enabled() else w
    agrees = ((old - w).sgn() * away.sgn().conj()).real >= 0  # of signs, because products of tiny numbers are 0
    if decay == "L2":
        f.axpy_(w, away * agrees, -amount)
    else:
        nearer = f.soft_threshold(now, amount) if start is None else f.soft_threshold_towards(now, start, amount)
        w.copy_(torch.where(agrees, nearer, now))


def _is_on(group: Group) -> bool:
    decay = group["weight_decay"]
    return isinstance(decay, Tensor) or decay > 0


def _is_first(group: Group) -> bool:
    """Whether the decay comes before the base's update."""
    return bool(group["decay"] == "L2" and not group["cautious"])


def decay_after(group: Group) -> Decay | None:
    """The form of the group's decay if that comes after the base's update."""
    form: Decay = group["decay"]
    return form if _is_on(group) and not _is_first(group) else None
