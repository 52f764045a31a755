"""How tests compare, and the small training that most of them run."""

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchreg import Regularizer

FEATURES, OUTPUTS, EXAMPLES = 6, 3, 32


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Equal up to ``tolerance * (1 + |expected|)``: tensors, numbers, and dicts or sequences of them."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_bit_equal(actual: Any, expected: Any) -> None:
    """Equal in dtype, shape and every bit, so -0.0 is not 0.0 but NaN is NaN: tensors, dicts or sequences of them."""
    if isinstance(expected, Mapping):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_bit_equal(actual[key], expected[key])
    elif isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        if not torch.equal(_bytes(actual), _bytes(expected)):
            raise AssertionError(f"{actual} differs from {expected}")
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_bit_equal(ours, theirs)
    else:
        assert type(actual) is type(expected)
        assert actual == expected


def assert_differs(actual: Any, expected: Any) -> None:
    """Not bit-equal: guards a comparison against being vacuous."""
    try:
        assert_bit_equal(actual, expected)
    except AssertionError:
        return
    raise AssertionError("expected a difference, found none")


def make_model(*, widths: Sequence[int] = (FEATURES, 8, OUTPUTS), dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A small network, the same at every call and on every device."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(1)
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(torch.get_default_device())


def make_data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs and targets, the same at every call and on every device."""
    with torch.device("cpu"):
        draw = torch.Generator().manual_seed(2)
        x = torch.randn(EXAMPLES, FEATURES, generator=draw, dtype=torch.float64)
        y = torch.randn(EXAMPLES, OUTPUTS, generator=draw, dtype=torch.float64)
    device = torch.get_default_device()
    return x.to(device, dtype), y.to(device, dtype)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    micro_batches: int = 1,
    closure: bool = False,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """A user's loop on fixed full batches; returns a copy of the model's weights at the end."""
    weight = next(model.parameters())
    x, y = (tensor.to(weight.device) for tensor in make_data(weight.dtype))

    def backward() -> Tensor:
        optimizer.zero_grad()
        total = x.new_zeros(())
        for xs, ys in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            loss = criterion(model(xs), ys) / micro_batches
            (loss if scaler is None else scaler.scale(loss)).backward()
            total += loss.detach()
        return total

    for _ in range(steps):
        if closure:
            optimizer.step(backward)
            continue
        backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return weights_of(model)


def a_step(model: nn.Module, regularizer: Regularizer, data: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """A step that has been made three times: what is done once only lies behind."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0, fused=True)
    criterion = engaged(regularizer, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(data[0]), data[1]).backward()
        optimizer.step()

    for _ in range(3):
        step()
    return step


def engaged(regularizer: Regularizer, optimizer: torch.optim.Optimizer) -> Callable[..., Tensor]:
    """The loss to train with: in mode "loss" it holds the penalty, in the other modes the optimizer's steps do."""
    if regularizer.mode == "loss":
        return regularizer.penalize(nn.MSELoss())
    regularizer.attach(optimizer)
    return nn.MSELoss()


def through_a_file(it: Any, weights_only: bool = True) -> Any:
    """What ``torch.load`` makes of what ``torch.save`` has written."""
    file = io.BytesIO()
    torch.save(it, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def resume(parts: Sequence[Any], saved: Sequence[Any]) -> None:
    """Loads the state of each saved part, through a file, into a part that was made anew."""
    for part, state in zip(parts, through_a_file([part.state_dict() for part in saved]), strict=True):
        part.load_state_dict(state)


def by_pickle(it: Any) -> Any:
    return pickle.loads(pickle.dumps(it))


def by_torch(it: Any) -> Any:
    return through_a_file(it, weights_only=False)


def assert_copy_trains_apart(
    duplicate: Callable[[Any], Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> Any:
    """A copy makes the same steps as the original and does not move it; returns the copy."""
    twin = duplicate((model, optimizer))
    before = weights_of(model)
    after = train(*twin, steps=3)
    assert_bit_equal(weights_of(model), before)
    assert_bit_equal(train(model, optimizer, steps=3), after)
    return twin


def assert_compiles_twice_at_most(step: Callable[[], Any], before: Callable[[], Any], counter: Any) -> None:
    """A compiled step is compiled at the first call, at the second where numbers turn out to change, and then never."""
    frames = []
    for _ in range(4):
        before()
        step()
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert len(set(frames[1:])) == 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module by its name, those at several places several times."""
    return list(model.named_modules(remove_duplicate=False))


def drawn_from(seed: int, model: nn.Module, *args: Any) -> Any:
    """The model's output where torch's generator starts from a seed."""
    torch.manual_seed(seed)
    return model(*args)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
