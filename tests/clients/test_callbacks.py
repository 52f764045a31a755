"""What all callbacks log, what they take and what they refuse; and the function that logs for accelerate."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tests.clients import loops
from tests.clients.callbacks import (
    hand,
    lightning_callback,
    lightning_net,
    skorch_callback,
    transformers_callback,
    tuned,
)
from tests.clients.loops import EPOCHS, PENALTY, SGD, batches
from tests.helpers import assert_bit_equal, assert_close, make_data, make_model, weights_of
from torchreg import L1, Regularizer, SpectralNorm, Stacked, named
from torchreg.integrations.logged import logged
from torchreg.nn import DropConnect
from torchreg.tuning import AutoStrength

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs


# -- what is logged --------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_a_hand():
    model = make_model()
    with torch.no_grad():
        model[0].weight[0] = 0
    regularizer = Regularizer(model, PENALTY)
    regularizer.scale = 0.5
    assert_close(logged(regularizer, "regularizer", True), hand(model, 0.5))
    assert logged(regularizer, "regularizer", True)["regularizer/sparsity"] == 6 / (48 + 24)
    assert logged(regularizer, "mine", False).keys() == {"mine/L1", "mine/L2", "mine/scale"}


def test_a_scale_for_each_parameter_and_members_of_a_stack_are_logged_each():
    model = make_model()
    regularizer = Regularizer(model, L1(1.0), mode="prox")
    regularizer.scale = {"0.weight": 0.25, "2.weight": 4.0}
    numbers = logged(regularizer, "r", False)
    assert {k: v for k, v in numbers.items() if "scale" in k} == {"r/scale/0.weight": 0.25, "r/scale/2.weight": 4.0}
    stack = Stacked([make_model(), make_model()])
    with torch.no_grad():
        next(stack.parameters())[1] *= 2
    numbers = logged(Regularizer(stack, L1(1.0)), "r", False)
    first = sum(w.abs().sum().item() for w in (model[0].weight, model[2].weight))
    assert_close(numbers["r/L1/0"], first)
    assert_close(numbers["r/L1/1"], first + model[0].weight.abs().sum().item())


def test_terms_of_several_regularizers_that_are_tuned_together_are_added():
    model = make_model()
    parts = [Regularizer(model, L1(1.0), mode="prox", select=named(f"{i}.weight")) for i in (0, 2)]
    auto = AutoStrength(parts, make_data(), nn.MSELoss())
    numbers = logged(auto, "r", True)
    assert_close(numbers["r/L1"], sum(model[i].weight.abs().sum().item() for i in (0, 2)))
    assert len([key for key in numbers if key.startswith("r/strength/")]) == 2
    assert numbers["r/sparsity"] == 0


def turning() -> nn.Module:
    """Its singular values are apart, so that a spectral penalty starts from what its last call found."""
    model = nn.Sequential(nn.Linear(150, 140), nn.Dropout(0.5), nn.Linear(140, 150))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(layer.weight.pow(5) * 1e5)
            layer.weight[:8] *= torch.logspace(0.5, 2, 8)[:, None]
    return model


def computed() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(150, 140)), DropConnect(nn.Linear(140, 150)))


@pytest.mark.parametrize(("make", "penalty"), [(turning, SpectralNorm(0.1)), (computed, PENALTY)])
def test_what_follows_a_logged_number_is_as_without_it(make, penalty):
    """Not so if it drew random numbers, or moved the vectors from which a spectral penalty or layer starts."""

    def trained(asks: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regularizer = Regularizer(model, penalty, mode="grad").attach(optimizer)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(4, 150)).square().mean().backward()
            optimizer.step()
            for _ in range(3 * asks):
                logged(regularizer, "r", True)
        return weights_of(model)

    assert_bit_equal(trained(True), trained(False))


# -- what is given ---------------------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no mode": (L1(1.0), {}, ValueError, "mode must be 'grad', 'decoupled' or 'prox', got None$"),
    "mode loss": (L1(1.0), {"mode": "loss"}, ValueError, "got 'loss': a callback cannot add to the loss, and 'grad'"),
    "another mode": ({"*": L1(1.0)}, {"mode": "proximal"}, ValueError, "got 'proximal'$"),
    "a class": (L1, {"mode": "prox"}, TypeError, r"got the class L1: give it a strength, as in L1\(1e-4\)"),
    "a number": (0.1, {}, TypeError, "or a function that makes one for a model, got a float"),
    "a function with a mode": (tuned, {"mode": "prox"}, ValueError, "^RegularizerCallback: mode must be given where"),
    "an activity": (
        lambda model: Regularizer(model, L1(1.0)),
        {"every": 2, "compile": True},
        ValueError,
        "every and compile must be given where",
    ),
}


@pytest.mark.parametrize(("given", "options", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_attached_is_refused_when_it_is_given(given, options, kind, message):
    for make in (lightning_callback, transformers_callback, skorch_callback):
        with pytest.raises(kind, match=message) as error:
            make(given, **options)
        assert str(error.value).startswith("RegularizerCallback: ")
        assert "\n" not in str(error.value)


def test_a_regularizer_of_the_loss_is_refused_given_or_made(tmp_path):
    net = lightning_net()
    with pytest.raises(ValueError, match=r"^RegularizerCallback: .* got 'loss': a callback cannot add to the loss"):
        lightning_callback(Regularizer(net, L1(1.0)))
    for make, kind in ((lambda model: Regularizer(model, L1(1.0)), ValueError), (lambda model: None, TypeError)):
        with pytest.raises(kind, match=r"^RegularizerCallback: "):
            loops.lightning_trainer(tmp_path, callbacks=[lightning_callback(make)]).fit(net, batches())


@pytest.mark.parametrize("wrong", ["skorch", "transformers"])
def test_the_callback_of_another_trainer_says_so(wrong, tmp_path):
    callback = {"skorch": skorch_callback, "transformers": transformers_callback}[wrong](L1(1.0), mode="prox")
    with pytest.raises(AttributeError, match=rf"is for {wrong} and has no .*import that of your trainer"):
        loops.lightning_trainer(tmp_path, callbacks=[callback]).fit(lightning_net(), batches())


# -- accelerate ------------------------------------------------------------------------------------------------------


def test_accelerate_logs_what_a_hand_computes_and_changes_nothing(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from torchreg.integrations.accelerate import log_regularizer

    class Tracker(accelerate.tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only = "kept", False, True

        def __init__(self) -> None:
            super().__init__()
            self.rows: dict[int, Any] = {}

        tracker = property(lambda self: self)

        def store_init_configuration(self, values: Any) -> None: ...

        def log(self, values: Any, step: int | None = None, **kwargs: Any) -> None:
            self.rows[step] = values

    tracker, expected = Tracker(), {}
    accelerator = accelerate.Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("it")
    bare = make_model()
    optimizer = SGD(bare.parameters())
    regularizer = Regularizer(bare, PENALTY, mode="prox").attach(optimizer)
    model, optimizer, loader = accelerator.prepare(bare, optimizer, batches())
    step = 0
    for _ in range(EPOCHS):
        for x, y in loader:
            accelerator.backward(F.mse_loss(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            numbers = log_regularizer(accelerator, regularizer, step, every=5)
            if step % 5 == 0:
                expected[step] = hand(bare)
            assert numbers == tracker.rows.get(step, {})
    assert sorted(tracker.rows) == [5, 10, 15]
    assert_close(tracker.rows, expected)
    assert_bit_equal(weights_of(bare), loops.accelerate("prox", 1, None, tmp_path))


def test_accelerate_is_told_what_is_wrong():
    accelerate = pytest.importorskip("accelerate")
    from torchreg.integrations.accelerate import log_regularizer

    accelerator = accelerate.Accelerator(cpu=True)
    regularizer = Regularizer(make_model(), L1(1.0))
    with pytest.raises(TypeError, match=r"must be an accelerate.Accelerator, got a Regularizer"):
        log_regularizer(regularizer, accelerator)
    with pytest.raises(TypeError, match=r"must be a Regularizer or what tunes one, got L1"):
        log_regularizer(accelerator, L1(1.0))
    with pytest.raises(ValueError, match="every=2 needs the number of the step"):
        log_regularizer(accelerator, regularizer, every=2)
    for every in (0, 1.5, True):
        with pytest.raises(ValueError, match="every must be a whole number >= 1"):
            log_regularizer(accelerator, regularizer, 1, every=every)
    assert math.isfinite(log_regularizer(accelerator, regularizer)["regularizer/L1"])
