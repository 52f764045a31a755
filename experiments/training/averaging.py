"""The average of a run's weights, beside the weights themselves: exponential, or stochastic weight averaging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from torchreg import Stacked

from .. import config
from ..errors import UserError, oneline
from .data import Split

_NORMALIZED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Average:
    """The averaged weights of a model or of a stack, and the learning rate while they are averaged.

    Args:
        settings: which average.
        model: is copied.
        optimizer: its learning rate is set by :class:`torch.optim.swa_utils.SWALR`, if the settings have one.
        epochs: of the whole run.
        examples: to train on, from which the averaged model's batch normalization is computed.
        batch_size: so many at once.
    """

    def __init__(
        self,
        settings: config.Average,
        model: nn.Module,
        optimizer: Optimizer,
        epochs: int,
        examples: Split,
        batch_size: int,
    ) -> None:
        self._each_step = settings.name == "ema"
        multi = get_ema_multi_avg_fn(settings.decay) if self._each_step else get_swa_multi_avg_fn()
        try:
            self._averaged = AveragedModel(model, multi_avg_fn=multi)
        except Exception as error:  # whatever copying a user's model raises
            raise UserError(f"train.average: the model cannot be copied: {oneline(error)}") from error
        self._first, self._examples, self._batch_size = settings.first(epochs), examples, batch_size
        self._rates: SWALR | None = None
        if settings.lr is not None:
            before = [group["lr"] for group in optimizer.param_groups]
            self._rates = SWALR(optimizer, settings.lr, settings.anneal_epochs, settings.anneal_strategy)
            for group, lr in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = lr  # without annealing it is set at once
        self._normalized = 0  # the number of averaged weights when batch normalization was computed last

    @property
    def is_begun(self) -> bool:
        """Whether there is an average yet."""
        return int(self._averaged.n_averaged) > 0

    def sets_rate(self, epoch: int) -> bool:
        """Whether it sets the learning rate at the end of that epoch, counted from 1, and no schedule does."""
        return self._rates is not None and epoch > self._first

    def after_step(self, model: nn.Module) -> None:
        """Averages the weights of a step."""
        if self._each_step:
            self._averaged.update_parameters(model)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Averages the weights of an epoch, counted from 1."""
        if not self._each_step and epoch > self._first:
            self._averaged.update_parameters(model)
        if self._rates is not None and self.sets_rate(epoch):
            self._rates.step()

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights within the context."""
        self._normalize()
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def _exchange(self, model: nn.Module) -> None:
        average = self._averaged.module
        ours, theirs = (chain(module.parameters(), module.buffers()) for module in (model, average))
        for own, other in zip(ours, theirs, strict=True):
            own.data, other.data = other.data, own.data

    def _normalize(self) -> None:
        """Computes the statistics of batch normalization for the averaged weights, for each member of a stack."""
        average, count = self._averaged.module, int(self._averaged.n_averaged)
        layers = {name: layer for name, layer in average.named_modules() if isinstance(layer, _NORMALIZED)}
        if not layers or self._normalized == count:
            return
        self._normalized = count
        names = [f"{name}.{inner}" for name, layer in layers.items() for inner, _ in layer.named_buffers()]
        device = self._examples.y.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the training goes on as without it
            copies = average.members() if isinstance(average, Stacked) else [deepcopy(average)]
            for number, copy in enumerate(copies):
                update_bn((x for x, _ in self._examples.in_order(self._batch_size)), copy)
                for name in names:
                    own = average.get_buffer(name)
                    (own[number] if isinstance(average, Stacked) else own).copy_(copy.get_buffer(name))

    def state_dict(self) -> dict[str, Any]:
        return {"averaged": self._averaged.state_dict(), "rates": self._rates and self._rates.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.load_state_dict(state["averaged"])
        if self._rates is not None:
            self._rates.load_state_dict(state["rates"])
        self._normalized = 0
