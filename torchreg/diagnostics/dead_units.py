"""A smaller model with the same outputs, without the dead units."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from torchreg.nn import (
    AlphaDropout,
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    GaussianDropout,
)
from torchreg.selection.parameters import each_parameter

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

# The supported layers, with the dimensions of a unit's map. Exact types, because a subclass may compute anything.
_LAYERS: dict[type[nn.Module], int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_NORMS: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
_POOLS: dict[type[nn.Module], int] = {
    getattr(nn, f"{kind}Pool{n}d"): n for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for n in (1, 2, 3)
}
_DROPOUTS = {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
             AlphaDropout, DropBlock1d, DropBlock2d, DropBlock3d, Dropout, Dropout1d, Dropout2d, Dropout3d,
             FeatureAlphaDropout, GaussianDropout}  # fmt: skip
_ELEMENTWISE = {nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU,
                nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Tanh, nn.Hardtanh,
                nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Softplus, nn.Softsign, nn.Threshold}  # fmt: skip


@torch.no_grad()
def compress(model: nn.Sequential) -> nn.Sequential:
    r"""A new, smaller model with the same outputs in evaluation mode, without the dead units of a model.

    It removes units of two kinds from linear layers and convolutions, repeatedly until there are none:

    - units whose outgoing weights are all exactly zero: no layer uses them;
    - units whose incoming weights are all exactly zero: their output is a constant :math:`c`, which is added to the
      next layer's bias, :math:`b \leftarrow b + W_{\cdot u} c`. A layer without a bias gets one if :math:`c \neq 0`.

    Between the two layers there may be elementwise activations, batch normalization, pooling, dropout and ``Flatten``.
    A unit is kept if its output is not constant everywhere, for example because of zero padding. All units are kept
    next to other modules: grouped and transposed convolutions, softmax, layer normalization, modules with tied weights,
    hooks or parametrizations, and modules of your own. (Make the masks of ``torch.nn.utils.prune`` permanent first.)
    Each layer keeps at least one unit, the last layer keeps all.

    The outputs agree up to rounding; in training mode only without batch normalization and dropout. Gradients are not
    copied.

    Args:
        model: layers in sequence, which may contain sequences; it is not changed. Inputs have a batch dimension. The
            outputs of a linear layer before a batch normalization have the shape (batch, units).

    Returns:
        The smaller model; it shares no tensors with ``model``.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Sequential`` with the ordinary ``forward``.

    Example:
        A group lasso makes rows of weights exactly zero. Here they are set to zero by hand.

        >>> model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 3))
        >>> model[0].weight.data[10:] = 0
        >>> small = compress(model)
        >>> small
        Sequential(
          (0): Linear(in_features=4, out_features=10, bias=True)
          (1): ReLU()
          (2): Linear(in_features=10, out_features=3, bias=True)
        )
        >>> x = torch.randn(8, 4)
        >>> torch.testing.assert_close(small(x), model(x))
        >>> [sum(p.numel() for p in m.parameters()) for m in (model, small)]
        [803, 83]

    References:
        Wei Wen, Chunpeng Wu, Yandan Wang, Yiran Chen, Hai Li, "Learning Structured Sparsity in Deep Neural Networks",
        NIPS 2016.
    """
    if not _is_sequence(model):
        raise TypeError(
            f"compress: model must be a torch.nn.Sequential, got {type(model).__name__}: "
            "compress each of its sequential parts"
        )
    small = copy.deepcopy(model)
    pairs = list(_layer_pairs(small))
    while any(pair.shrink() for pair in pairs):
        pass
    return small


@dataclass(frozen=True)
class _LayerPair:
    """Two layers: the reader uses the writer's outputs, through modules that treat each unit separately."""

    writer: Layer
    between: Sequence[nn.Module]
    reader: Layer

    def shrink(self) -> bool:
        """Removes the dead units; returns whether there were any."""
        units, columns = self._units(), self._columns()
        constants, steady = self._constants(columns)
        written = self.writer.weight.flatten(1).any(1)
        read = torch.isin(units, columns[self.reader.weight.transpose(0, 1).flatten(1).any(1)])
        dead = ~read | ~(written | torch.isin(units, columns[~steady]))
        if dead.all():
            dead[0] = False
        if not dead.any():
            return False
        self._add_to_bias(constants.where((dead & read)[columns], 0.0))
        self._keep(~dead, columns)
        return True

    def _units(self) -> Tensor:
        return torch.arange(len(self.writer.weight), device=self.writer.weight.device)

    def _columns(self) -> Tensor:
        """The unit that each of the reader's inputs comes from; after a Flatten several come from one unit."""
        units = self._units()
        copies = self.reader.weight.shape[1] // len(units)
        return units.repeat(copies) if isinstance(self.writer, nn.Linear) else units.repeat_interleave(copies)

    def _constants(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The reader's inputs from units without incoming weights, and whether each is the same at all positions."""
        bias, weight = self.writer.bias, self.writer.weight
        constants = weight.new_zeros(len(weight)) if bias is None else bias.clone()
        steady = torch.ones_like(constants, dtype=torch.bool)
        for module in self.between:
            if isinstance(module, Norm):
                constants, steady = (_spread(values, columns, module.num_features) for values in (constants, steady))
                constants = _evaluate(module, constants.view(1, -1, *[1] * _NORMS[type(module)])).flatten()
            elif type(module) in _ELEMENTWISE:
                constants = _evaluate(module, constants)
            elif not _keeps_constants(module):
                steady = steady & (constants == 0)
        constants, steady = (_spread(values, columns, len(columns)) for values in (constants, steady))
        if _pads_with_zeros(self.reader):
            steady = steady & (constants == 0)
        return constants, steady & constants.isfinite()

    def _add_to_bias(self, constants: Tensor) -> None:
        weight, bias = self.reader.weight, self.reader.bias
        amount = weight.reshape(*weight.shape[:2], -1).sum(2) @ constants
        if bias is not None:
            bias += amount
        elif constants.any():
            self.reader.bias = nn.Parameter(amount, requires_grad=weight.requires_grad)

    def _keep(self, units: Tensor, columns: Tensor) -> None:
        _select(self.writer, units, "weight", "bias")
        for module in self.between:
            if isinstance(module, Norm):
                kept = _spread(units, columns, module.num_features)
                _select(module, kept, "weight", "bias", "running_mean", "running_var")
                module.num_features = int(kept.sum())
        self.reader.weight = nn.Parameter(self.reader.weight[:, units[columns]], self.reader.weight.requires_grad)
        for layer in (self.writer, self.reader):
            outputs, inputs = layer.weight.shape[:2]
            if isinstance(layer, nn.Linear):
                layer.out_features, layer.in_features = outputs, inputs
            else:
                layer.out_channels, layer.in_channels = outputs, inputs


# -- finding the pairs -------------------------------------------------------------------------------------------


def _layer_pairs(model: nn.Sequential) -> Iterator[_LayerPair]:
    modules = list(_leaves(model))
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    tied = {place.module for where in each_parameter(model) if len(where) > 1 for place in where}
    tied |= {module for module in modules if isinstance(module, Norm) and places[module] > 1}
    known = {module for module in modules if module not in tied and _is_known(module)}
    for start, module in enumerate(modules):
        if module in known and _is_layer(module) and (pair := _layer_pair(module, modules[start + 1 :], known)):
            yield pair


def _layer_pair(writer: Layer, following: Sequence[nn.Module], known: set[nn.Module]) -> _LayerPair | None:
    """The layer with its reader, if all modules between them are supported."""
    units, dims, is_flat = len(writer.weight), _LAYERS[type(writer)], False

    def fits(inputs: int) -> bool:
        return units > 0 and (inputs % units == 0 if is_flat else inputs == units)

    for index, module in enumerate(following):
        kind = type(module)
        if module not in known:
            return None
        if _is_layer(module):
            is_reader = _LAYERS[kind] == dims and fits(module.weight.shape[1])
            return _LayerPair(writer, following[:index], module) if is_reader else None
        if isinstance(module, nn.Flatten):
            dims, is_flat = 0, True
        if isinstance(module, Norm) and not (_NORMS[kind] == max(dims, 1) and fits(module.num_features)):
            return None
        if kind in _POOLS and _POOLS[kind] != dims:
            return None
    return None


def _leaves(model: nn.Sequential) -> Iterator[nn.Module]:
    """The modules in the order of their calls; nested sequences are expanded."""
    for module in model:
        if _is_sequence(module) and not _has_hooks(module):
            yield from _leaves(module)
        else:
            yield module


def _is_sequence(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and "forward" not in vars(module)
    )


def _is_layer(module: nn.Module) -> TypeGuard[Layer]:
    return type(module) in _LAYERS and getattr(module, "groups", 1) == 1


def _is_known(module: nn.Module) -> bool:
    """Whether the module is supported and computes what its type says, each unit separately."""
    if _has_hooks(module) or "forward" in vars(module):
        return False
    if isinstance(module, nn.PReLU):
        return type(module) is nn.PReLU and module.num_parameters == 1
    if isinstance(module, nn.Flatten):
        return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    if type(module) in _NORMS:
        return module.running_mean is not None
    return _is_layer(module) or type(module) in _ELEMENTWISE | _DROPOUTS | _POOLS.keys()


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


# -- constants and tensors ----------------------------------------------------------------------------------------


def _keeps_constants(module: nn.Module) -> bool:
    """Whether a constant map stays constant: in pooling, if no window contains padding."""
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
        is_padded = module.count_include_pad and _any(module.padding)
        return not is_padded and getattr(module, "divisor_override", None) is None
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):  # a dilated window may contain padding only
        return not _any(module.padding) or not _any(module.dilation, above=1)
    return True


def _pads_with_zeros(layer: Layer) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return _any(layer.kernel_size, above=1) if isinstance(layer.padding, str) else _any(layer.padding)


def _any(sizes: int | Sequence[int], above: int = 0) -> bool:
    return any(size > above for size in ((sizes,) if isinstance(sizes, int) else sizes))


def _spread(values: Tensor, columns: Tensor, width: int) -> Tensor:
    """The values of the units; if ``width`` differs from their number, the values of the columns."""
    return values if len(values) == width else values[columns]


def _evaluate(module: nn.Module, x: Tensor) -> Tensor:
    """The output of a copy of the module in evaluation mode."""
    y: Tensor = copy.deepcopy(module).eval()(x)
    return y


def _select(module: nn.Module, kept: Tensor, *names: str) -> None:
    for name in names:
        old = getattr(module, name)
        if old is not None:
            is_parameter = isinstance(old, nn.Parameter)
            setattr(module, name, nn.Parameter(old[kept], old.requires_grad) if is_parameter else old[kept])
