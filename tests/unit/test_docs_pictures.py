"""The pictures of the docs are those of their sources: `make pictures` makes them so."""

import re

import pytest

pytest.importorskip("matplotlib")

from tests import pictures


def test_no_picture_is_out_of_date():
    assert pictures.stale() == []


def test_every_picture_is_one_that_is_drawn():
    drawn = {*pictures.figures(), *pictures.drawings()}
    there = {path.name for path in pictures.IMAGES.iterdir() if path.suffix in (".png", ".svg")}
    assert there == drawn
    pages = [*pictures.DOCS.glob("*.md"), pictures.ROOT / "README.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    used = set(re.findall(r"images/([\w-]+\.(?:png|svg))", text))
    assert used == drawn


def test_what_has_changed_is_found(tmp_path, monkeypatch):
    rows = pictures.DEMO.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = tmp_path / "demo.jsonl"
    changed.write_text("".join(rows[:-1]), encoding="utf-8")
    monkeypatch.setattr(pictures, "DEMO", changed)
    assert pictures.stale() == ["convergence.png"]
    monkeypatch.undo()
    found = pictures.diagrams()
    lacking, *_ = found
    more = pictures.IMAGES / "diagrams" / "000000000000-light.svg"
    monkeypatch.setattr(pictures, "diagrams", lambda: {**found, more: ("", "light")})
    assert pictures.stale() == [f"diagrams/{more.name}"]
    monkeypatch.setattr(
        pictures, "diagrams", lambda: {p: v for p, v in found.items() if p != lacking}
    )
    assert pictures.stale() == [f"diagrams/{lacking.name}"]


def test_every_diagram_is_described():
    hook = pictures.module("diagrams")
    for text, _ in pictures.diagrams().values():
        assert len(hook.described(text)) > 80
    with pytest.raises(ValueError, match="accDescr"):
        hook.described("flowchart TB\n a --> b\n")
