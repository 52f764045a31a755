"""Studies of dropout: wrapped layers, scheduled rates, learned rates, and how far they compress."""

from pathlib import Path

import pytest
import torch

from experiments import config
from experiments.errors import UserError
from experiments.report import summarize
from experiments.report.page import claims
from experiments.running.study import run_study
from experiments.training import build, data
from tests.helpers import assert_close
from tests.integration.studies import CPU, arm, outcome, small
from torchreg.nn import DropConnect, Gated

WRAPPED = {"ConcreteDropout": {}, "DropConnect": {"p": 0.5}, "HardConcrete": {"p": 0.2}, "VariationalDropout": {}}
DROPPED = {"dropout": {"name": "Dropout", "p": 0.5}}
COMPLEXITY = [{"penalty": "Complexity", "strength": 1e-2, "mode": "grad"}]


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("network", [{"name": "mlp", "hidden": [16]}, {"name": "cnn", "channels": [4], "hidden": 8}])
def test_every_layer_of_a_network_is_wrapped(name, network):
    options = WRAPPED[name] | ({"per_example": False} if name == "DropConnect" else {})
    run = arm(model={**network, "wrap": {"name": name, **options}}).runs[0]
    model = build.model(run.model, data.load(run.data, CPU))
    wrapped = [module for module in model.modules() if isinstance(module, (DropConnect, Gated))]
    assert len(wrapped) == (2 if network["name"] == "mlp" else 3)
    assert all(type(module).__name__ == name for module in wrapped)


@pytest.mark.parametrize("name", sorted(WRAPPED.keys() - {"DropConnect"}))
def test_what_has_learned_is_described_as_the_ordinary_layers_it_has_become(name, tmp_path):
    result = outcome(arm(model={"wrap": {"name": name, **WRAPPED[name]}}, regularizers=COMPLEXITY), tmp_path)
    assert set(result["norms"]) == {"linear1.weight", "output.weight"}


def test_rates_follow_the_schedule_and_go_on_where_they_were(tmp_path):
    off = outcome(arm(), tmp_path / "none")
    early = {"model": DROPPED, "dropout_schedule": {"name": "late", "steps": 1000}}
    assert outcome(arm(**early), tmp_path / "late")["sha256"] == off["sha256"]  # never on: the bits of none
    early["dropout_schedule"] = {"name": "early", "steps": 2}
    scheduled = outcome(arm(**early), tmp_path / "early")
    always = outcome(arm(model=DROPPED), tmp_path / "always")
    assert len({scheduled["sha256"], always["sha256"], off["sha256"]}) == 3


def test_a_learning_rate_schedule_may_begin_later():
    decay = {"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": 2}
    run = arm(scheduler={**decay, "after": 2}).runs[0]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    scheduler, _ = build.scheduler(run.scheduler, optimizer)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert_close(rates, [0.8, 0.8, 0.8, 0.4, 0.0])


def test_the_report_says_how_far_zeros_compress(tmp_path):
    sparse = {"model": {"wrap": {"name": "VariationalDropout"}}, "regularizers": [{**COMPLEXITY[0], "strength": 10.0}]}
    arms = [{"name": "none"}, {"name": "sparse", **sparse, "train": {"epochs": 30}}]
    run_study(small(arms=arms), tmp_path, CPU)
    summary = summarize(tmp_path)
    told = [claim for claim in claims(summary) if claim.title.startswith("Compression")]
    assert summary.cells[1].mean("zeros").mean > 0.9
    assert len(told) == 1
    assert told[0].evidence.startswith("sparse ")
    assert summary.cells[0].compression == "1x / 1x / 1x / 4,840 bytes"  # of 64 * 16 + 16 * 10 weights, 26 biases
    assert summary.cells[1].differs_only_by_regularization(summary.cells[0]) is False  # it trained for longer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"wrap": {"name": "Dropout"}}}, "model.wrap.name: unknown name 'Dropout'"),
        ({"model": {"wrap": {"name": "DropConnect", "q": 1}}}, "model.wrap.q: unknown key"),
        ({"model": {"wrap": {"name": "DropConnect", "p": 2.0}}}, "model.wrap: DropConnect.* cannot be made"),
        ({"dropout_schedule": {"name": "early", "steps": 1}}, "dropout_schedule: .* must have dropout layers"),
        ({"dropout_schedule": {"name": "sudden"}}, "dropout_schedule.name: unknown name 'sudden'"),
        ({"regularizers": COMPLEXITY}, r"regularizers.0: .*not learned to drop"),
    ],
)
def test_what_is_wrong_names_its_key(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        outcome(arm(**changes), tmp_path)


def test_shipped_studies_of_dropout_and_zeros_load():
    for name in ("mnist/dropout_family", "published/dropout", "published/sparse_vd", "published/lenet_bytes"):
        assert config.load(Path(f"configs/{name}.toml")).runs


def test_the_initial_weights_may_be_normal_and_leave_the_noise_levels_alone():
    init = {"name": "normal_", "std": 0.01}
    run = arm(model={"hidden": [200], "init": init, "wrap": {"name": "VariationalDropout", "train_clip": True}}).runs[0]
    layer = build.model(run.model, data.load(run.data, CPU)).linear1
    assert layer.train_clip
    assert layer.layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not layer.layer.bias.any()
    assert (layer.log_sigma2 == -10).all()
