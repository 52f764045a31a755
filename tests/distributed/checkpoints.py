"""A sharded training is saved halfway and goes on anew, with the state of its regularizers in the optimizer's."""

import tempfile
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from tests.distributed.training import STEPS, Weights, difference, fsdp, network, own_examples, train, weights_of
from torchreg import L1, L2SP, Regularizer, linear


def resumes_to_the_same(options: dict[str, Any], is_stored: bool = True) -> float:
    """How far the weights, the value and the numbers of the regularizers are from those of a training in one go."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        shared = [folder]
        dist.broadcast_object_list(shared)
        chosen, path = StateDictOptions(**options), Path(shared[0]) / "checkpoint"
        straight = begun()
        go_on(*straight)
        state = deepcopy(get_state_dict(*straight[:2], options=chosen))
        if is_stored:
            dcp.save(dict(zip(("model", "optimizer"), state, strict=True)), checkpoint_id=path)
        elif options.get("broadcast_from_rank0") and dist.get_rank():
            state = {}, {}
        expected = go_on(*straight)

        resumed = begun()
        with torch.no_grad():
            for param in resumed[0].parameters():
                param.add_(1.0)  # so that the reference of the saved run is another than the own
        resumed = begun(resumed[0])
        if is_stored:
            template = dict(zip(("model", "optimizer"), get_state_dict(*resumed[:2], options=chosen), strict=True))
            dcp.load(template, checkpoint_id=path)
            state = template["model"], template["optimizer"]
        set_model_state_dict(resumed[0], state[0], options=chosen)
        set_optimizer_state_dict(*resumed[:2], state[1], options=chosen)
        dist.barrier()
        return difference(go_on(*resumed), expected)


def begun(model: nn.Module | None = None) -> tuple[nn.Module, torch.optim.Optimizer, list[Regularizer]]:
    model = fsdp(network()) if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    regularizers = [
        Regularizer(model, L1(0.1), mode="prox", schedule=linear(2 * STEPS)),
        Regularizer(model, L2SP(0.5), mode="grad"),
    ]
    return model, optimizer, [regularizer.attach(optimizer) for regularizer in regularizers]


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, regularizers: list[Regularizer]) -> Weights:
    train(model, optimizer, F.mse_loss, own_examples(), 1, torch.amp.GradScaler("cpu", enabled=False))
    optimizer.zero_grad()
    numbers = {f"value {i}": each.value().detach() for i, each in enumerate(regularizers)}
    numbers |= {f"steps {i}": torch.tensor(each.state_dict()["steps"]) for i, each in enumerate(regularizers)}
    return {**weights_of(model), **numbers}


WAYS: dict[str, dict[str, Any]] = {
    "nested": {"options": {}},
    "flat": {"options": {"flatten_optimizer_state_dict": True}},
    "whole": {"options": {"full_state_dict": True}, "is_stored": False},
    "whole, of the first process": {
        "options": {"full_state_dict": True, "broadcast_from_rank0": True},
        "is_stored": False,
    },
}
