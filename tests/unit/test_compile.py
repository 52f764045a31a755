"""Under ``torch.compile`` a strength that changes each step does not compile anew, if it is a tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from tests.cases import each_penalty
from tests.helpers import assert_close, make_data, make_model
from torchreg import Regularizer


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@each_penalty
def test_a_scheduled_scale_that_is_a_tensor_compiles_once(case, counter):
    x, y = make_data()
    model = make_model()
    regularizer = Regularizer(
        model, case.penalty, schedule=lambda step: torch.tensor(0.5 + step / 10, dtype=torch.float64)
    )

    def objective():
        return F.mse_loss(model(x), y) + regularizer.value()

    compiled = torch.compile(objective, backend=counter, fullgraph=True)
    for _ in range(5):
        assert_close(compiled(), objective())
        regularizer.step()
    assert counter.frame_count == 1


@each_penalty
def test_the_gradient_of_a_compiled_objective_is_the_eager_one(case, counter):
    model = make_model()
    regularizer = Regularizer(model, case.penalty)
    torch.compile(regularizer.value, backend=counter, fullgraph=True)().backward()
    compiled = [p.grad for p in model.parameters()]
    model.zero_grad()
    regularizer.value().backward()
    assert_close([g for g in compiled if g is not None], [p.grad for p in model.parameters() if p.grad is not None])
