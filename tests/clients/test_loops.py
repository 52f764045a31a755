"""The loops of others: each penalty counts exactly once an optimizer step, with clipping and accumulation."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_mode, each_step_mode
from tests.clients import loops
from tests.clients.loops import LASSO, LR, PENALTY, RIDGE, SGD, Wrapped, by_hand, each_loop
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_data, make_model, weights_of
from torchreg import L1, L2, Regularizer, linear

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs


@pytest.mark.parametrize("clip", [None, 0.3])
@each_mode
@each_loop
def test_the_penalized_training_is_the_hand_written_one(loop, make_optimizer, mode, accumulate, clip, tmp_path):
    assert_close(loop(mode, accumulate, clip, tmp_path), by_hand(mode, accumulate, clip, make_optimizer))


@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
def test_the_hand_written_training_tells_clipping_accumulation_and_modes_apart(mode):
    expected = by_hand(mode, 1, None)
    for other in (by_hand(mode, 2, None), by_hand(mode, 1, 0.3), by_hand("none", 1, None)):
        assert (other["0.weight"] - expected["0.weight"]).abs().max() > 1e-4


def test_without_clipping_modes_loss_and_grad_are_one():
    assert_close(by_hand("loss", 2, None), by_hand("grad", 2, None))
    assert_differs(by_hand("loss", 2, 0.3), by_hand("grad", 2, 0.3))


@each_mode
def test_loss_scaling_in_lightning_changes_nothing(mode, tmp_path):
    precision = pytest.importorskip("lightning.pytorch.plugins.precision")

    class Scaled(precision.MixedPrecision):
        """Loss scaling alone: the CPU has no half precision to compare at."""

        def forward_context(self):
            return nullcontext()

    plugin = Scaled("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    for clip in (None, 0.3):
        assert_close(loops.lightning(mode, 2, clip, tmp_path, plugins=[plugin]), by_hand(mode, 2, clip))


@each_mode
def test_loss_scaling_in_accelerate_changes_nothing(mode, tmp_path):
    scaler = torch.amp.GradScaler("cpu")
    assert_close(loops.accelerate(mode, 2, None, tmp_path, scaler), by_hand(mode, 2, None))


# -- Lightning ----------------------------------------------------------------------------------------------------


def test_lightning_fits_twice_without_counting_twice(tmp_path):
    """The second fit makes a new optimizer, with a regularizer of its own."""
    pytest.importorskip("lightning")
    net = loops.lightning_module("decoupled")
    for _ in range(2):
        loops.lightning_trainer(tmp_path, max_epochs=1).fit(net, loops.batches())
    model = make_model()
    for _ in range(2):
        optimizer = SGD(model.parameters())
        with Regularizer(model, PENALTY, mode="decoupled").attach(optimizer):
            for x, y in loops.batches():
                optimizer.zero_grad()
                F.mse_loss(model(x), y).backward()
                optimizer.step()
    assert_close(weights_of(net.net), weights_of(model))


@each_step_mode
def test_a_step_of_lightning_s_manual_optimization_counts_once(mode, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Manual(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_model()
            self.automatic_optimization = False

        def training_step(self, batch):
            optimizer, (x, y) = self.optimizers(), batch
            optimizer.zero_grad()
            self.manual_backward(F.mse_loss(self.net(x), y))
            optimizer.step()

        def configure_optimizers(self):
            optimizer = SGD(self.parameters())
            Regularizer(self, PENALTY, mode=mode).attach(optimizer)
            return optimizer

    net = Manual()
    loops.lightning_trainer(tmp_path).fit(net, loops.batches())
    assert_close(weights_of(net.net), by_hand(mode, 1, None))


def test_lightning_s_validation_is_without_the_penalty(tmp_path):
    pytest.importorskip("lightning")
    net, (x, y) = loops.lightning_module("loss"), make_data()
    (metrics,) = loops.lightning_trainer(tmp_path).validate(net, loops.batches(), verbose=False)
    assert_close(metrics["valid"], F.mse_loss(net.net(x), y).item(), 1e-6)
    assert_close(net.criterion(net.net(x), y), F.mse_loss(net.net(x), y) + net.criterion.regularizer.value())


def test_a_penalty_added_in_lightning_s_on_before_backward_would_be_lost(tmp_path):
    """Lightning drops what that hook returns, and hands it a loss that it has scaled already."""
    lightning = pytest.importorskip("lightning")

    class Hook(lightning.Callback):
        def on_before_backward(self, trainer, net, loss):
            return loss + Regularizer(net, PENALTY).value()

    def trained(mode: str, **options) -> dict:
        net = loops.lightning_module(mode)
        loops.lightning_trainer(tmp_path, accumulate_grad_batches=2, **options).fit(net, loops.batches())
        return weights_of(net.net)

    bare = by_hand("none", 2, None)
    assert_close(trained("none", callbacks=[Hook()]), bare)
    assert_close(trained("grad"), by_hand("grad", 2, None))
    assert_differs(by_hand("grad", 2, None), bare)


def test_a_lightning_checkpoint_holds_one_entry_of_the_regularizer_in_the_optimizers_groups(tmp_path):
    pytest.importorskip("lightning")

    def checkpoint(mode: str) -> dict:
        trainer = loops.lightning_trainer(tmp_path)
        trainer.fit(loops.lightning_module(mode), loops.batches())
        trainer.save_checkpoint(tmp_path / "it.ckpt")
        return torch.load(tmp_path / "it.ckpt", weights_only=True)

    with_one, without = checkpoint("prox"), checkpoint("loss")
    assert with_one.keys() == without.keys()
    assert with_one["state_dict"].keys() == without["state_dict"].keys()
    (ours,), (theirs,) = with_one["optimizer_states"], without["optimizer_states"]
    steps = loops.EPOCHS * len(loops.batches())
    assert ours["param_groups"][0].pop("torchreg") == [{"of": "Regularizer", "state": {"steps": steps, "scale": 1.0}}]
    assert ours["param_groups"] == theirs["param_groups"]
    assert [state.keys() for state in ours["state"].values()] == [state.keys() for state in theirs["state"].values()]


# -- transformers -------------------------------------------------------------------------------------------------


def test_transformers_own_optimizer_follows_its_schedule_of_the_learning_rate(tmp_path):
    """AdamW decaying to lr 0, as Trainer does if nothing is said; the decay of mode "decoupled" is AdamW's own."""
    model, same = Wrapped(), Wrapped()
    trainer = loops.transformers_trainer(model, tmp_path / "ours", lr_scheduler_type="linear")
    Regularizer(model, L2(0.1), mode="decoupled").attach(trainer.create_optimizer())
    trainer.train()
    theirs = loops.transformers_trainer(same, tmp_path / "theirs", lr_scheduler_type="linear", weight_decay=0.1)
    theirs.train()
    assert_bit_equal(weights_of(model), weights_of(same))
    assert_differs(weights_of(model), weights_of(Wrapped()))


