"""Under ``torch.compile`` a strength that changes each step does not compile anew, if it is a tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from tests.cases import PENALTIES, each_penalty
from tests.helpers import assert_close, make_data, make_model, weights_of
from torchreg import L1, L2, Regularizer


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.shows("compile")
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


@pytest.mark.shows("compile")
@each_penalty
def test_the_gradient_of_a_compiled_objective_is_the_eager_one(case, counter):
    model = make_model()
    regularizer = Regularizer(model, case.penalty)
    torch.compile(regularizer.value, backend=counter, fullgraph=True)().backward()
    compiled = [p.grad for p in model.parameters()]
    model.zero_grad()
    regularizer.value().backward()
    assert_close([g for g in compiled if g is not None], [p.grad for p in model.parameters() if p.grad is not None])


# Of the modes that only need a gradient, which the tests above compile, a sum stands for all.
each_compiled = pytest.mark.parametrize(
    ("case", "mode"),
    [(case, "prox") for case in PENALTIES if case.is_proximal]
    + [(case, mode) for case in PENALTIES if case.penalty == L1(0.2) + L2(0.5) for mode in ("grad", "decoupled")],
    ids=lambda value: getattr(value, "name", value),
)


@pytest.mark.shows("compile")
@each_compiled
def test_a_compiled_step_is_the_eager_one_and_a_scheduled_strength_does_not_compile_it_anew(case, mode, counter):
    (x, y), breaks, runs = make_data(), [], []
    for attached, compiled in ((False, True), (True, True), (True, False)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
        if attached:
            Regularizer(model, case.penalty, mode=mode, schedule=lambda step: 1 / (step + 1)).attach(optimizer)
        step, frames = optimizer.step, []
        if compiled:
            step = torch.compile(lambda optimizer=optimizer: optimizer.step(), backend=counter)
        for _ in range(4):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            step()
            frames.append(counter.frame_count)
        assert len(set(frames[1:])) == 1  # once more at the second step, where numbers turn out to change; then never
        breaks.append(set(torch._dynamo.utils.counters["graph_break"]))
        runs.append(weights_of(model))
    bare, ours, _ = breaks
    assert ours == bare  # torch's optimizers break the graph once themselves; a regularizer adds no reason to
    assert_close(runs[1], runs[2], tolerance=1e-6)  # torch compiles AdamW itself to other roundings
