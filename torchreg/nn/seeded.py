"""The base class of all layers: its random generator, and how tracers see it."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn
from torch.fx import Proxy

from torchreg import functional as f


class Seeded(nn.Module):
    """A layer that can have its own random generator.

    If it has one, the ``state_dict`` contains the generator's state as ``generator``. A checkpoint without it can be
    loaded too; a checkpoint with it needs a layer with a generator.

    In a graph of ``torch.fx`` the layer is one node, as torch's own layers are, so that ``train()`` and ``eval()`` act
    on it after the tracing too.
    """

    generator: f.Source = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args or type(args[0]) is not Tensor:  # the most frequent call costs one comparison
            first = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(first, Proxy):
                return _as_one_node(self, first, args, kwargs)
        return super().__call__(*args, **kwargs)

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuses ``torch.jit.script``, whose own message is a page long."""
        raise TypeError(
            f"{type(self).__name__}: torch.jit.script compiles only torch's own layers: script a model without "
            "torchreg's (undo() of a replacement, pruned(model)), or use torch.jit.trace, torch.export or torch.compile"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.generator is not None:
            destination[f"{prefix}generator"] = self.generator.get_state()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        unexpected, key = args[3], f"{prefix}generator"
        if self.generator is not None and key in state_dict:
            self.generator.set_state(state_dict[key].cpu())
            if key in unexpected:
                unexpected.remove(key)

    def _check_generator(self, x: Tensor) -> None:
        if self.generator is not None:
            f.check_generator(type(self).__name__, self.generator, x.device)


def _as_one_node(layer: nn.Module, proxy: Proxy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The node of a layer that a tracer would otherwise look into; tracers that name their nodes see the call."""
    tracer: Any = proxy.tracer

    def node(*args: Any, **kwargs: Any) -> Any:
        return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, kwargs)

    return tracer.call_module(layer, node, args, kwargs)
