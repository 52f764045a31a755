"""How the documentation is built: ``make docs``, or ``sphinx-build -W docs docs/_build/html``."""

import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_extensions"), str(DOCS / "gallery")]

import torchreg  # noqa: E402

# What torchreg.integrations imports of the trainers. The build needs none; autodoc's own mocks would hide signatures.
for name, classes in {
    "accelerate": ["Accelerator"],
    "lightning": [],
    "lightning.pytorch": ["Callback"],
    "skorch": [],
    "skorch.callbacks": ["Callback"],
    "transformers": ["Trainer", "TrainerCallback"],
}.items():
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update({cls: type(cls, (), {"__module__": name}) for cls in classes})

project = "torchreg"
author = "the authors of torchreg"
copyright = "the authors of torchreg, BSD-3-Clause"
version = release = torchreg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "offline",
    "reference",
    "torch_links",
]
exclude_patterns = ["_build", "gallery"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore_regex = [  # types in signatures that have no entry here
    ("py:class", r"collections\.abc\..*|contextlib\..*|ParamsT|Bound|Figure"),
    ("py:class", r"(accelerate|transformers)\..*"),
    ("py:class", r"torchreg\.functional\.members\.Generators"),
    ("py:class", r"torchreg\.(penalties\.partition\.Index|regularizer\.assignment\.Assignment)"),
    ("py:class", r"torchreg\.diagnostics\.dead_units\.Model"),
    ("py:class", r"torchreg\.regularizer\.penalized_loss\.PenalizedLoss|torchreg\.steps\.steered\.Steered"),
    ("py:class", r"torchreg\.tuning\.(path\.selection\.(Mean|P)|ridge\.spectrum\.Spectrum)"),
    (
        "py:class",
        r"torchreg\.nn\.model\.search\.Search|torchreg\.optim\.groups\.ParamGroups|Select|Params|Rules|Weights|Reference",
    ),
]
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions

# -- Markdown --

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# -- Reference --

autosummary_generate = False
autodoc_class_signature = "mixed"
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "forward, no_weight_decay, shares_mask",  # for torch, for selectors, for stacks
}
autodoc_inherit_docstrings = False  # so that a class shows the methods that are its own, not what all penalties have
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_use_param = False  # names that share a line of Args stay together
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape", ("Attributes", "params_style")]
python_display_short_literal_types = True
python_maximum_signature_line_length = 96
add_module_names = False
toc_object_entries_show_parents = "hide"

# -- Gallery --

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "gallery_built",
    "subsection_order": [f"gallery/{name}" for name in ("penalties", "constraints", "dropout", "couplings")],
    "within_subsection_order": "pictures.Taught",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "min_reported_time": float("inf"),
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "copyfile_regex": r".*\.rst",
    "image_scrapers": ("pictures.scraper",),
    "doc_module": ("torchreg",),
    "backreferences_dir": None,
}

# -- Looks --

html_theme = "furo"
html_title = f"torchreg {version}"
html_static_path = ["_static"]
html_css_files = ["torchreg.css"]
html_favicon = "_static/logo.svg"
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}, "chtml": {"matchFontHeight": False, "scale": 1.04}}
