"""torchreg's dropout behaves as torch.nn.Dropout does, mask values aside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchreg.functional
from tests.helpers import assert_bit_equal, assert_close
from torchreg.nn import Dropout

KINDS = [Dropout, nn.Dropout]


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_both_scale_by_the_same_factor(p, dtype):
    ours, theirs = (kind(p)(torch.ones(1000, dtype=dtype)).max() for kind in KINDS)
    assert ours.dtype == theirs.dtype
    assert_close(ours, theirs, tolerance=max(2 * torch.finfo(dtype).eps, 2**-15))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_both_return_or_overwrite_the_same_input(p, inplace, training):
    facts = []
    for kind in KINDS:
        x = torch.ones(5)
        y = kind(p, inplace).train(training)(x)
        facts.append((y is x, y.data_ptr() == x.data_ptr(), bool((x == 1).all()) if p != 0.5 else None))
    assert facts[0] == facts[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last),
        lambda: torch.randn(4, 3).T,
        lambda: torch.randn(4, 1).expand(4, 3),
        lambda: torch.randn(4, 6)[:, ::2],
        lambda: torch.randn(0, 3),
        lambda: torch.randn(()),
        lambda: torch.randn(3, 3, device="meta"),
    ],
    ids=["channels last", "transposed", "expanded", "sliced", "empty", "0-d", "meta"],
)
def test_both_return_the_same_kind_of_tensor(make):
    x = make()
    ours, theirs = Dropout()(x), nn.Dropout()(x)
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    assert ours.stride() == theirs.stride()


def test_both_have_gradients_by_torch_func():
    x = torch.randn(100, dtype=torch.float64)
    for kind in KINDS:
        layer = kind(0.5)
        gradient = torch.func.grad(lambda x, layer=layer: layer(x).sum())(x)
        assert set(gradient.tolist()) == {0.0, 2.0}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, when it loads its derivatives
def test_both_have_forward_mode_derivatives():
    x = torch.randn(100, dtype=torch.float64)
    for kind in KINDS:
        _, tangent = torch.func.jvp(kind(0.5), (x,), (torch.ones_like(x),))
        assert set(tangent.tolist()) == {0.0, 2.0}


def test_both_find_the_gradient_under_activation_checkpointing():
    for kind in KINDS:
        x = torch.randn(1000, dtype=torch.float64, requires_grad=True)
        y = torch.utils.checkpoint.checkpoint(kind(0.5), x, use_reentrant=False)
        y.sum().backward()
        assert_close(x.grad, (y != 0).double() * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_both_take_jagged_tensors(kind):
    jagged = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)
    assert set(kind(0.5)(jagged).values().flatten().tolist()) <= {0.0, 2.0}


def test_both_can_be_exported():
    for kind in KINDS:
        model = nn.Sequential(nn.Linear(3, 3), kind(0.5)).eval()
        exported = torch.export.export(model, (torch.ones(2, 3),)).module()
        assert_close(exported(torch.ones(2, 3)), model(torch.ones(2, 3)), tolerance=1e-6)


def test_the_scale_is_closer_to_the_exact_one_than_torchs_in_half_precision():
    x = torch.full((10_000,), 3.0).bfloat16()
    exact = (x.double() / 0.9).to(torch.bfloat16).max()
    assert_bit_equal(torchreg.functional.dropout(x, 0.1).max(), exact)
    assert_close(F.dropout(x, 0.1).max(), exact, tolerance=2**-7)
