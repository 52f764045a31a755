"""What holds for every test: one seed, one thread, and a reason for each test that this machine cannot run."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest
import torch

TRAINERS = ("accelerate", "lightning", "skorch", "transformers")
INTEGRATIONS = Path(__file__).parents[1] / "torchreg" / "integrations"

pytest_plugins = ["tests.representatives"]
pytest.register_assert_rewrite("tests.helpers")

# The tensors are tiny: on a busy machine threads that wait for each other take 50 times as long.
torch.set_num_threads(1)

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def compiles_anew():
    """No file of tests gets near the compiler's limit of versions because of the files before it."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def counter():
    """A compiler that runs what it is given as it is, and counts how often it was given something."""
    from torch._dynamo.testing import CompileCounter  # takes a second

    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.fixture
def no_compiler(monkeypatch):
    """A machine where torch.compile fails at the first call of what it made."""

    def compile(function, **options):
        def call(*args):
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", compile)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tests that name no device make their tensors")


def pytest_configure(config):
    if config.getoption("--device") != "cpu":
        torch.set_default_device(config.getoption("--device"))
    if "TORCHREG_CONFORMANCE" in os.environ:
        from tests.conformance import Conformance

        config.pluginmanager.register(Conformance(Path(os.environ["TORCHREG_CONFORMANCE"])))
    # Examples in modules that import a trainer, where it is missing.
    missing = [file for file in INTEGRATIONS.glob("*.py") if file.stem in TRAINERS and find_spec(file.stem) is None]
    config.option.ignore = [*(config.option.ignore or []), *map(str, missing)]


def pytest_collection_modifyitems(items):
    mnist = Path(os.environ.get("TORCHREG_DATA", "data")) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    lacking = {}
    if not mnist.exists():
        lacking["mnist"] = "needs MNIST: set TORCHREG_DATA to a folder that holds MNIST/raw"
    if not torch.cuda.is_available():
        lacking["cuda"] = "needs a CUDA device"
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # a CPU-only torch beside the package index's torchvision
        lacking["torchvision"] = lacking["mnist"] = f"needs a torchvision that imports beside this torch ({error})"
    for item in items:
        for marker, reason in lacking.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
