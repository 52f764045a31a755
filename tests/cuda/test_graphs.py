"""``train.compile``: steps that are replayed as CUDA graphs are those that are made one by one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

pytest.importorskip("pydantic")

import torchreg.nn
from experiments.running.study import run_study
from experiments.training import build
from experiments.training.graphs import Graphs
from experiments.training.loop import make_steps
from experiments.training.record import Record
from experiments.training.setup import set_up
from tests.cuda.test_loops import no_synchronization
from tests.cuda.test_studies import DEVICE, DROPOUT, made
from tests.helpers import assert_bit_equal, assert_close, assert_differs
from tests.integration.studies import arm, small, stopped_after

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # of Python 3.12, when a stream is read
]
EPOCHS = 6  # of 3 full batches and a smaller one: both are recorded in the fourth of their steps
TRAIN = {"epochs": EPOCHS, "batch_size": 30, "dtype": "float64"}
COMPILED = {"train": {"compile": True}}
STEPWISE = {"name": "ExponentialLR", "gamma": 0.9, "interval": "step"}
PENALTY = {"name": "L1", "strength": 0.01}


def trained(compile, members=1, **changes):
    """The setup after some epochs, with the losses of their steps."""
    changes["train"] = {**TRAIN, **changes.get("train", {}), "compile": compile}
    if members > 1:
        strengths = [0.001 * 4**i for i in range(members // 2)]
        study = small(seeds=[0, 1], arms=[{"name": "arm", "strengths": strengths, **changes}])
    else:
        study = arm(**changes)
    setup = set_up(study.runs, DEVICE, stacked=members > 1)
    losses = []
    for epoch in range(1, EPOCHS + 1):
        losses.append(make_steps(setup, setup.batches(), epoch))
        setup.end_epoch(epoch)
    return setup, torch.cat(losses)


def assert_same(tolerance=1e-5, recordings=2, **changes):
    (eager, expected), (compiled, losses) = (trained(compile, **changes) for compile in (False, True))
    assert len(compiled.graphs._recorded) == recordings
    assert_close(losses, expected, tolerance)
    assert_close(compiled.model.state_dict(), eager.model.state_dict(), tolerance)  # also the generators'


# -- the same steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [32]}, DROPOUT], ids=["plain", "dropout"])
def test_penalties_in_each_mode(mode, model):
    penalties = [
        {"penalty": name, "strength": strength, "mode": mode} for name, strength in (("L1", 1e-3), ("L2", 0.1))
    ]
    assert_same(model=model, regularizers=penalties)


@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [32]}, DROPOUT], ids=["plain", "dropout"])
def test_a_stack_of_eight(mode, model):
    assert_same(members=8, model=model, regularizers=[{"penalty": "L1", "mode": mode}])


OPTIMIZERS = {
    "SGD": {},
    "SGD, momentum": {"momentum": 0.9, "nesterov": True},
    "SGD, each alone": {"foreach": False, "momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {"weight_decay": 0.1},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9},
    "Rprop": {},
    "ASGD": {},
    "Adadelta": {},
    "SGDW": {"weight_decay": 0.1},
    "RMSpropW": {"weight_decay": 0.1},
    "AdamCPR": {},
    "ProxSGD": {"penalty": PENALTY, "momentum": 0.9},
    "ProxAdam": {"penalty": PENALTY},
}


@pytest.mark.parametrize("scheduler", [None, STEPWISE], ids=["constant", "a rate by steps"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, scheduler):
    settings = {"name": name.partition(",")[0], "lr": 1e-2, **OPTIMIZERS[name]}
    if scheduler is not None and "foreach" in settings:
        pytest.skip("its learning rate must be a number")
    assert_same(1e-4, optimizer=settings, scheduler=scheduler)


class Numbers(Dataset):
    """Vectors, which another thread puts into pinned memory while a step is recorded."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int):
        return torch.randn(4, generator=torch.Generator().manual_seed(i)), i % 2


