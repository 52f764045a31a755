"""Dropout of contiguous blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Generator, Tensor

from torchreg import functional as f
from torchreg.nn.seeded import Seeded


class _DropBlock(Seeded):
    spatial: ClassVar[int]

    def __init__(
        self,
        p: float = 0.1,
        block_size: int | Sequence[int] = 7,
        inplace: bool = False,
        *,
        couple_channels: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        f.check_probability(type(self).__name__, p)
        self.p = p
        self.block_size = self._checked(block_size)
        self.inplace = inplace
        self.couple_channels = couple_channels
        self.generator = generator

    def _checked(self, block_size: int | Sequence[int]) -> tuple[int, ...]:
        sizes = tuple(block_size) if isinstance(block_size, Sequence) else (block_size,) * self.spatial
        if len(sizes) != self.spatial or not all(type(size) is int and size >= 1 for size in sizes):
            raise ValueError(
                f"{type(self).__name__}: block_size must be a whole number >= 1, or {self.spatial} of them, "
                f"got {block_size!r}"
            )
        return sizes

    def forward(self, input: Tensor) -> Tensor:
        owner = type(self).__name__
        f.check_probability(owner, self.p)
        if input.ndim not in (self.spatial + 1, self.spatial + 2):
            raise ValueError(
                f"{owner}: input must have {self.spatial + 2} dimensions, or {self.spatial + 1} without a batch, "
                f"got the shape {tuple(input.shape)}"
            )
        if not self.training or self.p == 0:
            return input
        self._check_generator(input)
        is_coupled = self.couple_channels
        return f.drop_blocks(input, self.p, self.block_size, self.inplace, self.generator, couple_channels=is_coupled)

    def extra_repr(self) -> str:
        coupled = ", couple_channels=True" if self.couple_channels else ""
        return f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}{coupled}"


class DropBlock2d(_DropBlock):
    r"""Drops blocks of each channel's map. Each position is dropped with probability exactly ``p``.

    .. math:: y = \frac{m}{1 - p} x, \qquad m_x = \prod_{x' \in B(x)} (1 - z_{x'}), \qquad
              z_{x'} \sim \operatorname{Bernoulli}(\gamma), \qquad \gamma = 1 - (1 - p)^{1 / (b_1 b_2)}

    A position :math:`x` is dropped if any of the :math:`b_1 b_2` positions in the block :math:`B(x)` around it is a
    seed :math:`z`. Seeds are also drawn beyond the borders, so that positions at the borders are dropped as often
    as others. Blocks may overlap. The paper's :math:`\gamma` ignores overlaps, so it drops less than ``p``; its
    authors divide by the share that was kept in each batch instead of :math:`1 - p`. In evaluation mode the layer
    is the identity.

    The layers of this name in timm and torchvision have the paper's :math:`\gamma`, with seeds inside the map only. At
    a rate :math:`q`, on a map of :math:`h \times w`, they drop a position far from the borders with probability

    .. math:: p = 1 - (1 - \gamma)^{b_1 b_2}, \qquad
              \gamma = \frac{q}{b_1 b_2} \cdot \frac{h w}{(h - b_1 + 1)(w - b_2 + 1)}

    and others less often: that :math:`p` is what to pass here for their rate. timm couples the channels by default, and
    both scale by the share that was kept.

    Args:
        p: probability of dropping a position, in [0, 1].
        block_size: the size of the blocks, odd or even: one number, or one for each dimension.
        inplace: overwrites the input.
        couple_channels: whether all channels of an example lose the same blocks. The paper finds blocks of their own
            better.
        generator: source of the random bits, as in :class:`Dropout`.

    Shape:
        ``(N, C, H, W)`` or ``(C, H, W)``; dtype and memory format are preserved.

    Raises:
        ValueError: ``p`` outside [0, 1], a block size below 1, an input of another rank.

    Example:
        >>> import torch
        >>> y = DropBlock2d(0.3, block_size=7)(torch.ones(64, 32, 14, 14))
        >>> round((y == 0).float().mean().item(), 1)
        0.3

    References:
        Golnaz Ghiasi, Tsung-Yi Lin, Quoc V. Le, "DropBlock: A regularization method for convolutional networks",
        NeurIPS 2018.
    """

    spatial = 2


class DropBlock1d(_DropBlock):
    """:class:`DropBlock2d` for sequences ``(N, C, L)`` or ``(C, L)``, with the same arguments and errors.

    Example:
        >>> import torch
        >>> DropBlock1d(0.2, block_size=4)(torch.ones(2, 3, 10)).shape
        torch.Size([2, 3, 10])
    """

    spatial = 1


class DropBlock3d(_DropBlock):
    """:class:`DropBlock2d` for volumes ``(N, C, D, H, W)`` or ``(C, D, H, W)``, with the same arguments and errors.

    Example:
        >>> import torch
        >>> DropBlock3d(0.2, block_size=(1, 3, 3))(torch.ones(2, 3, 4, 8, 8)).shape
        torch.Size([2, 3, 4, 8, 8])
    """

    spatial = 3
