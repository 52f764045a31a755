"""Trainers that were stopped and resume from their own checkpoints come to the bits of a training in one go.

Their users add nothing for it: they make the optimizer and attach to it, as ever.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.carried import KINDS, STEPS, Kind, network
from tests.clients.loops import lightning_trainer, skorch_net, transformers_trainer
from tests.helpers import EXAMPLES, assert_bit_equal, assert_differs, make_data, weights_of

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs

EPOCHS = 4
BATCH = EPOCHS * EXAMPLES // STEPS
HALF = EPOCHS // 2
each_kind = pytest.mark.parametrize(
    "kind", [KINDS["all of an Adam"], KINDS["all of a ProxSGD"]], ids=["Adam", "ProxSGD"]
)
either_order = pytest.mark.parametrize("attached_first", [True, False], ids=["attach, load", "load, attach"])


def regularized(kind: Kind, model: nn.Module, *, attached: bool = True) -> Any:
    """What a user writes, where the trainer's users make their optimizer."""
    optimizer = kind.make_optimizer(model)
    if attached:
        attach(kind, model, optimizer)
    return optimizer


def attach(kind: Kind, model: nn.Module, optimizer: Any) -> None:
    for each in kind.attach:
        each(model, optimizer)


def batches() -> DataLoader:
    return DataLoader(TensorDataset(*make_data()), batch_size=BATCH)


def steps_of(optimizer: Any) -> set[int]:
    """The steps that its regularizers have counted."""
    entries = optimizer.state_dict()["param_groups"][0]["torchreg"]
    return {entry["state"].get("steps", entry["state"].get("made")) for entry in entries}


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_each_object_matters_to_the_weights_of_the_second_half(number):
    """Guards the comparisons."""
    kind, ends = KINDS["all of an Adam"], []
    for is_removed in (False, True):
        model = network()
        optimizer = kind.make_optimizer(model)
        owners = [each(model, optimizer) for each in kind.attach]
        for epoch in range(EPOCHS):
            if epoch == HALF and is_removed:
                owners[number].remove()
            for x, y in batches():
                optimizer.zero_grad()
                F.mse_loss(model(x), y).backward()
                optimizer.step()
        ends.append(weights_of(model))
    assert_differs(*ends)


# -- transformers -------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """As a Hugging Face model: batches by name, and a dict with the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.mse_loss(logits, labels), "logits": logits}


@pytest.mark.parametrize(
    ("name", "made_by"),
    [("all of an Adam", "the trainer"), ("all of an Adam", "the user"), ("all of a ProxSGD", "the user")],
)
def test_transformers(name, made_by, tmp_path):
    kind = KINDS[name]

    def trainer() -> Any:
        model = Wrapped()
        options = {"save_strategy": "epoch", "num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH}
        options |= {"lr_scheduler_type": "linear", "optimizers": (regularized(kind, model.net), None)}
        if made_by == "the trainer":
            options["optimizers"] = None, None
        it = transformers_trainer(model, tmp_path, **options)
        if made_by == "the trainer":
            attach(kind, model.net, it.create_optimizer())
        return it

    straight, resumed = trainer(), trainer()
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_bit_equal(weights_of(resumed.model), weights_of(straight.model))
    assert steps_of(resumed.optimizer) == {STEPS}


# -- Lightning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights_only", [None, True], ids=["default", "weights_only"])
@each_kind
def test_lightning(kind, weights_only, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any) -> Tensor:
            x, y = batch
            return F.mse_loss(self.net(x), y)

        def configure_optimizers(self) -> Any:
            optimizer = regularized(kind, self.net)
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
            return {"optimizer": optimizer, "lr_scheduler": rate}

    def fitted(**options: Any) -> Net:
        net = Net()
        saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        trainer = lightning_trainer(tmp_path, enable_checkpointing=True, max_epochs=EPOCHS, callbacks=[saving])
        trainer.fit(net, batches(), **options)
        assert steps_of(trainer.optimizers[0]) == {STEPS}
        return net

    straight = fitted()
    resumed = fitted(ckpt_path=tmp_path / f"epoch={HALF - 1}.ckpt", weights_only=weights_only)
    assert_bit_equal(weights_of(resumed), weights_of(straight))


# -- accelerate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["attach, prepare, load", "prepare, attach, load", "prepare, load, attach"])
@each_kind
def test_accelerate(kind, order, tmp_path):
    accelerate = pytest.importorskip("accelerate")

    def run(epochs: int, load: Path | None = None, save: Path | None = None) -> tuple[Any, dict[str, Tensor]]:
        accelerator = accelerate.Accelerator(cpu=True)
        bare = network()
        optimizer = regularized(kind, bare, attached=order.startswith("attach"))
        rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, STEPS)
        model, wrapped, rate = accelerator.prepare(bare, optimizer, rate)
        if order == "prepare, attach, load":
            attach(kind, bare, wrapped.optimizer)
        if load is not None:
            accelerator.load_state(str(load))
        if order == "prepare, load, attach":
            attach(kind, bare, wrapped.optimizer)
        for _ in range(epochs):
            for x, y in batches():
                accelerator.backward(F.mse_loss(model(x), y))
                wrapped.step()
                rate.step()
                wrapped.zero_grad()
        if save is not None:
            accelerator.save_state(str(save))
        return wrapped.optimizer, weights_of(bare)

    _, expected = run(EPOCHS)
    run(HALF, save=tmp_path / "saved")
    optimizer, weights = run(EPOCHS - HALF, load=tmp_path / "saved")
    assert_bit_equal(weights, expected)
    assert steps_of(optimizer) == {STEPS}


# -- skorch -------------------------------------------------------------------------------------------------------


def regularized_net(kind: Kind, **options: Any) -> Any:
    skorch = pytest.importorskip("skorch")

    class Net(skorch.NeuralNetRegressor):
        def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.optimizer_ = regularized(kind, self.module_)
            return self

    settings = skorch_net(module=network).get_params(deep=False)
    return Net(**{**settings, "batch_size": BATCH, "max_epochs": EPOCHS, **options})


@each_kind
def test_skorch_s_checkpoints(kind, tmp_path):
    callbacks = pytest.importorskip("skorch.callbacks")
    saving = callbacks.Checkpoint(monitor=None, dirname=str(tmp_path))
    regularized_net(kind, max_epochs=HALF, callbacks=[saving]).fit(*make_data())
    loading = callbacks.LoadInitState(callbacks.Checkpoint(dirname=str(tmp_path)))
    resumed = regularized_net(kind, max_epochs=EPOCHS - HALF, callbacks=[loading]).fit(*make_data())
    straight = regularized_net(kind).fit(*make_data())
    assert_bit_equal(weights_of(resumed.module_), weights_of(straight.module_))
    assert steps_of(resumed.optimizer_) == {STEPS}


@either_order
@each_kind
def test_skorch_s_load_params(kind, attached_first, tmp_path):
    files = {"f_params": tmp_path / "model.pt", "f_optimizer": tmp_path / "optimizer.pt"}

    saved = regularized_net(kind).partial_fit(*make_data(), epochs=HALF)
    saved.save_params(**files)
    expected = weights_of(saved.partial_fit(*make_data(), epochs=EPOCHS - HALF).module_)
    resumed = regularized_net(kind if attached_first else Kind(kind.make_optimizer, ())).initialize()
    resumed.load_params(**files)
    if not attached_first:
        attach(kind, resumed.module_, resumed.optimizer_)
    resumed.partial_fit(*make_data(), epochs=EPOCHS - HALF)
    assert_bit_equal(weights_of(resumed.module_), expected)
    assert steps_of(resumed.optimizer_) == {STEPS}
