"""Finding the modules of a model that drop in their own code, in one forward pass that is watched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchreg.nn.model.rates import (
    LAYERS,
    held_by,
    is_idle,
    is_torchs,
    layers_in,
    others_numbers,
    shown,
    torchs_numbers,
)
from torchreg.selection.modules import listed

_DROPOUT = {
    torch.dropout,
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
}
_RANDOM = ("rand", "bernoulli", "uniform", "normal", "exponential", "multinomial")


class Watch(TorchFunctionMode):
    """What the modules of a model do themselves in a forward pass, apart from the modules they call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.called: set[nn.Module] = set()
        self.drops: set[nn.Module] = set()  # drew random numbers
        self.is_off: set[nn.Module] = set()  # called dropout or attention that drops nothing in evaluation mode
        self.draws: dict[nn.Module, list[torch.Size]] = {}  # the shapes of other random numbers
        self._stack: list[nn.Module] = []
        self._model = model

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self._model.modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                stack.callback(module.register_forward_pre_hook(self._begin).remove)
                stack.callback(module.register_forward_hook(self._end, always_call=True).remove)
            self._begin(self._model, ())  # whose forward is called
            stack.enter_context(self)
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        here, name = self._stack[-1], getattr(func, "__name__", "")
        if func in _DROPOUT:
            rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
            if rate:
                (self.drops if training else self.is_off).add(here)
        elif func is F.scaled_dot_product_attention:
            rate = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
            (self.drops if rate else self.is_off).add(here)
        elif name.startswith(_RANDOM) and isinstance(output, Tensor):
            self.drops.add(here)
            self.draws.setdefault(here, []).append(output.shape)
        return output

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.called.add(module)
        self._stack.append(module)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()


class Search:
    """The modules that are in training mode so that the model drops, found in its first forward pass.

    Layers are known before. A module that drops in its own code does so by its own ``training``: it calls functions,
    or reads the rate of a layer that it never calls, as fused attention does. Such a module is put into training mode
    (it alone, not those in it), and stays there if it then draws random numbers and changes no buffers.
    """

    def __init__(self, model: nn.Module, on: set[nn.Module]) -> None:
        self.model = model
        self.on = on
        self.is_done = False
        self.shares_draws = False  # whether the examples of a batch may share random numbers of modules of others
        self.silent: list[str] = []  # the layers and numbers that drop nothing
        self._names = {module: name or "the model" for name, module in model.named_modules()}

    @contextmanager
    def in_first_pass(self) -> Iterator[None]:
        """Replaces the model's ``forward`` until its first call."""
        own, forward = vars(self.model).get("forward"), self.model.forward

        def restore() -> None:
            if vars(self.model).get("forward") is first:
                del self.model.forward
                if own is not None:
                    self.model.forward = own

        def first(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return forward(*args, **kwargs)
            restore()
            self.is_done = True
            return self._run(forward, args, kwargs)

        self.model.forward = first
        try:
            yield
        finally:
            restore()

    def _run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen, output = self._watched(forward, args, kwargs)
        acting = self._tried(self._candidates(seen), seen, forward, args if kwargs else _some(args), kwargs)
        if acting:
            self.on |= acting
            _switch(acting, True)
            seen, output = self._watched(forward, args, kwargs)
        self._conclude(seen, len(args[0]) if args and isinstance(args[0], Tensor) and args[0].ndim else 0)
        if not (seen.drops or self.silent) and all(map(is_idle, self.on)):
            raise ValueError(f"{lacks_dropout(self.model)}, and its forward pass drops nothing: add dropout layers")
        return output

    def _watched(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Watch, Any]:
        watch = Watch(self.model)
        with watch.watching(), torch.compiler.set_stance("force_eager"):
            return watch, forward(*args, **kwargs)

    def _candidates(self, seen: Watch) -> set[nn.Module]:
        """The modules that may drop in training mode, and did not."""
        holders = {
            module for module in seen.called if any(layer not in seen.called for layer in held_by(module).values())
        }
        numbers = {number.module for number in others_numbers(self.model)} & seen.called
        return {m for m in holders | numbers | seen.is_off if m not in self.on and not is_torchs(m)}

    @torch.no_grad()
    def _tried(
        self, found: set[nn.Module], before: Watch, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> set[nn.Module]:
        """Those of the modules that do drop in training mode, and nothing else."""
        if not found:
            return found
        kept = {m: [(b, b.clone()) for part in (m, *m.children()) for b in part.buffers(recurse=False)] for m in found}
        _switch(found, True)
        why = ""
        try:
            seen, _ = self._watched(forward, args, kwargs)
        except Exception as error:  # what training mode needs, such as targets, is not there
            why, unsafe, acting = f"raises {type(error).__name__}", found, found
        else:
            acting = {
                m
                for m in found
                if m in seen.drops  # (a Sequential that only training mode calls may be an auxiliary head)
                or any(c in seen.called - before.called for c in held_by(m, in_sequentials=False).values())
            }
            unsafe = {m for m, pairs in kept.items() if any(not _same(*pair) for pair in pairs)}
        finally:
            _switch(found, False)
        for module in unsafe:
            for buffer, value in kept[module]:
                buffer.copy_(value)
        if unsafe & acting:
            warnings.warn(
                f"mc_dropout: {listed([self._names[m] for m in unsafe & acting])} may drop in training mode, which "
                f"{why or 'changes their buffers'}, and so stay in evaluation mode: let them call dropout layers",
                stacklevel=2,
            )
        return acting - unsafe

    def _conclude(self, seen: Watch, batch: int) -> None:
        others = {module: shapes for module, shapes in seen.draws.items() if not isinstance(module, LAYERS)}
        self.shares_draws = any(batch < 2 or s[:1] != (batch,) for shapes in others.values() for s in shapes)
        read = {layer for module in self.on & seen.drops for layer in held_by(module).values()}
        unused = [(n, m) for n, m in layers_in(self.model).items() if m not in seen.called | read and not is_idle(m)]
        self.silent = [f"{name or 'the model'} ({shown(layer)})" for name, layer in unused]
        if not seen.drops and seen.called.isdisjoint(number.module for number in torchs_numbers(self.model)):
            self.silent += [str(number) for number in others_numbers(self.model) if number.module not in self.on]


def lacks_dropout(model: nn.Module) -> str:
    """The beginning of the message that refuses a model."""
    has = "p=0 in all its layers" if layers_in(model) else "none"
    return f"mc_dropout: model must have dropout with a rate > 0, {type(model).__name__} has {has}"


def _switch(modules: set[nn.Module], training: bool) -> None:
    for module in modules:
        module.training = training


def _some(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Two examples of a batch are enough for a trial."""
    if all(isinstance(arg, Tensor) and arg.ndim > 0 for arg in args) and len({len(arg) for arg in args}) == 1:
        return tuple(arg[:2] for arg in args)
    return args


def _same(buffer: Tensor, before: Tensor) -> bool:
    return bool(((buffer == before) | ((buffer != buffer) & (before != before))).all())
