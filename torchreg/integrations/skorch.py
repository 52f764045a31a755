"""The callback for skorch."""

from __future__ import annotations

from typing import Any

from torchreg.integrations.attachment import Attachment

try:
    from skorch.callbacks import Callback
except ImportError:
    raise ImportError(
        "torchreg.integrations.skorch needs skorch, which is not installed: run 'pip install skorch'"
    ) from None


class RegularizerCallback(Attachment, Callback):
    r"""Attaches a regularizer to the optimizer of a skorch net, records it in the net's history, and resumes it.

    .. code-block:: python

        net = NeuralNetClassifier(Net, callbacks=[RegularizerCallback(L1(0.1), mode="prox")])

    The training is, bit for bit, that with ``Regularizer(self.module_, L1(0.1), mode="prox")`` attached in
    ``initialize_optimizer``. At the end of each epoch ``regularizer/L1``, ``regularizer/scale`` and
    ``regularizer/sparsity`` are recorded in ``net.history``. Put the callback before those that save or log the
    history, such as ``Checkpoint``; ``PrintLog`` is the last anyway. The state is part of the optimizer's, so that
    ``load_params`` with ``f_optimizer`` and ``LoadInitState`` restore it. ``clone`` and ``GridSearchCV`` work; the
    latter can set ``callbacks__RegularizerCallback__penalty``.

    Args:
        penalty, mode, select, schedule, every, compile, name, sparsity: as for
            :class:`torchreg.integrations.lightning.RegularizerCallback`, with what is logged.

    Raises:
        ValueError, TypeError: as there.

    Example:
        >>> from torchreg import L1
        >>> callback = RegularizerCallback(L1(0.1), mode="prox")
    """

    _trainer = "skorch"

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803
        """Called by the net when its optimizer is made."""
        self._attach(net.module_, [net.optimizer_])

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Called by the net; records the numbers."""
        for name, number in self._logged().items():
            net.history.record(name, number)