ONE_CYCLE = {"name": "OneCycleLR", "max_lr": 0.02, "total_steps": 4 * EPOCHS, "cycle_momentum": False}
CASES = {
    "a rate by epochs": {"scheduler": {"name": "CosineAnnealingLR", "T_max": EPOCHS}},
    "one cycle": {"scheduler": {**ONE_CYCLE, "interval": "step"}},
    "batches in a step": {"train": {"accumulate": 2}},
    "clipped": {"train": {"clip_norm": 0.5, "clip_value": 0.1}},
    "EMA": {"train": {"average": {"name": "ema", "decay": 0.9}}},
    "SWA": {"train": {"average": {"name": "swa", "start": 2, "lr": 0.005, "anneal_epochs": 2}}},
    "single precision": {"train": {"dtype": "float32"}, "optimizer": {"name": "SGD", "lr": 0.05}},
    "DropConnect": {"model": {"name": "mlp", "hidden": [32], "wrap": {"name": "DropConnect", "p": 0.3}}},
    "VariationalDropout": {"model": {"name": "mlp", "hidden": [32], "wrap": {"name": "VariationalDropout"}}},
    "streamed": {"data": {"class": "tests.cuda.test_graphs:Numbers", "stream": True}, "train": {"batch_size": 10}},
    "convolutions": {"model": {"name": "cnn", "channels": [4, 8], "hidden": 16}},
}


@pytest.mark.parametrize("case", CASES)
def test_what_else_a_step_has(case):
    assert_same(**CASES[case])


def test_where_a_schedule_sets_a_number_the_step_is_recorded_again():
    changes = {"optimizer": {"name": "SGD", "lr": 0.05, "foreach": True}}
    assert_same(recordings=1, scheduler={"name": "ExponentialLR", "gamma": 0.5}, **changes, train={"batch_size": 25})


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.5}], ids=["", "clipped"])
def test_mixed_precision(clip):
    assert_same(1e-3, train={"dtype": "float32", "amp": True, **clip}, optimizer={"name": "SGD", "lr": 0.05})


@pytest.mark.parametrize("own", [False, True], ids=["torch's generator", "a generator"])
def test_masks_are_those_of_steps_without_graphs(own):
    results = []
    for compiled in (False, True):
        torch.manual_seed(3)
        layer = torchreg.nn.Dropout(0.3, generator=torch.Generator("cuda").manual_seed(3) if own else None)
        weight = nn.Parameter(torch.ones((), device="cuda"))
        graphs = Graphs(layer, torch.optim.SGD([weight], lr=0.1), DEVICE, rate_changes=False)

        def step(group, layer=layer):
            ((x, _),) = group
            return layer(x)

        batch = torch.ones(1 << 16, device="cuda"), torch.zeros(1, device="cuda")
        results.append([(graphs(step, [batch]) if compiled else step([batch])) for _ in range(8)])
    assert_bit_equal(results[1], results[0])
    for first, second in zip(results[1], results[1][1:], strict=False):
        assert_differs(first, second)
    assert abs((torch.stack(results[1]) == 0).double().mean().item() - 0.3) < 0.01


class LateGraph(torch.cuda.CUDAGraph):
    """Its stream is busy when it is recorded, as that of a device which others use is."""

    def capture_begin(self, *args, **options):
        torch.cuda._sleep(200_000_000)  # clock cycles: a tenth of a second
        super().capture_begin(*args, **options)


def test_the_first_replay_waits_for_the_recording(monkeypatch):
    """Torch sets the generator's place to 0 on the stream of the recording, before it begins."""

    monkeypatch.setattr(torch.cuda, "CUDAGraph", LateGraph)
    layer = torchreg.nn.Dropout(0.3, generator=torch.Generator("cuda"))
    graphs = Graphs(layer, torch.optim.SGD([nn.Parameter(torch.ones((), device="cuda"))]), DEVICE, rate_changes=False)
    ones = torch.ones(1 << 10, device="cuda")

    def masks(draw):
        layer.generator.manual_seed(3)
        return torch.stack([draw() for _ in range(8)])

    drawn = masks(lambda: graphs(lambda group: layer(group[0][0]), [(ones, ones)]))
    assert len(graphs._recorded) == 1
    assert_bit_equal(drawn, masks(lambda: layer(ones)))


# -- no synchronization -------------------------------------------------------------------------------------------

QUIET = {
    "one run": {"regularizers": [{"penalty": "L1", "strength": 0.01}, {"penalty": "L2", "strength": 0.01}]},
    "clipped, batches in a step": {"train": {"clip_norm": 0.5, "accumulate": 2}},
    "a stack": {"members": 8, "regularizers": [{"penalty": "L1"}]},
    "mixed precision": {"train": {"dtype": "float32", "amp": True}},
}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("case", QUIET)
def test_the_steps_of_an_epoch_wait_for_nothing(case, compile):
    scheduler = None if case == "a stack" else STEPWISE
    setup, _ = trained(compile, model=DROPOUT, scheduler=scheduler, **QUIET[case])
    batches = setup.batches()  # their order is drawn on the CPU, once an epoch
    with no_synchronization():
        losses = make_steps(setup, batches, EPOCHS + 1)
    assert losses.isfinite().all()


