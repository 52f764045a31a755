"""Monte Carlo dropout: the uncertainty of predictions, from many masks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from torchreg.nn.model.rates import is_idle, is_torchs, layers_in, torchs_numbers
from torchreg.nn.model.search import Search, lacks_dropout
from torchreg.selection.modules import check_model, listed

Outputs = Literal["logits", "probabilities", "values"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predictions for several masks and their statistics; :func:`mc_dropout` gives the formulas.

    Attributes:
        mean: the mean of the samples, of shape ``(batch, ...)``.
        variance: the unbiased variance of the samples, of shape ``(batch, ...)``.
        samples: one prediction for each pass, of shape ``(passes, batch, ...)``. Logits are converted to probabilities.
        entropy: the entropy of the mean, in nats, for each example; None if the outputs are no probabilities.
        mutual_information: that of prediction and weights, in nats, for each example; None if the outputs are no
            probabilities. It is the part of the uncertainty that more data could reduce.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        >>> with mc_dropout(model) as mc:
        ...     prediction = mc(torch.ones(2, 4), outputs="values")
        >>> prediction.variance.shape
        torch.Size([2, 3])
    """

    mean: Tensor
    variance: Tensor
    samples: Tensor
    entropy: Tensor | None = None
    mutual_information: Tensor | None = None


@dataclass(frozen=True)
class MonteCarlo:
    """The object that :func:`mc_dropout` returns; call it to get a :class:`Prediction`.

    Attributes:
        model: the model.
        layers: its modules that drop, which are in training mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        >>> with mc_dropout(model) as mc:
        ...     prediction = mc(torch.ones(2, 4), passes=10)
        >>> prediction.samples.shape
        torch.Size([10, 2, 3])
    """

    model: nn.Module
    _search: Search = field(repr=False)

    @property
    def layers(self) -> frozenset[nn.Module]:
        """The modules that drop, which are in training mode."""
        return frozenset(self._search.on)

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor | tuple[Tensor, ...],
        passes: int = 30,
        outputs: Outputs = "logits",
        *,
        at_once: int | None = None,
    ) -> Prediction:
        """Predicts ``passes`` times, each time with different masks.

        Args:
            x: the model's input: a tensor with the batch first, or a tuple of such tensors.
            passes: the number of passes, at least 2.
            outputs: ``"logits"`` or ``"probabilities"``, over the last dimension, or ``"values"``.
            at_once: the maximal number of passes in one batch, which bounds the memory.

        Raises:
            ValueError: an argument out of range, or an output without the batch first.
            TypeError: an input or output is no tensor.
            RuntimeError: the block has ended, or the modes of modules were changed in it.
        """
        if outputs not in get_args(Outputs):
            raise ValueError(f"mc_dropout: outputs must be one of {', '.join(get_args(Outputs))}, got {outputs!r}")
        if type(passes) is not int or passes < 2:
            raise ValueError(f"mc_dropout: passes must be a whole number of at least 2, got {passes!r}")
        if at_once is not None and (type(at_once) is not int or at_once < 1):
            raise ValueError(f"mc_dropout: at_once must be a whole number of at least 1 or None, got {at_once!r}")
        if any(module.training != (module in self._search.on) for module in self.model.modules()):
            raise RuntimeError(
                "mc_dropout: dropout must be on and all else in evaluation mode: call within the with block, and there "
                "neither model.train() nor model.eval()"
            )
        inputs = _checked_inputs(x)
        samples = self._samples(inputs, passes, at_once or passes)
        if len(samples) < passes:  # the first batch has shown that its passes shared random numbers
            samples = self._samples(inputs, passes, 1)
        if samples.numel() and bool((samples == samples[:1]).all()):
            self._warn(passes, is_zero=not samples.any())
        return _summary(samples, outputs)

    def _samples(self, inputs: tuple[Tensor, ...], passes: int, most: int) -> Tensor:
        """The samples, ``most`` in one call; none if they would not be independent."""
        most = 1 if self._search.shares_draws or any(map(_shares_mask, self.layers)) else most
        samples = []
        for start in range(0, passes, most):
            samples.append(self._run(inputs, min(most, passes - start)))
            if self._search.shares_draws and most > 1:
                return samples[0][:0]
        return torch.cat(samples)

    def _warn(self, passes: int, is_zero: bool) -> None:
        if is_zero:
            why = "all outputs are 0, whatever is dropped: is the last layer initialized with zeros, or a rate 1?"
        elif unused := self._search.silent:
            why = (
                f"its forward pass does not use {listed(unused)} (fused attention can be switched off: "
                "fused_attn=False in timm, set_attn_implementation('eager') in transformers), or what is dropped does "
                "not change the outputs"
            )
        else:
            why = "what is dropped does not change the outputs: are the rates tiny?"
        warnings.warn(f"mc_dropout: all {passes} passes are equal, so that the variance is 0: {why}", stacklevel=3)

    def _run(self, inputs: tuple[Tensor, ...], count: int) -> Tensor:
        """So many passes in one call, of shape ``(count, batch, ...)``."""
        with nullcontext() if self._search.is_done else torch.compiler.set_stance("force_eager"):
            output = self.model(*(x.repeat(count, *[1] * (x.ndim - 1)) for x in inputs))
        batch = len(inputs[0])
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"mc_dropout: the model's output must be a floating-point tensor, got {kind}")
        if output.ndim == 0 or len(output) != count * batch:
            raise ValueError(
                f"mc_dropout: the model's output must have the batch first, {count * batch} examples, got the shape "
                f"{tuple(output.shape)}"
            )
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return output.view(count, batch, *output.shape[1:])


