"""What two processes must do as one does (``EQUAL``), and what they must refuse (``REFUSED``)."""

import itertools
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.cases import MODES, PENALTIES, PenaltyCase
from tests.distributed.checkpoints import WAYS, resumes_to_the_same
from tests.distributed.training import (
    EVEN,
    WRAPS,
    Weights,
    Wrap,
    ddp,
    difference,
    fsdp,
    network,
    own_examples,
    regularized,
    replicated,
    sgd,
    tensor_parallel,
    weights_of,
    whole,
)
from tests.optimizers import OPTIMIZERS
from torchreg import L1, L2, L2SP, Effective, HoyerSquare, Penalty, Rank, Regularizer, Sparsest, everything
from torchreg.diagnostics import norms, sparsity
from torchreg.optim import TargetSparsity
from torchreg.penalties.constraints import Constraint

SEPARABLE = L1(0.5) + L2(0.3)
COUPLED = HoyerSquare(0.1)  # its gradient at an element depends on all the others


def product(model: nn.Module) -> Tensor:
    """What two layers would do without the activation between them."""
    return model[2].weight @ model[0].weight  # type: ignore[index]


in_one = cache(regularized)
NONE = L2(0.0)


def trains_as_one(penalty: Penalty, mode: str, wrap: Wrap, **options: Any) -> float:
    """Each process has half of the examples, the one process has all: the weights, their zeros, and the value."""
    ours = regularized(penalty, mode, wrap, examples=own_examples(), **options)
    expected, plain = in_one(penalty, mode, **options), in_one(NONE, mode, **options)
    assert difference({**plain, "value": expected["value"]}, expected) > 1e-6, "the penalty must do something"
    return difference(ours, expected)


def tensor_parallel_trains_as_one(penalty: Penalty, mode: str) -> float:
    """Every process sees all examples; biases are penalized, of which one is not sharded but copied."""
    options: dict[str, Any] = {"widths": EVEN, "select": everything}
    return difference(regularized(penalty, mode, tensor_parallel, **options), in_one(penalty, mode, **options))


def terms_are_those_of_one() -> float:
    def terms(model: nn.Module) -> Weights:
        return {kind: value.detach() for kind, value in Regularizer(model, SEPARABLE + COUPLED).terms().items()}

    return difference(terms(fsdp(network())), terms(network()))


def second_derivatives_are_those_of_one() -> float:
    def second(model: nn.Module) -> Weights:
        params = [param for param in model.parameters() if param.ndim > 1]
        slopes = torch.autograd.grad(Regularizer(model, L2(0.3) + COUPLED).value(), params, create_graph=True)
        curvature = torch.stack([whole(slope).square().sum() for slope in slopes]).sum()
        return {str(i): whole(w) for i, w in enumerate(torch.autograd.grad(curvature, params))}

    return difference(second(fsdp(network())), second(network()))


def proximal_steps_make_zeros() -> float:
    """Guards the comparison of zeros against there being none."""
    return 0.0 if any((w == 0).any() for w in regularized(SEPARABLE, "prox", fsdp).values()) else math.inf


def diagnostics_are_those_of_one() -> float:
    def measured(wrap: Wrap) -> Weights:
        model = network()
        with torch.no_grad():
            for param in model.parameters():
                param.clamp_(min=0.0)
        model = wrap(model)
        tables = {"norm": norms(model), "sparsity": sparsity(model)}
        return {f"{kind} {name}": torch.tensor(x) for kind, table in tables.items() for name, x in table.items()}

    return difference(measured(fsdp), measured(lambda model: model))


def a_reference_may_be_of_whole_tensors() -> float:
    """As the state dict of a pretrained model is."""
    reference = {name: w + 0.5 for name, w in weights_of(network()).items()}
    return max(trains_as_one(L2SP(0.5, reference=reference), mode, fsdp) for mode in MODES)


def a_reference_may_be_the_start() -> float:
    return max(trains_as_one(L2SP(0.5), mode, fsdp) for mode in MODES)


def a_reference_is_resumed() -> float:
    """The start that was saved, not the weights at the time of resuming."""
    model = fsdp(network())
    saved = Regularizer(model, L2SP(0.5)).state_dict()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1.0)
    regularizer = Regularizer(model, L2SP(0.5))
    regularizer.load_state_dict(saved)
    count = sum(param.numel() for param in model.parameters() if param.ndim > 1)
    return abs(regularizer.value().item() - 0.25 * count)


def made_before_sharding(mode: str) -> None:
    regularized(SEPARABLE, mode, fsdp, before=True)


