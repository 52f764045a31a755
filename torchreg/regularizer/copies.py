"""Whether a copy of a model is trained instead of the model that a regularizer was made for."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.functional.sharding import is_sharded
from torchreg.regularizer.assignment import Assignment
from torchreg.selection.modules import listed

_ADVICE = "make the Regularizer after copy.deepcopy or prepare_qat, for the model that is trained"


def check_copy(optimizers: Sequence[Optimizer], assignments: Sequence[Assignment]) -> None:
    """Raises ``ValueError`` if the optimizers hold copies of the penalized parameters, and none of the parameters."""
    penalized = [a for a in assignments if a.is_penalized]
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    if _are_copies([p for a in penalized for p in a.stored], held):
        raise ValueError(
            f"Regularizer: {type(optimizers[0]).__name__} must train the regularized model, it holds parameters of "
            f"another one, such as a copy, and not {listed([a.name for a in penalized])}: {_ADVICE}"
        )


def warn_of_copy(owner: str, model: nn.Module, loss: object) -> None:
    """Warns if the loss depends on parameters like those of the model, and on none of the model."""
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        return
    trained = list(_leaves(loss.grad_fn))
    own = [param for param in model.parameters() if param.requires_grad]
    if not any(map(is_sharded, own)) and _are_copies(trained, own):  # fully_shard makes parameters for each pass
        warnings.warn(
            f"{owner}: the loss depends on another model, such as a copy, and not on the {type(model).__name__} that "
            f"is penalized: {_ADVICE}",
            stacklevel=4,
        )


def _are_copies(some: Sequence[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether each of some parameters has another one of its shape and type among the others, and none is there."""
    others = list(others)
    kinds = Counter((p.shape, p.dtype) for p in some)
    return bool(kinds) and set(some).isdisjoint(others) and kinds <= Counter((p.shape, p.dtype) for p in others)


def _leaves(root: torch.autograd.graph.Node) -> Iterator[nn.Parameter]:
    """The parameters that the graph leads to."""
    seen, left = {root}, [root]
    while left:
        node = left.pop()
        variable = getattr(node, "variable", None)  # of the node that accumulates a leaf's gradient
        if isinstance(variable, nn.Parameter):
            yield variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                left.append(following)
