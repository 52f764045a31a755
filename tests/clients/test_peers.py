"""Penalties, constraints and steps beside optax, Keras and torchao, where they have the same: to 1e-10 in float64."""

import contextlib
import importlib
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_close
from torchreg import (
    L1,
    L2,
    Box,
    GroupLasso,
    L1Ball,
    L2Ball,
    LinfBall,
    MaxNorm,
    NofM,
    NonNegative,
    Nuclear,
    Rank,
    Simplex,
    Sparsest,
    UnitNorm,
)
from torchreg.optim import SGDW, AdamW

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs

EXACT = 1e-10


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


each_seed = pytest.mark.parametrize("seed", range(4))


# -- optax ------------------------------------------------------------------------------------------------------------


IS_APART = "TORCHREG_TESTS_ON_JAX" in os.environ


def test_what_needs_jax_passes_in_a_process_of_its_own():
    """JAX has threads, which forks of other tests in this process would warn of."""
    if IS_APART:
        pytest.skip("this is that process")
    for library in ("jax", "keras", "optax"):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "optax or keras", __file__]
    own = {"TORCHREG_TESTS_ON_JAX": "1", "KERAS_BACKEND": "jax"}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.fixture
def optax():
    if not IS_APART:
        pytest.skip("runs in a process of its own")
    library = importlib.import_module("optax")
    with importlib.import_module("jax").enable_x64(True):
        yield library


PROJECTIONS = {
    "L1Ball": (L1Ball(1.5), lambda p, w: p.projection_l1_ball(w, 1.5)),
    "L2Ball": (L2Ball(1.5), lambda p, w: p.projection_l2_ball(w, 1.5)),
    "LinfBall": (LinfBall(0.5), lambda p, w: p.projection_linf_ball(w, 0.5)),
    "NonNegative": (NonNegative(), lambda p, w: p.projection_non_negative(w)),
    "Simplex": (Simplex(2.0, groups="tensor"), lambda p, w: p.projection_simplex(w, 2.0)),
    "Box": (Box(-0.3, 0.7), lambda p, w: p.projection_box(w, -0.3, 0.7)),
    "UnitNorm": (UnitNorm(groups="tensor"), lambda p, w: p.projection_l2_sphere(w, 1.0)),
}


@each_seed
@pytest.mark.parametrize(("constraint", "theirs"), PROJECTIONS.values(), ids=PROJECTIONS.keys())
def test_projections_are_those_of_optax(optax, constraint, theirs, seed):
    w = drawn(seed, 12)
    jnp = importlib.import_module("jax.numpy")
    expected = np.array(theirs(optax.projections, jnp.asarray(w.numpy())))
    assert_close(constraint.project(w), torch.from_numpy(expected), EXACT)


OPTIMIZERS = {
    "adamw": (
        lambda w: AdamW([w], lr=0.1, weight_decay=0.2),
        lambda optax: optax.adamw(0.1, weight_decay=0.2),
    ),
    "adamw, nesterov off, other betas": (
        lambda w: AdamW([w], lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        lambda optax: optax.adamw(0.05, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1),
    ),
    "sgd with decay and momentum": (
        lambda w: SGDW([w], lr=0.1, momentum=0.9, weight_decay=0.3),
        lambda optax: optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.3), optax.scale(-0.1)),
    ),
}


@each_seed
@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_steps_with_decoupled_decay_are_those_of_optax(optax, ours, theirs, seed):
    w = nn.Parameter(drawn(seed, 5))
    jnp = importlib.import_module("jax.numpy")
    params, transform = jnp.asarray(w.detach().numpy()), theirs(optax)
    state, optimizer = transform.init(params), ours(w)
    for step in range(20):
        w.grad = drawn(100 * seed + step, 5)
        updates, state = transform.update(jnp.asarray(w.grad.numpy()), state, params)
        params = optax.apply_updates(params, updates)
        optimizer.step()
    assert_close(w.detach(), torch.from_numpy(np.array(params)), EXACT)


