"""The tables of optimizers that tests run over, as ``tests.cases`` has those of penalties and modes."""

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from torchreg.optim import SGDW, AdagradW, AdamaxW, AdamW, NAdamW, RAdamW, RMSpropW, decoupled

OPTIMIZERS = {
    "SGD-momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "SGD-nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "AdamW-single": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, foreach=False),
    "AdamW-foreach": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, foreach=True),
    "AdamW-fused": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, fused=True),
}
FUSED = {
    "SGD-fused": partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "AdamW-fused": OPTIMIZERS["AdamW-fused"],
}

IMPLEMENTATIONS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
DECOUPLED = {
    "SGDW": (SGDW, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "SGDW-nesterov": (SGDW, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "AdamW": (AdamW, torch.optim.AdamW, {"lr": 0.01}),
    "AdamW-amsgrad": (AdamW, torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "RMSpropW": (RMSpropW, torch.optim.RMSprop, {"lr": 0.01}),
    "RMSpropW-centered": (RMSpropW, torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "AdagradW": (AdagradW, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1}),
    "NAdamW": (NAdamW, torch.optim.NAdam, {"lr": 0.01}),
    "RAdamW": (RAdamW, torch.optim.RAdam, {"lr": 0.01}),
    "AdamaxW": (AdamaxW, torch.optim.Adamax, {"lr": 0.01}),
}
MADE = {  # by decoupled(), of the classes that take any parameters, without a closure
    f"decoupled({base.__name__})": (decoupled(base), base, options)
    for base, options in (
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.Adadelta, {"lr": 1.0}),
        (torch.optim.Adafactor, {"lr": 0.01}),
        (torch.optim.ASGD, {"lr": 0.05, "lambd": 0.0}),  # which is a decay of its own
        (torch.optim.Rprop, {"lr": 0.01}),
    )
}
KERNELS = {
    f"{name}-{kind}": (ours, base, options | implementation)
    for name, (ours, base, options) in (DECOUPLED | MADE).items()
    for kind, implementation in IMPLEMENTATIONS.items()
    if inspect.signature(base).parameters.keys() >= implementation.keys()
}
COUPLINGS = ("lr", "independent", "constant", "corrected")
FORMS = {
    "L2": {},
    "L1": {"decay": "L1"},
    "L2-start": {"towards": "start"},
    "L1-start": {"decay": "L1", "towards": "start"},
    "L2-cautious": {"cautious": True},
    "L1-cautious": {"decay": "L1", "cautious": True},
    "L2-start-cautious": {"towards": "start", "cautious": True},
    "L1-start-cautious": {"decay": "L1", "towards": "start", "cautious": True},
}


def undecayed(base: type[torch.optim.Optimizer], params: Any, **options: Any) -> torch.optim.Optimizer:
    """An optimizer of a class of torch's, some of which decay by default."""
    takes_decay = "weight_decay" in inspect.signature(base).parameters
    return base(params, **options, **({"weight_decay": 0} if takes_decay else {}))


def each_couplings_share(model: nn.Module) -> list[dict[str, Any]]:
    """A group for each coupling."""
    return [
        {"params": [param], "coupling": coupling} for param, coupling in zip(model.parameters(), COUPLINGS, strict=True)
    ]


each_optimizer = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
each_fused = pytest.mark.parametrize("make_optimizer", FUSED.values(), ids=FUSED.keys())
each_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
each_decoupled, each_decoupled_or_made, each_kernel = (
    pytest.mark.parametrize(("ours", "base", "options"), table.values(), ids=table.keys())
    for table in (DECOUPLED, DECOUPLED | MADE, KERNELS)
)
