"""What a schedule leaves, in the form of what `mesh fetch` brings, so that a page can be made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .world import World

__all__ = ["leave"]


def leave(world: World, folder: Path) -> None:
    """Write which neighbors each agent went without, round by round. The folder is made.

    Seconds and scores are left out: a schedule's app computes in a finite field.
    """
    plan = world.plan
    lines = [f'topology = "{plan.profile}, seed {plan.seed}"', "edges = ["]
    lines += [f"  {{between = [{i}, {j}]}}," for i, j in plan.edges]
    lines += ["]", "[device]", f"rounds = {plan.rounds}"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overview.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for host in world.hosts:
        home = folder / f"vertex-{host.vertex}"
        home.mkdir(exist_ok=True)
        rows = []
        for r, (_, used) in sorted(host.verdicts.items()):
            edition = plan.meshes[host.editions_used.get(r, 1) - 1]
            due = edition.row(host.vertex).neighbors
            missing = [j for j in due if j not in used]
            rows.append({"round": r, "missing": missing, "edition": edition.number})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (home / "history.jsonl").write_text(text, encoding="utf-8")
