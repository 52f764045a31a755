"""Names of torch lead to the pages of its documentation."""

import importlib.util

import pytest

from tests.docs.pages import ROOT

pytest.importorskip("docutils")  # of the extra docs
spec = importlib.util.spec_from_file_location("torch_links", ROOT / "docs" / "_extensions" / "torch_links.py")
torch_links = importlib.util.module_from_spec(spec)
spec.loader.exec_module(torch_links)


@pytest.mark.parametrize(
    ("name", "page"),
    {
        "torch.optim.Adam": "generated/torch.optim.Adam.html#torch.optim.Adam",
        "torch.nn.Module.train": "generated/torch.nn.Module.html#torch.nn.Module.train",
        "torch.nn.modules.linear.Linear": "generated/torch.nn.Linear.html#torch.nn.Linear",
        "torch.compile": "generated/torch.compile.html#torch.compile",
        "torch._C.Generator": "generated/torch.Generator.html#torch.Generator",
        "Tensor": "tensors.html#torch.Tensor",
        "torch.optim.optimizer.Optimizer": "optim.html#torch.optim.Optimizer",
    }.items(),
)
def test_a_name_of_torch_has_an_address(name, page):
    assert torch_links.address(name) == f"https://docs.pytorch.org/docs/stable/{page}"


@pytest.mark.parametrize("name", ["torch.optim.Adamm", "torchreg.L1", "int", "", "torch.nn.Module.trains"])
def test_other_names_have_none(name):
    assert torch_links.address(name) is None