# -- checkpoints --------------------------------------------------------------------------------------------------


class WithTorchsDropout(nn.Sequential):
    """Draws from torch's generator of the device."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))


OWN = {"class": "tests.cuda.test_graphs:WithTorchsDropout"}
RESUMED = {
    "a stack": (True, {"model": DROPOUT, **COMPILED}),
    "alone": (False, {"model": DROPOUT, **COMPILED}),
    "alone, a rate by steps": (False, {"model": DROPOUT, "scheduler": STEPWISE, **COMPILED}),
    "torch's generator": (False, {"model": OWN, **COMPILED}),
    "torch's generator, without graphs": (False, {"model": OWN}),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_study_that_was_stopped_goes_on_with_the_same_bits(case, tmp_path):
    stack, changes = RESUMED[case]
    changes = {"regularizers": [{"penalty": "L1"}], **changes}
    whole = made(stack, tmp_path / "whole", changes)
    with stopped_after(2):
        made(stack, tmp_path / "resumed", changes)
    resumed = made(stack, tmp_path / "resumed", changes, resume=True)
    for run, expected in whole.items():
        assert_bit_equal(resumed[run]["weights"], expected["weights"])


@pytest.mark.parametrize("compile", [False, True], ids=["on without", "on with"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Adamax"])
def test_a_run_goes_on_with_or_without_graphs(optimizer, compile, tmp_path):
    """A checkpoint of the one is one of the other, although torch's counts of steps are on other devices."""

    def study(compile):
        train = {**TRAIN, "checkpoint_seconds": 0.0, "compile": compile}
        return arm(optimizer={"name": optimizer, "lr": 1e-2}, scheduler=STEPWISE, train=train)

    def weights(folder):
        (run,) = study(compile).runs
        return torch.load(folder / "runs" / run.folder / "checkpoint.pt", weights_only=True)["model"]

    run_study(study(False), tmp_path / "whole", DEVICE)
    with stopped_after(3):
        run_study(study(not compile), tmp_path / "resumed", DEVICE)
    run_study(study(compile), tmp_path / "resumed", DEVICE, resume=True)
    assert_close(weights(tmp_path / "resumed"), weights(tmp_path / "whole"), tolerance=1e-5)


# -- optimizers and memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adagrad", "AdagradW"])
def test_an_optimizer_that_is_fused_on_the_cpu_alone(name):
    setup, losses = trained(False, optimizer={"name": name, "lr": 1e-2})
    assert not setup.optimizer.defaults["fused"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", sorted(build._FUSED))
def test_a_fused_optimizer_is_the_one_that_is_not(name):
    """Studies fuse these unless an implementation is named."""
    settings = {"name": name, "lr": 1e-2, **({"penalty": PENALTY} if name.startswith("Prox") else {})}
    (fused, _), (plain, _) = (trained(False, optimizer=settings | also) for also in ({}, {"foreach": True}))
    assert fused.optimizer.defaults["fused"]
    assert not plain.optimizer.defaults["fused"]
    assert_close(fused.model.state_dict(), plain.model.state_dict(), tolerance=1e-6)


def in_expandable_segments():
    assert_same(model=DROPOUT, regularizers=[{"penalty": "L1", "strength": 0.01}])
    assert any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())


def with_a_model_that_waits():
    study = arm(model={"class": "tests.cuda.test_graphs:Waits"}, train={**TRAIN, "dtype": "float32", "compile": True})
    with tempfile.TemporaryDirectory() as folder:
        run_study(study, Path(folder), DEVICE)
        reason = Record(Path(folder) / "runs" / study.runs[0].folder).result["reason"]
    assert reason.startswith("train.compile: the step cannot be recorded (")
    assert reason.endswith("): set compile = false")


class Waits(nn.Sequential):
    """Reads a number from the device in each step."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return super().forward(x) * (1.0 if x.sum().item() > 0 else 2.0)


@pytest.mark.parametrize("function", [in_expandable_segments, with_a_model_that_waits])
def test_in_a_process_of_its_own(function):
    """The settings of memory are read once, and what cannot be recorded may leave the device unusable."""
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    code = f"from tests.cuda.test_graphs import {function.__name__}; {function.__name__}()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
