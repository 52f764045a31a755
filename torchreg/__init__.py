"""Regularization for any existing PyTorch model, under any optimizer, in any training loop.

Attach a penalty to the optimizer you have; model and loop stay as they are. L1 as a proximal step makes exact zeros:

    >>> import torch
    >>> from torchreg import L1, Regularizer
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> regularizer = Regularizer(model, L1(1.0), mode="prox").attach(optimizer)
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     model(torch.zeros(4, 3)).square().mean().backward()
    ...     optimizer.step()
    >>> model.weight.count_nonzero()
    tensor(0)
    >>> regularizer.remove()

Penalties
    Elementwise: :class:`L1`, :class:`L2`, :class:`ElasticNet`, :class:`Huber`, :class:`Lp`, :class:`LogSum`,
    :class:`MCP`, :class:`SCAD`, :class:`HoyerSquare`. By rank: :class:`SLOPE`. Towards a reference: :class:`L1SP`,
    :class:`L2SP`. With a weight for each element, which :func:`adaptive` and :func:`fisher` find: L1, L2, L1SP, L2SP.
    On groups: :class:`GroupLasso`, :class:`SparseGroupLasso`, :class:`ExclusiveLasso`, :class:`GroupMCP`,
    :class:`GroupSCAD`, with :class:`Heads`. On matrices: :class:`Nuclear`, :class:`SpectralNorm`,
    :class:`ConvolutionNorm`, :class:`SoftOrthogonality`, :class:`DoubleSoftOrthogonality`, :class:`SRIP`. On
    activations: :class:`KLSparsity`. On logits: :class:`ZLoss`, :class:`Confidence`. Of layers that learn to drop:
    :class:`Complexity`. Of several parameters: :class:`Effective`, :class:`LassoNet`. Your own: subclass
    :class:`Penalty` or :class:`ProximalPenalty`. Penalties add up and multiply: ``L1(1e-5) + 0.5 * L2(1e-4)``.
Constraints
    Projections after the step: :class:`MaxNorm`, :class:`NonNegative`, :class:`UnitNorm`, :class:`L1Ball`,
    :class:`L2Ball`, :class:`LinfBall`, :class:`Box`, :class:`Simplex`. Exact counts: :class:`Sparsest`, :class:`NofM`,
    :class:`Rank`. Your own: subclass :class:`Constraint`.
Regularizers
    :class:`Regularizer` applies a penalty to parameters in one of four modes: "loss", "grad", "decoupled", "prox".
    :class:`ActivityRegularizer` applies one to the outputs of modules. :class:`Jacobian` and :class:`InputGradient`
    penalize how much the outputs and the loss change with the inputs.
Selection
    :data:`weights` is the default: no biases, no normalization. :func:`named`, :func:`in_modules` and
    :data:`everything` select others; :class:`Selector` and :class:`ParamInfo` are for selectors of your own.
Schedules
    :class:`linear`, :class:`cosine`, :class:`early`, :class:`late`, :class:`curriculum`, for strengths, decay and, with
    :class:`DropoutSchedule`, dropout rates.
Layers: :mod:`torchreg.nn`
    Dropout layers, layers that learn to drop, and functions that put them into an existing model.
Optimizers: :mod:`torchreg.optim`
    Decoupled weight decay in any optimizer, and proximal optimizers, whose steps end in exact zeros.
Tuning: :mod:`torchreg.tuning`
    The strength chosen by a path of strengths, from the training examples alone, or tuned during training.
    :class:`Stacked` trains many models as one.
Integrations: :mod:`torchreg.integrations`
    Callbacks for Lightning, transformers and skorch, and logging for accelerate.
Diagnostics: :mod:`torchreg.diagnostics`
    Norms, shares of zeros, compression. :func:`compress` removes dead units from a model.
"""

from pathlib import Path as _Path
from warnings import warn as _warn

