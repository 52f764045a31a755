"""Compiled kernels against the penalties' own formulas, and what happens where nothing can be compiled."""

import warnings

import pytest
import torch
from torch import nn

import torchreg
from torchreg import L1, L2, MCP, SCAD, ElasticNet, Huber, LogSum, Nuclear, Regularizer
from torchreg.steps import kernels as module
from torchreg.steps.kernels import kernel_for

PENALTIES = [L1(0.3), L2(0.3), L1(0.2) + L2(0.4), ElasticNet(0.5, l1_ratio=0.3), Huber(0.3, delta=0.5)]
LARGE = 1 << 18


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(600, 440), nn.Linear(440, 3)).to(dtype)


def trained(penalty, mode, compile, steps=4):
    """The weights after a few steps, with a schedule so that the strength is another one each time."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    schedule = torchreg.linear(steps=steps, start=0.5, end=1.0)
    regularizer = Regularizer(net, penalty, mode=mode, schedule=schedule, compile=compile)
    regularizer.attach(optimizer)
    x = torch.randn(16, 600, dtype=torch.float64)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        if mode == "loss":
            loss = loss + 3 * regularizer.value()
        values.append(regularizer.value().item())
        loss.backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()], values


@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_kernels_do_what_the_formulas_do(penalty, mode):
    compiled, theirs = trained(penalty, mode, compile=True)
    plain, ours = trained(penalty, mode, compile=False)
    torch.testing.assert_close(compiled, plain, rtol=1e-11, atol=1e-12)
    assert theirs == pytest.approx(ours, rel=1e-12)
    if mode == "prox" and penalty == L1(0.3):
        assert (plain[0] == 0).any()
        assert torch.equal(compiled[0] == 0, plain[0] == 0)


def test_one_kernel_serves_all_strengths_and_shapes():
    with torch.no_grad():
        for strength in (1.0, 0.1, 1e-6):
            for size in (LARGE, LARGE + 7, 3 * LARGE):
                w = torch.randn(size)
                expected = L1(strength).prox(w, 0.5)
                kernel = kernel_for(L1(strength), "prox", 0.5, w)
                kernel(w)
                torch.testing.assert_close(w, expected)
    assert module._kernel.cache_info().currsize >= 1
    before = module._kernel.cache_info().misses
    kernel_for(L1(0.7), "prox", 0.5, torch.zeros(LARGE))
    assert module._kernel.cache_info().misses == before


def test_many_penalties_have_kernels_of_their_own():
    """More of them than torch.compile keeps versions of one function."""
    w = torch.linspace(-2, 2, LARGE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        for k in range(10):
            penalty = LogSum(1.0, epsilon=0.1 + k)
            result = kernel_for(penalty, "gradient", 2.0, w)(w)
            torch.testing.assert_close(result, 2 * penalty.gradient(w))


@pytest.mark.parametrize(
    ("penalties", "form"),
    [
        pytest.param([MCP(0.3, gamma=1.5), MCP(0.3, gamma=3.0)], "value", id="MCP"),
        pytest.param([SCAD(0.3, a=3.7), SCAD(0.3, a=2.5)], "prox", id="SCAD", marks=pytest.mark.slow),
        pytest.param(
            [ElasticNet(1.0, l1_ratio=0.3), ElasticNet(1.0, l1_ratio=0.8)],
            "gradient",
            id="ElasticNet",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_kernel_has_the_numbers_of_another_one_in_the_compilers_cache(penalties, form, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # so that the first is what is found
    torch._dynamo.reset()
    module._kernel.cache_clear()
    w = torch.linspace(-3, 3, LARGE, dtype=torch.float64)
    for penalty in penalties:
        actual = w.clone()
        result = kernel_for(penalty, form, 0.5, w)(actual)
        actual = actual if form == "prox" else result
        expected = {
            "value": lambda it: 0.5 * it.value(w),
            "gradient": lambda it: 0.5 * it.gradient(w),
            "prox": lambda it: it.prox(w, 0.5),
        }[form](penalty)
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_value_adds_up_a_million_equal_weights():
    w = torch.full((1_000_000,), 0.1)
    with torch.no_grad():
        value = kernel_for(L1(1.0), "value", 1.0, w)(w)
    assert value.item() == pytest.approx(1e5, rel=1e-6)


@pytest.mark.parametrize(
    ("penalty", "w"),
    [
        (L1(1.0), torch.zeros(10)),
        (L1(1.0), torch.zeros(2 * LARGE)[::2]),
        (L1(1.0), torch.zeros(LARGE, dtype=torch.bfloat16)),
        (L1(1.0), torch.zeros(LARGE, dtype=torch.complex64)),
        (torchreg.Nuclear(1.0), torch.zeros(LARGE, 1)),
    ],
    ids=["small", "strided", "half", "complex", "matrix"],
)
def test_no_kernel_where_it_would_not_fit(penalty, w):
    assert kernel_for(penalty, "gradient", 1.0, w) is None


@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
def test_penalties_without_a_kernel_are_named_once(mode):
    rules = {"0.*": Nuclear(0.1), "1.*": L1(0.1)}
    with pytest.warns(RuntimeWarning) as caught:
        Regularizer(network(), rules, mode=mode, compile=True).value()
    assert [str(warning.message) for warning in caught] == [
        "Regularizer: compile=True makes kernels of penalties that are a sum over single weights, and the usual steps "
        "for Nuclear(0.1)"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Regularizer(network(), L1(0.1), mode=mode, compile=True).value()


def test_without_a_compiler_it_says_so_once_and_steps(no_compiler):
    module._kernel.cache_clear()
    penalty = Huber(0.3, delta=0.123)
    try:
        with pytest.warns(RuntimeWarning, match=r"compile=True needs a C\+\+ compiler.*no compiler here") as caught:
            ours, _ = trained(penalty, "decoupled", compile=True)
        assert len([w for w in caught if "compiler" in str(w.message)]) <= 2  # the value's, and the step's
    finally:
        module._kernel.cache_clear()
    theirs, _ = trained(penalty, "decoupled", compile=False)
    assert all(map(torch.equal, ours, theirs))
