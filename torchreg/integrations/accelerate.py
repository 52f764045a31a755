"""The numbers of a regularizer for the trackers of accelerate."""

from __future__ import annotations

from typing import Any

from torchreg.integrations.logged import logged, regularizers_of

try:
    from accelerate import Accelerator
except ImportError:
    raise ImportError(
        "torchreg.integrations.accelerate needs accelerate, which is not installed: run 'pip install accelerate'"
    ) from None


def log_regularizer(
    accelerator: Accelerator,
    regularizer: Any,
    step: int | None = None,
    *,
    every: int = 1,
    name: str = "regularizer",
    sparsity: bool = True,
) -> dict[str, float]:
    """Logs a regularizer to the trackers of accelerate, with ``accelerator.log``.

    The numbers are those of :class:`torchreg.integrations.lightning.RegularizerCallback`. They take a pass over the
    weights, so large models log every 100 steps or so. All processes must call it; the main one logs. If the
    regularizer was attached before or after ``accelerator.prepare``, its state travels in the optimizer's, so that
    ``accelerator.save_state`` and ``load_state`` need nothing else.

    Args:
        accelerator: the accelerator, after ``init_trackers``.
        regularizer: a :class:`~torchreg.Regularizer` in any mode, an :class:`~torchreg.ActivityRegularizer` or an
            :class:`~torchreg.tuning.AutoStrength`.
        step: the number of the step, for the trackers.
        every: only steps that are a multiple of it are logged.
        name: the names of the numbers begin with it.
        sparsity: whether zeros are counted.

    Returns:
        The numbers by name; none in a step that is not logged.

    Raises:
        TypeError: ``accelerator`` is no ``accelerate.Accelerator``, or ``regularizer`` has no terms.
        ValueError: ``every`` is no whole number of at least 1, or needs a ``step``.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from torchreg import L1, Regularizer
        >>> accelerator = Accelerator(cpu=True)
        >>> regularizer = Regularizer(torch.nn.Linear(2, 1), L1(0.1))
        >>> sorted(log_regularizer(accelerator, regularizer, step=0))
        ['regularizer/L1', 'regularizer/scale', 'regularizer/sparsity']
    """
    if not isinstance(accelerator, Accelerator):
        raise TypeError(
            f"log_regularizer: accelerator must be an accelerate.Accelerator, got a {type(accelerator).__name__}"
        )
    if not regularizers_of(regularizer):
        raise TypeError(
            f"log_regularizer: regularizer must be a Regularizer or what tunes one, got {type(regularizer).__name__}"
        )
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"log_regularizer: every must be a whole number >= 1, got {every!r}")
    if step is None and every > 1:
        raise ValueError(f"log_regularizer: every={every} needs the number of the step: pass step")
    if step is not None and step % every:
        return {}
    numbers = logged(regularizer, name, sparsity)
    accelerator.log(numbers, step=step)
    return numbers
