"""A regularizer whose scale a controller steers: in which optimizer, and which parameters depend on it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from torchreg.ensemble.stacked import Stacked
from torchreg.functional.sharding import is_sharded
from torchreg.penalties.constraints import Constraint
from torchreg.regularizer.assignment import Assignment
from torchreg.schedules import Schedule
from torchreg.selection.parameters import ParamInfo


def steered_optimizer(
    owner: str,
    optimizers: Sequence[Optimizer],
    mode: str,
    schedule: Schedule | None,
    model: nn.Module,
    assignments: Sequence[Assignment],
) -> Optimizer:
    """The only optimizer; the other arguments are what the regularizer is made of, ``owner`` names the controller.

    Raises:
        ValueError: a controller cannot steer the scale.
    """
    if mode != "prox":
        raise ValueError(f"{owner}: a Regularizer must have mode 'prox', which makes zeros, got {mode!r}")
    if len(optimizers) != 1:
        got = "none" if not optimizers else str(len(optimizers))
        raise ValueError(f"{owner}: a Regularizer must be attached to one optimizer, got {got}: attach it first")
    if schedule is not None:
        raise ValueError(f"{owner}: a Regularizer must have no schedule, which sets the same scale")
    if isinstance(model, Stacked):
        raise ValueError(f"{owner}: a stack of models has no common share of zeros: use each of its members()")
    if any(isinstance(term, Constraint) for a in assignments for term in a.terms):
        raise ValueError(f"{owner}: a constraint has no strength to be steered: use Sparsest for an exact count")
    if any(is_sharded(p) for a in assignments for p in a.stored):
        raise ValueError(f"{owner}: weights must not be sharded over processes: use a ProxSGD or a ProxAdam")
    return optimizers[0]


def steered_places(optimizer: Optimizer, assignments: Sequence[Assignment]) -> list[ParamInfo]:
    """The penalized parameters that the optimizer trains."""
    params = {param for group in optimizer.param_groups for param in group["params"]}
    return [
        a.places[0] if a.computed is None else ParamInfo(a.name, param, a.places[0].module)
        for a in assignments
        if a.acting is not None
        for param in a.stored
        if param.requires_grad and param in params
    ]
