"""What torchreg and other libraries have: a table whose every cell was looked up.

``python -m tests.clients.capabilities`` writes docs/capabilities.md, with the libraries that are installed beside
torchreg: torch, timm and pytorch_optimizer (the extra ``clients``), Keras (``bench``), and torchao, skglm, lassonet,
optax and mosaicml. A name in a cell can be imported, and an argument in brackets is one of its arguments. A cell is
empty if no public name of the library contains one of the capability's words; ``APART`` says why a name that does is
something else.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"

# What is searched of each library, and the distribution whose version the page names.
LIBRARIES = {
    "torch": (("torch.nn", "torch.optim", "torch.ao.pruning", "torch.sparse"), "torch"),
    "Keras": (("keras.src",), "keras"),
    "timm": (("timm",), "timm"),
    "pytorch_optimizer": (("pytorch_optimizer",), "pytorch_optimizer"),
    "torchao": (("torchao",), "torchao"),
    "skglm": (("skglm",), "skglm"),
    "LassoNet": (("lassonet",), "lassonet"),
    "optax": (("optax",), "optax"),
    "composer": (("composer",), "mosaicml"),
}


class Row(NamedTuple):
    """What it is, torchreg's name, the words of names that would be it, and the names that are it."""

    title: str
    ours: str
    words: str
    theirs: Mapping[str, str]


def row(title: str, ours: str, words: str, **theirs: str) -> Row:
    return Row(title, ours, words, theirs)


