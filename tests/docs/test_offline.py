"""The site needs no network: what tells so is tested, and with it the site, where it is built."""

import importlib.util

import pytest

from tests.docs.pages import ROOT

SITE = ROOT / "docs" / "_build" / "html"
spec = importlib.util.spec_from_file_location("offline", ROOT / "docs" / "_extensions" / "offline.py")
offline = importlib.util.module_from_spec(spec)
spec.loader.exec_module(offline)

LOADS = {
    '<script src="https://a.org/x.js"></script>': "https://a.org/x.js",
    '<script async src="//a.org/x.js"></script>': "//a.org/x.js",
    '<link rel="stylesheet" href="http://a.org/x.css">': "http://a.org/x.css",
    '<link rel="preconnect" href="https://a.org">': "https://a.org",
    '<img alt="" src="https://a.org/x.png">': "https://a.org/x.png",
    '<img src="x.png" srcset="x.png, https://a.org/x2.png 2x">': "https://a.org/x2.png",
    '<iframe src="https://a.org"></iframe>': "https://a.org",
    '<style>@import "https://a.org/x.css";</style>': "https://a.org/x.css",
    '<p style="background: url(https://a.org/x.png)">': "https://a.org/x.png",
}
LOADS_NOTHING = [
    '<a href="https://a.org">a link that a reader may follow</a>',
    '<script src="_static/x.js"></script><link rel="stylesheet" href="_static/x.css"><img src="x.png">',
    '<link rel="canonical" href="https://a.org">',
    '<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "<pre>url(https://a.org)</pre>",
]


@pytest.mark.parametrize("page", LOADS)
def test_what_a_page_loads_from_elsewhere_is_found(page, tmp_path):
    (tmp_path / "index.html").write_text(f"<html><body>{page}</body></html>", encoding="utf-8")
    assert [address for _, address in offline.site_loads(tmp_path)] == [LOADS[page]]


@pytest.mark.parametrize("page", LOADS_NOTHING)
def test_links_and_what_lies_beside_are_no_loads(page, tmp_path):
    (tmp_path / "index.html").write_text(f"<html><body>{page}</body></html>", encoding="utf-8")
    assert list(offline.site_loads(tmp_path)) == []


def test_style_sheets_are_read(tmp_path):
    (tmp_path / "x.css").write_text("@font-face { src: url('https://a.org/x.woff') } p { background: url(x.png) }")
    assert [address for _, address in offline.site_loads(tmp_path)] == ["https://a.org/x.woff"]


@pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="make docs has not been run")
def test_the_site_loads_nothing_from_elsewhere():
    assert list(offline.site_loads(SITE)) == []