def attached_before_sharding() -> None:
    model = network()
    optimizer = sgd(model.parameters())
    Regularizer(model, SEPARABLE, mode="grad").attach(optimizer)
    fsdp(model)
    optimizer.step()


def a_reference_beside_a_coupled_penalty() -> None:
    Regularizer(fsdp(network()), L2SP(0.5) + COUPLED)


def a_target_of_sharded_weights() -> None:
    model = fsdp(network())
    TargetSparsity(Regularizer(model, SEPARABLE, mode="prox").attach(sgd(model.parameters())), 0.5, steps=9)


def modes_of(case: PenaltyCase) -> list[str]:
    if any(isinstance(term, Constraint) for term in case.penalty.terms):
        return ["prox"]
    return [mode for mode in MODES if mode != "prox" or case.is_proximal]


def halved(step: int) -> Tensor:
    return torch.tensor(0.5**step, dtype=torch.float64)


EQUAL: dict[tuple[str, str, str], Callable[[], float]] = {  # by what is compared, the mode, and how it is spread
    (repr(case.penalty), mode, name): partial(trains_as_one, case.penalty, mode, wrap)
    for case in PENALTIES
    for mode in modes_of(case)
    for name, wrap in WRAPS.items()
}
LOOPS: dict[str, dict[str, Any]] = {
    "AdamW": {"make_optimizer": OPTIMIZERS["AdamW-foreach"]},
    "a scaled and fused AdamW": {"make_optimizer": OPTIMIZERS["AdamW-fused"], "scaler": True},
    "accumulated gradients": {"micro_batches": 2},
    "a schedule of tensors": {"schedule": halved},
}
for _mode in MODES:
    for _wrap in WRAPS:
        for _loop, _options in LOOPS.items():
            EQUAL[_loop, _mode, _wrap] = partial(trains_as_one, SEPARABLE, _mode, WRAPS[_wrap], **_options)
    EQUAL["made before wrapping", _mode, "DDP"] = partial(trains_as_one, SEPARABLE, _mode, ddp, before=True)
    for _kind, _penalty in {"separable": SEPARABLE, "coupled": COUPLED}.items():
        if _mode != "prox" or _penalty is SEPARABLE:
            EQUAL[_kind, _mode, "replicated shards"] = partial(trains_as_one, _penalty, _mode, replicated)
            EQUAL[_kind, _mode, "tensor parallel"] = partial(tensor_parallel_trains_as_one, _penalty, _mode)
for _constraint in (Sparsest(0.3, together=True), Sparsest(count=5, groups="input", together=True), Rank(1)):
    for _wrap in WRAPS:
        EQUAL[repr(_constraint), "prox", _wrap] = partial(trains_as_one, _constraint, "prox", WRAPS[_wrap])
for _penalty in (Effective(SEPARABLE, product), Effective(COUPLED, product)):
    for _mode, _wrap in itertools.product(("loss", "grad"), WRAPS):
        EQUAL[repr(_penalty), _mode, _wrap] = partial(trains_as_one, _penalty, _mode, WRAPS[_wrap])
for _function in (
    terms_are_those_of_one,
    second_derivatives_are_those_of_one,
    proximal_steps_make_zeros,
    diagnostics_are_those_of_one,
    a_reference_may_be_of_whole_tensors,
    a_reference_may_be_the_start,
    a_reference_is_resumed,
):
    EQUAL[_function.__name__.replace("_", " "), "any", "FSDP2"] = _function
for _name, _way in WAYS.items():
    EQUAL[f"a {_name} checkpoint", "any", "FSDP2"] = partial(resumes_to_the_same, **_way)

EQUAL[repr(Sparsest(0.3, together=True)), "prox", "tensor parallel"] = partial(
    tensor_parallel_trains_as_one, Sparsest(0.3, together=True), "prox"
)

REFUSED: dict[str, tuple[Callable[[], None], str]] = {  # with what the error must say
    "attached before sharding": (attached_before_sharding, "as after fully_shard(model)"),
    "a target of sharded weights": (a_target_of_sharded_weights, "weights must not be sharded over processes"),
    "a reference beside a coupled penalty": (a_reference_beside_a_coupled_penalty, "one Regularizer for each term"),
}
for _mode in MODES:
    REFUSED[f"made before sharding-{_mode}"] = partial(made_before_sharding, _mode), "as after fully_shard(model)"

CASES: dict[str, Callable[[], float | None]] = {"-".join(key): case for key, case in EQUAL.items()}
CASES |= {name: case for name, (case, _) in REFUSED.items()}
