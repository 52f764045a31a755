"""AN OPTIMIZER as it is found: when it steps, whether its steps are what a mode assumes, what its checkpoints carry."""

from torchreg.hooks.checkpoint import Carried, checked_steps
from torchreg.hooks.probe import check_steps
from torchreg.hooks.step import (
    Group,
    StepHooks,
    gradient_scale,
    is_no_step,
    is_skipped,
    numbers_on_cpu,
    scalar,
    step_share,
    step_size,
    unhooked_step,
)

__all__ = [
    "Carried",
    "Group",
    "StepHooks",
    "check_steps",
    "checked_steps",
    "gradient_scale",
    "is_no_step",
    "is_skipped",
    "numbers_on_cpu",
    "scalar",
    "step_share",
    "step_size",
    "unhooked_step",
]
