"""Dropout rates that are tuned during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks import Carried, StepHooks, checked_steps, is_skipped
from torchreg.nn.seeded import Seeded
from torchreg.tuning.online.arguments import checked_bounds, checked_count, checked_lr, checked_seed
from torchreg.tuning.online.descent import EVEN, NO_MOMENTS, Moments, normalized
from torchreg.tuning.online.held_out import Batches, check_criterion, evaluating, loss_of
from torchreg.tuning.online.noise import Rate, noise, rates_of
from torchreg.tuning.online.updates import Update, updates_of

Examples = tuple[Tensor, Tensor] | Iterable[tuple[Any, Any]]


class AutoRate:
    r"""Tunes the rates of :class:`~torchreg.nn.ConcreteDropout` and :class:`~torchreg.nn.GaussianDropout` layers.

    It does so by the loss on held-out examples.

    .. math:: \operatorname{logit} p \leftarrow \operatorname{logit} p - \eta_p \frac{\bar h}{\sqrt{\overline{h^2}}},
              \qquad h = \Big\langle D\, \nabla L_{\text{val}}(w'),\,
              \frac{\partial}{\partial \operatorname{logit} p} \nabla_w L_{\text{train}}(w', p) \Big\rangle

    where :math:`w'` are the weights after a step of the optimizer, :math:`D` is the derivative of its update by the
    gradient, and bars are running averages of equal memory. The training loss is that with normal noise
    :math:`1 \pm \sqrt{p / (1 - p)}\, \epsilon`, which is differentiable in :math:`p`. For ``GaussianDropout`` this is
    its noise; for ``ConcreteDropout`` it has the mean and the variance of its masks. The slope is averaged over both
    signs, so that what is of first order in the noise cancels, and the rates may start anywhere. The optimizer does not
    train the rates, so no :class:`~torchreg.Complexity` is needed. One update of the rates costs three to six training
    steps, because of the mixed second derivatives.

    Args:
        model: a model with ``ConcreteDropout`` or ``GaussianDropout`` layers. Rates outside of ``bounds`` start there.
        training: training examples: two tensors, or any iterable of pairs, which is repeated. Batches are moved to the
            model's device. A batch that is a mapping, as transformers have it, is passed to the model as keywords.
        validation: held-out examples, of the same kind.
        criterion: the loss of outputs and targets; for batches that are mappings, of outputs and the batch.
        lr: :math:`\eta_p`, the size of a step of the log-odds.
        every: the number of steps of the optimizer for one update of the rates.
        bounds: the smallest and the largest rate.
        batch_size: the size of batches from two tensors.
        seed: of the shuffling, and of the masks for the updates.

    Attributes:
        rates: the current rates, by the layers' names.

    Raises:
        ValueError: the model has no such layers, there are no examples, or an argument is out of range; in
            :meth:`attach` an optimizer other than SGD, Adam or AdamW, or one that holds the rates.

    Example:
        >>> from torchreg.nn import ConcreteDropout
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), ConcreteDropout(nn.Linear(8, 1), p=0.3))
        >>> weights = [param for name, param in model.named_parameters() if "logit_p" not in name]
        >>> optimizer = torch.optim.Adam(weights, lr=0.01)
        >>> data = torch.randn(20, 4), torch.randn(20, 1)
        >>> auto = AutoRate(model, data, data, nn.MSELoss(), every=1).attach(optimizer)
        >>> nn.MSELoss()(model(data[0]), data[1]).backward()
        >>> optimizer.step()
        >>> 0 < auto.rates["2"] < 1 and auto.rates["2"] != 0.3
        True

    References:
        Jelena Luketina, Mathias Berglund, Klaus Greff, Tapani Raiko, "Scalable Gradient-Based Tuning of Continuous
        Regularization Hyperparameters", ICML 2016. Yarin Gal, Jiri Hron, Alex Kendall, "Concrete Dropout", NIPS 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        training: Examples,
        validation: Examples,
        criterion: Callable[[Any, Any], Tensor],
        *,
        lr: float = 0.05,
        every: int = 4,
        bounds: tuple[float, float] = (1e-3, 0.95),
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        self._rates = rates_of(model)
        self.layers: dict[str, nn.Module] = {name: rate.layer for name, rate in self._rates.items()}
        if not self.layers:
            raise ValueError(
                f"AutoRate: model must have ConcreteDropout or GaussianDropout layers, {type(model).__name__} has none"
            )
        check_criterion("AutoRate", criterion)
        self.model, self.criterion = model, criterion
        self.lr = checked_lr("AutoRate", lr)
        self.every = checked_count("AutoRate", "every", every)
        self.bounds = checked_bounds("AutoRate", bounds, 1.0)
        self.seed = checked_seed("AutoRate", seed)
        self._training = Batches("AutoRate", training, batch_size, seed)
        self._validation = Batches("AutoRate", validation, batch_size, seed)
        self._moments: dict[str, Moments] = dict.fromkeys(self.layers, NO_MOMENTS)
        self._steps = 0
        self._updates: list[Update] = []
        self._hooks: tuple[StepHooks | Carried, ...] = ()

    @property
    def rates(self) -> dict[str, float]:
        """The current rates by the layers' names."""
        return {name: rate.value for name, rate in self._rates.items()}

    def attach(self, optimizer: Optimizer) -> Self:
        """Tunes the rates during the optimizer's steps from now on.

        Returns:
            The object itself, which is also a context manager that detaches at the end.
        """
        if self._hooks:
            raise ValueError("AutoRate: already attached: call remove() first")
        if type(optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            raise ValueError(f"AutoRate: optimizer must be SGD, Adam or AdamW, got {type(optimizer).__name__}")
        held = {param for group in optimizer.param_groups for param in group["params"]}
        for name, rate in self._rates.items():
            if rate.param is not None and rate.param in held:
                raise ValueError(f"AutoRate: the optimizer must not hold the rates, got {name}.logit_p")
        self._let_train(False)
        self._hooks = (
            Carried(optimizer, self),
            StepHooks(optimizer, self._note, self._after_step, owner="AutoRate"),
        )
        return self

    def remove(self) -> None:
        """Detaches from the optimizer. The rates keep their current values."""
        if self._hooks:
            self._let_train(True)
        for hooks in self._hooks:
            hooks.remove()
        self._hooks = ()

    def _let_train(self, may: bool) -> None:
        for rate in self._rates.values():
            if rate.param is not None:
                rate.param.requires_grad_(may)

    @property
    def _is_counting(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def _note(self, optimizer: Optimizer, evaluation: int) -> None:
        if evaluation == 0 and (self._steps + 1) % self.every == 0:
            self._updates = list(updates_of(optimizer))

    def _after_step(self, optimizer: Optimizer) -> None:
        updates, self._updates = self._updates, []
        if updates and is_skipped(optimizer):
            return  # GradScaler makes no step, and none is counted
        if updates:
            with torch.enable_grad():
                slopes = self._slopes(updates)
            for name, slope in slopes.items():
                self._move(name, slope.item())
        self._steps += 1

    def _slopes(self, updates: list[Update]) -> dict[str, Tensor]:
        """The derivative of the held-out loss by each rate's log-odds."""
        params = [update.param for update in updates]
        with evaluating(self.model):
            loss = loss_of(self.model, self.criterion, next(self._validation))
            gradients = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        moved = [u.response(u.param.detach(), g) for u, g in zip(updates, gradients, strict=True)]
        logits = {rate: rate.leaf(self.bounds) for rate in self._rates.values()}
        batch, seed = next(self._training), self.seed + self._steps
        plus, minus = (self._mixed(batch, seed, params, moved, logits, sign) for sign in (1, -1))
        return {name: (a + b) / 2 for name, a, b in zip(self._rates, plus, minus, strict=True)}

    def _mixed(
        self,
        batch: tuple[Any, Any],
        seed: int,
        params: list[nn.Parameter],
        moved: list[Tensor],
        logits: dict[Rate, Tensor],
        sign: int,
    ) -> tuple[Tensor, ...]:
        """The derivative of ``<moved, gradient of the training loss>`` by each log-odds, with noise of a sign."""
        with _apart(self.model, seed), noise(logits, sign):
            loss = loss_of(self.model, self.criterion, batch)
            slopes = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True, materialize_grads=True)
            by = tuple(logits.values())
            return torch.autograd.grad(slopes, by, moved, allow_unused=True, materialize_grads=True)

    def _move(self, name: str, slope: float) -> None:
        if not math.isfinite(slope):
            return
        self._moments[name], unit = normalized(self._moments[name], slope, memory=EVEN)
        self._rates[name].move(-self.lr * unit, self.bounds)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": (), "_updates": []}  # a copy is detached

    def state_dict(self) -> dict[str, Any]:
        """The averages, the rates of ``GaussianDropout``, and the positions in the examples, if these have a length.

        The model's ``state_dict`` contains the rates of ``ConcreteDropout``.
        """
        batches = [self._training.count, self._validation.count]
        moments = {name: list(moments) for name, moments in self._moments.items()}
        rates = {name: rate.value for name, rate in self._rates.items() if rate.param is None}
        return {"steps": self._steps, "batches": batches, "moments": moments, **({"rates": rates} if rates else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` saved."""
        own = self.state_dict()
        if set(state) != set(own) or any(
            set(state[key]) != set(own[key]) for key in ("moments", "rates") if key in own
        ):
            raise ValueError(f"AutoRate: state must be that of the layers {', '.join(self.layers)}, got {list(state)}")
        steps, *counts = (checked_steps("AutoRate", count) for count in (state["steps"], *state["batches"]))
        moments = {name: (mean, square, count) for name, (mean, square, count) in state["moments"].items()}
        for batches, count in zip((self._training, self._validation), counts, strict=True):
            batches.go_to(count)
        self._steps, self._moments = steps, moments
        for name, value in state.get("rates", {}).items():
            self._rates[name].value = value

    def __repr__(self) -> str:
        return f"AutoRate({', '.join(f'{name}: {rate:.3f}' for name, rate in self.rates.items())})"


@contextmanager
def _apart(model: nn.Module, seed: int) -> Iterator[None]:
    """The model in training mode; afterwards random states, buffers and modes are restored."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    generators = [m.generator for m in model.modules() if isinstance(m, Seeded) and m.generator is not None]
    states = [generator.get_state() for generator in generators]
    model.train()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for module, mode in modes:
            module.training = mode
