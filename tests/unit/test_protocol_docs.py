"""`docs/protocol.md` says what the core does: its stages, its table, its phases."""

import re
from pathlib import Path

from flower_dhb.peer.protocol.agent import Phase
from flower_dhb.peer.protocol.edge import TRANSITIONS, Stage

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def rows(heading, columns):
    """The rows of the table whose first column has this heading."""
    table = TEXT[TEXT.index(f"| {heading} |") :].split("\n\n")[0]
    found = [re.findall(r"[^|]+", line.strip("|")) for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in row][:columns] for row in found]


def test_the_table_of_transitions_is_the_cores():
    written = {(start, step): to for start, step, to in rows("from", 3)}
    core = {(start.value, step.value): to.value for (start, step), to in TRANSITIONS.items()}
    assert written == core


def test_every_stage_and_every_phase_is_explained():
    assert [name for (name,) in rows("stage", 1)] == [stage.value for stage in Stage]
    assert [name for (name,) in rows("phase", 1)] == [phase.value for phase in Phase]
