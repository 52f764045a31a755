"""The callback for Lightning."""

from __future__ import annotations

from typing import Any

from torchreg.integrations.attachment import Attachment

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[no-redef]
    except ImportError:
        raise ImportError(
            "torchreg.integrations.lightning needs Lightning, which is not installed: run 'pip install lightning'"
        ) from None


class RegularizerCallback(Attachment, Callback):
    r"""Attaches a regularizer to the optimizers of a Lightning trainer, logs it, and resumes it.

    .. code-block:: python

        trainer = Trainer(callbacks=[RegularizerCallback(L1(0.1), mode="prox")])

    The training is, bit for bit, that with ``Regularizer(self, L1(0.1), mode="prox").attach(optimizer)`` in
    ``configure_optimizers``. Every ``log_every_n_steps`` steps of the trainer these are logged, with ``log_dict``:

    ========================  =======================================================================
    name                      number
    ========================  =======================================================================
    ``regularizer/L1``        the value of that kind of penalty, times the scale; one for each kind
    ``regularizer/scale``     the scale, which a schedule changes
    ``regularizer/sparsity``  the share of exact zeros in the penalized weights
    ========================  =======================================================================

    An :class:`~torchreg.tuning.AutoStrength` has ``strength/L1`` instead of the scale, a
    :class:`~torchreg.DropoutSchedule` the scale alone, an :class:`~torchreg.tuning.AutoRate` the ``rate/`` of each
    layer. The state is part of the optimizer's, so that ``ckpt_path`` restores it. Of several optimizers those are used
    that hold a penalized parameter; a schedule counts the steps of the last. Each ``fit`` makes a new regularizer, as
    Lightning makes new optimizers; a ready one goes on from where it is.

    Args:
        penalty: a penalty, or a dict of name patterns to penalties. Or a function of the model that returns an object
            with ``attach(optimizer)``: a :class:`~torchreg.Regularizer`, an :class:`~torchreg.tuning.AutoStrength`, a
            :class:`~torchreg.DropoutSchedule`. Or such an object, if the model exists already. One that is attached
            already is logged only.
        mode: ``"grad"``, ``"decoupled"`` or ``"prox"``, with a penalty.
        select, schedule, every, compile: as for :class:`~torchreg.Regularizer`, with a penalty.
        name: the names of the numbers begin with it. Several callbacks need different names.
        sparsity: whether zeros are counted.

    Raises:
        ValueError: ``mode`` is another, or given beside an object; two callbacks have one name; what ``attach`` of the
            object refuses.
        TypeError: ``penalty`` is nothing that can be attached.

    Example:
        >>> from lightning import Trainer
        >>> from torchreg import L1
        >>> callback = RegularizerCallback(L1(0.1), mode="prox")
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    _trainer = "Lightning"

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called by the trainer when the optimizers are made and before their states are restored."""
        self.batch_ = -1
        self._attach(pl_module, trainer.optimizers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called by the trainer; logs if the trainer does."""
        # As Lightning's own monitors do. In the batches that are accumulated for a step its answer is the same.
        if trainer.global_step != self.batch_ and trainer._logger_connector.should_update_logs:
            pl_module.log_dict(self._logged())
        self.batch_ = trainer.global_step
