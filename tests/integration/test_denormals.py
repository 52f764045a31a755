"""Numbers below the normal range of a float count as 0 in every process and thread of a study."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
STUDY = """
name = "small"
data = { name = "digits", train_size = 100, valid_size = 100 }
model = { class = "probe:Probe" }
optimizer = { name = "SGD", lr = 0.1 }
train = { epochs = 1, batch_size = 25 }
arms = [{ name = "none" }]
"""
PROBE = """
import torch
from torch import nn

class Probe(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        assert not (torch.full((1 << 20,), 1e-40) * 1.5).any()  # of each thread's part
        return super().forward(x)
"""
pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot count them as 0")


@pytest.mark.parametrize("options", [(), ("--jobs", "2")], ids=["local", "processes"])
def test_they_are_0_in_all_threads(options, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "probe.py").write_text(PROBE)
    around = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "experiments", "run", "study.toml", "--device", "cpu", *options]
    done = subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_command_leaves_them_as_they_were(experiments):
    assert experiments("--version")[0] == 0
    assert (torch.full((1,), 1e-40) * 1.5).any()
