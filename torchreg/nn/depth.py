"""Dropout of residual branches."""

from __future__ import annotations

from typing import Any, Literal, get_args

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

    Args:
        module: the branch; ``nn.Identity()`` to drop the input itself.
        p: probability of dropping the branch, in [0, 1].
        mode: ``"row"``: a draw for each example (along the first dimension); ``"batch"``: one draw for the batch.
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
        self, module: nn.Module, p: float = 0.1, mode: DepthMode = "row", *, generator: Generator | None = None
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
        return f.drop_paths(output, self.p, self.mode == "row", generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode!r}"


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
