"""Dropout of residual branches and of whole layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self, get_args, overload

import torch
from torch import Generator, Tensor, nn

from torchreg import functional as f
from torchreg.nn.seeded import Seeded

DepthMode = Literal["row", "batch"]


class StochasticDepth(Seeded):
    r"""Drops the output of a residual branch, for each example or for the whole batch. Also known as drop path.

    .. math:: y = \frac{m}{1 - p} F(x), \qquad m \sim \operatorname{Bernoulli}(1 - p)

    for the branch :math:`F`. Add the shortcut outside: ``x + StochasticDepth(branch, 0.2)(x)``. In evaluation mode the
    layer is the branch. The paper scales in evaluation; here the kept branches are scaled during training.
    :func:`set_linear_depth` sets rates that increase with the depth.

    ``StochasticDepth(nn.Identity(), p)`` is torchvision's layer of this name and timm's ``DropPath``, which drop their
    input; :func:`replace_dropout` puts it into their models.

    Args:
        module: the branch; ``nn.Identity()`` to drop the input itself.
        p: probability of dropping the branch, in [0, 1].
        mode: ``"row"``: a draw for each example (along the first dimension); ``"batch"``: one draw for the batch.
        scale_by_keep: whether kept branches are divided by :math:`1 - p`, as in timm. Without it, outputs are smaller
            on average in training than in evaluation.
        generator: source of the random bits, as in :class:`Dropout`.

    Shape:
        That of the branch.

    Raises:
        ValueError: ``p`` outside [0, 1] or an unknown mode.
        TypeError: ``module`` is no module.

    Example:
        >>> import torch
        >>> branch = StochasticDepth(nn.Linear(3, 3), p=1.0)
        >>> branch(torch.randn(2, 3)).count_nonzero()
        tensor(0)

    References:
        Gao Huang, Yu Sun, Zhuang Liu, Daniel Sedra, Kilian Q. Weinberger, "Deep Networks with Stochastic Depth",
        ECCV 2016.
    """

    def __init__(
        self,
        module: nn.Module,
        p: float = 0.1,
        mode: DepthMode = "row",
        *,
        scale_by_keep: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"StochasticDepth: module must be a torch.nn.Module, got {module!r}")
        f.check_probability("StochasticDepth", p)
        if mode not in get_args(DepthMode):
            raise ValueError(f"StochasticDepth: mode must be one of {', '.join(get_args(DepthMode))}, got {mode!r}")
        self.module = module
        self.p = p
        self.mode = mode
        self.scale_by_keep = scale_by_keep
        self.generator = generator

    @property
    def shares_mask(self) -> bool:
        """Whether the whole batch has one draw."""
        return self.mode == "batch"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        f.check_probability("StochasticDepth", self.p)
        output: Tensor = self.module(*args, **kwargs)
        if not self.training or self.p == 0:
            return output
        self._check_generator(output)
        is_by_row, is_scaled = self.mode == "row", self.scale_by_keep
        return f.drop_paths(output, self.p, is_by_row, generator=self.generator, scale_by_keep=is_scaled)

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode!r}" + ("" if self.scale_by_keep else ", scale_by_keep=False")


class LayerDrop(Seeded, nn.ModuleList):
    r"""A list of layers of which a loop over it in training mode leaves some out.

    Each layer is left out with probability :math:`p`, whenever the list is iterated: ``for layer in layers``. So the
    list takes the place of an ``nn.ModuleList`` in a model that has such a loop, as ``nn.TransformerEncoder`` has in
    ``layers``, and the ``state_dict`` stays the same. A skipped layer costs no time; its parameters get no gradient in
    that step. What is kept is not scaled, as in the paper, so each layer must have a shortcut of its own.

    In evaluation mode no layer is left out. :meth:`every_other` makes a shallower list for inference, which a model
    that was trained in this way stands well.

    The length, the indices and the names of the layers do not change. With ``DistributedDataParallel`` pass
    ``find_unused_parameters=True``. ``torch.fx`` and ``torch.export`` in training mode keep the layers of the pass that
    they trace; ``torch.compile`` draws in each pass, outside of its graphs.

    Args:
        modules: the layers.
        p: probability of leaving out a layer, in [0, 1].
        generator: source of the random numbers, on any device; torch's global generator of the CPU if None.

    Raises:
        ValueError: ``p`` outside [0, 1].

    Example:
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), num_layers=6)
        >>> encoder.layers = LayerDrop(encoder.layers, p=0.5)
        >>> len(list(encoder.layers)) <= 6, len(list(encoder.eval().layers))
        (True, 6)
        >>> encoder.layers = encoder.layers.every_other(0.5)
        >>> len(encoder.layers)
        3

    References:
        Angela Fan, Edouard Grave, Armand Joulin, "Reducing Transformer Depth on Demand with Structured Dropout",
        ICLR 2020.
    """

    shares_mask = True  # a draw for the whole batch

    def __init__(
        self, modules: Iterable[nn.Module] | None = None, p: float = 0.2, *, generator: Generator | None = None
    ) -> None:
        super().__init__(modules)
        f.check_probability("LayerDrop", p)
        self.p = p
        self.generator = generator

    def __iter__(self) -> Iterator[nn.Module]:
        layers: list[nn.Module] = list(self._modules.values())
        f.check_probability("LayerDrop", self.p)
        if not self.training or self.p == 0:
            return iter(layers)
        device = torch.device("cpu") if self.generator is None else self.generator.device
        self._check_generator(torch.empty(0, device=device))
        draws = f.drawn(torch.rand, (len(layers),), device, self.generator).tolist()
        return iter([layer for layer, draw in zip(layers, draws, strict=True) if draw >= self.p])

    def __contains__(self, layer: object) -> bool:
        return any(layer is own for own in self._modules.values())

    @overload
    def __getitem__(self, idx: slice) -> Self: ...
    @overload
    def __getitem__(self, idx: int) -> nn.Module: ...
    def __getitem__(self, idx: int | slice) -> nn.Module | Self:
        if isinstance(idx, slice):
            return self._of(list(self._modules.values())[idx])
        return super().__getitem__(idx)

    def __add__(self, other: Iterable[nn.Module]) -> Self:
        return self._of([*self._modules.values(), *other])

    def every_other(self, share: float) -> nn.ModuleList:
        r"""The layers for inference without about that share of them: without those at depth :math:`d` with

        .. math:: d \equiv 0 \mod \lfloor 1 / \text{share} \rfloor, \qquad d = 1, 2, \dots

        that is, without every second one for 0.5, every fourth for 0.25. The first layer stays for shares up to 0.5.

        Args:
            share: the share to leave out, in (0, 0.5].

        Raises:
            ValueError: ``share`` out of range.
        """
        if not 0 < share <= 0.5:
            raise ValueError(f"LayerDrop: share, of the layers to leave out, must be in (0, 0.5], got {share!r}")
        step = int(1 / share + 1e-9)
        kept = [layer for depth, layer in enumerate(self._modules.values(), start=1) if depth % step]
        return nn.ModuleList(kept).train(self.training)

    def _of(self, layers: Iterable[nn.Module]) -> Self:
        new = type(self)(layers, self.p)
        new.generator, new.training = self.generator, self.training
        return new

    def __repr__(self) -> str:
        layers = repr(nn.ModuleList(self._modules.values()))  # that of a list iterates, which would draw
        return layers.replace("ModuleList(", f"{type(self).__name__}(\n  {self.extra_repr()}", 1)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def set_linear_depth(model: nn.Module, p: float = 0.5) -> list[float]:
    r"""Gives the model's :class:`StochasticDepth` branches rates that increase linearly with their depth.

    .. math:: p_l = \frac{l}{L} p

    for the :math:`l`-th of :math:`L` branches, in the order of ``model.modules()``.

    Args:
        model: a model with ``StochasticDepth`` layers.
        p: the rate of the last branch, in [0, 1].

    Returns:
        The rates.

    Raises:
        ValueError: ``p`` outside [0, 1], or a model without such branches.

    Example:
        >>> model = nn.Sequential(*(StochasticDepth(nn.Linear(2, 2)) for _ in range(4)))
        >>> set_linear_depth(model, 0.2)
        [0.05, 0.1, 0.15000000000000002, 0.2]

    References:
        Gao Huang, Yu Sun, Zhuang Liu, Daniel Sedra, Kilian Q. Weinberger, "Deep Networks with Stochastic Depth",
        ECCV 2016, section 3.
    """
    f.check_probability("set_linear_depth", p)
    branches = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    if not branches:
        raise ValueError(f"set_linear_depth: model must have StochasticDepth layers, {type(model).__name__} has none")
    for level, branch in enumerate(branches, start=1):
        branch.p = p * level / len(branches)
    return [branch.p for branch in branches]