def test_transformers_weight_decay_beside_an_l2_is_refused(tmp_path):
    model = Wrapped()
    trainer = loops.transformers_trainer(model, tmp_path, weight_decay=0.01)
    with pytest.raises(ValueError, match=r"net\.0\.weight would decay twice, .* weight_decay=0\.01 of AdamW: pass"):
        Regularizer(model, L2(0.1), mode="decoupled").attach(trainer.create_optimizer())
    Regularizer(model, L1(0.1), mode="decoupled").attach(trainer.create_optimizer())


def test_transformers_evaluation_is_without_the_penalty(tmp_path):
    model = Wrapped()
    criterion = Regularizer(model, PENALTY).penalize(
        lambda outputs, labels, num_items_in_batch=None: F.mse_loss(outputs["logits"], labels)
    )
    trainer = loops.transformers_trainer(model, tmp_path, compute_loss_func=criterion)
    x, y = make_data()
    assert_close(trainer.evaluate()["eval_loss"], F.mse_loss(model.net(x), y).item(), 1e-6)


@pytest.mark.parametrize(("scaled", "count"), [(False, 1), (None, 2)])
def test_transformers_must_know_that_a_penalized_loss_is_the_mean_over_a_micro_batch(scaled, count, tmp_path):
    """Else the penalty counts once for each of the two micro-batches of a step."""
    model, same = Wrapped(), make_model()
    criterion = Regularizer(model, PENALTY).penalize(lambda outputs, *_, **__: 0 * outputs["logits"].sum())
    options = {"gradient_accumulation_steps": 2, "max_steps": 1, "compute_loss_func": criterion, "optim": "sgd"}
    trainer = loops.transformers_trainer(model, tmp_path, **options)
    trainer.loss_is_scaled_for_ga = scaled
    trainer.train()
    weight = same[0].weight
    assert_close(model.net[0].weight, weight - LR * count * (LASSO * weight.sign() + RIDGE * weight))


