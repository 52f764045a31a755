"""Under ``torch.compile`` a strength that changes each step does not compile anew, if it is a tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from tests.cases import PENALTIES, each_penalty
from tests.helpers import assert_close, assert_compiles_twice_at_most, make_data, make_model, train, weights_of
from torchreg import L1, L2, Regularizer


@pytest.mark.shows("compile")
@each_penalty
def test_a_scheduled_scale_that_is_a_tensor_compiles_once_to_the_eager_value_and_gradient(case, counter):
    x, y = make_data()
    model = make_model()
    regularizer = Regularizer(
        model, case.penalty, schedule=lambda step: torch.tensor(0.5 + step / 10, dtype=torch.float64)
    )

    def objective():
        return F.mse_loss(model(x), y) + regularizer.value()

    def value_and_gradients(objective):
        value = objective()
        return value, torch.autograd.grad(value, list(model.parameters()))

    compiled = torch.compile(objective, backend=counter, fullgraph=True)
    for _ in range(4):
        assert_close(value_and_gradients(compiled), value_and_gradients(objective))
        regularizer.step()
    assert counter.frame_count == 1


# Of the modes that only need a gradient, which the test above compiles, a sum stands for all.
each_compiled = pytest.mark.parametrize(
    ("case", "mode"),
    [(case, "prox") for case in PENALTIES if case.is_proximal]
    + [(case, mode) for case in PENALTIES if case.penalty == L1(0.2) + L2(0.5) for mode in ("grad", "decoupled")],
    ids=lambda value: getattr(value, "name", value),
)


def attached(penalty, mode):
    """A model, and an optimizer with a penalty whose strength changes at each step."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    if penalty is not None:
        Regularizer(model, penalty, mode=mode, schedule=lambda step: 1 / (step + 1)).attach(optimizer)
    return model, optimizer


def compiled_steps(model, optimizer, counter):
    """Four of them; returns the reasons for which the compiler broke the graph."""
    x, y = make_data()

    def backward():
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()

    torch._dynamo.utils.counters.clear()
    assert_compiles_twice_at_most(torch.compile(lambda: optimizer.step(), backend=counter), backward, counter)
    return set(torch._dynamo.utils.counters["graph_break"])


@pytest.fixture(scope="module")
def torchs_own_breaks():
    """Torch's optimizers break the graph once themselves."""
    torch._dynamo.reset()
    return compiled_steps(*attached(None, None), CompileCounter())


@pytest.mark.shows("compile")
@each_compiled
def test_a_compiled_step_is_the_eager_one_and_a_scheduled_strength_does_not_compile_it_anew(
    case, mode, counter, torchs_own_breaks
):
    model, optimizer = attached(case.penalty, mode)
    assert compiled_steps(model, optimizer, counter) == torchs_own_breaks  # a regularizer adds no reason
    eager = train(*attached(case.penalty, mode), steps=4)
    assert_close(weights_of(model), eager, tolerance=1e-6)  # torch compiles AdamW itself to other roundings
