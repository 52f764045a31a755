"""Studies by torchrun on the device: a group of one process trains as a plain one does, by NCCL."""

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("pydantic")

from experiments.running.study import run_study
from experiments.training.record import Record
from tests.integration.studies import small

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not (dist.is_available() and dist.is_nccl_available()), reason="needs a torch with NCCL"),
]
DEVICE = torch.device("cuda", 0)
PENALTY = [{"penalty": "L1", "strength": 1e-3, "mode": "loss"}, {"penalty": "L2", "strength": 1e-2, "mode": "grad"}]
STUDIES = {
    "two penalties": ({"dtype": "float64"}, {"regularizers": PENALTY}, 1e-6),
    "accumulated and clipped": ({"dtype": "float64", "accumulate": 2, "clip_norm": 0.5}, {}, 1e-6),
    "tuned": (
        {"dtype": "float64"},
        {"regularizers": [{"penalty": "L2", "strength": 1e-2, "mode": "decoupled"}], "auto_strength": {}},
        1e-6,
    ),
    "half precision": ({"amp": True}, {"regularizers": PENALTY}, 1e-2),
    "sharded": ({"dtype": "float64", "shard": "fsdp2"}, {"regularizers": PENALTY}, 1e-6),
}


@pytest.fixture
def group():
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("train", "changes", "tolerance"), STUDIES.values(), ids=STUDIES)
def test_a_run_is_that_of_a_plain_process(train, changes, tolerance, tmp_path, request):
    study = small(
        train={"epochs": 3, "batch_size": 30, "checkpoint_seconds": 0.0, **train}, arms=[{"name": "arm", **changes}]
    )

    def trained(folder):
        assert run_study(study, folder, DEVICE) == []
        record = Record(folder / "runs" / study.runs[0].folder)
        return torch.load(record.folder / "checkpoint.pt", weights_only=True)["model"], record

    plain, _ = trained(tmp_path / "plain")
    request.getfixturevalue("group")
    ours, record = trained(tmp_path / "ours")
    torch.testing.assert_close(dict(ours), dict(plain), rtol=0, atol=tolerance)
    assert record.result["status"] == "done"