@contextmanager
def mc_dropout(model: nn.Module) -> Iterator[MonteCarlo]:
    r"""Predicts with many dropout masks: dropout stays on, everything else is in evaluation mode.

    .. math:: \bar y = \frac{1}{T} \sum_{t=1}^T y_t, \qquad s^2 = \frac{1}{T-1} \sum_{t=1}^T (y_t - \bar y)^2, \qquad
              I = \operatorname{H}(\bar y) - \frac{1}{T} \sum_{t=1}^T \operatorname{H}(y_t), \qquad
              \operatorname{H}(y) = -\sum_c y_c \log y_c

    for :math:`T` passes. The entropy :math:`\operatorname{H}` and the mutual information :math:`I` are those of
    probabilities. The passes are computed as one batch, without gradients; if a layer has one mask for the whole batch,
    they are computed one after another. On exit each module has its former mode.

    Rates that ``nn.MultiheadAttention`` and recurrent layers hold as a number act too. The first forward pass in the
    block finds other modules that drop in their own code: by calls of ``torch.nn.functional.dropout``, or by the rate
    of a layer that they read and never call, as fused attention does. Each of them is put into training mode, but not
    the modules in it, if it then draws random numbers and changes no buffers.

    Args:
        model: a module that drops.

    Returns:
        A context manager for a :class:`MonteCarlo`, which has the arguments
        ``(x, passes=30, outputs="logits", *, at_once=None)``.

    Raises:
        ValueError: the model has no dropout; if it has modules of other libraries, after the first forward pass.
        TypeError: ``model`` is no module.

    Warns:
        UserWarning: all passes are equal, and why; or a module may drop but does more in training mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
        >>> with mc_dropout(model) as mc:
        ...     prediction = mc(torch.ones(8, 4), passes=20)
        >>> prediction.mean.shape, prediction.samples.shape, prediction.mutual_information.shape
        (torch.Size([8, 3]), torch.Size([20, 8, 3]), torch.Size([8]))

    References:
        Yarin Gal, Zoubin Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep
        Learning", ICML 2016. Neil Houlsby, Ferenc Huszár, Zoubin Ghahramani, Máté Lengyel, "Bayesian Active Learning
        for Classification and Preference Learning", 2011.
    """
    check_model("mc_dropout", model)
    layers, numbers = layers_in(model).values(), torchs_numbers(model)
    is_torchs_only = all(is_torchs(module) and not _is_patched(module) for module in model.modules())
    if is_torchs_only and all(map(is_idle, layers)) and not numbers:  # of others the first forward pass shows it
        raise ValueError(lacks_dropout(model))
    on = {*layers, *(number.module for number in numbers)}
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    search = Search(model, on)
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # in evaluation mode it would skip the dropout
        for module in modes:
            module.training = module in on  # not train(): the branch of a StochasticDepth stays in evaluation
        with search.in_first_pass():
            yield MonteCarlo(model, search)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode


def _is_patched(module: nn.Module) -> bool:
    """Whether a module of torch has a ``forward`` of the user's (compiled and scripted modules have one of torch's)."""
    return "forward" in vars(module) and type(module).__module__.startswith("torch.nn.")


def _shares_mask(layer: nn.Module) -> bool:
    """Whether the examples of a batch share a mask, or the mask is for a batch of one size only."""
    if is_idle(layer):
        return False
    shape = getattr(layer, "noise_shape", None) or [None]
    return bool(getattr(layer, "shares_mask", False)) or shape[0] is not None


def _checked_inputs(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs = x if isinstance(x, tuple) else (x,)
    for tensor in inputs:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"mc_dropout: x must be a tensor or a tuple of tensors, got {type(tensor).__name__}")
    if not inputs or any(tensor.ndim == 0 for tensor in inputs) or len({len(tensor) for tensor in inputs}) > 1:
        shapes = [tuple(tensor.shape) for tensor in inputs]
        raise ValueError(
            f"mc_dropout: x must have the batch first, of one size in all tensors, got the shapes {shapes}"
        )
    return inputs


def _summary(samples: Tensor, outputs: Outputs) -> Prediction:
    if outputs == "values":
        return Prediction(samples.mean(0), samples.var(0), samples)
    if samples.ndim < 3 or samples.shape[-1] < 2:
        raise ValueError(
            f"mc_dropout: {outputs} must have two classes or more in the last dimension, got outputs of the shape "
            f"{tuple(samples.shape[1:])}: outputs='values' takes any"
        )
    samples = samples.softmax(-1) if outputs == "logits" else samples
    mean = samples.mean(0)
    entropy = torch.special.entr(mean).sum(-1)
    information = entropy - torch.special.entr(samples).sum(-1).mean(0)
    return Prediction(mean, samples.var(0), samples, entropy, information.clamp(min=0))
