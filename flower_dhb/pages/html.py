"""Pieces of a page that loads nothing: whatever comes from a run is escaped where it enters."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from flower_dhb.errors import ConfigError

__all__ = ["csp_hash", "data", "document", "escape", "table"]


_CONTROLS = {c: "\N{REPLACEMENT CHARACTER}" for c in [*range(32), 127] if chr(c) not in "\n\t"}


def escape(value: object) -> str:
    """A text that a run may have chosen, as text in markup or in a quoted attribute."""
    # Control characters are no part of HTML; neither are halves of surrogate pairs of UTF-8.
    found = str(value).encode("utf-8", "replace").decode()
    return html.escape(found.translate(_CONTROLS))


def data(value: Any) -> str:
    """A script element that holds JSON, which nothing in it can end or open."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return f'<script type="application/json">{text}</script>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, words: Iterable[int] = ()
) -> str:
    """A table whose first column names its rows. words: columns of texts, the rest has numbers."""
    texts = set(words)
    kinds = [' class="words"' if at in texts else "" for at in range(len(head))]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, head, strict=True)
    )
    lines = []
    for row in rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [
            f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    # Whoever has no pointer scrolls it with the keys, once it has the focus.
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def document(title: str, body: str, library: str) -> str:
    """A whole page. library: JavaScript that defines `vegaEmbed`.

    Its security policy lets nothing be fetched, and runs the page's own two scripts alone, by
    their digests. Raises ConfigError for a library that would end its element.
    """
    own = _own("page.js")
    for script in (library, own):
        if "</script" in script.lower() or "<!--" in script:
            raise ConfigError("the library of pictures cannot be put into a page")
    allowed = " ".join(csp_hash(script) for script in (library, own))
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        # An icon that is there, so that no browser asks for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_own('page.css')}</style>\n</head>\n<body>\n"
        f"{body}\n<script>{library}</script>\n<script>{own}</script>\n</body>\n</html>\n"
    )


def csp_hash(text: str) -> str:
    """How a security policy names a script or a style that a page holds."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _own(name: str) -> str:
    return (files("flower_dhb.pages") / name).read_text(encoding="utf-8")
