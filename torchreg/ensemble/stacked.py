"""Models of one architecture as one module, which computes them all at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from torchreg import functional as f
from torchreg.ensemble.batched import batched_forward, plain_layers
from torchreg.ensemble.matching import check_equal
from torchreg.nn.seeded import Seeded
from torchreg.selection.parameters import copied


class Stacked(nn.Module):
    r"""Several models of one architecture as one module, to train many seeds, strengths or folds at once.

    Each parameter and buffer contains those of all members along a new first dimension, with its name in one member.
    Optimizers that work element by element, such as SGD and the Adam family, then train all members. Small networks
    spend most time in calls, and a stack makes as many calls as one member. Outputs are ``(members, batch, ...)``. The
    training loop stays the same:

    .. code-block:: python

        stack = Stacked([make_model(seed) for seed in range(16)])
        losses = stack.per_member(nn.CrossEntropyLoss())
        optimizer = torch.optim.AdamW(stack.parameters())
        for x, y in batches:
            optimizer.zero_grad()
            losses(stack(x), y).sum().backward()
            optimizer.step()

    Each member gets the result of training it alone, up to rounding. A :class:`~torchreg.Regularizer` of a stack treats
    each member as a separate model; its ``scale`` may be a tensor with one scale for each member, which gives a path of
    strengths. Dropout layers drop different units in each member. With their own generators, see
    :func:`~torchreg.nn.seed_dropout`, they drop the same units as in the member alone. Do not use optimizers that
    combine several elements (LBFGS, Muon, Adafactor), or gradient clipping by the total norm: they would mix the
    members.

    If ``torch.func.vmap`` cannot vectorize the model, the members are computed one after another, with a warning that
    names the layer.

    Args:
        models: modules of one architecture, in the same mode, on one device. They are copied.
        vectorize: False computes the members one after another, which is faster for large layers.

    Attributes:
        vectorize: the argument, or False if the model could not be vectorized.
        frozen: the numbers of the members for which :meth:`freeze` was called, in ascending order.

    Raises:
        ValueError: there are no models, or they differ in more than their values.
        TypeError: one of the models is no module.

    Example:
        >>> stack = Stacked([nn.Linear(3, 2) for _ in range(4)])
        >>> stack(torch.zeros(5, 3)).shape
        torch.Size([4, 5, 2])
        >>> stack.weight.shape
        torch.Size([4, 2, 3])
        >>> first, *_ = stack.members()
        >>> bool((first(torch.ones(5, 3)) - stack(torch.ones(5, 3))[0]).abs().max() < 1e-6)
        True
    """

    def __init__(self, models: Iterable[nn.Module], *, vectorize: bool = True) -> None:
        super().__init__()
        models = list(models)
        check_equal(models)
        if any(isinstance(module, Stacked) for module in models[0].modules()):
            raise ValueError("Stacked: models must be ordinary ones, got one that holds a stack itself")
        self._count = len(models)
        self._template = (_template(models),)  # in a tuple, so that it does not become a child: its children are ours
        self._share()
        self.training = models[0].training
        self.vectorize = vectorize
        self._proven = False  # whether it has been computed once
        self._saved: dict[int, dict[str, Tensor]] = {}
        self._held: dict[str, Tensor] = {}

    def _share(self) -> None:
        """Makes the template's parameters, buffers and children those of the stack."""
        (template,) = self._template
        for kind in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            setattr(self, kind, getattr(template, kind))

    def __len__(self) -> int:
        return self._count

    @property
    def frozen(self) -> list[int]:
        return sorted(self._saved)

    # -- computing ------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of all members, ``(members, ...)``, for inputs that they share."""
        return self._compute(args, kwargs, shared=True)

    def each(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of all members, ``(members, ...)``, for inputs of their own: tensors ``(members, ...)``.

        Example:
            >>> stack = Stacked([nn.Linear(3, 2) for _ in range(4)])
            >>> stack.each(torch.zeros(4, 5, 3)).shape
            torch.Size([4, 5, 2])
        """
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.shape[:1] != (self._count,):
                raise ValueError(
                    f"Stacked: each() takes tensors with a row for each of the {self._count} members, got one of shape "
                    f"{tuple(value.shape)}: call the stack itself with what they share"
                )
        return self._compute(args, kwargs, shared=False)

    def _compute(self, args: Any, kwargs: Any, shared: bool) -> Any:
        self._hold_frozen()
        if not self.vectorize:
            return self._one_after_another(args, kwargs, shared)
        if self._proven:
            return self._at_once(args, kwargs, shared)
        self._proven, before = True, _State(self._template[0])
        try:
            return self._at_once(args, kwargs, shared)
        except Exception as error:
            before.restore()
            where, reason = self._culprit(args, kwargs, shared), " ".join(str(error).split())[:200]
            before.restore()
            # If this fails too, the error is the model's, not vmap's.
            outputs = self._one_after_another(args, kwargs, shared)
            self.vectorize = False
            warnings.warn(
                f"Stacked: {where} cannot be vectorized over members, which are computed one after another from now "
                f"on: {reason}",
                stacklevel=4,
            )
            return outputs

    def per_member(
        self, criterion: Callable[[Any, Any], Tensor], *, shared: bool = True
    ) -> Callable[[Any, Any], Tensor]:
        """The criterion as a function of stacked outputs and targets, with a loss for each member.

        Args:
            criterion: a mean loss of outputs and targets.
            shared: whether the members share the targets; False: each has its own, as its inputs in :meth:`each`.

        Returns:
            A function of outputs ``(members, batch, ...)`` and targets ``(batch, ...)``, or ``(members, batch, ...)``
            of the members' own, that returns ``(members,)``.

        Example:
            >>> stack = Stacked([nn.Linear(3, 2) for _ in range(4)])
            >>> losses = stack.per_member(nn.CrossEntropyLoss())
            >>> losses(stack(torch.zeros(5, 3)), torch.zeros(5, dtype=torch.long)).shape
            torch.Size([4])
        """
        in_dims = (0, None if shared else 0)
        return f.losses_at_once(criterion, shared) or vmap(criterion, in_dims=in_dims, randomness="different")

    def _at_once(self, args: Any, kwargs: Any, shared: bool) -> Any:
        def one(state: dict[str, Tensor], member: Tensor, *own: Tensor) -> Any:
            inputs = (args, kwargs) if shared else tree_unflatten(_filled(leaves, own), spec)
            with f.computing(member), _writing_in_place(template, state):
                return functional_call(template, state, *inputs)

        (template,) = self._template
        layers = plain_layers(template, args, kwargs, shared)
        if layers is not None:
            return batched_forward(layers, args[0].expand(self._count, *args[0].shape) if shared else args[0])
        state = {**dict(template.named_parameters()), **dict(template.named_buffers())}
        device = next((value.device for value in state.values()), None)
        leaves, spec = tree_flatten((args, kwargs))
        own = [] if shared else [value for value in leaves if isinstance(value, Tensor)]
        return vmap(one, randomness="different")(state, torch.arange(self._count, device=device), *own)

    def _one_after_another(self, args: Any, kwargs: Any, shared: bool) -> Any:
        (template,) = self._template
        # unbind stacks the gradients once; indexing would make the gradient of a whole stack for each member
        alone = self._count == 1
        params = {n: (p.squeeze(0),) if alone else p.unbind() for n, p in template.named_parameters()}
        outputs = []
        for member in range(self._count):
            state = {name: rows[member] for name, rows in params.items()}
            state |= {name: buffer[member] for name, buffer in template.named_buffers()}  # views: written in place
            inputs = (args, kwargs) if shared else _row(member, (args, kwargs))
            with f.computing(member), _writing_in_place(template, state):
                outputs.append(functional_call(template, state, *inputs))
        return tree_map(lambda *each: torch.stack(each) if isinstance(each[0], Tensor) else each[0], *outputs)

    def _culprit(self, args: Any, kwargs: Any, shared: bool) -> str:
        """The innermost module that was running when vectorizing failed."""
        path: list[str] = []
        (template,) = self._template
        handles = []
        for name, module in template.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
            handles.append(
                module.register_forward_hook(lambda *_: path.clear() if len(path) < 2 else path.__delitem__(-1))
            )
        try:
            self._at_once(args, kwargs, shared)
        except Exception:
            name = path[-1] if path else ""
            return f"{name} ({type(template.get_submodule(name)).__name__})" if name else type(template).__name__
        finally:
            for handle in handles:
                handle.remove()
        return type(template).__name__

    # -- members --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def members(self) -> list[nn.Module]:
        """The members as ordinary models; they are copies."""
        self._hold_frozen()
        return [self._member(number) for number in range(self._count)]

    def freeze(self, member: int) -> None:
        """Keeps the member's current values from now on: early stopping of one member.

        Changes by the optimizer are reverted when the stack is next computed, saved, or split into members. The
        ``state_dict`` does not contain which members are frozen.
        """
        member = self._checked(member)
        self._saved[member] = self.state_of(member)
        self._gather_frozen()

    def state_of(self, member: int) -> dict[str, Tensor]:
        """A copy of a member's parameters and buffers, by name."""
        member = self._checked(member)
        self._hold_frozen()
        return {name: value[member].detach().clone() for name, value in self._values()}

    @torch.no_grad()
    def load_member(self, member: int, state: Mapping[str, Any]) -> None:
        """Gives a member the values of :meth:`state_of` or of an ordinary model's ``state_dict``.

        Raises:
            ValueError: a parameter is missing or has another shape.
        """
        member = self._checked(member)
        for name, value in self._values():
            if name not in state and name not in self._parameter_names():
                continue  # a buffer that is not persistent
            if name not in state or state[name].shape != value[member].shape:
                found = tuple(state[name].shape) if name in state else "none"
                raise ValueError(f"Stacked: state must hold {name} of shape {tuple(value[member].shape)}, got {found}")
            value[member].copy_(state[name])
        if member in self._saved:
            self._saved[member] = {name: value[member].clone() for name, value in self._values()}
            self._gather_frozen()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads a ``state_dict`` of the stack; frozen members stay frozen, with the loaded values."""
        result = super().load_state_dict(*args, **kwargs)
        for member in self._saved:
            self._saved[member] = {name: value[member].detach().clone() for name, value in self._values()}
        self._gather_frozen()
        return result

    def _checked(self, member: int) -> int:
        if not -self._count <= member < self._count:
            raise IndexError(f"Stacked: member must be one of {self._count}, got {member}")
        return member % self._count

    def _parameter_names(self) -> set[str]:
        return {name for name, _ in self._template[0].named_parameters()}

    def _gather_frozen(self) -> None:
        """Stacks the frozen members' values for each name, so that one call restores them."""
        states = [self._saved[member] for member in self.frozen]
        self._held = (
            {name: torch.stack([state[name] for state in states]) for name, _ in self._values()} if states else {}
        )

    @torch.no_grad()
    def _hold_frozen(self) -> None:
        """Restores the frozen members; it writes only if they have changed, because autograd counts writes."""
        if not self._saved:
            return
        for name, value in self._values():
            index = torch.tensor(self.frozen, device=value.device)
            held = self._held[name].to(value.device, value.dtype)
            if not torch.equal(value[index], held):
                value[index] = held

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        (template,) = self._template
        yield from template.named_parameters()
        yield from template.named_buffers()

    def _member(self, number: int) -> nn.Module:
        (template,) = self._template
        own: dict[int, Any] = {}  # deepcopy uses these instead of the template's values
        for _, param in template.named_parameters():
            own[id(param)] = nn.Parameter(param[number].detach().clone(), requires_grad=param.requires_grad)
        for _, buffer in template.named_buffers():
            own[id(buffer)] = buffer[number].clone()
        for several in self._generators():
            own[id(several)] = deepcopy(several.each[number])
        return copied(template, own)

    @property
    def generators(self) -> list[torch.Generator]:
        """The random generators of the members' layers, such as a CUDA graph must know."""
        return [own for several in self._generators() for own in several.each]

    def _generators(self) -> list[f.Generators]:
        found = [layer.generator for layer in _seeded(self._template[0])]
        return [own for own in found if isinstance(own, f.Generators)]

    def train(self, mode: bool = True) -> Stacked:
        self._template[0].train(mode)  # it may override train(), and its children are ours
        self.training = mode
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._hold_frozen()
        return super().state_dict(*args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._share()

    def __repr__(self) -> str:
        return f"Stacked({self._count} x {self._template[0]!r})"


def _template(models: Sequence[nn.Module]) -> nn.Module:
    """A copy of the first model with the stacked values of all models."""
    first = models[0]
    own: dict[int, Any] = {}  # deepcopy uses these instead of the first model's values
    for name, param in first.named_parameters():
        values = torch.stack([model.get_parameter(name).detach() for model in models])
        own[id(param)] = nn.Parameter(values, requires_grad=param.requires_grad)
    for name, buffer in first.named_buffers():
        own[id(buffer)] = torch.stack([model.get_buffer(name) for model in models])
    for layers in zip(*map(_seeded, models), strict=True):
        own[id(layers[0].generator)] = f.Generators([deepcopy(layer.generator) for layer in layers])
    return copied(first, own)


def _row(member: int, tree: Any) -> Any:
    """The member's part of tensors with a row for each member."""
    return tree_map(lambda value: value[member] if isinstance(value, Tensor) else value, tree)


def _filled(leaves: Sequence[Any], own: Sequence[Tensor]) -> list[Any]:
    """The leaves with these tensors in the places of the tensors."""
    tensors = iter(own)
    return [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _seeded(model: nn.Module) -> list[Seeded]:
    return [module for module in model.modules() if isinstance(module, Seeded) and module.generator is not None]


@contextmanager
def _writing_in_place(template: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Raises ``RuntimeError`` if the forward pass replaces a buffer by another tensor, which a stack would lose."""
    names = [name for name, _ in template.named_buffers()]
    if not names:
        yield
        return

    def check(*_: Any) -> None:
        for name in names:
            if template.get_buffer(name) is not state[name]:
                raise RuntimeError(
                    f"Stacked: the forward pass must write into the buffer {name}, as {name}.copy_(...) does; it "
                    "replaces the buffer by another tensor, which a stack cannot keep"
                )

    handle = template.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


class _State:
    """Everything that a forward pass may change: buffers, and the states of random generators."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self.generators = [layer.generator for layer in _seeded(model)]
        self.states = [own.get_state() for own in self.generators if own is not None]
        self.rng = torch.get_rng_state()

    def restore(self) -> None:
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)
        for own, state in zip(self.generators, self.states, strict=True):
            assert own is not None
            own.set_state(state)
        torch.set_rng_state(self.rng)
