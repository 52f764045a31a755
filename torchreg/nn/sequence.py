"""Dropout for sequences: of features at all time steps, of words, of word types."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchreg import functional as f
from torchreg.nn.dropout import Dropout
from torchreg.nn.seeded import Seeded


class LockedDropout(Dropout):
    r"""Drops the same features at all time steps of a sequence.

    .. math:: y_{tnf} = \frac{m_{nf}}{1 - p} x_{tnf}, \qquad m_{nf} \sim \operatorname{Bernoulli}(1 - p)

    for time step :math:`t`, sequence :math:`n` and feature :math:`f`. For the inputs and outputs of a recurrent network
    this mask has a variational interpretation. The literature also calls it variational dropout;
    :class:`VariationalDropout` is another layer.

    Args:
        p: probability of dropping a feature of a sequence, in [0, 1].
        inplace: overwrites the input.
        batch_first: whether inputs are ``(N, T, ...)`` instead of ``(T, N, ...)``, as in ``torch.nn.LSTM``.
        generator: source of the random bits, as in :class:`Dropout`.

    Shape:
        ``(T, N, ...)``, with ``batch_first`` ``(N, T, ...)``, or a ``PackedSequence`` of such sequences, which gets the
        masks that the padded batch would get.

    Raises:
        ValueError: ``p`` outside [0, 1], or an input with fewer than three dimensions.

    Example:
        >>> y = LockedDropout(0.5)(torch.ones(7, 2, 5))
        >>> bool((y == y[:1]).all())
        True

    References:
        Yarin Gal, Zoubin Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks",
        NIPS 2016. Stephen Merity, Nitish Shirish Keskar, Richard Socher, "Regularizing and Optimizing LSTM Language
        Models", ICLR 2018.
    """

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, batch_first: bool = False, generator: Generator | None = None
    ) -> None:
        super().__init__(p, inplace, generator=generator)
        self.batch_first = batch_first

    def forward(self, input: Tensor | PackedSequence) -> Tensor | PackedSequence:  # type: ignore[override]
        if isinstance(input, PackedSequence):
            return self._of_packed(input)
        if input.ndim < 3:
            raise ValueError(
                "LockedDropout: input must have the dimensions time, batch and features, got the shape "
                f"{tuple(input.shape)}"
            )
        shape = [*input.shape]
        shape[1 if self.batch_first else 0] = 1
        return f.dropout(input, self.p, self.training, self.inplace, generator=self.generator, noise_shape=shape)

    def _of_packed(self, input: PackedSequence) -> PackedSequence:
        data, sizes = input.data, input.batch_sizes
        if data.ndim < 2:
            raise ValueError("LockedDropout: packed sequences must have features, got steps that are single numbers")
        if self._is_idle():
            return input
        self._check_generator(data)
        p = f.drawn_rate(data, self.p, self.generator)
        if p == 1:
            return input._replace(data=f.drop(data, p, data.shape, self.inplace))
        masks = f.keep_mask(data, p, (int(sizes[0]), *data.shape[1:]), self.generator)  # one for each sequence
        if input.sorted_indices is not None:
            masks = masks[input.sorted_indices]
        kept = torch.cat([masks[:size] for size in sizes.tolist()])
        return input._replace(data=f.keep(data, kept, 1 / (1 - p), self.inplace))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, batch_first={self.batch_first}"


class WordDropout(Seeded):
    r"""Replaces tokens of the input by the token of an unknown word.

    .. math:: y_{nt} = \begin{cases} \text{unknown} & u_{nt} < p \text{ and } x_{nt} \notin \text{keep} \\
                                    x_{nt} & \text{else} \end{cases}, \qquad u_{nt} \sim U(0, 1)

    Args:
        p: probability of replacing a token, in [0, 1].
        unknown: the token number of an unknown word.
        keep: token numbers that are never replaced, such as those of padding and of the ends of a sentence.
        generator: source of the random bits, as in :class:`Dropout`.

    Shape:
        Any; the tokens are whole numbers.

    Raises:
        ValueError: ``p`` outside [0, 1].
        TypeError: tokens that are not whole numbers.

    Example:
        >>> WordDropout(1.0, unknown=1, keep=[0])(torch.tensor([[5, 7, 0]]))
        tensor([[1, 1, 0]])

    References:
        Mohit Iyyer, Varun Manjunatha, Jordan Boyd-Graber, Hal Daumé III, "Deep Unordered Composition Rivals Syntactic
        Methods for Text Classification", ACL 2015. Samuel R. Bowman, Luke Vilnis, Oriol Vinyals, Andrew M. Dai, Rafal
        Jozefowicz, Samy Bengio, "Generating Sentences from a Continuous Space", CoNLL 2016.
    """

    def __init__(
        self, p: float = 0.1, *, unknown: int, keep: Iterable[int] = (), generator: Generator | None = None
    ) -> None:
        super().__init__()
        f.check_probability("WordDropout", p)
        self.p = p
        self.unknown = unknown
        self.keep = tuple(keep)
        self.generator = generator

    def forward(self, tokens: Tensor) -> Tensor:
        f.check_probability("WordDropout", self.p)
        if tokens.is_floating_point() or tokens.is_complex():
            raise TypeError(f"WordDropout: tokens must be whole numbers, got {tokens.dtype}")
        if not self.training or self.p == 0:
            return tokens
        self._check_generator(tokens)
        dropped = f.drawn(torch.rand, tokens.shape, tokens.device, self.generator) < self.p
        for number in self.keep:
            dropped = dropped & (tokens != number)
        return tokens.masked_fill(dropped, self.unknown)

    def extra_repr(self) -> str:
        return f"p={self.p}, unknown={self.unknown}, keep={self.keep}"


class EmbeddingDropout(Seeded):
    r"""Drops word types: the vectors of all occurrences of a word in a sequence become zero together.

    .. math:: y_{nt} = \frac{m_{n, w}}{1 - p} E_w, \qquad w = x_{nt}, \quad m_{nw} \sim \operatorname{Bernoulli}(1 - p)

    for sequence :math:`n`, time step :math:`t` and the embedding :math:`E`.

    Args:
        embedding: the layer that turns token numbers into vectors.
        p: probability of dropping a word type, in [0, 1].
        batch_first: whether tokens are ``(N, T)`` instead of ``(T, N)``.
        per_example: True: a mask for each sequence, as in the first paper below; False: one mask for the batch, as in
            the second.
        generator: source of the random bits, as in :class:`Dropout`.

    Shape:
        Tokens ``(T, N)``, with ``batch_first`` ``(N, T)``, or a single sequence ``(T,)``. A mask takes one byte for
        each word of the vocabulary.

    Raises:
        ValueError: ``p`` outside [0, 1], or tokens with more dimensions.
        TypeError: ``embedding`` is no ``torch.nn.Embedding``.

    Example:
        >>> layer = EmbeddingDropout(nn.Embedding(100, 4), p=0.5)
        >>> y = layer(torch.tensor([[3], [8], [3]]))
        >>> bool((y[0] == y[2]).all())
        True

    References:
        Yarin Gal, Zoubin Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks",
        NIPS 2016. Stephen Merity, Nitish Shirish Keskar, Richard Socher, "Regularizing and Optimizing LSTM Language
        Models", ICLR 2018.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        p: float = 0.1,
        *,
        batch_first: bool = False,
        per_example: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"EmbeddingDropout: embedding must be a torch.nn.Embedding, got {embedding!r}")
        f.check_probability("EmbeddingDropout", p)
        self.embedding = embedding
        self.p = p
        self.batch_first = batch_first
        self.per_example = per_example
        self.generator = generator

    @property
    def shares_mask(self) -> bool:
        """Whether the whole batch has one mask."""
        return not self.per_example

    def forward(self, tokens: Tensor) -> Tensor:
        f.check_probability("EmbeddingDropout", self.p)
        if tokens.ndim > 2:
            raise ValueError(f"EmbeddingDropout: tokens must have one or two dimensions, got {tuple(tokens.shape)}")
        vectors: Tensor = self.embedding(tokens)
        if not self.training or self.p == 0:
            return vectors
        self._check_generator(vectors)
        words, batch_dim = self.embedding.num_embeddings, 0 if self.batch_first else 1
        if self.per_example and tokens.ndim == 2:
            noise = self._noise(vectors, (tokens.shape[batch_dim], words))
            kept = noise.gather(1, tokens if self.batch_first else tokens.t())
            kept = kept if self.batch_first else kept.t()
        else:
            kept = self._noise(vectors, (words,))[tokens]
        return vectors * kept.unsqueeze(-1)

    def _noise(self, vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
        return f.drop(vectors.new_ones(shape), self.p, shape, generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}, batch_first={self.batch_first}, per_example={self.per_example}"
