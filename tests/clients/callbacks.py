"""Callbacks for tests, and what a hand computes of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from tests.clients import loops
from tests.clients.loops import LASSO, RIDGE
from tests.helpers import make_data
from torchreg import L1, L2, L2SP, Regularizer, linear
from torchreg.tuning import AutoStrength

STEPS = 16  # of the loops, in two epochs
KEYS = {"regularizer/L1", "regularizer/L2", "regularizer/scale", "regularizer/sparsity"}


def tuned(model: nn.Module) -> AutoStrength:
    regularizer = Regularizer(model, L2(0.1), mode="decoupled", select=lambda p: p.name.endswith("0.weight"))

    def criterion(outputs: Any, y: Tensor) -> Tensor:
        return F.mse_loss(outputs["logits"] if isinstance(outputs, dict) else outputs, y)

    return AutoStrength(regularizer, make_data(), criterion)


SEVERAL = {
    "schedule": ({"mode": "grad", "schedule": linear(2 * STEPS)}, L1(0.1)),
    "reference": ({"mode": "decoupled"}, L2SP(0.5)),
    "tuned": ({}, tuned),
}


def several(make: Callable[..., Any]) -> list[Any]:
    return [make(penalty, name=name, **options) for name, (options, penalty) in SEVERAL.items()]


def hand(model: nn.Module, scale: float = 1.0) -> dict[str, float]:
    """What is logged of PENALTY, with NumPy."""
    weights = [value.detach().numpy() for name, value in model.state_dict().items() if name.endswith("weight")]
    return {
        "regularizer/L1": scale * LASSO * sum(abs(w).sum() for w in weights),
        "regularizer/L2": scale * RIDGE / 2 * sum((w**2).sum() for w in weights),
        "regularizer/scale": scale,
        "regularizer/sparsity": sum((w == 0).sum() for w in weights) / sum(w.size for w in weights),
    }


def lightning_callback(*args: Any, **options: Any) -> Any:
    pytest.importorskip("lightning")
    from torchreg.integrations.lightning import RegularizerCallback

    return RegularizerCallback(*args, **options)


def lightning_net() -> Any:
    """Without a penalty."""
    pytest.importorskip("lightning")
    return loops.lightning_module("none")


def lightning_logger() -> Any:
    """Keeps what a trainer logs, by step."""
    loggers = pytest.importorskip("lightning.pytorch.loggers")

    class Kept(loggers.Logger):
        name, version = "kept", 0

        def __init__(self) -> None:
            super().__init__()
            self.rows: dict[int, dict[str, float]] = {}

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            own = {key: value for key, value in metrics.items() if "/" in key}
            if own:
                self.rows[step + 1] = own

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    return Kept()


def transformers_callback(*args: Any, **options: Any) -> Any:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from torchreg.integrations.transformers import RegularizerCallback

    return RegularizerCallback(*args, **options)


def skorch_callback(*args: Any, **options: Any) -> Any:
    pytest.importorskip("skorch")
    from torchreg.integrations.skorch import RegularizerCallback

    return RegularizerCallback(*args, **options)