# Imported as themselves, so that they are attributes, but not in __all__: import * must not shadow torch's nn.
from torchreg import diagnostics as diagnostics
from torchreg import functional as functional
from torchreg import nn as nn
from torchreg import optim as optim
from torchreg import tuning as tuning
from torchreg.diagnostics import compress
from torchreg.ensemble import Stacked
from torchreg.nn.model.schedule import DropoutSchedule
from torchreg.penalties import (
    L1,
    L1SP,
    L2,
    L2SP,
    MCP,
    SCAD,
    SLOPE,
    SRIP,
    Box,
    Complexity,
    Confidence,
    Constraint,
    ConvolutionNorm,
    DoubleSoftOrthogonality,
    Effective,
    ElasticNet,
    ExclusiveLasso,
    GroupLasso,
    GroupMCP,
    GroupSCAD,
    Heads,
    HoyerSquare,
    Huber,
    KLSparsity,
    L1Ball,
    L2Ball,
    LassoNet,
    LinfBall,
    LogSum,
    Lp,
    MaxNorm,
    NofM,
    NonNegative,
    Nuclear,
    Penalty,
    ProximalPenalty,
    Rank,
    Simplex,
    SoftOrthogonality,
    SparseGroupLasso,
    Sparsest,
    SpectralNorm,
    UnitNorm,
    ZLoss,
    adaptive,
    fisher,
)
from torchreg.regularizer import ActivityRegularizer, CoupledGroupLasso, InputGradient, Jacobian, Regularizer
from torchreg.regularizer import PenalizedLoss as PenalizedLoss  # the type that penalize() returns
from torchreg.schedules import cosine, curriculum, early, late, linear
from torchreg.selection import ParamInfo, Selector, everything, in_modules, named, weights

__version__ = "0.2.0.dev0"


def _warn_of_namesake(package: _Path) -> None:
    """Warns if the unrelated distribution torchreg of the package index was installed into the same folder."""
    if any(package.parent.glob("torchreg-*.dist-info")) or (package / "syn.py").exists():
        _warn(
            "the unrelated package 'torchreg' is in the folder of torch-regularizers, and each overwrites the other: "
            "run 'pip uninstall torchreg', then install torch-regularizers again with --force-reinstall",
            stacklevel=3,
        )


_warn_of_namesake(_Path(__file__).parent)

__all__ = [
    "L1",
    "L1SP",
    "L2",
    "L2SP",
    "MCP",
    "SCAD",
    "SLOPE",
    "SRIP",
    "ActivityRegularizer",
    "Box",
    "Complexity",
    "Confidence",
    "Constraint",
    "ConvolutionNorm",
    "CoupledGroupLasso",
    "DoubleSoftOrthogonality",
    "DropoutSchedule",
    "Effective",
    "ElasticNet",
    "ExclusiveLasso",
    "GroupLasso",
    "GroupMCP",
    "GroupSCAD",
    "Heads",
    "HoyerSquare",
    "Huber",
    "InputGradient",
    "Jacobian",
    "KLSparsity",
    "L1Ball",
    "L2Ball",
    "LassoNet",
    "LinfBall",
    "LogSum",
    "Lp",
    "MaxNorm",
    "NofM",
    "NonNegative",
    "Nuclear",
    "ParamInfo",
    "Penalty",
    "ProximalPenalty",
    "Rank",
    "Regularizer",
    "Selector",
    "Simplex",
    "SoftOrthogonality",
    "SparseGroupLasso",
    "Sparsest",
    "SpectralNorm",
    "Stacked",
    "UnitNorm",
    "ZLoss",
    "adaptive",
    "compress",
    "cosine",
    "curriculum",
    "early",
    "everything",
    "fisher",
    "in_modules",
    "late",
    "linear",
    "named",
    "weights",
]


def _run_studies() -> None:
    """The command ``torchreg``: the studies in the wheel, or of an editable install those of its clone."""
    import sys
    from importlib import import_module
    from importlib.util import find_spec
    from pathlib import Path

    if not sys.flags.safe_path:
        sys.path.insert(
            0, str(Path.cwd())
        )  # as python -m does: a study may name a class of a file in the current folder
    package = "torchreg.studies" if find_spec("torchreg.studies") else "experiments"
    import_module(f"{package}.__main__").main()


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__", "diagnostics", "functional", "nn", "optim", "tuning"]
