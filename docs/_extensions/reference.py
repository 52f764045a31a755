"""How the reference shows names: signatures that can be read, formulas that wrap, and a table of all names."""

import inspect
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

import torchreg

_PARAMS = re.compile(r"(?<=params: ).*(?=, penalty: |, lr: )")
_PRIVATE = re.compile(r"\b_[A-Z]\w+")
_ALIAS = re.compile(r"(?<=: )([A-Z]\w+)(?= = )")
_SCHEDULE = re.compile(r"(?<=: )Schedule\b")
_OWN = re.compile(r"~torchreg\.[\w.]+\.(\w+)")
_TORCH = {
    "~torch.nn.modules.module.Module": "~torch.nn.Module",
    "~torch.nn.parameter.Parameter": "~torch.nn.Parameter",
    "~torch.optim.optimizer.Optimizer": "~torch.optim.Optimizer",
}


def _sign(
    app: Any, what: str, name: str, what_is: Any, options: Any, signature: str | None, returns: str | None
) -> Any:
    """Types by their public names; aliases of literals are written out, that of what optimizers take is kept."""
    if not signature:
        return None
    if _PRIVATE.search(signature):  # made by a function, not by its reader
        return "", None

    def literal(match: re.Match[str]) -> str:
        alias = _alias(what_is, match[1])
        return match[1] if alias is None else f"Literal[{', '.join(map(repr, get_args(alias)))}]"

    short = _ALIAS.sub(literal, _PARAMS.sub("ParamsT", signature))
    short = _SCHEDULE.sub("~torchreg.schedules.Schedule", short)
    is_shown = returns not in (None, "None") and not inspect.isclass(what_is)
    return _public(short), _public(str(returns)) if is_shown else None


def _public(types: str) -> str:
    """Types that are written with the module that defines them, with their public names, which are shorter."""
    for inner, outer in _TORCH.items():
        types = types.replace(inner, outer)
    return _OWN.sub(lambda found: f"~torchreg.{found[1]}" if found[1] in torchreg.__all__ else found[0], types)


def _alias(what: Any, name: str) -> Any:
    """The literal type of that name, in a module in which a part of the class is written."""
    for cls in what.__mro__ if inspect.isclass(what) else ():
        alias = getattr(inspect.getmodule(cls), name, None)
        if get_origin(alias) is Literal:
            return alias
    return None


def _wrap_formulas(app: Any, doctree: nodes.document) -> None:
    """A formula of several parts, apart by ``\\qquad``, becomes one box for each, so that a narrow page stacks them."""
    for formula in list(doctree.findall(nodes.math_block)):
        parts = [part.strip() for part in formula.astext().split(r"\qquad")]
        if (
            len(parts) == 1
            or formula.get("number")
            or any(part.count(r"\begin") != part.count(r"\end") for part in parts)
        ):
            continue
        row = nodes.container(classes=["formulas"])
        for part in parts:
            row += nodes.math_block(part, part, number=None, nowrap=False, docname=formula.get("docname"))
        formula.replace_self(row)


# Napoleon takes what stands before a colon in a property's first line for its type. No property here is written so.
_COLON = "\ue000"


def _hide_colon(app: Any, what: str, name: str, what_is: Any, options: Any, lines: list[str]) -> None:
    if what in ("property", "attribute", "data") and lines:
        lines[0] = lines[0].replace(": ", f"{_COLON} ")


def _show_colon(app: Any, what: str, name: str, what_is: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(_COLON, ":") for line in lines]


_PICTURED = re.compile(r":(?:class|func):`(torchreg[\w.]*)`")


def pictures(gallery: Path) -> dict[str, list[str]]:
    """Of each name that scripts of the gallery have under **Reference**, the pages that are made of the scripts."""
    found: dict[str, list[str]] = {}
    for script in sorted(gallery.glob("*/plot_*.py")):
        _, _, names = script.read_text(encoding="utf-8").partition("**Reference:**")
        for name in _PICTURED.findall(names.partition('"""')[0]):
            found.setdefault(name, []).append(f"/gallery_built/{script.parent.name}/{script.stem}")
    return found


