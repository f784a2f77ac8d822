"""The documentation as a site: all pages are in it, links lead somewhere, nothing is fetched."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flower_dhb

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    assert "WARNING" not in made.stderr
    return folder


def test_every_page_is_in_it(site):
    pages = {p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")}
    found = {p.relative_to(site).with_suffix(".md") for p in site.rglob("*.html")}
    renamed = {Path("decisions/README.md"): Path("decisions/index.md")}
    assert {renamed.get(page, page) for page in pages} <= found
    start = (site / "index.html").read_text(encoding="utf-8")
    assert "Operate a fleet" in start


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = re.compile(r"<(?:script|img|iframe|source)[^>]*\bsrc=[\"']?(?:https?:)?//|"
                         r"<link[^>]*\bhref=[\"']?(?:https?:)?//", re.IGNORECASE)  # fmt: skip
    pages = [*site.rglob("*.html")]
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found = [m[0] for m in fetched.finditer(text) if "canonical" not in m[0]]
        assert found == [], page


def test_diagrams_are_pictures(site):
    text = (site / "architecture.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img alt="([^"]+)" src="(images/diagrams/[^"#]+)#only-(light|dark)"', text)
    assert len(shown) == 4
    assert all("agent" in words and (site / path).is_file() for words, path, _ in shown)
    assert "sequenceDiagram" not in text


def test_public_names_are_documented(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    errors = {name for name in flower_dhb.__all__ if name.endswith("Error")}
    for name in set(flower_dhb.__all__) - errors - {"__version__"}:
        assert f'id="flower_dhb.{name}"' in text, name
    for name in errors:
        assert f'id="flower_dhb.errors.{name}"' in text, name
