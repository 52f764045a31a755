"""What several processes train as one process does; they are started as torchrun starts them, but as forks."""

import faulthandler
import json
import os
import socket
from collections.abc import Iterator
from itertools import cycle
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from experiments import config
from experiments.config import Run, resolve
from experiments.errors import oneline
from experiments.training import build, ranks
from experiments.training.loop import train
from experiments.training.record import Record
from experiments.training.setup import set_up
from tests.cases import MODES
from tests.integration.studies import CPU, FORKS, speak_into, stopped_after
from torchreg import ProximalPenalty
from torchreg.nn import Dropout

LIMIT = 240  # seconds, beside those of the cases, until a process ends itself, whoever has forgotten it
SETTINGS: dict[str, Any] = {
    "data": {"name": "wine", "train_size": 20, "valid_size": 20},  # the last batch has 2: of 3 processes one has none
    "model": {"name": "mlp", "hidden": [6]},
    "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9},
    "train": {"epochs": 3, "batch_size": 6, "dtype": "float64", "checkpoint_seconds": 0.0},
}
KINDS: dict[str, dict[str, Any]] = {
    name: {"strength": 0.02}
    for name in build.PENALTIES
    if name
    not in ("Complexity", "Confidence", "ConvolutionNorm", "KLSparsity", "LassoNet", "ZLoss")  # of other networks
}
KINDS["Lp"]["p"], KINDS["SpectralNorm"]["strength"] = 0.5, 0.1
KINDS |= {name: {"radius": 0.5} for name in ("L1Ball", "L2Ball", "LinfBall")}
KINDS |= {"MaxNorm": {"max_norm": 0.5}, "NonNegative": {}, "Simplex": {}, "UnitNorm": {}}
KINDS |= {"Box": {"low": -0.1}, "Sparsest": {"share": 0.5, "together": True}, "NofM": {"n": 1, "m": 1}}
KINDS |= {"Rank": {"rank": 1}}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": SETTINGS["optimizer"],
    "AdamW": {"name": "AdamW", "lr": 0.02},
    "RMSprop": {"name": "RMSprop", "lr": 0.01},
}


def modes_of(kind: str) -> list[str]:
    if kind in build.CONSTRAINTS:
        return ["prox"]
    return [mode for mode in MODES if mode != "prox" or issubclass(build.PENALTIES[kind], ProximalPenalty)]


def penalized(kind: str, mode: str, **changes: Any) -> dict[str, Any]:
    given = {} if kind in build.CONSTRAINTS else {"mode": mode}
    return {"regularizers": [{"penalty": kind, **KINDS[kind], **given}], **changes}


ROW = ("kind", "mode", "optimizer", "is_sharded")
SHORT = {"epochs": 2, "checkpoint_seconds": 60.0}  # of which a table of hundreds of trainings is made


def name_of(kind: str, mode: str, optimizer: str, is_sharded: bool) -> str:
    return f"{kind}-{mode}-{optimizer}" + (", sharded" if is_sharded else "")


def rows() -> Iterator[tuple[str, str, str, bool]]:
    """Each penalty, mode and optimizer; of the optimizers, sharded weights take one after another."""
    turns = cycle(OPTIMIZERS)
    for kind in KINDS:
        for mode in modes_of(kind):
            yield from ((kind, mode, optimizer, False) for optimizer in OPTIMIZERS)
            yield kind, mode, next(turns), True


