"""`flower-dhb topology`: what a communication graph can do, and how to make it better."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from flower_dhb.algorithms import HeavyBall
from flower_dhb.algorithms.base import ADAPT_THEN_COMBINE, COMBINE_THEN_ADAPT
from flower_dhb.cli.costs import OF_COSTS, cost_rows
from flower_dhb.cli.lines import folded, table_of, terminal_width, value_text
from flower_dhb.errors import ConfigError, GraphError
from flower_dhb.figures.topologies import draw
from flower_dhb.files import write_durably
from flower_dhb.problems.models import n_parameters
from flower_dhb.topology.directed import parse_topology
from flower_dhb.topology.fastest import FDLA, fastest_weights
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.links import suggest_links
from flower_dhb.topology.planning import (
    averaging_rate,
    best_averaging_momentum,
    best_rate,
    diameter,
    halving_rounds,
    stability_limit,
)
from flower_dhb.topology.turns import Turns, parse_graph, share_every
from flower_dhb.topology.weights import WEIGHTS

__all__ = ["configure", "execute"]

_FORMS = (
    ("displacement", ADAPT_THEN_COMBINE),
    ("displacement", COMBINE_THEN_ADAPT),
    ("buffer", ADAPT_THEN_COMBINE),
    ("buffer", COMBINE_THEN_ADAPT),
    ("tracking", ADAPT_THEN_COMBINE),
)
_SHOWN = 16  # numbers of a list: eigenvalues, own weights
_WEIGHTS = ", ".join((*WEIGHTS, FDLA))
_PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg")
_MOST_SHOWN = 2_000  # agents; the predictions need the whole spectrum, and try it often


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = _action(actions, "show", "spectrum, traffic, stability limits, predicted rates")
    show.add_argument("--momentum", type=float, default=0.9, help="of the rule, for predictions")
    show.add_argument("--momentum-mixing", type=float, default=None, help="default: the form's own")
    size = show.add_mutually_exclusive_group()
    size.add_argument("--model", default="mlp", help="model of the digits app, for the traffic")
    size.add_argument("--parameters", type=int, help="or its number of float32 parameters")
    show.add_argument(
        "--share-every", type=int, default=1, metavar="ROUNDS", help="from one exchange to the next"
    )
    show.add_argument(
        "--link", type=float, metavar="MBIT/S", help="of an agent: what a round costs on it"
    )
    show.add_argument("--condition", type=float, default=100.0, help="condition number")
    show.add_argument("--picture", type=Path, metavar="FILE", help="draw the graph (.png, .svg)")
    optimize = _action(actions, "optimize", "fastest-mixing weights, and what they gain")
    optimize.add_argument("--out", type=Path, metavar="FILE", help="write the matrix as JSON")
    suggest = _action(actions, "suggest", "links that raise the spectral gap most, if any does")
    suggest.add_argument(
        "--add", type=int, default=1, metavar="N", help="at most how many (default 1)"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    action: Callable[[argparse.Namespace, Topology], dict[str, Any]] = {
        "show": _show,
        "optimize": _optimize,
        "suggest": _suggest,
    }[arguments.action]
    topology = parse_graph(arguments.topology, arguments.weights)
    if arguments.action == "show":
        topology = share_every(topology, arguments.share_every)
    if isinstance(topology, Turns) and arguments.action == "show":
        facts = _show_turns(topology, arguments.weights)
        if arguments.link is not None:
            facts["costs"] = cost_rows(topology, _parameters(arguments), arguments.link)
    elif isinstance(topology, Topology):
        facts = action(arguments, topology)
    else:
        kind = "a sequence of graphs" if isinstance(topology, Turns) else "directed"
        raise GraphError(f"'{topology.name}' is {kind}; this command plans undirected graphs")
    if arguments.json:
        print(json.dumps(_finite(facts), indent=1))
    else:
        _print(facts)
    return 0


def _action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=summary)
    parser.add_argument("topology", help="such as ring:16, torus:4x4, or a graph file")
    parser.add_argument("--weights", default="metropolis", help=f"one of {_WEIGHTS}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _show(arguments: argparse.Namespace, topology: Topology) -> dict[str, Any]:
    _check_show(arguments, topology)
    mixing = 0.5 if arguments.momentum_mixing is None else arguments.momentum_mixing
    forms = _forms(arguments, topology)
    degrees = topology.degrees
    eigenvalues = topology.eigenvalues
    best, fastest = best_averaging_momentum(eigenvalues, mixing)
    own = averaging_rate(eigenvalues, arguments.momentum, mixing)
    size = _parameters(arguments)
    links = 2 * len(topology.edges)
    facts = {
        "topology": topology.name,
        "weights": arguments.weights,
        "agents": topology.n_agents,
        "links": len(topology.edges),
        "degree": {"least": int(degrees.min()), "most": int(degrees.max())},
        "diameter": diameter(topology),
        "eigenvalues": [float(v) for v in eigenvalues],
        "spectral gap": topology.spectral_gap,
        "averaging": [
            _averaging("without momentum", 0.0, topology.second_eigenvalue),
            _averaging("best momentum", best, fastest),
            _averaging("given momentum", arguments.momentum, own),
        ],
        "traffic": {
            "parameters": size,
            "bytes per round, all links": links * size * 4,
            "bytes per round, busiest agent": int(degrees.max()) * size * 4,
            "bytes per round, all links, tracking": 2 * links * size * 4,
        },
        "condition number": arguments.condition,
        "forms": forms,
    }
    if arguments.link is not None:
        facts["costs"] = cost_rows(topology, size, arguments.link)
    if arguments.picture:
        facts["picture"] = _draw(topology, arguments.picture)
    return facts


def _show_turns(turns: Turns, weights: str) -> dict[str, Any]:
    """What a whole period does: rates of rules need one matrix for all rounds."""
    shared = [graph.edges for graph in turns.graphs]
    links = [len(edges) for edges in shared]
    ways = [edges if turns.directed else [*edges, *(e[::-1] for e in edges)] for edges in shared]
    sent = [max(Counter(a for a, _ in each).values(), default=0) for each in ways]
    return {
        "topology": turns.name,
        "weights": weights,
        "agents": turns.n_agents,
        "graphs in turn": len(turns),
        "rounds without an exchange": links.count(0),
        "links in a round": {"least": min(links), "most": max(links)},
        "payloads that an agent sends in a round": max(sent),
        "payloads of all agents in a period": sum(len(each) for each in ways),
        "disagreement left after a period": turns.second_eigenvalue ** len(turns),
        "spectral gap, average over a period": turns.spectral_gap,
        "rounds to halve disagreement": halving_rounds(turns.second_eigenvalue),
    }


def _check_show(arguments: argparse.Namespace, topology: Topology) -> None:
    """Refuse what would fail after minutes of computing."""
    if not 1.0 <= arguments.condition < math.inf:
        raise ConfigError(f"--condition must be finite and at least 1, got {arguments.condition}")
    if topology.n_agents > _MOST_SHOWN:
        raise ConfigError(
            f"predictions are made for at most {_MOST_SHOWN:,} agents; '{topology.name}' has "
            f"{topology.n_agents:,}, with a spectral gap of {topology.spectral_gap:.4g}"
        )
    picture = arguments.picture
    if picture and picture.suffix.lower() not in _PICTURES:
        raise ConfigError(
            f"--picture: '{picture}' ends in none of {', '.join(_PICTURES)}; got '{picture.suffix}'"
        )


def _forms(arguments: argparse.Namespace, topology: Topology) -> list[dict[str, Any]]:
    """Stability limit and predicted rate of every form; a form that never converges says so."""
    found = []
    for form, order in _FORMS:
        settings = {"momentum": arguments.momentum, "form": form, "order": order}
        if arguments.momentum_mixing is not None:
            settings["momentum_mixing"] = arguments.momentum_mixing
        rule = HeavyBall(**settings)
        limit = stability_limit(rule, topology.eigenvalues)
        rate, step = best_rate(rule, topology.eigenvalues, arguments.condition)
        found.append(
            {
                "form": form,
                "order": order,
                "momentum": rule.momentum,
                "momentum mixing": rule.momentum_mixing,
                "largest stable step x curvature": limit,
                "best rate on a quadratic": rate,
                "step x curvature for it": step,
                "rounds per digit": math.log(0.1) / math.log(rate) if 0 < rate < 1 else math.inf,
            }
        )
    return found


def _averaging(what: str, momentum: float, rate: float) -> dict[str, Any]:
    return {
        "what": what,
        "momentum": momentum,
        "rate": rate,
        "rounds to halve disagreement": halving_rounds(rate),
    }


def _parameters(arguments: argparse.Namespace) -> int:
    if arguments.parameters is not None:
        if arguments.parameters < 1:
            raise ConfigError(f"--parameters must be at least 1, got {arguments.parameters}")
        return int(arguments.parameters)
    return n_parameters(arguments.model)


def _draw(topology: Topology, path: Path) -> str:
    buffer = BytesIO()
    draw(topology).savefig(buffer, format=path.suffix[1:].lower(), dpi=120)
    _write("--picture", path, buffer.getvalue())
    return str(path)


def _write(option: str, path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except (OSError, ValueError) as error:  # the latter of a path without a name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option}: cannot write '{path}': {reason}") from error


def _optimize(arguments: argparse.Namespace, topology: Topology) -> dict[str, Any]:
    fastest = parse_topology(arguments.topology, FDLA)
    before, after = topology.second_eigenvalue, fastest.second_eigenvalue
    facts: dict[str, Any] = {
        "topology": topology.name,
        "gain": [
            {"weights": name, "spectral gap": 1.0 - value, **_halving(value)}
            for name, value in ((arguments.weights, before), (FDLA, after))
        ],
        "rounds saved": 1.0 - halving_rounds(after) / halving_rounds(before) if before > 0 else 0.0,
        "link weights": [
            {"link": f"{a}-{b}", "weight": float(fastest.mixing_matrix[a, b])}
            for a, b in topology.edges
        ],
        "own weights": [float(v) for v in fastest.mixing_matrix.diagonal()],
    }
    if arguments.out:
        document = {"topology": topology.name, "mixing_matrix": fastest.mixing_matrix.tolist()}
        _write("--out", arguments.out, json.dumps(document).encode())
        facts["written"] = str(arguments.out)
    return facts


def _suggest(arguments: argparse.Namespace, topology: Topology) -> dict[str, Any]:
    rule = fastest_weights if arguments.weights == FDLA else arguments.weights
    with Bar(
        TextColumn("trying links"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("graphs", total=None)
        links = suggest_links(
            topology,
            arguments.add,
            rule,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    found = {"topology": topology.name, "spectral gap": topology.spectral_gap}
    if not links:
        return found | {
            "links to add": [],
            "note": f"with {arguments.weights} weights no link raises the spectral gap; a link "
            "also takes weight from those that are there. More links at once (--add), or "
            "other weights (--weights fdla), may",
        }
    return found | {
        "links to add": [
            {
                "link": f"{link.edge[0]}-{link.edge[1]}",
                "spectral gap with it": link.spectral_gap,
                **_halving(1.0 - link.spectral_gap),
            }
            for link in links
        ],
    }


def _halving(rate: float) -> dict[str, float]:
    return {"rounds to halve disagreement": halving_rounds(rate)}


def _print(facts: Mapping[str, Any]) -> None:
    width = terminal_width()
    for name, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print()
            print("\n".join(_table(name, value)))
            if name == "forms":
                print(folded(_OF_FORMS))
            if name == "costs":
                print(folded(OF_COSTS))
            print()
        elif isinstance(value, Mapping):
            parts = [f"{k} {value_text(v)}" for k, v in value.items()]
            line = f"{name}: {', '.join(parts)}"
            print(line if len(line) <= width else "\n  ".join([f"{name}:", *parts]))
        elif isinstance(value, list):
            print(folded(f"{name}: {_numbers(value) if value else 'none'}"))
        else:
            print(folded(f"{name}: {value_text(value)}"))


def _table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """A title and aligned lines; what all forms have in common stands in the title."""
    if name == "forms":
        name = f"{name}, momentum {value_text(rows[0]['momentum'])}"
        rows = [{k: v for k, v in row.items() if k != "momentum"} for row in rows]
    return [name, *table_of(rows, _TITLES)]


# Titles of columns that are narrower than their names.
_TITLES = {
    "momentum mixing": "mixing",
    "largest stable step x curvature": "limit",
    "best rate on a quadratic": "rate",
    "step x curvature for it": "at step",
    "rounds per digit": "rounds/digit",
}
_OF_FORMS = (
    "limit: the largest stable step size, in units of 1 / curvature; rate: the best one on a "
    "quadratic, and the step for it"
)


def _numbers(values: list[float]) -> str:
    if len(values) <= _SHOWN:
        return " ".join(f"{v:.4f}" for v in values)
    half = _SHOWN // 2
    ends = [" ".join(f"{v:.4f}" for v in part) for part in (values[:half], values[-half:])]
    return " … ".join(ends)


def _finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
