"""What runs have in common that can be one stack, and their regularizers side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .. import config
from ..config import Run
from . import build


def kind_of(run: Run) -> str:
    """What the runs of a stack have in common: all but names, seeds, and strengths that act as a factor."""
    tree = run.model_dump(mode="json", exclude={"arm", "strength", "values", "seed"})
    for regularizer in tree["regularizers"]:
        if build.is_linear(regularizer["penalty"]):
            del regularizer["strength"]
    return json.dumps(tree, sort_keys=True)


def is_strength_0_of(plain: Run, other: Run) -> bool:
    """Whether a run without regularizers is the other one at strength 0, and can be in its stack at little cost."""
    if plain.regularizers or not other.regularizers:
        return False
    at_0 = plain.model_copy(update={"regularizers": other.regularizers})
    return kind_of(at_0) == kind_of(other) and all(build.is_elementwise(own.penalty) for own in other.regularizers)


def side_by_side(runs: Sequence[Run]) -> list[list[config.Regularizer | None]]:
    """The regularizers of a stack: a row for each, with its settings in each run; None in a run without any."""
    count = max(len(run.regularizers) for run in runs)
    return [[run.regularizers[i] if run.regularizers else None for run in runs] for i in range(count)]