# -- Keras ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def keras():
    if not IS_APART:
        pytest.skip("runs in a process of its own")
    library = importlib.import_module("keras")
    library.config.set_floatx("float64")
    with importlib.import_module("jax").enable_x64(True):
        yield library


VALUES = {  # Keras has no factor 1/2
    "L1": (L1(0.3), lambda keras: keras.regularizers.L1(0.3)),
    "L2": (L2(0.6), lambda keras: keras.regularizers.L2(0.3)),
    "L1L2": (L1(0.2) + L2(0.6), lambda keras: keras.regularizers.L1L2(0.2, 0.3)),
}


@each_seed
@pytest.mark.parametrize(("penalty", "theirs"), VALUES.values(), ids=VALUES.keys())
def test_penalties_are_those_of_keras(keras, penalty, theirs, seed):
    w = drawn(seed, 4, 3)
    assert_close(penalty.value(w).item(), float(theirs(keras)(w.numpy())), EXACT)


BOUNDS = {  # Keras adds 1e-7 to norms and rounds to single precision; its outputs are the last dimension
    "MaxNorm": (MaxNorm(1.2), lambda keras: keras.constraints.MaxNorm(1.2, axis=0), 1e-6),
    "UnitNorm": (UnitNorm(), lambda keras: keras.constraints.UnitNorm(axis=0), 1e-6),
    "NonNegative": (NonNegative(), lambda keras: keras.constraints.NonNeg(), 1e-6),
}


@each_seed
@pytest.mark.parametrize(("constraint", "theirs", "tolerance"), BOUNDS.values(), ids=BOUNDS.keys())
def test_constraints_are_those_of_keras(keras, constraint, theirs, tolerance, seed):
    w = drawn(seed, 4, 3)
    expected = np.array(theirs(keras)(w.T.numpy())).T
    assert_close(constraint.project(w), torch.from_numpy(expected.copy()), tolerance)


# -- torchao ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pat():
    pytest.importorskip("torchao")
    with contextlib.suppress(ImportError):
        return importlib.import_module("torchao.prototype.pat.optim")
    pytest.skip("this torchao has no prototype.pat")


@each_seed
@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_proximal_operators_are_those_of_torchao(pat, strength, seed):
    w, step = drawn(seed, 6, 4), 0.7
    lasso = w.clone()
    pat.ProxLasso(strength).apply_(lasso, step)
    assert_close(L1(strength).prox(w, step), lasso, EXACT)
    rows = w.clone()
    for row in rows:
        pat.ProxGroupLasso(strength).apply_(row, step)
    assert_close(GroupLasso(strength, groups="output").prox(w, step), rows, EXACT)
    left, sigma, right = torch.linalg.svd(w, full_matrices=False)
    pat.ProxNuclearNorm(strength).apply_(sigma, step)
    assert_close(Nuclear(strength).prox(w, step), left @ sigma.diag() @ right, EXACT)


@each_seed
def test_counts_are_those_of_torchao(pat, seed):
    module = importlib.import_module("torchao.prototype.pat.optim.min_sparsity")
    w = drawn(seed, 6, 8)
    rows = w.clone()
    module.MinSparsityConstraint(1.0, 0.5).apply_(rows, 1.0)
    assert_close(Sparsest(0.5, groups="output").project(w), rows, EXACT)
    pattern = w.clone()
    for run in pattern.view(-1, 4):
        module.NMSparseConstraint(1.0, 2).apply_(run, 1.0)
    assert_close(NofM(2, 4).project(w), pattern, EXACT)
    left, sigma, right = torch.linalg.svd(w, full_matrices=False)
    module.MinRankConstraint(1.0, 0.5).apply_(sigma, 1.0)
    assert_close(Rank(3).project(w), left @ sigma.diag() @ right, EXACT)