ROWS = {
    "Penalties": [
        row(
            "L1, L2 on parameters",
            "torchreg.L1",
            r"^prox_?lasso$|^l1(l2)?$|^lasso$|regularizer$",
            Keras="keras.regularizers.L1L2",
            skglm="skglm.penalties.L1",
            torchao="torchao.prototype.pat.optim.ProxLasso",
        ),
        row("elastic net", "torchreg.ElasticNet", r"elastic_?net|l1_plus_l2", skglm="skglm.penalties.L1_plus_L2"),
        row(
            "group lasso",
            "torchreg.GroupLasso",
            r"group_?lasso|l2_1$|group_?l2",
            skglm="skglm.penalties.WeightedGroupL2",
            torchao="torchao.prototype.pat.optim.ProxGroupLasso",
        ),
        row("MCP, SCAD", "torchreg.MCP", r"^(mcp|scad|mcpenalty)", skglm="skglm.penalties.MCPenalty"),
        row("MCP, SCAD of groups", "torchreg.GroupMCP", r"(block|group)_?(mc|scad)", skglm="skglm.penalties.BlockSCAD"),
        row("sorted L1: SLOPE", "torchreg.SLOPE", r"slope$|sorted_?l1", skglm="skglm.penalties.SLOPE"),
        row(
            "a weight for each element, adaptive lasso",
            "torchreg.L1(weights)",
            r"weighted_?(l1|lasso)|adaptive.*lasso|reweighted",
            skglm="skglm.penalties.WeightedL1",
        ),
        row("elastic weight consolidation, Fisher weights", "torchreg.fisher", r"fisher|ewc"),
        row("towards pretrained weights: L2-SP", "torchreg.L2SP", r"l2_?sp$|_sp$|pretrained_?penalty"),
        row(
            "nuclear norm",
            "torchreg.Nuclear",
            r"nuclear",
            torchao="torchao.prototype.pat.optim.ProxNuclearNorm",
        ),
        row(
            "spectral norm, as a penalty or as a bound",
            "torchreg.SpectralNorm",
            r"spectral_?norm",
            torch="torch.nn.utils.parametrizations.spectral_norm",
            Keras="keras.layers.SpectralNormalization",
        ),
        row(
            "orthogonality, as a penalty",
            "torchreg.SoftOrthogonality",
            r"orthogonal.*(regular|penal)|soft_?orthog",
            Keras="keras.regularizers.OrthogonalRegularizer",
        ),
        row(
            "on activations",
            "torchreg.ActivityRegularizer",
            r"activity_?regular",
            Keras="keras.layers.ActivityRegularization",
        ),
        row("z-loss, confidence penalty", "torchreg.ZLoss", r"z_?loss|confidence_?penal"),
        row("Jacobian, input gradient", "torchreg.Jacobian", r"jacobian_?(reg|penal)|gradient_?penalty|double_?back"),
        row(
            "a hierarchy of features: LassoNet",
            "torchreg.LassoNet",
            r"lasso_?net$",
            LassoNet="lassonet.LassoNetRegressor",
        ),
        row("products and sums of parameters", "torchreg.Effective", r"effective_?(weight|penalty)"),
    ],
    "Constraints": [
        row(
            "max-norm, non-negative, unit norm",
            "torchreg.MaxNorm",
            r"max_?norm|non_?neg|unit_?norm$|positive_?constraint",
            Keras="keras.constraints.MaxNorm",
            optax="optax.projections.projection_non_negative",
            skglm="skglm.penalties.PositiveConstraint",
        ),
        row(
            "norm balls, simplex, box",
            "torchreg.L1Ball",
            r"projection_(l1|l2|linf|box|simplex|hyper)|(l1|l2)_?ball|simplex",
            optax="optax.projections.projection_simplex",
        ),
        row(
            "an exact number of weights or groups",
            "torchreg.Sparsest",
            r"sparsity_?constraint|l1_?unstructured|top_?k_?(prox|constraint)",
            torch="torch.nn.utils.prune.L1Unstructured",
            torchao="torchao.prototype.pat.optim.min_sparsity.MinSparsityConstraint",
        ),
        row(
            "2 of 4",
            "torchreg.NofM",
            r"n_?m_?sparse|semi_?struct|two_?four|nofm",
            torch="torch.sparse.to_sparse_semi_structured",
            torchao="torchao.prototype.pat.optim.min_sparsity.NMSparseConstraint",
        ),
        row(
            "a rank",
            "torchreg.Rank",
            r"rank_?constraint|low_?rank",
            torchao="torchao.prototype.pat.optim.min_sparsity.MinRankConstraint",
            composer="composer.algorithms.factorize.factorize_core.LowRankSolution",
        ),
    ],
    "Weight decay": [
        row(
            "decoupled in Adam",
            "torchreg.optim.AdamW",
            r"^(decoupled_?)?adam_?w$",
            torch="torch.optim.AdamW",
            Keras="keras.optimizers.AdamW",
            timm="timm.optim.AdamWLegacy",
            pytorch_optimizer="pytorch_optimizer.StableAdamW",
            torchao="torchao.optim.AdamW8bit",
            optax="optax.adamw",
            composer="composer.optim.DecoupledAdamW",
        ),
        row(
            "decoupled in SGD",
            "torchreg.optim.SGDW",
            r"sgd_?w$",
            timm="timm.optim.SGDW",
            pytorch_optimizer="pytorch_optimizer.SGDW",
            composer="composer.optim.DecoupledSGDW",
        ),
        row(
            "decoupled in any class",
            "torchreg.optim.decoupled",
            r"^decoupl(e|ed)$|^extend_with",
            optax="optax.add_decayed_weights",
        ),
        row(
            "independent of the learning rate's size",
            "torchreg.optim.AdamW(coupling)",
            r"independent_?(decay|weight)|fixed_?decay",
            timm="timm.optim.AdaBelief(fixed_decay)",
            pytorch_optimizer="pytorch_optimizer.AdaBelief(fixed_decay)",
            composer="composer.optim.DecoupledAdamW",
        ),
        row("as a number of steps", "torchreg.optim.AdamW(timescale)", r"timescale"),
        row(
            "cautious",
            "torchreg.optim.AdamW(cautious)",
            r"cautious|caution$",
            timm="timm.optim.AdamWLegacy(caution)",
            pytorch_optimizer="pytorch_optimizer.MARS(cautious)",
        ),
        row("bounded norms (CPR)", "torchreg.optim.AdamCPR", r"cpr$"),
        row(
            "groups without biases, norms, position embeddings",
            "torchreg.optim.param_groups",
            r"param_?groups?(_weight_decay)?$|weight_decay_parameters|parameter_groups",
            timm="timm.optim.param_groups_weight_decay",
            torchao="torchao.prototype.pat.utils.get_param_groups",
        ),
        row(
            "learning rates by layer",
            "torchreg.optim.param_groups(layer_decay)",
            r"layer_?decay|layer_?wise",
            timm="timm.optim.param_groups_layer_decay",
        ),
        row(
            "groups for Muon",
            "torchreg.optim.param_groups(kind)",
            r"muon_?(param|group|dimension)",
            pytorch_optimizer="pytorch_optimizer.optimizer.muon.prepare_muon_parameters",
            optax="optax.contrib.MuonDimensionNumbers",
        ),
        row(
            "proximal optimizers with exact zeros",
            "torchreg.optim.ProxAdam",
            r"^prox_?(sgd|adam|map|optimizer)|prune_?opt",
            torchao="torchao.prototype.pat.optim.PruneOptimizer",
        ),
        row(
            "zeros to a given share",
            "torchreg.optim.TargetSparsity",
            r"target_?sparsity|global_?min_?sparsity",
            torchao="torchao.prototype.pat.optim.min_sparsity.GlobalMinSparsityConstraint",
        ),
    ],
    "Dropout": [
        row(
            "elements, channels, alpha",
            "torchreg.nn.Dropout",
            r"^dropout$|alpha_?dropout",
            torch="torch.nn.Dropout",
            Keras="keras.layers.Dropout",
        ),
        row(
            "with a generator or seed",
            "torchreg.nn.Dropout(generator)",
            r"seeded_?drop",
            Keras="keras.layers.Dropout(seed)",
        ),
        row("Gaussian", "torchreg.nn.GaussianDropout", r"gaussian_?dropout", Keras="keras.layers.GaussianDropout"),
        row(
            "stochastic depth, DropPath",
            "torchreg.nn.StochasticDepth",
            r"stochastic_?depth|^drop_?path$",
            Keras="keras.src.applications.convnext.StochasticDepth",
            timm="timm.layers.DropPath",
            composer="composer.algorithms.StochasticDepth",
        ),
        row("whole layers: LayerDrop", "torchreg.nn.LayerDrop", r"layer_?drop"),
        row("DropBlock", "torchreg.nn.DropBlock2d", r"drop_?block", timm="timm.layers.DropBlock2d"),
        row("DropConnect", "torchreg.nn.DropConnect", r"drop_?connect"),
        row("of keys or heads of attention", "torchreg.nn.MultiheadAttention(drop)", r"drop_?(key|head)"),
        row(
            "locked, of words, of embeddings",
            "torchreg.nn.LockedDropout",
            r"(locked|word|embedding|variational)_?dropout",
        ),
        row(
            "learned rates: concrete, variational, L0",
            "torchreg.nn.ConcreteDropout",
            r"(concrete|learned)_?dropout|hard_?concrete",
        ),
        row(
            "scheduled rates",
            "torchreg.DropoutSchedule",
            r"(dropout|drop_path).*(schedule|rates)",
            timm="timm.layers.calculate_drop_path_rates",
        ),
        row("Monte Carlo dropout", "torchreg.nn.mc_dropout", r"mc_?dropout|monte_?carlo"),
        row("masks reused over several steps", "", r"gyro_?dropout", composer="composer.algorithms.GyroDropout"),
        row("of image patches", "", r"patch_?dropout", timm="timm.layers.PatchDropout"),
    ],
    "Choice of the strength": [
        row(
            "a path of strengths",
            "torchreg.tuning.strength_path",
            r"(lasso|strength|net)_?path$|^path$",
            LassoNet="lassonet.interfaces.lassonet_path",
            skglm="skglm.Lasso(warm_start)",
        ),
        row(
            "cross-validation",
            "torchreg.tuning.strength_path(folds)",
            r"cv$",
            LassoNet="lassonet.LassoNetRegressorCV",
            skglm="skglm.cv.GeneralizedLinearEstimatorCV",
        ),
        row("the one-standard-error rule", "torchreg.tuning.one_standard_error", r"one_?(se|standard)"),
        row("tuned during training", "torchreg.tuning.AutoStrength", r"hyper_?gradient|auto_?(strength|decay)"),
        row("many models at once", "torchreg.Stacked", r"^stacked$|stack_module|model_?ensemble"),
        row(
            "removal of dead units",
            "torchreg.compress",
            r"compress$|prune_linear_linear",
            torch="torch.ao.pruning._experimental.pruner.prune_functions.prune_linear_linear",
            torchao="torchao.prototype.sparsity.pruner.prune_functions.prune_linear_linear",
        ),
    ],
    "Not in torchreg": [
        row(
            "sharpness-aware minimization",
            "",
            r"^sam$|sam_?optimizer",
            pytorch_optimizer="pytorch_optimizer.SAM",
            optax="optax.contrib.sam",
            composer="composer.algorithms.SAM",
        ),
        row(
            "label smoothing, MixUp",
            "",
            r"label_?smooth|mix_?up$",
            torch="torch.nn.CrossEntropyLoss(label_smoothing)",
            Keras="keras.layers.MixUp",
            timm="timm.data.Mixup",
            optax="optax.smooth_labels",
            composer="composer.algorithms.MixUp",
        ),
        row(
            "Muon",
            "",
            r"^muon$",
            torch="torch.optim.Muon",
            Keras="keras.optimizers.Muon",
            timm="timm.optim.Muon",
            pytorch_optimizer="pytorch_optimizer.Muon",
            optax="optax.contrib.muon",
        ),
        row(
            "convex solvers with working sets",
            "",
            r"^(anderson_?cd|prox_?newton|fista)$",
            skglm="skglm.solvers.AndersonCD",
        ),
        row(
            "kernels for sparse weights",
            "",
            r"semi_?sparse|block_?sparse",
            torch="torch.sparse.to_sparse_semi_structured",
            torchao="torchao.sparsity.sparsify_",
        ),
    ],
}

