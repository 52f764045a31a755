"""Lightning's callback: the bits of the recipe, logs that a hand computes, runs that resume with both."""

import multiprocessing
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_step_mode
from tests.clients import loops
from tests.clients.callbacks import KEYS, STEPS, hand, lightning_callback, lightning_logger, lightning_net, several
from tests.clients.loops import EPOCHS, PENALTY, SGD, batches
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_data, make_model, weights_of
from torchreg import L1, L2, DropoutSchedule, Regularizer, linear, named
from torchreg.nn import ConcreteDropout
from torchreg.optim import ProxSGD
from torchreg.tuning import AutoRate

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs


def mixed(lightning: Any) -> Any:
    class Scaled(lightning.pytorch.plugins.precision.MixedPrecision):
        """Loss scaling alone: the CPU has no half precision to compare at."""

        def forward_context(self) -> Any:
            return nullcontext()

    return Scaled("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))


def recording(rows: dict[int, dict[str, float]], model_of: Callable[[Any], nn.Module]) -> Any:
    """A callback that computes by hand what ours should log."""
    lightning = pytest.importorskip("lightning")

    class Recording(lightning.Callback):
        def on_train_batch_end(self, trainer, net, *args):
            rows[trainer.global_step] = hand(model_of(net))

    return Recording()


@pytest.mark.parametrize("accumulate", [1, 2])
@each_step_mode
def test_lightning_trains_as_the_recipe(mode, accumulate, tmp_path):
    weights = loops.lightning(mode, accumulate, 0.3, tmp_path)
    net = lightning_net()
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.3, "log_every_n_steps": 1}
    callback = lightning_callback(PENALTY, mode=mode)
    logger = lightning_logger()
    loops.lightning_trainer(tmp_path, callbacks=[callback], logger=logger, **options).fit(net, batches())
    assert_bit_equal(weights_of(net.net), weights)
    assert sorted(logger.rows) == list(range(1, STEPS // accumulate + 1))
    assert isinstance(callback.regularizer, Regularizer)


@pytest.mark.parametrize("every", [1, 3])
def test_lightning_logs_what_a_hand_computes_when_its_trainer_logs(every, tmp_path):
    expected: dict[int, dict[str, float]] = {}
    net, logger = lightning_net(), lightning_logger()
    callbacks = [lightning_callback(PENALTY, mode="prox"), recording(expected, lambda net: net.net)]
    trainer = loops.lightning_trainer(tmp_path, callbacks=callbacks, logger=logger, log_every_n_steps=every)
    trainer.fit(net, batches())
    assert sorted(logger.rows) == [step for step in range(1, STEPS + 1) if step % every == 0]
    for step, row in logger.rows.items():
        assert row.keys() == KEYS
        assert_close(row, expected[step], 1e-6)  # Lightning keeps them in single precision
    assert trainer.callback_metrics.keys() >= KEYS


def test_lightning_computes_nothing_in_steps_that_it_does_not_log(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Regularizer, "terms", lambda self: asked.append(self) or {})
    for options in ({"log_every_n_steps": 4}, {"log_every_n_steps": 2, "accumulate_grad_batches": 2}):
        asked.clear()
        trainer = loops.lightning_trainer(tmp_path, callbacks=[lightning_callback(L1(1.0), mode="prox")], **options)
        trainer.fit(lightning_net(), batches())
        assert len(asked) == 4


def test_lightning_resumes_weights_and_logs(tmp_path):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")

    def fitted(**options: Any) -> tuple[Any, Any]:
        net, logger, ours = lightning_net(), lightning_logger(), several(lightning_callback)
        net.forward = net.net.forward
        saving = callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        every = {"log_every_n_steps": 3, "max_epochs": EPOCHS, "enable_checkpointing": True}
        trainer = loops.lightning_trainer(tmp_path, logger=logger, callbacks=[saving, *ours], **every)
        trainer.fit(net, batches(), **options)
        return net, logger.rows

    straight, rows = fitted()
    resumed, later = fitted(ckpt_path=tmp_path / "epoch=0.ckpt")
    assert_bit_equal(weights_of(resumed), weights_of(straight))
    assert later == {step: row for step, row in rows.items() if step > STEPS // EPOCHS}
    assert_differs(rows[3], rows[9])
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert not [key for key in checkpoint["callbacks"] if "Regularizer" in key]  # it is in the optimizer's already
    ours = [entry["of"] for entry in checkpoint["optimizer_states"][0]["param_groups"][0]["torchreg"]]
    assert sorted(ours) == ["AutoStrength", "Regularizer", "Regularizer", "Regularizer"]


def test_lightning_fits_again_with_a_new_optimizer_or_the_old_one(tmp_path):
    lightning = pytest.importorskip("lightning")
    net, callback = lightning_net(), lightning_callback(PENALTY, mode="prox", schedule=linear(99))
    trainer = loops.lightning_trainer(tmp_path, callbacks=[callback], max_epochs=1)
    trainer.fit(net, batches())
    first = callback.regularizer
    trainer.fit_loop.max_epochs = 2
    trainer.fit(net, batches())
    assert callback.regularizer is not first
    assert first._hooks == ()
    assert callback.regularizer.state_dict()["steps"] == STEPS // EPOCHS

    kept = SGD(net.parameters())
    net.configure_optimizers = lambda: kept
    counts = []
    for epochs in (1, 2):
        trainer = trainer if counts else loops.lightning_trainer(tmp_path, callbacks=[callback], max_epochs=1)
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(net, batches())
        counts.append(callback.regularizer.state_dict()["steps"])
    assert counts == [8, 16]
    assert len(kept._optimizer_step_post_hooks) == 1
    assert isinstance(callback, lightning.Callback)


def test_a_ready_regularizer_goes_on_in_the_second_fit(tmp_path):
    net = lightning_net()
    ready = Regularizer(net, PENALTY, mode="prox", schedule=linear(99))
    for _ in range(2):
        trainer = loops.lightning_trainer(tmp_path, callbacks=[lightning_callback(ready)], max_epochs=1)
        trainer.fit(net, batches())
        assert len(trainer.optimizers[0]._optimizer_step_post_hooks) == 1
        trainer.callbacks[0].remove()
    assert ready.state_dict()["steps"] == 16


def test_what_is_attached_already_is_only_logged(tmp_path):
    net, logger = lightning_net(), lightning_logger()
    optimizer = SGD(net.parameters())
    net.configure_optimizers = lambda: optimizer
    regularizer = Regularizer(net, PENALTY, mode="prox").attach(optimizer)
    callback = lightning_callback(regularizer)
    loops.lightning_trainer(tmp_path, callbacks=[callback], logger=logger, log_every_n_steps=1).fit(net, batches())
    assert_bit_equal(weights_of(net.net), loops.lightning("prox", 1, None, tmp_path))
    assert len(logger.rows) == STEPS
    callback.remove()
    assert regularizer._hooks


@pytest.mark.parametrize("scaled", [False, True])
def test_lightning_with_several_optimizers_takes_those_with_penalized_parameters(scaled, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Manual(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.other = make_model(), make_model()
            self.automatic_optimization = False

        def training_step(self, batch: Any) -> None:
            for optimizer, model in zip(self.optimizers(), (self.net, self.other), strict=True):
                x, y = batch
                optimizer.zero_grad()
                self.manual_backward(F.mse_loss(model(x), y))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return SGD(self.net.parameters()), SGD(self.other.parameters())

    def fitted(select: Any) -> tuple[Any, Any]:
        net, callback = Manual(), lightning_callback(PENALTY, mode="prox", select=select)
        scaling = {"plugins": [mixed(lightning)]} if scaled else {}
        loops.lightning_trainer(tmp_path, callbacks=[callback], log_every_n_steps=1, **scaling).fit(net, batches())
        return net, callback.regularizer

    net, regularizer = fitted(named("net.*.weight"))
    assert len(regularizer._optimizers) == 1
    assert_close(weights_of(net.net), loops.by_hand("prox", 1, None))
    assert_close(weights_of(net.other), loops.by_hand("none", 1, None))
    net, regularizer = fitted(named("*.weight"))
    assert len(regularizer._optimizers) == 2
    assert_close(weights_of(net.other), loops.by_hand("prox", 1, None))


@each_step_mode
def test_loss_scaling_in_lightning_changes_nothing(mode, tmp_path):
    lightning = pytest.importorskip("lightning")
    net = lightning_net()
    options = {"plugins": [mixed(lightning)], "accumulate_grad_batches": 2}
    loops.lightning_trainer(tmp_path, callbacks=[lightning_callback(PENALTY, mode=mode)], **options).fit(net, batches())
    assert_close(weights_of(net.net), loops.by_hand(mode, 2, None))


def test_lightning_runs_without_training_and_in_a_rehearsal(tmp_path):
    pytest.importorskip("lightning")
    net, callback = lightning_net(), lightning_callback(PENALTY, mode="prox")
    net.predict_step = lambda batch: net.net(batch[0])
    net.test_step = net.validation_step
    trainer = loops.lightning_trainer(tmp_path, callbacks=[callback])
    trainer.validate(net, batches(), verbose=False)
    trainer.test(net, batches(), verbose=False)
    trainer.predict(net, batches())
    assert callback.regularizer is None
    loops.lightning_trainer(tmp_path, callbacks=[callback], fast_dev_run=True).fit(net, batches(), batches())
    assert callback.regularizer._steps == 1
    trainer.validate(net, batches(), verbose=False)


def test_lightning_schedules_dropout_and_tunes_its_rates_through_functions(tmp_path):
    net, logger = lightning_net(), lightning_logger()
    net.net.insert(2, nn.Dropout(0.5))
    callback = lightning_callback(lambda model: DropoutSchedule(model, linear(STEPS)), name="dropout")
    options = {"callbacks": [callback], "logger": logger, "log_every_n_steps": 4}
    loops.lightning_trainer(tmp_path, **options).fit(net, batches())
    assert logger.rows == {step: {"dropout/scale": 1 - step / STEPS} for step in (4, 8, 12, 16)}
    assert net.net[2].p == 0
    callback.remove()
    assert net.net[2].p == 0.5

    net, logger = lightning_net(), lightning_logger()
    net.net[2] = ConcreteDropout(net.net[2], p=0.3)
    net.configure_optimizers = lambda: SGD([p for name, p in net.named_parameters() if "logit_p" not in name])
    callback = lightning_callback(lambda net: AutoRate(net.net, make_data(), make_data(), nn.MSELoss(), every=2))
    options = {"callbacks": [callback], "logger": logger, "log_every_n_steps": 4}
    loops.lightning_trainer(tmp_path, **options).fit(net, batches())
    rates = [row["regularizer/rate/2"] for row in logger.rows.values()]
    assert len(set(rates)) == 4
    assert_close(rates[-1], net.net[2].p.item(), 1e-6)


def test_two_of_one_name_are_refused_and_one_given_twice_counts_once(tmp_path):
    net = lightning_net()
    twins = [lightning_callback(PENALTY, mode="prox") for _ in range(2)]
    with pytest.raises(ValueError, match=r"^RegularizerCallback: each .* got 'regularizer' twice: pass name=") as error:
        loops.lightning_trainer(tmp_path, callbacks=twins).fit(net, batches())
    assert "\n" not in str(error.value)
    callback = lightning_callback(PENALTY, mode="prox")
    net = lightning_net()
    loops.lightning_trainer(tmp_path, callbacks=[callback, callback]).fit(net, batches())
    assert_bit_equal(weights_of(net.net), loops.lightning("prox", 1, None, tmp_path))


def test_a_fit_without_an_optimizer_is_refused(tmp_path):
    net = lightning_net()
    net.configure_optimizers = lambda: None
    with pytest.raises(ValueError, match="must hold every penalized parameter"):  # Lightning makes an empty one
        loops.lightning_trainer(tmp_path, callbacks=[lightning_callback(PENALTY, mode="prox")]).fit(net, batches())


def test_a_proximal_optimizer_goes_beside_it(tmp_path):
    net = lightning_net()
    net.configure_optimizers = lambda: ProxSGD(net.parameters(), L1(1e-3), lr=0.05)
    trainer = loops.lightning_trainer(tmp_path, callbacks=[lightning_callback(L2(0.1), mode="grad")])
    trainer.fit(net, batches())
    assert trainer.callbacks[0].regularizer._steps == STEPS


@pytest.mark.distributed
def test_lightning_s_processes_train_as_those_of_the_recipe(tmp_path):
    """In a process of its own: where autograd has threads, forks cannot use it."""
    process = multiprocessing.get_context("spawn").Process(target=train_in_two_processes, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def train_in_two_processes(folder):
    """Each process has half of each batch, and attaches for itself."""
    ends, expected = [], {}
    for mode, callbacks in (("prox", []), ("none", [lightning_callback(PENALTY, mode="prox")])):
        net = lightning_net() if mode == "none" else loops.lightning_module(mode)
        options = {"strategy": "ddp_fork", "devices": 2, "log_every_n_steps": 1}
        trainer = loops.lightning_trainer(folder, callbacks=callbacks, **options)
        trainer.fit(net, batches())
        ends.append(weights_of(net.net))
        expected = {key: value.item() for key, value in trainer.callback_metrics.items() if key in KEYS}
    assert_bit_equal(*ends)
    assert_close(expected, hand(net.net), 1e-6)


def test_lightning_s_checkpoints_can_monitor_the_numbers(tmp_path):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    saving = callbacks.ModelCheckpoint(tmp_path, monitor="regularizer/sparsity", mode="max", every_n_train_steps=4)
    options = {"enable_checkpointing": True, "log_every_n_steps": 4}
    trainer = loops.lightning_trainer(tmp_path, callbacks=[saving, lightning_callback(L1(1.0), mode="prox")], **options)
    net = lightning_net()
    trainer.fit(net, batches())
    assert saving.best_model_score > 0


def test_the_trainer_of_pytorch_lightning_takes_it_too(tmp_path):
    """Lightning under its other name."""
    theirs = pytest.importorskip("pytorch_lightning")

    class Net(theirs.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_model()

        def training_step(self, batch: Any) -> Any:
            x, y = batch
            return F.mse_loss(self.net(x), y)

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters())

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {
        "max_epochs": EPOCHS,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
        "log_every_n_steps": 1,
    }
    net = Net()
    trainer = theirs.Trainer(callbacks=[lightning_callback(PENALTY, mode="prox")], **quiet, **options)
    trainer.fit(net, batches())
    assert_bit_equal(weights_of(net.net), loops.lightning("prox", 1, None, tmp_path))
    assert_close({key: value.item() for key, value in trainer.callback_metrics.items()}, hand(net.net), 1e-6)
