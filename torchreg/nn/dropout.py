"""Layers that drop single elements."""

from __future__ import annotations

from torch import Generator, Tensor, nn

from torchreg import functional as f


class Dropout(nn.Dropout):
    r"""Drop-in for :class:`torch.nn.Dropout`, several times faster on the CPU, with a random generator of its own.

    In training mode each element is zeroed with probability ``p`` and the others are scaled:

    .. math:: y_i = \frac{m_i}{1 - p} x_i, \qquad m_i \sim \operatorname{Bernoulli}(1 - p)

    In evaluation mode it is the identity. It is a ``nn.Dropout``, so code that looks for dropout layers finds it.

    Args:
        p: probability of dropping an element, in [0, 1]; on the CPU kept to the nearest ``2**-16``.
        inplace: overwrites the input.
        generator: source of the random bits, on the input's device; torch's global one if None. Activation
            checkpointing restores the global one only: with a generator it would recompute another mask.

    Shape:
        Any, floating-point; dtype and memory format are preserved. From the same seed the masks are other ones than
        ``torch.nn.Dropout`` draws.

    Raises:
        ValueError: ``p`` outside [0, 1] or NaN.

    Example:
        >>> import torch
        >>> drop = Dropout(0.5, generator=torch.Generator().manual_seed(0))
        >>> sorted(set(drop(torch.ones(8)).tolist()))
        [0.0, 2.0]
        >>> drop.eval()(torch.ones(2))
        tensor([1., 1.])

    References:
        Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov, "Dropout: A Simple
        Way to Prevent Neural Networks from Overfitting", Journal of Machine Learning Research 15, 2014.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Generator | None = None) -> None:
        f.check_probability("Dropout", p)
        super().__init__(p, inplace)
        self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        return f.dropout(input, self.p, self.training, self.inplace, generator=self.generator)
