"""Generators of a model's own: across layers, processes, and checkpointed blocks."""

import pytest
import torch
from torch import Generator, nn
from torch.utils.checkpoint import checkpoint

from tests.helpers import assert_bit_equal, assert_close, assert_differs
from torchreg.nn import (
    ConcreteDropout,
    DropBlock1d,
    Dropout,
    StochasticDepth,
    VariationalDropout,
    same_masks,
    seed_dropout,
)


def model() -> nn.Sequential:
    return nn.Sequential(Dropout(0.5), nn.Identity(), Dropout(0.5), StochasticDepth(nn.Identity(), 0.5))


def masks(net: nn.Sequential) -> list[torch.Tensor]:
    return [net[i](torch.ones(500, 20)) for i in (0, 2, 3)]


def test_each_layer_draws_masks_of_its_own_that_the_seed_decides():
    first, second, third = model(), model(), model()
    assert seed_dropout(first, 3) == ["0", "2", "3"]
    seed_dropout(second, 3)
    seed_dropout(third, 4)
    drawn = masks(first)
    assert_bit_equal(drawn, masks(second))
    assert_differs(drawn, masks(third))
    assert_differs(drawn[0], drawn[1])


@pytest.mark.parametrize("bit", range(64))
def test_each_bit_of_the_seed_counts(bit):
    first, second = model(), model()
    seed_dropout(first, 12345)
    seed_dropout(second, 12345 ^ (1 << bit))
    agree = (masks(first)[0] == masks(second)[0]).double().mean().item()
    assert abs(agree - 0.5) < 4.5 * 0.5 / 100


@pytest.mark.parametrize("same", [False, True])
def test_processes_draw_different_masks_or_the_same_where_asked(monkeypatch, same):
    drawn = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        net = model()
        seed_dropout(net, 5, same_on_all_ranks=same)
        drawn.append(masks(net))
    for other in drawn[1:]:
        (assert_bit_equal if same else assert_differs)(other[0], drawn[0][0])


def test_a_model_without_layers_to_seed_is_told_what_to_do():
    with pytest.raises(ValueError, match=r"model must have layers of torchreg.nn, Linear has none: replace_dropout"):
        seed_dropout(nn.Linear(2, 2), 0)


BLOCKS = {
    "Dropout": lambda g: Dropout(0.5, generator=g),
    "large Dropout": lambda g: nn.Sequential(nn.Unflatten(1, (1, 20)), DropBlock1d(0.5, 3, generator=g)),
    "ConcreteDropout": lambda g: ConcreteDropout(nn.Linear(20, 20, dtype=torch.float64), 0.5, generator=g),
    "VariationalDropout": lambda g: VariationalDropout(nn.Linear(20, 20, dtype=torch.float64), -1.0, generator=g),
    "two that share a generator": lambda g: nn.Sequential(Dropout(0.5, generator=g), Dropout(0.2, generator=g)),
}


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())
def test_checkpointing_computes_with_the_same_masks_again(make):
    gradients, outputs = [], []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        block = make(Generator().manual_seed(1))
        x = torch.randn(300, 20, dtype=torch.float64, generator=Generator().manual_seed(2)).requires_grad_()
        for _ in range(2):  # the second step draws other masks
            options = {"use_reentrant": False, "context_fn": same_masks(block)}
            y = checkpoint(block, x, **options) if is_checkpointed else block(x)
            y.square().sum().backward()
            outputs.append(y.detach())
        gradients.append(x.grad)
    assert_bit_equal(outputs[:2], outputs[2:])
    assert_close(*gradients)


def test_blocks_that_are_checkpointed_one_after_another_keep_their_masks_apart():
    source = Generator().manual_seed(3)
    blocks = [Dropout(0.5, generator=source) for _ in range(3)]
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    outputs = [checkpoint(block, x, use_reentrant=False, context_fn=same_masks(block)) for block in blocks]
    sum(y.sum() for y in outputs).backward()
    assert_close(x.grad, sum(y.detach() for y in outputs))
    assert_differs(outputs[0], outputs[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_without_it_a_layer_with_a_generator_refuses_to_draw_a_second_mask(use_reentrant):
    x = torch.ones(10, requires_grad=True)
    y = checkpoint(Dropout(0.5, generator=Generator().manual_seed(4)), x, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match=r"context_fn=torchreg.nn.same_masks\(module\)"):
        y.square().sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layers_without_a_generator_need_nothing(use_reentrant):
    x = torch.ones(100_000, dtype=torch.float64, requires_grad=True)
    y = checkpoint(Dropout(0.5), x, use_reentrant=use_reentrant)
    y.sum().backward()
    assert_close(x.grad, y.detach())


def test_checkpointed_blocks_may_hold_others():
    inner = Dropout(0.5, generator=Generator().manual_seed(5))
    outer = Dropout(0.5, generator=Generator().manual_seed(6))

    def nested(x: torch.Tensor) -> torch.Tensor:
        return outer(checkpoint(inner, x, use_reentrant=False, context_fn=same_masks(inner)))

    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    both = nn.ModuleList([inner, outer])
    y = checkpoint(nested, x, use_reentrant=False, context_fn=same_masks(both))
    y.square().sum().backward()
    assert_close(x.grad, 2 * y.detach().square())


def test_a_generator_that_was_not_restored_is_refused_even_while_others_are():
    layer, other = (Dropout(0.5, generator=Generator().manual_seed(seed)) for seed in (7, 8))
    x = torch.ones(100, requires_grad=True)
    options = {"use_reentrant": False, "context_fn": same_masks(layer)}
    with pytest.raises(RuntimeError, match="context_fn"):
        checkpoint(lambda x: other(layer(x * x)).square(), x, **options).sum().backward()
    y = checkpoint(lambda x: layer(x * x), x, **options)
    seed_dropout(layer, 9)
    with pytest.raises(RuntimeError, match="context_fn"):
        y.sum().backward()


def test_layers_that_are_seeded_later_are_restored_too():
    layer = Dropout(0.5, generator=Generator().manual_seed(10))
    context = same_masks(layer)
    seed_dropout(layer, 11)
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    y = checkpoint(lambda x: layer(x * x), x, use_reentrant=False, context_fn=context)
    y.sum().backward()
    assert_close(x.grad, 2 * y.detach())


def test_a_second_backward_pass_computes_with_the_same_masks_too():
    layer = Dropout(0.5, generator=Generator().manual_seed(12))
    block = nn.Sequential(layer, nn.Tanh())
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    y = checkpoint(block, x, use_reentrant=False, context_fn=same_masks(block))
    state = layer.generator.get_state()
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert_bit_equal(torch.autograd.grad(y.sum(), x), first)
    assert_bit_equal(layer.generator.get_state(), state)


def test_a_seed_must_be_a_whole_number():
    for bad in (1.5, True, "1"):
        with pytest.raises(TypeError, match="seed_dropout: seed must be a whole number, got"):
            seed_dropout(model(), bad)
