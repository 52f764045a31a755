"""The gallery: each penalty, constraint, layer and coupling has a page, and each page draws what it says."""

import importlib
import inspect
import re
import runpy
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from torch import nn

import torchreg
from torchreg.optim.decoupled import Coupling
from torchreg.penalties import Penalty

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
matplotlib.use("agg")
plt = importlib.import_module("matplotlib.pyplot")

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
SCRIPTS = sorted(GALLERY.glob("*/plot_*.py"))
REGULARIZERS = {"CoupledGroupLasso", "InputGradient", "Jacobian"}  # with pages of their own
FORMS = {'decay="L1"', 'towards="start"', "cautious"}
QUICK = ("plot_l1", "plot_max_norm", "plot_dropout", "plot_lr")  # one of each kind
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
each_script_run = pytest.mark.parametrize(
    "script",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in SCRIPTS],
)


def names(script):
    """What a page is about: the names before the colon of its title."""
    return script.read_text().split("\n")[1].split(":")[0].split(", ")


def exported(module, kind):
    found = ((name, getattr(module, name)) for name in module.__all__)
    classes = [(name, it) for name, it in found if isinstance(it, type) and issubclass(it, kind)]
    return {name for name, it in classes if not inspect.isabstract(it)}


@pytest.fixture
def pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(GALLERY))
    yield importlib.import_module("pictures")
    plt.close("all")
    plt.rcdefaults()


def test_each_penalty_constraint_layer_and_coupling_has_one_page():
    couplings = {f'"{coupling}"' for coupling in get_args(Coupling)}
    penalties, layers = exported(torchreg, Penalty), exported(torchreg.nn, nn.Module) - {"Gated"}  # a base class
    assert {"L1", "MaxNorm", "Complexity"} <= penalties
    assert {"Dropout", "HardConcrete"} <= layers
    shown = [name for script in SCRIPTS for name in names(script)]
    assert sorted(shown) == sorted(penalties | layers | couplings | FORMS | REGULARIZERS)


@each_script
def test_a_page_has_formula_advice_source_and_reference(script):
    text = script.read_text()
    for part in (".. math::", "**Take ", "**Do not take ", "**Source:** ", "**Reference:**"):
        assert part in text, part
    module, kind = {
        "dropout": ("torchreg.nn.", "class"),
        "couplings": ("torchreg.optim.DecoupledDecay", None),
    }.get(script.parent.name, ("torchreg.", "class"))
    for name in names(script):
        assert f":class:`{module}{name if kind else ''}`" in text


@each_script
def test_a_page_ends_with_code_that_uses_it_and_can_be_copied(script):
    *_, use = re.split(r"^# (?:%%\n# )?In a model:$", script.read_text(), flags=re.MULTILINE)
    space = {}
    exec(compile(use, script.name, "exec"), space)
    code = use.replace(" ", "")
    for name in names(script)[-2:-1] or names(script):
        assert name.strip('"') in code
    if script.parent.name in ("penalties", "constraints"):
        regularizers = [it for it in space.values() if hasattr(it, "remove") and hasattr(it, "value")]
        assert regularizers
    if script.parent.name == "couplings":
        assert space["optimizer"].param_groups[0]["weight_decay"] > 0


@each_script_run
def test_a_page_draws(script, pictures):
    runpy.run_path(str(script))
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert figures
    chosen = re.search(r"sphinx_gallery_thumbnail_number = (\d+)", script.read_text())
    assert int(chosen[1] if chosen else 1) <= len(figures)
    for figure in figures:
        assert figure.get_label(), "a reader who does not see the picture is told nothing"
        for axes in figure.axes:
            for image in axes.images:
                assert np.isfinite(image.get_array()).all()
                assert np.ptp(image.get_array()) > 0, "an empty picture"
            for line in axes.lines:
                assert np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any()


def test_pages_are_in_an_order(pictures):
    assert sorted(pictures.Taught.ORDER) == sorted(script.stem.removeprefix("plot_") for script in SCRIPTS)
    order = pictures.Taught("docs/gallery/penalties")
    assert order("plot_l1.py") < order("plot_l2.py") < order("plot_srip.py")


def test_the_site_gets_a_light_and_a_dark_copy_and_a_thumbnail_without_text(tmp_path, pictures):
    shades = importlib.import_module("pictures.style").SHADES
    pictures.curves(torchreg.L1(1.0))
    paths = (str(tmp_path / "images" / f"picture_{number:03}.png") for number in range(1, 10))
    (tmp_path / "images").mkdir()
    text = pictures.scraper(("code", "", 1), {"image_path_iterator": paths}, {"src_dir": str(tmp_path)})
    assert not plt.get_fignums()
    for number in (1, 2, 3):
        thumbnail, light, dark = (
            (tmp_path / "images" / f"picture_{number:03}{copy}.svg").read_text() for copy in ("", "_light", "_dark")
        )
        for middle, (on_light, on_dark) in shades.items():
            assert middle not in light + dark
            assert on_light not in dark
            assert on_dark not in light
        assert shades[pictures.BLUE][0] in light
        assert shades[pictures.BLUE][1] in dark
        assert pictures.BLUE in thumbnail
        assert 'id="text_' in light
        assert 'id="text_' not in thumbnail
        for copy in ("light", "dark"):
            assert f".. image:: /images/picture_{number:03}_{copy}.svg" in text
            assert f":class: only-{copy}" in text
