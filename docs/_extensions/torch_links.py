"""Links names of torch to its documentation, by the form of its addresses: no inventory is fetched."""

import importlib
import re
from types import ModuleType
from typing import Any

from docutils import nodes

_SITE = "https://docs.pytorch.org/docs/stable"
_PAGES = {  # what stands on the page of its module, not on one of its own
    "torch.Tensor": "tensors.html#torch.Tensor",
    "torch.device": "tensor_attributes.html#torch.device",
    "torch.dtype": "tensor_attributes.html#torch.dtype",
    "torch.optim.Optimizer": "optim.html#torch.optim.Optimizer",
    "torch.nn.functional": "nn.functional.html",
    "torch.nn": "nn.html",
    "torch.optim": "optim.html",
    "torch.func": "func.html",
    "torch.utils.data.DataLoader": "data.html#torch.utils.data.DataLoader",
    "torch.utils.checkpoint.checkpoint": "checkpoint.html#torch.utils.checkpoint.checkpoint",
    "torch.distributed.fsdp.fully_shard": "distributed.fsdp.fully_shard.html#torch.distributed.fsdp.fully_shard",
}
# What signatures show a type by, and its public name.
_PUBLIC = (
    (re.compile(r"^(Tensor|Generator)$"), r"torch.\1"),
    (re.compile(r"^torch\._C\.(Generator)$"), r"torch.\1"),
    (re.compile(r"^(?:nn|torch\.nn)\.Parameter$"), "torch.nn.parameter.Parameter"),
    (re.compile(r"^nn\.(\w+)$"), r"torch.nn.\1"),
    (re.compile(r"^torch\.nn\.modules\.\w+\.(\w+)$"), r"torch.nn.\1"),
    (re.compile(r"^(?:torch\.optim\.optimizer\.)?Optimizer$"), "torch.optim.Optimizer"),
)


def address(name: str) -> str | None:
    """Where torch's documentation describes that name; None for what is not torch's, or does not exist."""
    for inner, outer in _PUBLIC:
        name = inner.sub(outer, name)
    if name.split(".")[0] != "torch" or not _exists(name):
        return None
    if name in _PAGES:
        return f"{_SITE}/{_PAGES[name]}"
    owner = name.rpartition(".")[0]
    is_member = isinstance(_find(owner), type)
    return f"{_SITE}/generated/{owner if is_member else name}.html#{name}"


def _find(name: str) -> Any:
    """What has that full name."""
    module, *rest = name.split(".")
    found: Any = importlib.import_module(module)
    for part in rest:
        if isinstance(found, ModuleType) and not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


def _exists(name: str) -> bool:
    try:
        _find(name)
    except (AttributeError, ImportError):
        return False
    return True


def _link(app: Any, env: Any, node: Any, content: Any) -> nodes.reference | None:
    if node["refdomain"] != "py":
        return None
    target = address(node["reftarget"])
    if target is None:
        return None
    return nodes.reference("", "", content, internal=False, refuri=target, classes=["torch"])


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("missing-reference", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
