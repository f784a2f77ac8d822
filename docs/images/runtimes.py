"""Who talks to whom in the three runtimes, as a picture for light and for dark pages.

`python docs/images/runtimes.py` writes `runtimes-light.svg` and `runtimes-dark.svg` beside it.
"""

from __future__ import annotations

import math
from pathlib import Path

_COLORS = {
    "light": {"ink": "#1f2933", "muted": "#52606d", "line": "#9aa5b1", "card": "#f5f7f9",
              "edge": "#2f6fb0", "agent": "#ffffff", "server": "#fff3e0", "border": "#b04a12"},
    "dark": {"ink": "#e8ecf0", "muted": "#a9b4bf", "line": "#6b7a89", "card": "#1d232a",
             "edge": "#7db7f0", "agent": "#14181d", "server": "#3a2a1c", "border": "#f2a071"},
}  # fmt: skip
_WIDE, _HIGH, _GAP = 300, 330, 20
_N, _RADIUS = 6, 84
_PANELS = (
    (
        "flwr run: the relay",
        ("The ServerApp passes payloads on", "along the edges. It averages nothing."),
    ),
    (
        "flwr run: direct rounds",
        ("Nodes exchange payloads themselves;", "Flower starts and ends the rounds."),
    ),
    ("flower-dhb peer", ("Devices and their neighbors, over", "mutual TLS. There is no server.")),
)
ALT = (
    "Three pictures of six agents on a ring. Relay: each agent talks to the ServerApp in the "
    "middle, which passes payloads on along the ring. Direct rounds: agents exchange payloads "
    "along the ring, and the ServerApp only starts and ends rounds. Peers: agents exchange "
    "payloads along the ring, and nothing is in the middle."
)


def picture(scheme: str) -> str:
    """The picture as SVG. scheme: `light` or `dark`."""
    color = _COLORS[scheme]
    wide = 3 * _WIDE + 2 * _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {_HIGH}" width="{wide}" '
        f'height="{_HIGH}" role="img" font-family="system-ui, sans-serif">',
        f"<title>{ALT}</title>",
    ]
    for at, (title, words) in enumerate(_PANELS):
        left = at * (_WIDE + _GAP)
        parts.append(f'<g transform="translate({left} 0)">')
        parts.append(_box(0.5, 0.5, _WIDE - 1, _HIGH - 1, color["card"], color["line"], 10))
        parts.append(_text(_WIDE / 2, 30, title, color["ink"], 16, bold=True))
        parts += _panel(at, color)
        parts += [
            _text(_WIDE / 2, 288 + 19 * row, each, color["muted"], 13.5)
            for row, each in enumerate(words)
        ]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(kind: int, color: dict[str, str]) -> list[str]:
    x, y = _WIDE / 2, 155.0
    turns = [2 * math.pi * v / _N - math.pi / 2 for v in range(_N)]
    places = [(x + _RADIUS * 1.2 * math.cos(a), y + _RADIUS * math.sin(a)) for a in turns]
    parts = []
    for v, place in enumerate(places):
        parts.append(_line(place, places[(v + 1) % _N], color["edge" if kind else "line"],
                           3.0 if kind else 1.5, "" if kind else "5 5"))  # fmt: skip
    if kind < 2:
        way = (color["line"], 1.5, "2 4") if kind else (color["edge"], 3.0, "")
        parts += [_line(place, (x, y), *way) for place in places]
        parts.append(_box(x - 46, y - 19, 92, 38, color["server"], color["border"], 6))
        parts.append(_text(x, y + 5, "ServerApp", color["ink"], 14))
    for v, (a, b) in enumerate(places):
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="16" fill="{color["agent"]}" '
                     f'stroke="{color["ink"]}" stroke-width="1.5"/>')  # fmt: skip
        parts.append(_text(a, b + 5, str(v), color["ink"], 14))
    return parts


def _line(a: tuple[float, float], b: tuple[float, float], ink: str, wide: float, dash: str) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" stroke="{ink}" '
        f'stroke-width="{wide:g}"{dashes}/>'
    )


def _box(x: float, y: float, wide: float, high: float, fill: str, ink: str, round: int) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="{round}" '
        f'fill="{fill}" stroke="{ink}"/>'
    )


def _text(x: float, y: float, text: str, ink: str, size: float, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="{size:g}" '
        f'fill="{ink}"{weight}>{text}</text>'
    )


if __name__ == "__main__":
    for scheme in _COLORS:
        (Path(__file__).parent / f"runtimes-{scheme}.svg").write_text(picture(scheme), "utf-8")
