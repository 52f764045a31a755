"""THE training loop, in the order of execution."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import torchreg
from experiments import build, data
from experiments.config import Run
from experiments.progress import Progress
from experiments.record import Record, Row

_EVALUATED_AT_ONCE = 4096  # images; bounds the memory an evaluation takes
_HISTOGRAM_EDGES = torch.linspace(-6, 1, 71)  # of log10 |w|


def train(run: Run, device: torch.device, record: Record) -> Row:
    """Trains one run, from its checkpoint if it has one, and returns the result it recorded.

    On the CPU a run that was killed and resumed ends with the bits of one that was not, given the same number of
    threads: a checkpoint holds the whole state, down to the random generators.
    """
    images = data.load(run.data, device)
    torch.manual_seed(run.seed)
    model = build.model(run.model, images).to(device)
    optimizer = build.optimizer(run.optimizer, model)
    scheduler, each_step = build.scheduler(run.scheduler, optimizer)
    regularizers = build.regularizers(run, model, optimizer)
    in_loss = [regularizer for regularizer in regularizers if regularizer.mode == "loss"]
    scaler = torch.amp.GradScaler(device.type, enabled=run.train.amp and device.type == "cuda")
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    shuffle = torch.Generator().manual_seed(run.seed)

    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    parts |= {f"regularizers.{i}": regularizer for i, regularizer in enumerate(regularizers)}
    progress = Progress(run, parts, shuffle, record)
    progress.restore(record.begin(run, device))

    x, y = images.train.x, images.train.y
    steps = -(-len(y) // run.train.batch_size)
    bar = tqdm(total=run.train.epochs, initial=progress.epoch, desc=run.folder, leave=False, disable=None)
    while not progress.is_over:
        model.train()
        losses = torch.empty(steps, device=device)
        order = torch.randperm(len(y), generator=shuffle).to(device)
        for step, batch in enumerate(order.split(run.train.batch_size)):
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=half, enabled=run.train.amp):
                loss = cross_entropy(model(x[batch]), y[batch])
            for regularizer in in_loss:
                loss = loss + regularizer.value()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[step] = loss.detach()  # read once an epoch, so that no step waits for the device
            if scheduler is not None and each_step:
                scheduler.step()
        if scheduler is not None and not each_step:
            scheduler.step()

        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            first = int(broken[0])
            return progress.diverged(step=progress.epoch * steps + first + 1, loss=losses[first].item())
        progress.advance({**evaluate(model, images), "penalty": penalties(regularizers)})
        bar.update()
    bar.close()
    return progress.finish(describe)


def evaluate(model: nn.Module, images: data.Images) -> Row:
    """Mean loss and error rate on the training, validation and test images, in evaluation mode, without penalties."""
    splits = {"train": images.train, "valid": images.valid, "test": images.test}
    figures = torch.stack([_loss_and_error(model, split) for split in splits.values()]).tolist()
    row: Row = {}
    for name, (loss, error) in zip(splits, figures, strict=True):
        row |= {f"{name}_loss": loss, f"{name}_error": error}
    return row


@torch.no_grad()
def _loss_and_error(model: nn.Module, split: data.Split) -> Tensor:
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=split.y.device)
    for x, y in zip(split.x.split(_EVALUATED_AT_ONCE), split.y.split(_EVALUATED_AT_ONCE), strict=True):
        outputs = model(x)
        totals += torch.stack([cross_entropy(outputs, y, reduction="sum"), (outputs.argmax(1) != y).sum()])
    return totals / len(split)


@torch.no_grad()
def penalties(regularizers: list[torchreg.Regularizer]) -> dict[str, float]:
    """The penalties' values, by kind, whatever mode they act in."""
    totals: dict[str, float] = {}
    for regularizer in regularizers:
        for kind, value in regularizer.terms().items():
            totals[kind] = totals.get(kind, 0.0) + value.item()
    return totals


@torch.no_grad()
def describe(model: nn.Module) -> Row:
    """What training made of the weights: norms, zeros, a histogram, and a digest that tells any two bits apart."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    weights = torch.cat([w.detach().flatten().float().cpu() for w in torchreg.diagnostics.weights_of(model).values()])
    counts, _ = torch.histogram(weights.abs().log10(), _HISTOGRAM_EDGES)
    return {
        "norms": torchreg.diagnostics.norms(model),
        "sparsity": torchreg.diagnostics.sparsity(model),
        "zeros": 1 - weights.count_nonzero().item() / len(weights),
        "histogram": {"edges": _HISTOGRAM_EDGES.tolist(), "shares": (counts / len(weights)).tolist()},
        "sha256": digest.hexdigest(),
    }
