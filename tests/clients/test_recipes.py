"""The recipes for trainers run as they stand there, and the lines that are marked are what makes the difference."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from tests.docs.pages import PAGES, Block, blocks
from torchreg import L1, Regularizer

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs

INPUTS, CLASSES, EXAMPLES, BATCH, EPOCHS = 20, 3, 32, 8, 10
STEPS = EPOCHS * EXAMPLES // BATCH
LR, STRENGTH = 1e-3, 0.1  # those of the recipes
RECIPES = [block for page in PAGES for block in blocks(page) if block.language == "diff"]
GIVEN = {"Regularizer": Regularizer, "L1": L1, "torch": torch}


class Net(nn.Linear):
    """As a Hugging Face model with labels, else as any other."""

    def __init__(self) -> None:
        super().__init__(INPUTS, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(x)
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def data() -> TensorDataset:
    draw = torch.Generator().manual_seed(5)
    return TensorDataset(
        torch.randn(EXAMPLES, INPUTS, generator=draw), torch.randint(CLASSES, (EXAMPLES,), generator=draw)
    )


def run_lightning(recipe: str, folder: Path) -> Tensor:
    lightning = pytest.importorskip("lightning")
    exec(recipe, names := dict(GIVEN))

    class Module(lightning.LightningModule):
        configure_optimizers = names["configure_optimizers"]

        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.net(x), y)

    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, enable_checkpointing=False, default_root_dir=folder, **quiet
    )
    trainer.fit(module, DataLoader(data(), batch_size=BATCH))
    return module.net.weight


def run_lightning_callback(recipe: str, folder: Path) -> Tensor:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=LR)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = partial(
        lightning.Trainer, accelerator="cpu", enable_checkpointing=False, default_root_dir=folder, **quiet
    )
    module = Module()
    exec(recipe, GIVEN | {"Trainer": trainer, "module": module, "loader": DataLoader(data(), batch_size=BATCH)})
    return module.net.weight


def run_transformers(recipe: str, folder: Path) -> Tensor:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "log_level": "error"}
    quiet |= {"lr_scheduler_type": "constant"}
    names = {
        "Trainer": transformers.Trainer,
        "args": transformers.TrainingArguments(
            output_dir=str(folder), num_train_epochs=EPOCHS, learning_rate=LR, use_cpu=True, **quiet
        ),
        "model": Net(),
        "data": [{"x": x, "labels": y} for x, y in data()],
    }
    exec(recipe, GIVEN | names)
    return names["model"].weight


def run_accelerate(recipe: str, folder: Path) -> Tensor:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Net()
    names = {
        "accelerator": accelerator,
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=LR),
        "loader": DataLoader(data(), batch_size=BATCH // 2),
    }
    exec(recipe, names := GIVEN | names)
    for _ in range(EPOCHS):
        for x, y in names["loader"]:
            with accelerator.accumulate(names["model"]):
                accelerator.backward(F.cross_entropy(names["model"](x), y))
                names["optimizer"].step()
                names["optimizer"].zero_grad()
    return model.weight


def run_accelerate_logged(recipe: str, folder: Path) -> Tensor:
    model = Net()
    names = {
        "accelerator": pytest.importorskip("accelerate").Accelerator(cpu=True),
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=LR),
        "loader": DataLoader(ConcatDataset([data()] * EPOCHS), batch_size=BATCH),
        "criterion": F.cross_entropy,
    }
    exec(recipe, GIVEN | names)
    return model.weight


def run_skorch(recipe: str, folder: Path) -> Tensor:
    skorch = pytest.importorskip("skorch")

    class Quiet(skorch.NeuralNetClassifier):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            ours = {"max_epochs": EPOCHS, "batch_size": BATCH, "train_split": None, "verbose": 0}
            super().__init__(*args, **{"criterion": nn.CrossEntropyLoss} | kwargs | ours)

    x, y = (column.numpy() for column in data().tensors)
    exec(recipe, names := GIVEN | {"NeuralNetClassifier": Quiet, "Net": Net, "x": x, "y": y})
    return names["net"].module_.weight


RUN = {  # by what tells that a recipe is theirs
    "configure_optimizers": run_lightning,
    "trainer.fit(": run_lightning_callback,
    "trainer.train()": run_transformers,
    "accelerator.backward": run_accelerate_logged,
    "accelerator.prepare": run_accelerate,
    "NeuralNetClassifier": run_skorch,
}

WITH_LOGS = {"Lightning": 1, "transformers": 1, "skorch": 1, "accelerate": 2}  # marked lines but for the import


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda block: block.place)
def test_a_recipe_shrinks_the_weights_by_its_marked_lines_and_counts_once_a_step(recipe: Block, tmp_path):
    run = next(run for sign, run in RUN.items() if sign in recipe.text)
    lines = [line or " " for line in recipe.text.splitlines()]

    def weight(marks: str) -> Tensor:
        torch.manual_seed(0)
        return run("\n".join(line[1:] for line in lines if line[0] in marks), tmp_path)

    shrinkage = weight(" ").abs().sum() - weight(" +").abs().sum()
    once = STEPS * LR * STRENGTH * INPUTS * CLASSES  # but for what Adam does to smaller weights
    assert shrinkage.item() == pytest.approx(once, rel=0.1)


def test_every_trainer_has_its_recipe_in_the_guide_with_as_few_marked_lines_as_can_be():
    recipes = [block.text for block in RECIPES if block.page.name == "trainers.md"]
    assert all(any(sign in recipe for recipe in recipes) for sign in RUN)
    marked = [[line for line in recipe.splitlines() if re.match(r"\+(?!from )", line)] for recipe in recipes]
    assert [len(lines) for lines in marked] == [1, 1, 1, 2, 1, *WITH_LOGS.values()]
    assert max(WITH_LOGS.values()) <= 2