def test_transformers_train_called_twice_counts_once(tmp_path):
    """The optimizer is made once, and wrapped anew in each training."""
    model, bare = Wrapped(), make_model()
    trainer = loops.transformers_trainer(model, tmp_path, num_train_epochs=1)
    regularizer = Regularizer(model, PENALTY, mode="prox", schedule=linear(4)).attach(trainer.create_optimizer())
    trainer.train()
    steps = regularizer.state_dict()["steps"]
    trainer.train()
    assert steps == 8
    assert regularizer.state_dict()["steps"] == 16
    assert_differs(weights_of(model.net), weights_of(bare))


# -- accelerate ---------------------------------------------------------------------------------------------------


def test_accelerate_s_skipped_steps_are_not_counted(tmp_path):
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = make_model()
    optimizer = SGD(model.parameters())
    regularizer = Regularizer(model, L1(LASSO), mode="prox", schedule=linear(4)).attach(optimizer)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loops.batches())
    counts = []
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.mse_loss(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        counts.append(regularizer.state_dict()["steps"])
    assert counts == [0, 0, 0, 1, 1, 1, 1, 2]


def test_accelerate_s_step_that_overflows_is_not_counted():
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    model = make_model()
    optimizer = SGD(model.parameters())
    regularizer = Regularizer(model, L1(LASSO), mode="prox", schedule=linear(4)).attach(optimizer)
    optimizer, before = accelerator.prepare(optimizer), weights_of(model)
    x, y = make_data()
    for factor, steps in ((float("inf"), 0), (1.0, 1)):
        accelerator.backward(factor * F.mse_loss(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped == (steps == 0)
        assert regularizer.state_dict()["steps"] == steps
        (assert_differs if steps else assert_bit_equal)(weights_of(model), before)


@each_step_mode
def test_after_prepare_accelerate_s_wrapper_still_holds_the_optimizer_to_attach_to(mode):
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    model = make_model()
    wrapper = accelerator.prepare(SGD(model.parameters()))
    Regularizer(model, PENALTY, mode=mode).attach(wrapper.optimizer)
    x, y = make_data()
    accelerator.backward(F.mse_loss(model(x), y))
    before = weights_of(model)
    wrapper.step()
    expected = make_model()
    optimizer = SGD(expected.parameters())
    Regularizer(expected, PENALTY, mode=mode).attach(optimizer)
    F.mse_loss(expected(x), y).backward()
    optimizer.step()
    assert_bit_equal(weights_of(model), weights_of(expected))
    assert_differs(weights_of(model), before)


def test_to_attach_to_accelerate_s_wrapper_is_refused_in_words():
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    model = make_model()
    wrapper = accelerator.prepare(SGD(model.parameters()))
    with pytest.raises(TypeError, match=r"^Regularizer: .*AcceleratedOptimizer"):
        Regularizer(model, PENALTY, mode="prox").attach(wrapper)


# -- skorch -------------------------------------------------------------------------------------------------------


def test_skorch_s_fit_begins_with_a_module_of_its_own_so_attaching_belongs_where_the_optimizer_is_made():
    skorch = pytest.importorskip("skorch")
    sklearn = pytest.importorskip("sklearn.base")

    class Net(skorch.NeuralNetRegressor):
        def initialize_optimizer(self, *args, **kwargs):
            super().initialize_optimizer(*args, **kwargs)
            Regularizer(self.module_, PENALTY, mode="prox").attach(self.optimizer_)
            return self

    plain = loops.skorch_net()
    net = Net(**plain.get_params(deep=False))
    expected = by_hand("prox", 1, None)
    for fitted in (net.fit(*make_data()), sklearn.clone(net).fit(*make_data()), net.fit(*make_data())):
        assert_close(weights_of(fitted.module_), expected)
    plain.initialize()
    Regularizer(plain.module_, PENALTY, mode="prox").attach(plain.optimizer_)
    plain.fit(*make_data())  # this one has lost it
    assert_close(weights_of(plain.module_), by_hand("none", 1, None))


def test_skorch_s_validation_is_without_the_penalty():
    model = make_model()
    regularizer = Regularizer(model, PENALTY)
    split = pytest.importorskip("skorch.dataset").ValidSplit(2)
    net = loops.skorch_net(module=model, criterion=regularizer.penalize(nn.MSELoss()))
    net.set_params(train_split=split, max_epochs=1)
    x, y = make_data()
    net.partial_fit(x, y)
    _, valid = split(net.get_dataset(x, y))
    assert_close(net.history[-1, "valid_loss"], F.mse_loss(model(x[valid.indices]), y[valid.indices]).item(), 1e-6)
