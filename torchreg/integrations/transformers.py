"""The callback for the Trainer of transformers."""

from __future__ import annotations

from typing import Any, Self

from torchreg.integrations.attachment import Attachment

try:
    from transformers import Trainer, TrainerCallback
except ImportError:
    raise ImportError(
        "torchreg.integrations.transformers needs transformers, which is not installed: run 'pip install "
        "transformers[torch]'"
    ) from None


class RegularizerCallback(Attachment, TrainerCallback):
    r"""Attaches a regularizer to the optimizer of a ``transformers.Trainer``, logs it, and resumes it.

    .. code-block:: python

        RegularizerCallback(L1(0.1), mode="prox").add_to(trainer)

    The training is, bit for bit, that with ``Regularizer(model, L1(0.1), mode="prox")`` attached to
    ``trainer.create_optimizer()``. Every ``logging_steps`` steps ``regularizer/L1``, ``regularizer/scale`` and
    ``regularizer/sparsity`` are logged beside the loss, in what is printed, in ``trainer.state.log_history``, and by
    ``report_to``. The state is part of the optimizer's, so that ``resume_from_checkpoint`` restores it.

    ``Trainer(callbacks=[RegularizerCallback(...)])`` does the same, but the trainer calls the loggers of ``report_to``
    before it, so that these do not get the numbers.

    Args:
        penalty, mode, select, schedule, every, compile, name, sparsity: as for
            :class:`torchreg.integrations.lightning.RegularizerCallback`, with what is logged.

    Raises:
        ValueError, TypeError: as there.

    Example:
        >>> from torchreg import L1
        >>> callback = RegularizerCallback(L1(0.1), mode="prox")
    """

    _trainer = "transformers"

    def add_to(self, trainer: Trainer) -> Self:
        """Adds the callback to a trainer, before its loggers.

        Returns:
            The callback itself.

        Raises:
            TypeError: ``trainer`` is no ``transformers.Trainer``.
        """
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"RegularizerCallback: add_to() takes a transformers.Trainer, got a {type(trainer).__name__}"
            )
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when the optimizer is made and has its state."""
        self._attach(kwargs["model"], [kwargs["optimizer"]])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the trainer; adds to what it logs of the training."""
        if self.attached_ is not None and logs is not None and "loss" in logs:
            numbers = self._logged()
            logs.update(numbers)
            state.log_history[-1].update(numbers)  # a copy of the logs
