"""The last linear layer in closed form, in place of steps: least squares, or ridge regression, on fixed features."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchreg import Regularizer, tuning

from ..config import Run
from ..errors import UserError
from .data import Examples, Split

_AT_ONCE = 4096  # examples; bounds the memory that the layers before take
_TRIED = 8  # examples
_NO_SQUARE = "train.loss: must be a squared error, such as MSELoss, with train.solve: it is another"


@dataclass
class Ridge:
    """The L2 on the layer that is solved for.

    Args:
        strength: as the study has it, 0 without an L2; None until it is chosen.
        criterion: the function of :mod:`torchreg.tuning` that chooses it, without held-out examples.
        regularizer: gets the chosen strength as its scale.
    """

    strength: float | None
    criterion: str = ""
    regularizer: Regularizer | None = None

    @property
    def strengths(self) -> dict[str, float]:
        """The chosen strength by the penalty's name; empty if the study has given it."""
        return {"L2": self.strength} if self.criterion and self.strength is not None else {}

    def of(self, features: Tensor, targets: Tensor, has_bias: bool, factor: float) -> float:
        """The strength for these features of a loss that is ``factor`` times the mean squared distance."""
        if not self.criterion:
            return self.strength or 0.0
        outputs = targets.shape[1]
        head = nn.Linear(features.shape[1], outputs, bias=has_bias, dtype=features.dtype, device=features.device)
        path = tuning.ridge_path(head, (features, targets))  # of the mean over examples and outputs
        self.strength = getattr(tuning, self.criterion)(path).strength * outputs * factor
        if self.regularizer is not None:
            self.regularizer.scale = self.strength
        return self.strength


def ridge(run: Run, net: nn.Module, regularizers: Sequence[Regularizer]) -> Ridge:
    """The L2 on the layer that is solved for, if there is one.

    Raises:
        UserError: the run has more than this, or trains more than its last linear layer.
    """
    _check(run)
    name, layer = _last_linear(net)
    others = [key for key, param in net.named_parameters() if param.requires_grad and param is not layer.bias]
    others = [key for key in others if key != f"{name}.weight"]
    if others or not layer.weight.requires_grad:
        patterns = ", ".join(dict.fromkeys(f"'{key.rpartition('.')[0]}.*'" for key in others))
        hint = f"freeze the others, model.freeze = [{patterns}]" if others else "do not freeze it"
        raise UserError(f"train.solve: finds the weights of the last linear layer, {name}, alone: {hint}")
    penalized = [a.name for regularizer in regularizers for a in regularizer.entries if a.is_penalized]
    if len(run.regularizers) > 1 or penalized not in ([], [f"{name}.weight"]):
        raise UserError(
            f"train.solve: takes one regularizer on {name}.weight at most, got {len(run.regularizers)} on "
            f"{', '.join(penalized) or 'others'}"
        )
    if isinstance(run.train.solve, str):
        if not penalized or run.regularizers[0].strength is not None:
            had = "none" if not penalized else f"one of strength {run.regularizers[0].strength:g}"
            raise UserError(
                f"train.solve: {run.train.solve!r} chooses the strength of an L2 that has none of its own, got {had}: "
                "give regularizers = [{ penalty = 'L2' }]"
            )
        return Ridge(None, run.train.solve, regularizers[0])
    return Ridge(run.regularizers[0].strength or 0.0 if penalized else 0.0)


def _check(run: Run) -> None:
    if run.train.epochs != 1:
        raise UserError(f"train.epochs: must be 1 with train.solve, which makes no steps, got {run.train.epochs}")
    for_steps = {
        "train.amp": run.train.amp,
        "train.early_stopping": run.train.early_stopping,
        "train.average": run.train.average,
        "train.clip_norm": run.train.clip_norm,
        "train.clip_value": run.train.clip_value,
        "train.accumulate": run.train.accumulate > 1,
        "optimizer.weight_decay": run.optimizer.weight_decay,
        "optimizer.penalty": run.optimizer.penalty,
        "scheduler": run.scheduler,
        "sparsity": run.sparsity,
        "auto_strength": run.auto_strength,
        "dropout_schedule": run.dropout_schedule,
        "data.augment": run.data.augment,
        "data.mix": run.data.mix,
    }
    for key, value in for_steps.items():
        if value:
            raise UserError(f"{key}: acts in steps, and train.solve makes none: remove it")
    for i, one in enumerate(run.regularizers):
        if one.penalty != "L2" or one.mode != "loss" or one.schedule is not None or one.options:
            raise UserError(
                f"regularizers.{i}: must be an L2 of mode 'loss' without a schedule with train.solve, "
                f"got {one.penalty or one.activity} of mode {one.mode!r}"
            )