# Names that contain a capability's words and are something else.
APART = {
    ("optax", "fisher_diag"): "deprecated and no longer exported",
    ("timm", "WSDLRScheduler(stable_timescale"): "of a schedule of the learning rate",
    ("pytorch_optimizer", "unit_norm"): "a norm of gradients",
    ("pytorch_optimizer", "LayerWiseGrafting"): "step sizes of another optimizer, layer by layer",
}


def is_installed(library: str) -> bool:
    try:
        with quiet():
            importlib.import_module(LIBRARIES[library][0][0])
    except ImportError:
        print(f"{library}: not installed")
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


SKIPPED = re.compile(
    r"test|model_zoo|\.models\.|\.applications\.(?!convnext)|kernel|quant|float8|mx_formats|cuda|triton|legacy"
)


@cache
def public_names(library: str) -> dict[str, str]:
    """The classes and functions of a library, by their names, with the modules that define them."""
    found: dict[str, str] = {}
    for root in LIBRARIES[library][0]:
        with quiet():
            package = importlib.import_module(root)
            modules = [package]
            for info in pkgutil.walk_packages(package.__path__, f"{root}.", onerror=lambda name: None):
                if not SKIPPED.search(info.name):
                    with contextlib.suppress(BaseException):  # whatever a module raises that needs something else
                        modules.append(importlib.import_module(info.name))
        for module in modules:
            for name, value in vars(module).items():
                is_own = str(getattr(value, "__module__", "")).startswith(root.partition(".")[0])
                if not name.startswith("_") and is_own and (inspect.isclass(value) or inspect.isfunction(value)):
                    found[name] = value.__module__
    return found


