"""LassoNet as its authors' package computes it."""

import pytest
import torch

from tests.helpers import assert_close
from torchreg import LassoNet, Regularizer
from torchreg import functional as f

pytest.importorskip("lassonet")
from lassonet.prox import inplace_prox, prox

pytestmark = pytest.mark.clients


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("bound", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("amount", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("lasso", [0.0, 0.2])  # what the package calls lambda_bar: an L1 on the first layer
def test_the_proximal_operator_is_that_of_the_authors(outputs, bound, amount, lasso):
    draw = torch.Generator().manual_seed(0)
    v, u = (torch.randn(rows, 300, dtype=torch.float64, generator=draw) for rows in (outputs, 12))
    expected = prox(v, u, lambda_=amount, lambda_bar=lasso, M=bound)
    assert_close(f.hierarchical_threshold(v, f.soft_threshold(u, lasso), amount, bound), expected, 1e-12)


def test_a_training_is_that_with_the_authors_step():
    def train(act):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"skip": torch.nn.Linear(6, 2, bias=False), "first": torch.nn.Linear(6, 9)})
        model = model.double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step = act(model, optimizer)
        x = torch.randn(20, 6, dtype=torch.float64)
        for _ in range(30):
            optimizer.zero_grad()
            (model["skip"](x) + model["first"](x).relu()[:, :2] - x[:, :2]).square().mean().backward()
            optimizer.step()
            step()
        return model.state_dict()

    def ours(model, optimizer):
        Regularizer(model, LassoNet(0.3, M=2.0), mode="prox").attach(optimizer)
        return lambda: None

    def theirs(model, optimizer):
        return lambda: inplace_prox(model["skip"], model["first"], lambda_=0.1 * 0.3, lambda_bar=0.0, M=2.0)

    assert_close(train(ours), train(theirs), 1e-12)
