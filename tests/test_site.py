"""The check of the site's links finds each kind of fault."""

import runpy
from pathlib import Path

import pytest

faults = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "check_links.py"))["faults"]


@pytest.fixture
def site(tmp_path) -> Path:
    """Make a site of two pages that is whole."""
    (tmp_path / "a b.png").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "page.html").write_text(
        '<a href="../index.html#top">a</a> <a href="https://example.org/gone">b</a>'
        '<a href="#">c</a> <img src="../a%20b.png?v=1"> <img src="data:image/png;base64,AA">'
    )
    (tmp_path / "index.html").write_text(
        '<h1 id="top">t</h1> <a href="sub/page.html">a</a> <link rel="canonical" href="https://e.org">'
    )
    return tmp_path


def test_whole_site(site):
    assert faults(site) == []


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="gone.html">', "links to gone.html: there is no such file"),
        ('<a href="sub/">', "links to sub/: there is no such file"),
        ('<img src="gone.png">', "links to gone.png: there is no such file"),
        ('<a href="index.html#gone">', "no such place"),
        ('<a href="#gone">', "no such place"),
        ('<script src="https://e.org/a.js"></script>', "loads https://e.org/a.js: serve it"),
        ('<link rel="stylesheet" href="//e.org/a.css">', "loads //e.org/a.css: serve it"),
    ],
)
def test_fault(site, html, fault):
    (site / "other.html").write_text(html)
    (found,) = faults(site)
    assert found.startswith("other.html") and fault in found


def test_nothing_was_built(tmp_path):
    assert "no page" in faults(tmp_path)[0]