def _link_pictures(app: Any, what: str, name: str, what_is: Any, options: Any, lines: list[str]) -> None:
    pages = pictures(Path(app.srcdir) / "gallery").get(name, [])
    if pages:
        lines += ["", ".. rubric:: Gallery", "", *(f"| :doc:`{page}`" for page in pages), ""]


def _part_sources(app: Any, what: str, name: str, what_is: Any, options: Any, lines: list[str]) -> None:
    """Each source is a paragraph of its own: one ends where a line ends with a year or another number."""
    if ".. rubric:: References" in lines:
        at = lines.index(".. rubric:: References")
        ends = [number for number, line in enumerate(lines) if number > at and re.search(r"\d\.$", line)]
        for number in reversed(ends):
            lines.insert(number + 1, "")


def _hide_final(app: Any, doctree: nodes.document) -> None:
    """Whether a class may have subclasses is no news to its reader: ``final class L1`` is shown as ``class L1``."""
    for keyword in list(doctree.findall(addnodes.desc_sig_keyword)):
        if keyword.astext() == "final":
            siblings = keyword.parent.children
            at = siblings.index(keyword)
            del siblings[at : at + 2]  # the space too


_NOTE = re.compile(
    r"^\.\. only:: html\n\n    \.\. note::\n(?:.*\n)*?(?=\.\. rst-class:: sphx-glr-example-title)", re.MULTILINE
)


def _without_downloads(app: Any, page: str, source: list[str]) -> None:
    """The gallery's scripts import a module beside them, so a single one is nothing to download."""
    if page.startswith("gallery_built/"):
        source[0] = _NOTE.sub("", source[0].partition("\n.. _sphx_glr_download_")[0])


class Names(SphinxDirective):
    """The names that a page of the reference has entries for: a row for each of its sections, each name a link."""

    required_arguments = 1  # the page, beside the one with the directive

    def run(self) -> list[nodes.Node]:
        page = Path(self.env.doc2path(self.env.docname)).parent / f"{self.arguments[0]}.md"
        self.env.note_dependency(page)
        table, body = nodes.table(classes=["names"]), nodes.tbody()
        group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (25, 75)), body, cols=2)
        for heading, names in sections(page.read_text(encoding="utf-8")):
            cell = nodes.paragraph()
            for name in names:
                short = name.rpartition(".")[2]
                link = addnodes.pending_xref(
                    "",
                    nodes.literal(text=short),
                    refdomain="py",
                    reftype="obj",
                    reftarget=name,
                    refexplicit=True,
                    refwarn=True,
                    refdoc=self.env.docname,
                )
                cell += [link, nodes.Text(" ")]
            body += nodes.row("", nodes.entry("", nodes.paragraph(text=heading)), nodes.entry("", cell))
        table += group
        return [table]


def sections(page: str) -> list[tuple[str, list[str]]]:
    """Each heading of a page of the reference, with the full names in the table under it."""
    found = []
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        module = re.search(r"^\.\. currentmodule:: (.+)$", part, re.MULTILINE)
        listed = re.search(r"^\.\. autosummary::\n   :nosignatures:\n\n((?:   .+\n)+)", part, re.MULTILINE)
        if module and listed:
            names = listed[1].split()
            full = [name if name.startswith("torchreg.") else f"{module[1]}.{name}" for name in names]
            found.append((part.partition("\n")[0], full))
    return found


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-process-docstring", _hide_colon, priority=400)
    app.connect("autodoc-process-docstring", _show_colon, priority=600)
    app.connect("autodoc-process-docstring", _part_sources, priority=650)
    app.connect("autodoc-process-docstring", _link_pictures, priority=700)
    app.connect("doctree-read", _wrap_formulas)
    app.connect("doctree-read", _hide_final)
    app.connect("source-read", _without_downloads)
    app.add_directive("names", Names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
