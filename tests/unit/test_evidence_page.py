"""The page of records: what is data is shown letter by letter, and each picture can be drawn."""

import json
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt

from experiments.report.evidence.found import Picture
from experiments.report.evidence.markdown import block, code, literal, table
from experiments.report.evidence.page import _free, _label
from experiments.report.evidence.pictures import drawn

ODD = [
    "a*b* <b>x</b> $d$ [e](f)",
    "__a__ _b_ train_size a_b_c x_ _y",
    "`a` ``b`` \\`c\\`",
    "a|b \\| c\\",
    "&lt; AT&T ~~a~~ ![x](y) <https://x.org>",
    "plain - text, 1.5 > 1 % of (a; b)",
]


def shown(markdown):
    """What a page shows: the text of each cell of a table, or of the whole; and what is in it beside text."""
    parser = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    inner = [token.children for token in parser.parse(markdown) if token.type == "inline"]
    marks = {child.type for children in inner for child in children} - {"text", "text_special"}
    return ["".join(child.content for child in children) for children in inner], marks


@pytest.mark.parametrize("text", ODD)
def test_data_are_shown_letter_by_letter(text):
    assert shown(literal(text)) == ([text], set())
    assert shown(table(["a", literal(text)], [[literal(text), "b"]])) == (["a", text, text, "b"], set())


def test_ordinary_letters_are_as_they_are_in_the_page_s_file():
    plain = "decay 0.3 - at most 1,000.5 > 2 % ± 0.1 (train_size: 'a', \"b\"; c=d/e) #1! a?"
    assert literal(plain) == plain


@pytest.mark.parametrize("text", ["a`b", "`", "``a`", "a\\", "x|y", "L1", "a ``` b"])
def test_code_is_shown_letter_by_letter(text):
    assert shown(code(text)) == ([text], {"code_inline"})
    (token,) = [token for token in MarkdownIt().parse(block(text, "sh")) if token.type == "fence"]
    assert (token.content, token.info) == (f"{text}\n", "sh")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\u2028"])
def test_a_row_is_one_line(end):
    text = f"a{end}b"
    assert table(["c"], [[text], [literal(text)], [code(text)]]).splitlines()[2:] == ["| a b |", "| a b |", "| `a b` |"]


def test_each_section_has_a_label_of_its_own():
    taken = []
    for name in ("a b", "a-b", "a b 2", "A_B", "c"):
        taken.append(_free(_label(name), "-", taken))
    assert taken == ["evidence-a-b", "evidence-a-b-2", "evidence-a-b-2-2", "evidence-a-b-3", "evidence-c"]


@pytest.mark.parametrize("count", [1, 6, 20])
def test_a_peak_of_any_number_of_rules_can_be_drawn(count):
    rules = ["no penalty", "best", *(f"rule {i}" for i in range(count))]
    rows = [{"x": x, "rule": rule, "error": 1.0, "se": 0.0} for rule in rules for x in (1.0, 2.0)]
    picture = Picture(kind="peak", shows="Errors.", x="images", rows=rows, marks={"at": 1.0})
    spec = json.loads(drawn(picture, SimpleNamespace(svg=json.dumps)))
    scale = spec["layer"][1]["encoding"]["color"]["scale"]
    assert len(scale["domain"]) == len(scale["range"]) == count + 2
