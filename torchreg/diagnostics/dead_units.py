"""A smaller model with the same outputs, without the dead units."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchreg.diagnostics.examples import as_arguments
from torchreg.diagnostics.heads import remove_heads
from torchreg.diagnostics.units import Analysis
from torchreg.selection.parameters import copied

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def compress(model: Model, example: Any = None) -> Model:
    r"""A new, smaller model with the same outputs in evaluation mode, without the dead units of a model.

    A unit is a feature of a linear layer or a channel of a convolution. It is removed, with everything that belongs to
    it, if each layer that reads it

    - has weights of exactly zero for it; or
    - always gets the same constant :math:`c` from it, which is added to the layer's bias,
      :math:`b \leftarrow b + W_{\cdot u} c`. A layer without a bias gets one if :math:`c \neq 0`. Units whose incoming
      weights are all exactly zero are constant, and so are those that read nothing else.

    The model is run once, and each call of torch is followed. Units that are added, as in a residual network, that meet
    in a product, or that go through one depthwise convolution can only go together. Elementwise functions,
    concatenation, equal chunks, batch normalization, pooling, interpolation, reshaping, means over places, and grouped
    and transposed convolutions are known. Units must stay where they meet anything else: layer and group normalization,
    softmax, matrix products, parametrized weights, hooks, indexing by number, calls of your own that are not torch's. A
    constant that is not zero stays before zero padding. :func:`torchreg.diagnostics.coupled_units` says what belongs
    together, and why units must stay.

    Whole heads of ``torch.nn.MultiheadAttention`` and of timm's ``Attention`` are removed, if the output's projection
    does not read them or their values are always zero. A ``MultiheadAttention`` with fewer heads returns None for the
    attention's weights.

    Each layer keeps at least one unit, and all units of the outputs stay. Modules keep their classes and names. The
    outputs agree up to rounding, which is checked with the example; in training mode only without batch normalization
    and dropout. Gradients are not copied. (Make the masks of ``torch.nn.utils.prune`` permanent first.)

    Args:
        model: any module; it is not changed.
        example: an input of the model, or a tuple of its arguments, with a batch dimension. A ``Sequential`` may come
            without one: then it is a batch of vectors, or of square maps of a size that all layers take.

    Returns:
        The smaller model; it shares no tensors with ``model``.

    Raises:
        TypeError: ``model`` is no module, or is no ``Sequential`` and comes without an example.
        ValueError: a parameter is lazy or on the meta device; the model does not run with the example; what it computes
            depends on the values of a tensor, as in ``if x.sum() > 0``; it is compiled; or its ``forward`` has numbers
            of units of its own.

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

        Any other model comes with an example of its input: ``compress(resnet, torch.randn(2, 3, 224, 224))``.

    References:
        Wei Wen, Chunpeng Wu, Yandan Wang, Yiran Chen, Hai Li, "Learning Structured Sparsity in Deep Neural Networks",
        NIPS 2016. Gongfan Fang, Xinyin Ma, Mingli Song, Michael Bi Mi, Xinchao Wang, "DepGraph: Towards Any Structural
        Pruning", CVPR 2023.
    """
    args = as_arguments("compress", model, example)
    small = cast(Model, copied(model))
    remove_heads(small)
    while bool((analysis := Analysis("compress", small, args)).dead.any()):  # a smaller model may have new dead units
        _fold(analysis)
        _shrink(analysis)
        _check(model, small, args)
    return small


def _fold(analysis: Analysis) -> None:
    """Moves the constants of dead units to the biases of the layers that read them."""
    for reader in analysis.trace.readers:
        amount = analysis.moved(reader)
        if not bool(amount.any()):
            continue
        if reader.bias is not None:
            reader.bias.add_(amount)
        else:
            reader.layer.bias = nn.Parameter(amount, requires_grad=reader.weight.requires_grad)
            analysis.axes[reader.layer.bias, 0] = analysis.roots[reader.rows.flatten()]
            analysis.trace.places[reader.layer.bias] = [(reader.layer, "bias")]


def _shrink(analysis: Analysis) -> None:
    """Takes the dead units out of all parameters and buffers, and tells the layers their new sizes."""
    changed: set[nn.Module] = set()
    kept: dict[Tensor, Tensor] = {}
    for (tensor, dim), units in analysis.axes.items():
        alive = ~analysis.dead[units]
        if not bool(alive.all()):
            kept[tensor] = kept.get(tensor, tensor.detach()).index_select(dim, alive.nonzero()[:, 0])
    for tensor, smaller in kept.items():
        new = nn.Parameter(smaller, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else smaller
        for module, name in analysis.trace.places[tensor]:
            setattr(module, name, new)
            changed.add(module)
    for module in changed:
        _resize(module)


def _resize(module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = module.weight.shape[:2]
    elif isinstance(module, nn.modules.conv._ConvNd):
        outputs, inputs = module.weight.shape[:2]
        if module.groups == module.in_channels > 1:  # a filter for each channel
            module.groups = outputs * module.in_channels // module.out_channels
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        held = module.running_mean if weight is None else weight
        assert held is not None
        module.num_features = len(held)


def _check(model: nn.Module, small: nn.Module, args: tuple[Any, ...]) -> None:
    """Runs both models.

    Raises:
        ValueError: the smaller one does not run, or computes something else.
    """
    advice = "its forward has sizes or numbers of units of its own: write -1 or x.shape"
    before = _outputs(model, args)
    try:
        after = _outputs(small, args)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"compress: the smaller {type(model).__name__} does not run ({first}): {advice}") from error
    for old, new in zip(before, after, strict=True):
        is_exact = not (old.is_floating_point() or old.is_complex())
        tolerance = 0.0 if is_exact else torch.finfo(old.dtype).eps ** 0.5
        size = max(float(old.abs().nan_to_num(0, 0, 0).max()), 1.0) if old.numel() else 1.0
        if old.shape != new.shape or not torch.allclose(old, new, tolerance, tolerance * size, equal_nan=True):
            raise ValueError(f"compress: the smaller {type(model).__name__} computes something else: {advice}")


def _outputs(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """The outputs of a copy in evaluation mode."""
    outputs = copied(model).eval()(*args)
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
