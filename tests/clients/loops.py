"""The loops of others, each with the penalty added in the fewest lines, beside one that is written out by hand."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.cases import STEP_MODES
from tests.helpers import engaged, make_data, make_model, weights_of
from torchreg import L1, L2, Regularizer

LR, LASSO, RIDGE = 0.05, 0.02, 0.1
PENALTY = L1(LASSO) + L2(RIDGE)
EPOCHS, BATCH = 2, 4
SGD = partial(torch.optim.SGD, lr=LR, momentum=0.9)
ADAM = partial(torch.optim.AdamW, lr=LR, weight_decay=0.0)

Weights = dict[str, Tensor]


def batches() -> DataLoader:
    return DataLoader(TensorDataset(*make_data()), batch_size=BATCH)


def micro_batches() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(EPOCHS):
        yield from batches()


def clip_to(model: nn.Module, clip: float | None) -> None:
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)


def by_hand(mode: str, accumulate: int, clip: float | None, make_optimizer: Callable[..., Any] = SGD) -> Weights:
    """The penalized training without torchreg. The loss is clipped with its penalty, a later mode's is not."""
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    weights = [model[0].weight, model[2].weight]
    micro = list(micro_batches())
    for start in range(0, len(micro), accumulate):
        for x, y in micro[start : start + accumulate]:
            (F.mse_loss(model(x), y) / accumulate).backward()
        slopes = [LASSO * w.sign() + RIDGE * w for w in weights]
        with torch.no_grad():
            if mode == "loss":
                add_to_gradients(weights, slopes)
            clip_to(model, clip)
            if mode == "grad":
                add_to_gradients(weights, slopes)
            if mode == "decoupled":
                for w, slope in zip(weights, slopes, strict=True):
                    w -= LR * slope
            optimizer.step()
            if mode == "prox":
                for w in weights:
                    w.copy_(w.sign() * (w.abs() - LR * LASSO).clamp(min=0) / (1 + LR * RIDGE))
        optimizer.zero_grad()
    return weights_of(model)


def add_to_gradients(weights: list[nn.Parameter], slopes: list[Tensor]) -> None:
    for w, slope in zip(weights, slopes, strict=True):
        w.grad += slope


def plain(mode: str, accumulate: int, clip: float | None, folder: Path) -> Weights:
    model = make_model()
    optimizer = SGD(model.parameters())
    criterion = engaged(Regularizer(model, PENALTY, mode=mode), optimizer)
    for number, (x, y) in enumerate(micro_batches(), start=1):
        (criterion(model(x), y) / accumulate).backward()
        if number % accumulate == 0:
            clip_to(model, clip)
            optimizer.step()
            optimizer.zero_grad()
    return weights_of(model)


def lightning_module(mode: str) -> Any:
    import lightning

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_model()
            self.criterion = nn.MSELoss()
            if mode == "loss":
                self.criterion = Regularizer(self, PENALTY).penalize(self.criterion)

        def training_step(self, batch: Any) -> Tensor:
            x, y = batch
            return self.criterion(self.net(x), y)

        def validation_step(self, batch: Any) -> None:
            x, y = batch
            self.log("valid", self.criterion(self.net(x), y))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = SGD(self.parameters())
            if mode in STEP_MODES:
                Regularizer(self, PENALTY, mode=mode).attach(optimizer)
            return optimizer

    return Net()


def lightning_trainer(folder: Path, **options: Any) -> Any:
    import lightning

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        **{"accelerator": "cpu", "max_epochs": EPOCHS, "enable_checkpointing": False, **quiet, **options},
        default_root_dir=folder,
    )


def lightning(mode: str, accumulate: int, clip: float | None, folder: Path, **options: Any) -> Weights:
    pytest.importorskip("lightning")
    net = lightning_module(mode)
    trainer = lightning_trainer(folder, accumulate_grad_batches=accumulate, gradient_clip_val=clip, **options)
    trainer.fit(net, batches())
    return weights_of(net.net)


class Wrapped(nn.Module):
    """As a Hugging Face model: batches by name, and a dict with the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_model()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.mse_loss(logits, labels), "logits": logits}


def transformers_trainer(model: nn.Module, folder: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments: dict[str, Any] = {
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 32,
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch",
        "max_grad_norm": 0,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }
    loss = options.pop("compute_loss_func", None)
    optimizers = options.pop("optimizers", (None, None))
    examples = [{"x": x, "labels": y} for x, y in zip(*make_data(), strict=True)]
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(output_dir=str(folder), **{**arguments, **options}),
        train_dataset=examples,
        eval_dataset=examples,
        compute_loss_func=loss,
        optimizers=optimizers,
    )


def transformers(mode: str, accumulate: int, clip: float | None, folder: Path) -> Weights:
    model = Wrapped()
    options = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip or 0}
    if mode == "loss":
        criterion = Regularizer(model, PENALTY).penalize(
            lambda outputs, labels, num_items_in_batch=None: F.mse_loss(outputs["logits"], labels)
        )
        trainer = transformers_trainer(model, folder, compute_loss_func=criterion, **options)
        trainer.loss_is_scaled_for_ga = False  # a mean over a batch: else it counts once for each micro-batch
    else:
        trainer = transformers_trainer(model, folder, **options)
        Regularizer(model, PENALTY, mode=mode).attach(trainer.create_optimizer())
    trainer.train()
    return weights_of(model.net)


def accelerate(mode: str, accumulate: int, clip: float | None, folder: Path, scaler: Any = None) -> Weights:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    accelerator.scaler = scaler
    model = make_model()
    optimizer = SGD(model.parameters())
    criterion = engaged(Regularizer(model, PENALTY, mode=mode), optimizer)  # before prepare, which wraps the optimizer
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(criterion(model(x), y))
                if accelerator.sync_gradients and clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return weights_of(accelerator.unwrap_model(model))


def skorch_net(clip: float | None = None, **options: Any) -> Any:
    skorch = pytest.importorskip("skorch")
    from skorch.callbacks import GradientNormClipping

    callbacks = [] if clip is None else [GradientNormClipping(clip)]
    settings = {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9, "criterion": nn.MSELoss, **options}
    return skorch.NeuralNetRegressor(
        settings.pop("module", make_model),
        lr=LR,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        train_split=None,
        callbacks=callbacks,
        verbose=0,
        **settings,
    )


def skorch(mode: str, accumulate: int, clip: float | None, folder: Path) -> Weights:
    assert accumulate == 1  # it cannot
    if mode == "loss":
        model = make_model()
        net = skorch_net(clip, module=model, criterion=Regularizer(model, PENALTY).penalize(nn.MSELoss()))
    else:
        net = skorch_net(clip).initialize()
        Regularizer(net.module_, PENALTY, mode=mode).attach(net.optimizer_)
    net.partial_fit(*make_data())
    return weights_of(net.module_)


LOOPS = {
    "plain": (plain, SGD, (1, 2)),
    "Lightning": (lightning, SGD, (1, 2)),
    "transformers": (transformers, ADAM, (1, 2)),
    "accelerate": (accelerate, SGD, (1, 2)),
    "skorch": (skorch, SGD, (1,)),
}
each_loop = pytest.mark.parametrize(
    ("loop", "make_optimizer", "accumulate"),
    [
        pytest.param(loop, make_optimizer, accumulate, id=f"{name}-{accumulate}")
        for name, (loop, make_optimizer, steps) in LOOPS.items()
        for accumulate in steps
    ],
)
