"""A study's file as a tree, laid on the file that it extends."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

from .. import COMMAND, SHIPPED
from ..errors import UserError
from .sections import Tree, fault_in


def read(path: Path) -> Tree:
    """The tree of a TOML file; with ``extends = "base.toml"`` it is laid on that of the other file, and so on.

    The path is relative to the file that names it. Tables are merged, and lists (arms too) replace those below.

    Raises:
        UserError: a file cannot be read, is not TOML, or extends itself; the line names all files up to it.
    """
    chain, said = [path], str(path)
    found = [(said, _parsed(path, said))]
    while "extends" in found[-1][1]:
        named = found[-1][1].pop("extends")
        if not isinstance(named, str) or not named or not named.isprintable():
            raise UserError(f"{said}: extends: must be the path of a TOML file, got {named!r:.200}")
        chain.append(chain[-1].parent / named)
        said += f" -> {chain[-1]}"
        if os.path.realpath(chain[-1]) in map(os.path.realpath, chain[:-1]):
            raise UserError(f"{said}: extends: must not run in a circle: remove one of them")
        found.append((said, _parsed(chain[-1], said)))
    if len(found) > 1:  # what is too deep cannot be merged; a file alone is checked with the overrides
        for where, tree in found:
            if (fault := fault_in(tree)) is not None:
                raise UserError(": ".join(filter(None, (where, *fault))))
    trees = [tree for _, tree in found]
    return reduce(merged, reversed(trees[:-1]), trees[-1])


def merged(base: Tree, over: Mapping[str, Any]) -> Tree:
    """``base`` overridden by ``over``, table by table; a table with another name or class replaces it."""
    out: Tree = deepcopy(base)
    for key, value in over.items():
        before: Any = out.get(key)
        same = isinstance(before, dict) and isinstance(value, dict) and not _renamed(before, value)
        out[key] = merged(before, value) if same else deepcopy(value)
    return out


def _renamed(before: Tree, value: Tree) -> bool:
    return any(word in value and value[word] != before.get(word) for word in ("name", "class", "torch", "timm"))


def _parsed(path: Path, said: str) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        hint = _hint(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"{said}: cannot be read: {error.strerror}{hint}") from None
    except RecursionError:
        raise UserError(f"{said}: not a TOML file for a study: its tables or lists are too deep") from None
    except ValueError as error:  # of the syntax, of the bytes, of a number with thousands of digits
        twice = re.match(r"Cannot declare \('(\w+)',\) twice", str(error))
        advice = f": if it is one of several, write [[{twice[1]}]]" if twice else ""
        raise UserError(f"{said}: not a TOML file: {' '.join(str(error).split())}{advice}") from None


def _hint(path: Path) -> str:
    """A file or a shipped study that nearly has the name."""
    if os.path.isfile(f"{path}.toml"):  # noqa: PTH113 - it raises nothing, whatever the name
        return f": did you mean {path}.toml?"
    shipped = [file.relative_to(SHIPPED).with_suffix("").as_posix() for file in SHIPPED.glob("**/*.toml")]
    asked = path.as_posix().removeprefix("configs/").removesuffix(".toml")
    near = get_close_matches(asked, shipped, n=1, cutoff=0.7)
    return f": did you mean {near[0]}, which is shipped? All: {COMMAND} list" if near else ""
