"""The table of what other libraries have: each name can be imported, and no name that it lacks is overlooked."""

import re

import pytest

from tests.clients.capabilities import LIBRARIES, PAGE, ROWS, cells, check, is_installed

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs

TITLES = [row.title for rows in ROWS.values() for row in rows]


@pytest.mark.parametrize("ours", [row.ours for rows in ROWS.values() for row in rows if row.ours])
def test_torchreg_has_what_the_table_says(ours):
    assert check(ours)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch", "timm", "pytorch_optimizer", "skglm", "LassoNet", "optax"])
def test_a_library_has_what_the_table_says_and_nothing_else_of_that_name(library):
    if not is_installed(library):
        pytest.skip(f"{library} is not installed")
    assert {title: others for title, (_, others) in cells(library).items() if others} == {}


def test_the_page_has_the_rows_and_libraries_of_the_script():
    page = PAGE.read_text(encoding="utf-8")
    assert [title for title in re.findall(r"^\| (.+?) \| ", page, re.MULTILINE) if not title.startswith("|")] == TITLES
    assert all(f"{library} " in page for library in LIBRARIES)


def test_an_argument_that_is_none_is_told():
    with pytest.raises(LookupError, match=r"torchreg.L1 has no argument penalty"):
        check("torchreg.L1(penalty)")
