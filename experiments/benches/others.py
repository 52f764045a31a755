"""The same epoch with other libraries."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ..training.data import Split
from .steps import BATCH, L1_STRENGTH, L2_STRENGTH


class DataLoaderLoop:
    """A DataLoader over torchvision's data set with its transforms, as in PyTorch's MNIST example."""

    def __init__(self, net: nn.Module) -> None:
        from torchvision import datasets, transforms

        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        images = datasets.MNIST(Path(os.environ.get("TORCHREG_DATA") or "data"), transform=transform, download=True)
        images.data, images.targets = images.data[:55_000], images.targets[:55_000]  # as many as the others
        self.batches = DataLoader(images, batch_size=BATCH, shuffle=True)
        self.net = nn.Sequential(nn.Flatten(), net)
        self.optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0, fused=True)

    def __call__(self) -> None:
        self.net.train()
        losses = []
        for x, y in self.batches:
            self.optimizer.zero_grad()
            loss = cross_entropy(self.net(x), y)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        self.loss = torch.stack(losses).mean().item()


class LightningLoop:
    """Lightning's Trainer without logger, checkpoints and progress bar."""

    def __init__(self, net: nn.Module, split: Split) -> None:
        import lightning

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        weights = [p for p in net.parameters() if p.ndim > 1]

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Flatten(), net)
                self.losses: list[Tensor] = []

            def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
                loss = cross_entropy(self.net(batch[0]), batch[1])
                self.losses.append(loss.detach())
                for w in weights:
                    loss = loss + L1_STRENGTH * w.abs().sum() + 0.5 * L2_STRENGTH * (w**2).sum()
                return loss

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.AdamW(self.parameters(), weight_decay=0, fused=True)

        self.module = Module()
        self.batches = DataLoader(TensorDataset(split.x.clone(), split.y), batch_size=BATCH, shuffle=True)
        self.trainer: Any = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, barebones=False,
        )  # fmt: skip

    def __call__(self) -> None:
        self.module.losses = []
        self.trainer.fit_loop.max_epochs = self.trainer.current_epoch + 1
        self.trainer.fit(self.module, self.batches)
        self.loss = torch.stack(self.module.losses).mean().item()


class KerasLoop:
    """Keras' compiled fit on JAX, with arrays in memory."""

    def __init__(self, widths: Sequence[int], split: Split) -> None:
        os.environ["KERAS_BACKEND"] = "jax"
        import keras

        if keras.backend.backend() != "jax":
            raise RuntimeError(f"bench: Keras must run on JAX, runs on {keras.backend.backend()}")
        keras.utils.set_random_seed(0)
        layers: list[Any] = [keras.Input((widths[0],)), keras.layers.Dropout(0.2)]
        for width in widths[1:-1]:
            regularizer = keras.regularizers.L1L2(L1_STRENGTH, L2_STRENGTH / 2)
            layers += [keras.layers.Dense(width, "relu", kernel_regularizer=regularizer), keras.layers.Dropout(0.5)]
        regularizer = keras.regularizers.L1L2(L1_STRENGTH, L2_STRENGTH / 2)
        self.model = keras.Sequential([*layers, keras.layers.Dense(widths[-1], kernel_regularizer=regularizer)])
        self.model.compile(
            keras.optimizers.AdamW(1e-3, weight_decay=0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        self.x, self.y = split.x.clone().flatten(1).numpy(), split.y.numpy()

    def __call__(self) -> None:
        self.loss = self.model.fit(self.x, self.y, batch_size=BATCH, epochs=1, verbose=0).history["loss"][0]
