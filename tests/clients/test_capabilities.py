"""The table of what other libraries have: each name can be imported, and no name that it lacks is overlooked."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.clients.capabilities import LIBRARIES, PAGE, ROWS, check

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs

TITLES = [row.title for rows in ROWS.values() for row in rows]


@pytest.mark.parametrize("ours", [row.ours for rows in ROWS.values() for row in rows if row.ours])
def test_torchreg_has_what_the_table_says(ours):
    assert check(ours)


FOUND = """
import sys
from tests.clients.capabilities import cells
found = {title: others for title, (_, others) in cells(sys.argv[1]).items() if others}
sys.exit(str(found) if found else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch", "timm", "pytorch_optimizer", "skglm", "LassoNet", "optax"])
def test_a_library_has_what_the_table_says_and_nothing_else_of_that_name(library):
    if find_spec(LIBRARIES[library][0][0].partition(".")[0]) is None:
        pytest.skip(f"{library} is not installed")
    # In a process of its own: JAX, which optax imports, has threads that forks of other tests warn of.
    done = subprocess.run([sys.executable, "-c", FOUND, library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_has_the_rows_and_libraries_of_the_script():
    page = PAGE.read_text(encoding="utf-8")
    assert [title for title in re.findall(r"^\| (.+?) \| ", page, re.MULTILINE) if not title.startswith("|")] == TITLES
    assert all(f"{library} " in page for library in LIBRARIES)


def test_an_argument_that_is_none_is_told():
    with pytest.raises(LookupError, match=r"torchreg.L1 has no argument penalty"):
        check("torchreg.L1(penalty)")