@cache
def arguments(library: str) -> dict[str, str]:
    """The arguments of a library's classes, as ``Class(argument``, with the modules of the classes."""
    found: dict[str, str] = {}
    for name, module in public_names(library).items():
        kind = getattr(sys.modules[module], name, None)
        with contextlib.suppress(Exception):  # a class whose signature cannot be read
            if inspect.isclass(kind):
                found |= {f"{name}({argument}": module for argument in inspect.signature(kind).parameters}
    return found


def check(dotted: str) -> str:
    """The name as the page shows it; an error if it cannot be imported, or has no such argument."""
    path, _, argument = dotted.removesuffix(")").partition("(")
    module, _, name = path.rpartition(".")
    with quiet():
        thing = getattr(importlib.import_module(module), name)
    if argument and argument not in inspect.signature(thing).parameters:
        raise LookupError(f"{path} has no argument {argument}")
    return f"{name}({argument})" if argument else name


def cells(library: str) -> dict[str, tuple[str, list[str]]]:
    """The cell of each row, and names of the library that would be it and are not known."""
    found = {}
    for row in (row for rows in ROWS.values() for row in rows):
        cell = check(row.theirs[library]) if row.theirs.get(library) else ""
        searched = public_names(library) | (arguments(library) if "(" in row.ours else {})
        alike = [
            f"{module}.{name}"
            for name, module in searched.items()
            if re.search(row.words, name.rpartition("(")[2], re.IGNORECASE) and (library, name) not in APART
        ]
        found[row.title] = (cell, [] if cell else alike)
    return found


def page(found: Mapping[str, Mapping[str, tuple[str, list[str]]]]) -> str:
    versions = [f"{library} {version(LIBRARIES[library][1])}" for library in found]
    lines = [
        "# What other libraries have",
        "",
        *wrap(f"{', '.join(versions)}.", 100),
        "",
        "Made by `python -m tests.clients.capabilities`: each name was imported, and the public names of",
        "each library were searched for what an empty cell lacks. A cell names one class or function of the",
        "library, with an argument in brackets where that is what does it.",
    ]
    for section, rows in ROWS.items():
        lines += ["", f"## {section}", "", f"| | torchreg | {' | '.join(found)} |", "|---" * (len(found) + 2) + "|"]
        for row in rows:
            shown = [check(row.ours) if row.ours else "", *(found[library][row.title][0] for library in found)]
            lines.append(f"| {row.title} | " + " | ".join(f"`{cell}`" if cell else "" for cell in shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    found = {library: cells(library) for library in LIBRARIES if is_installed(library)}
    unknown = [
        f"{library}: {title}: {', '.join(others)}"
        for library, each in found.items()
        for title, (_, others) in each.items()
        if others
    ]
    for line in unknown:
        print(line)
    if unknown:
        sys.exit("these names are in no cell: add them to ROWS, or to APART with the reason")
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
