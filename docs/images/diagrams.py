"""Diagrams of the pages as pictures, for a site that fetches nothing: a hook of MkDocs.

A page has its diagrams as text (Mermaid), which GitHub draws. `make pictures` draws them once,
into `diagrams/`, named by a digest of that text; the hook puts these pictures in their places.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

__all__ = ["BLOCK", "FOLDER", "SCHEMES", "described", "on_page_markdown", "path_of"]

FOLDER = Path(__file__).parent / "diagrams"
SCHEMES = ("light", "dark")
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DESCRIPTION = re.compile(r"^ *accDescr: *(.+)$", re.MULTILINE)


def path_of(diagram: str, scheme: str) -> Path:
    """Where the picture of a diagram is. scheme: `light` or `dark`."""
    return FOLDER / f"{hashlib.sha256(diagram.encode()).hexdigest()[:12]}-{scheme}.svg"


def described(diagram: str) -> str:
    """What a diagram shows, in words, for those who do not see it. Raises ValueError without."""
    found = _DESCRIPTION.search(diagram)
    if found is None:
        raise ValueError("a diagram has no accDescr line, which says what it shows")
    return found[1]


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Put pictures in the places of diagrams. Raises FileNotFoundError if one is not drawn."""
    del config, files
    up = "../" * page.file.src_uri.count("/")

    def pictures(block: re.Match[str]) -> str:
        text, paths = described(block[1]), [path_of(block[1], scheme) for scheme in SCHEMES]
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(
                    f"{page.file.src_uri}: {path.name} is not there: make pictures"
                )
        shown = (
            f"![{text}]({up}images/diagrams/{path.name}#only-{scheme})"
            for path, scheme in zip(paths, SCHEMES, strict=True)
        )
        return "\n".join(shown)

    return BLOCK.sub(pictures, markdown)