@torch.no_grad()
def solve(net: nn.Module, examples: Examples, ridge: Ridge) -> Tensor:
    r"""Gives the last linear layer the weights that minimize the mean loss plus ``strength / 2 * sum(w ** 2)``.

    The loss of ``n`` examples is ``c / n * sum((F w - y) ** 2)``, where the rows of ``F`` are the layer's inputs and
    ``y`` the targets, of classes as one-hot rows; of :class:`torch.nn.MSELoss` is ``c = 1 / outputs``. Its gradient is
    zero where

    .. math:: (F^T F + \alpha I) w = F^T y, \qquad \alpha = \text{strength} \cdot n / (2 c)

    With a bias that is trained, which no penalty is on, ``F`` and ``y`` are without their means. Everything is in
    double precision, by the singular values of ``F``. At strength 0 it is the solution with the least norm. A criterion
    chooses the strength from the same examples.

    Returns:
        The loss, as that of one step.

    Raises:
        UserError: the loss is no squared error, the layer is not the last one, or the features are random.
    """
    _, layer = _last_linear(net)
    features, outputs = _features(net, layer, examples.train)
    targets = examples.task.targets(examples.train.y, outputs).double()
    factor = _factor(examples, targets) if targets.shape == outputs.shape else None
    if factor is None:
        raise UserError(_NO_SQUARE)
    ours, wanted, center, middle = features, targets, torch.zeros(1).to(features), torch.zeros(1).to(features)
    has_intercept = layer.bias is not None and layer.bias.requires_grad
    if has_intercept:
        center, middle = features.mean(0), targets.mean(0)
        ours, wanted = features - center, targets - middle
    elif layer.bias is not None:
        wanted = targets - layer.bias.double()
    strength = ridge.of(features, targets if has_intercept else wanted, has_intercept, factor)
    left, sizes, right = torch.linalg.svd(ours, full_matrices=False)
    least = torch.finfo(torch.float64).eps * max(ours.shape) * sizes.max()
    alpha = strength * len(features) / (2 * factor)
    shrunk = torch.where(sizes > least, sizes / (sizes.square() + alpha), 0.0)
    weight = (left.T @ wanted * shrunk.unsqueeze(1)).T @ right
    layer.weight.copy_(weight)
    if has_intercept:
        layer.bias.copy_(middle - weight @ center)
    reached = features @ layer.weight.double().T + (0.0 if layer.bias is None else layer.bias.double())
    loss = factor * (reached - targets).square().sum(1).mean()
    _check_reached(examples, reached, targets, float(loss), factor)
    return loss.reshape(1)


def _last_linear(net: nn.Module) -> tuple[str, nn.Linear]:
    found = [(name, module) for name, module in net.named_modules() if type(module) is nn.Linear]
    if not found:
        raise UserError("train.solve: needs a model that ends in a linear layer (nn.Linear), got none in it")
    return found[-1]


def _features(net: nn.Module, layer: nn.Linear, split: Split) -> tuple[Tensor, Tensor]:
    """The inputs of the layer, and the network's outputs, of all examples."""
    features: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: features.append(args[0].double()))
    try:
        net.eval()
        outputs = torch.cat([net(x.clone()) for x in split.x.split(_AT_ONCE)])
    finally:
        handle.remove()
    found = torch.cat(features)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    if found.ndim != 2 or len(found) != len(split) or not _near(found @ layer.weight.double().T + bias, outputs):
        raise UserError("train.solve: the outputs of the last linear layer must be those of the model, they are not")
    twin = deepcopy(net).train()  # a pass in training mode may change buffers
    if not _near(twin(split.x[:_TRIED].clone()), outputs[:_TRIED]):
        raise UserError("train.solve: the model must compute the same in training: remove dropout and batch norms")
    return found, outputs


def _factor(examples: Examples, targets: Tensor) -> float | None:
    """The loss as a multiple of the squared distances' mean, if it is one."""
    few, dtype = targets[:_TRIED], examples.train.x.dtype
    ratios = []
    for outputs in (torch.zeros_like(few), torch.linspace(-1, 2, few.numel()).to(few).reshape(few.shape)):
        distance = (outputs - few).square().sum(1).mean()
        ratios.append(float(examples.task.loss(outputs.to(dtype), few.to(dtype)) / distance))
    return ratios[0] if ratios[0] > 0 and abs(ratios[0] / ratios[1] - 1) < 1e-4 else None


def _check_reached(examples: Examples, outputs: Tensor, targets: Tensor, loss: float, factor: float) -> None:
    """Whether the loss is the multiple of squared distances at the solution too, and so has its minimum there.

    Huber's is another one where examples are far off.
    """
    dtype, least = examples.train.x.dtype, 1e-6 * factor * float(targets.square().sum(1).mean())
    if abs(float(examples.task.loss(outputs.to(dtype), targets.to(dtype))) - loss) > 1e-3 * loss + least:
        raise UserError(_NO_SQUARE)


def _near(ours: Tensor, theirs: Tensor) -> bool:
    size = float(theirs.abs().max())
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-4 * size)