TABLE = {name_of(*row): row for row in rows()}
SHARD = {"shard": "fsdp2"}
L2: dict[str, Any] = {"penalty": "L2", "strength": 0.05}
PROX: dict[str, Any] = {"name": "ProxAdam", "lr": 0.02, "penalty": {"name": "L1", "strength": 0.05}}
LOOPS: dict[str, dict[str, Any]] = {
    "uneven shares": {"data": {"train_size": 21}},
    "accumulated": penalized("L1", "loss", train={"accumulate": 2}),
    "clipped": penalized("L1", "loss", train={"clip_norm": 0.2, "clip_value": 0.05}),
    "clipped and accumulated": penalized("L1", "prox", train={"accumulate": 2, "clip_norm": 0.2}),
    "a schedule in every mode": {
        "regularizers": [
            {**L2, "penalty": "L1", "mode": mode, "schedule": {"name": "cosine", "steps": 9}} for mode in MODES
        ]
    },
    "learning rates": {"scheduler": {"name": "CosineAnnealingLR", "T_max": 12, "interval": "step"}},
    "a target of zeros": {"optimizer": PROX, "sparsity": {"target": 0.8, "fix_at": 0.6}},
    "tuned strengths": {
        "regularizers": [{**L2, "mode": "decoupled"}],
        "auto_strength": {"lr": 0.2, "per": "parameter", "batch_size": 8},
    },
    "early stopping": {
        "train": {"epochs": 9, "early_stopping": {"patience": 1}},
        "optimizer": {"name": "SGD", "lr": 2.0},
    },
    "an exponential average": {"train": {"average": {"name": "ema", "decay": 0.9}}},
    "a stochastic average": {"train": {"average": {"name": "swa", "start": 1, "lr": 0.05}}},
    "activities": {"regularizers": [{"activity": "L1", "modules": "*", "strength": 0.01}], "data": {"train_size": 21}},
    "weights of classes": {"train": {"loss": {"name": "CrossEntropyLoss", "weight": [1.0, 2.0, 4.0]}}},
    "weights of classes, accumulated": {
        "train": {"accumulate": 2, "loss": {"name": "CrossEntropyLoss", "weight": [1.0, 2.0, 4.0]}}
    },
    "metrics": {"train": {"metrics": ["Accuracy", "AUROC", "F1Score"]}},
    "a regression": {"data": {"name": "diabetes"}},
    "solved": {
        "data": {"name": "diabetes"},
        "model": {"freeze": ["linear1.*"]},
        "train": {"solve": True, "epochs": 1},
        "regularizers": [{"penalty": "L2", "strength": 0.1, "select": "output.weight"}],
    },
    "a frozen layer": {"model": {"freeze": ["linear1.*"]}},
    "diverged": {"optimizer": {"name": "SGD", "lr": 1e200}},
}
NOT_SHARDED = {"tuned strengths", "solved", "a target of zeros", "an exponential average", "a stochastic average"}
STOPPED = {  # after their second epoch, to be gone on with by one process
    f"{kind} stopped{how}": penalized(kind, mode, optimizer=OPTIMIZERS["AdamW"], train=train)
    for how, train in {"": {}, ", sharded": SHARD}.items()
    for kind, mode in {"L1": "prox", "L2SP": "grad"}.items()
}
CONTINUED = {f"{name}, continued": changes for name, changes in STOPPED.items()}  # of which one process made two epochs
CASES: dict[str, dict[str, Any]] = {
    **{
        name: penalized(kind, mode, optimizer=OPTIMIZERS[optimizer], train=SHORT | (SHARD if is_sharded else {}))
        for name, (kind, mode, optimizer, is_sharded) in TABLE.items()
    },
    **LOOPS,
    **{
        f"{name}, sharded": {**changes, "train": {**changes.get("train", {}), **SHARD}}
        for name, changes in LOOPS.items()
        if name not in NOT_SHARDED
    },
    **STOPPED,
    **CONTINUED,
}


def limit_of(names: list[str]) -> float:
    """The seconds until a process that trains these cases ends itself."""
    return LIMIT + 2.0 * len(names)


def run_of(name: str) -> Run:
    tree = {key: {**value, **CASES[name].get(key, {})} for key, value in SETTINGS.items()}
    if "name" in CASES[name].get("optimizer", {}):
        tree["optimizer"] = CASES[name]["optimizer"]
    (run,) = resolve({"name": "small", **CASES[name], **tree, "arms": [{"name": "arm"}]}).runs
    return run


def trained(name: str, folder: Path, stops: bool = False) -> str:
    """Trains a case; returns why it failed, if it did."""
    run = run_of(name)
    try:
        if stops:
            with stopped_after(2):
                train(run, CPU, Record(folder / name / run.folder, run))
        else:
            train(run, CPU, Record(folder / name / run.folder, run))
    except Exception as error:
        return oneline(error)
    return ""


def drawn() -> dict[int, list[list[float]]]:
    """What each process draws in an epoch: from torch's generator, and for a dropout layer."""
    dropout = {"name": "mlp", "hidden": [6], "dropout": {"name": "Dropout", "p": 0.5}}
    setup = set_up([run_of("L1 stopped").model_copy(update={"model": config.Model(**dropout)})], CPU)
    numbers: dict[int, list[list[float]]] = {}
    for epoch in (1, 2, 3):
        setup.begin_epoch(epoch)
        layers = [module for module in setup.model.modules() if isinstance(module, Dropout)]
        own = torch.cat([torch.rand(5), *(torch.rand(5, generator=layer.generator) for layer in layers)])
        found = [torch.empty_like(own) for _ in range(ranks.count())]
        dist.all_gather(found, own)
        numbers[epoch] = torch.stack(found).tolist()
    return numbers


def held() -> tuple[int, int]:
    """How many weights the first process holds of a sharded network, and how many there are."""
    params = list(set_up([run_of("L1 stopped, sharded")], CPU).model.parameters())
    return sum(param.to_local().numel() for param in params), sum(param.numel() for param in params)


def started(count: int, folder: Path, names: list[str]) -> list[BaseProcess]:
    """So many processes, which train these cases, each in the folder of its name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    made = []
    for rank in range(count):
        given = {"TORCHELASTIC_RUN_ID": "none", "RANK": rank, "LOCAL_RANK": rank, **of_all}
        made.append(
            FORKS.Process(target=_main, args=(folder, names, {key: str(value) for key, value in given.items()}))
        )
        made[-1].start()
    return made


def _main(folder: Path, names: list[str], environment: dict[str, object]) -> None:
    os.environ.update({key: str(value) for key, value in environment.items()})
    speak_into(folder / f"{environment['RANK']}.log")
    faulthandler.dump_traceback_later(limit_of(names), exit=True)
    torch.set_num_threads(1)
    ranks.listen()
    with ranks.begun(CPU):
        for name in names:
            fault = trained(name, folder, stops=name in STOPPED)
            if ranks.number() == 0:
                with (folder / "results.jsonl").open("a") as file:
                    file.write(json.dumps({"case": name, "fault": fault}) + "\n")
        facts = {"drawn": drawn(), "held": held()}
        if ranks.number() == 0:
            (folder / "facts.json").write_text(json.dumps(facts))
    ranks.leave(0)
