"""What an operator sees in a terminal: nothing wider than it, and no warning lost."""

import json
import re
from pathlib import Path

import pytest
from rich.text import Text

from flower_dhb.cli.fleet_view import View, draw
from flower_dhb.cli.mesh_status import document
from flower_dhb.peer.mesh.findings import KINDS, findings
from flower_dhb.peer.mesh.sights import Sight
from tests.support.fleets import NOW, Troubled


def lines(fleet, width=80, height=None, **more):
    drawn = draw(fleet, View(width, height, **more))
    assert all(isinstance(line, Text) and "\n" not in line.plain for line in drawn)
    assert max(len(line.plain) for line in drawn) <= width
    if height is not None:
        assert len(drawn) <= height, "\n".join(line.plain for line in drawn)
    return [line.plain for line in drawn]


def warnings(shown):
    """The lines of what needs somebody, as they stand."""
    found, last = [], ""
    for line in shown:
        last = line[0] if line[0] != " " else last
        if last == "!":
            found.append(line)
    return found


def in_trouble(n):
    """A fleet of which as many devices as can be are in trouble of their own."""
    fleet = Troubled(n)
    long = "ValueError: no camera at /dev/video0, and nothing that could stand for it " * 3
    fleet[1].failures, fleet[1].last_error = 4, long
    fleet.silence(3)
    if n > 5:
        fleet.hide(5)
        fleet.down(7, 8, why="cannot reach vertex 8 at 10.0.0.8:9440: no answer")
        fleet[9].stalled_s, fleet[9].phase = 700.0, "waiting"
        fleet[9].waits_for.append(10)
        fleet[10].took_part = 3
        fleet[11].certificate_ends = int(NOW) + 12 * 86400
        fleet[12].clock_s = NOW + 11000.0
        fleet[13].disk = "No space left on device: free space on this disk"
        fleet[14].alone_since = 90
        fleet[15].ago_s["quarantined.16"] = 3.0
        fleet[17].evaluation_error = "KeyError: 'test'"
        fleet[18].software = "0.2.0"
        fleet.end(17, 18).one_sided = 2
    for v in range(30, min(n, 70), 2):
        fleet.down(v, v + 1)
    for v in range(70, n):
        fleet[v].failures, fleet[v].last_error = 2, long
    return fleet


def test_a_fleet_that_is_well():
    shown = lines(Troubled(5).status(), height=23)
    assert shown == [
        "5 devices: 5 training | round 118 of 500 | 2 min 40 s left",
        "0.42 s a round | slowest: vertex 0 trains 0.4 s of it | version 0.1.0",
        "nothing needs anybody",
        "device  state       round  s/round   part  edges   cert  more",
        *(
            f"{v}       training  118/500     0.42  20/20    2/2  364 d  loss 0.123"
            for v in range(5)
        ),
    ]


@pytest.mark.parametrize("height", [23, 15, 40, None])
@pytest.mark.parametrize("n", [5, 20, 100])
def test_no_warning_is_lost_whatever_the_room(n, height):
    fleet = in_trouble(n).status()
    found = [f for f in findings(fleet) if f.needs]
    shown = lines(fleet, height=height)
    told = warnings(shown)
    first = shown.index(told[0])
    assert first <= 3  # below the head, above all else
    assert shown[first : first + len(told)] == told
    text = " ".join(line[2:] for line in told)
    for finding in found:
        assert finding.text in text or KINDS[finding.kind].title in text
    if height is None or (n == 5 and height > 20):
        assert all(f.text in text for f in found)
    elif height > 15:
        assert found[0].text in text  # at least the gravest is told in full


def test_devices_that_are_well_are_folded_and_the_others_are_not():
    fleet = Troubled(100)
    fleet[40].failures = 3
    fleet[77].disk = "full"
    shown = lines(fleet.status(), height=23)
    assert len(shown) == 23
    top = next(i for i, line in enumerate(shown) if line.startswith("device"))
    devices = [line.split()[0] for line in shown[top + 1 : -1]]
    assert {"40", "77", "0", "1"} <= set(devices)
    assert devices == sorted(devices, key=int)
    left = 100 - len(devices)
    assert shown[-1] == f"… {left} more are well ({left} training): --all shows them"
    assert len(lines(fleet.status())) > 100


def test_who_needs_somebody_and_has_no_line_is_counted():
    fleet = Troubled(30)
    for v in range(30):
        fleet[v].failures, fleet[v].last_error = 1, "boom"
    shown = lines(fleet.status(), height=15)
    assert any(line.startswith("! the app fails: 0, 1, 2, 3") for line in shown)
    assert "more are told of above: --all shows them" in shown[-1]


def test_silent_devices_have_lines_with_their_last_sight():
    fleet = Troubled(8)
    fleet.silence(3)
    fleet.hide(6)
    fleet.silence(1)
    sights = {3: Sight(NOW - 100.0, 90, 500, "training")}
    for j in (2, 4, 0):
        for n in fleet[j].neighbors:
            if not n.up:
                n.ClearField("heard_s")
    shown = lines(fleet.status(sights=sights), height=23)
    assert "3       silent    118/500                                seen 1 min 40 s ago" in shown
    assert "6       heard     118/500                                heard by 5, 7" in shown
    assert "1       silent    118/500                                never seen" in shown


def test_metrics_are_those_of_the_evaluation_unless_others_are_asked_for():
    fleet = Troubled(3)
    fleet[0].evaluated[:] = ["eval_acc"]
    fleet[0].metrics["eval_acc"] = 0.93
    fleet[1].evaluated[:] = []
    for v in (0, 2):
        fleet[v].evaluated.append("num-examples")
        fleet[v].metrics["num-examples"] = 7
    shown = lines(fleet.status())
    assert shown[4].endswith("364 d  eval_acc 0.93")
    assert shown[5].endswith("364 d  loss 0.123 …")
    assert shown[6].endswith("364 d  loss 0.123")
    shown = lines(fleet.status(), metrics=("train_loss",))
    assert all(line.endswith("364 d  train_loss 0.2") for line in shown[4:])


def test_names_versions_and_whom_a_device_waits_for():
    fleet = Troubled(4)
    fleet[2].software, fleet[2].phase = "0.2.0", "waiting"
    fleet[2].waits_for.append(3)
    shown = lines(fleet.status(names={2: "gate"}))
    assert "- vertex 2 (gate): runs flower-dhb 0.2.0, most others 0.1.0. Upgrade" in shown[2]
    assert shown[-2] == (
        "2 gate  waiting   118/500     0.42  20/20    2/2  364 d  0.2.0    waits for 3 …"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_any_width(width):
    fleet = in_trouble(20).status()
    text = " ".join(line[2:] for line in warnings(lines(fleet, width)))
    assert all(f.text in text for f in findings(fleet) if f.needs)


def test_before_anybody_has_answered():
    fleet = Troubled(3)
    shown = lines(fleet.status(replies={}, starting=frozenset(range(3))), height=23)
    assert shown[:2] == ["3 devices: 3 starting", "nothing needs anybody"]


PAGE = (Path(__file__).parents[2] / "docs" / "peers.md").read_text(encoding="utf-8")


def test_the_page_names_every_kind_of_finding_and_every_part_of_the_document():
    needs, _, rest = PAGE.partition("### What needs somebody")[2].partition("Worth knowing:")
    named = re.findall(r"^\| (`[^|]*`) \|", needs, re.MULTILINE)
    kinds = [kind for cell in named for kind in re.findall(r"`([\w-]+)`", cell)]
    assert kinds == [kind for kind, about in KINDS.items() if about.needs]
    notes = rest.partition("###")[0]
    assert set(re.findall(r"`([\w-]+)`", notes)) == KINDS.keys() - set(kinds)
    table = PAGE.partition("### For machines")[2].partition("###")[0]
    found = document(in_trouble(20).status())
    cells = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == found.keys()
    devices = next(line for line in table.splitlines() if line.startswith("| `devices`"))
    said = set(re.findall(r"`(\w+)`", devices))
    assert said == {"devices"} | found["devices"][0].keys()


def test_the_page_shows_what_the_command_shows():
    fleet = Troubled(5)
    fleet[1].failures, fleet[1].last_error = 4, "OSError: no camera at /dev/video0"
    fleet.silence(2, "nothing listens at 10.0.0.2:9440")
    shown = "\n".join(lines(fleet.status(), height=23))
    assert f"```text\n{shown}\n```" in PAGE


def test_the_document_is_whole():
    fleet = in_trouble(20)
    fleet[0].sketch.extend([1.0, 2.0])
    status = fleet.status()
    found = json.loads(json.dumps(document(status)))
    assert set(found) == {
        *("asked_at", "needs_somebody", "findings", "rounds", "left_s", "pace", "links"),
        *("parts", "consensus_distance", "devices"),
    }
    assert found["needs_somebody"] is True
    assert [f["kind"] for f in found["findings"]] == [f.kind for f in findings(status)]
    assert set(found["findings"][0]) == {
        *("kind", "needs_somebody", "vertices", "who", "what", "remedy"),
    }
    assert list(found["devices"]) == [str(v) for v in range(20)]
    about = found["devices"]["1"]
    assert (about["state"], about["round"], about["seen_s"]) == ("failing", 118, 0.0)
    assert about["answer"]["last_error"].startswith("ValueError: no camera")
    assert about["answer"]["stalled_s"] == 0.0  # zeros are said, too
    assert about["answer"]["neighbors"][0]["why_down"] == ""
    assert "sketch" not in found["devices"]["0"]["answer"]
    silent = found["devices"]["3"]
    assert (silent["state"], silent["answer"], silent["heard_by"]) == ("silent", None, [])
    assert silent["failure"].startswith("nothing listens")
    assert found["devices"]["5"]["heard_by"] == [4, 6]
    well = document(Troubled(3).status())
    assert (well["needs_somebody"], well["findings"]) == (False, [])
    assert well["pace"] == {"round_s": 0.42, "edge": None, "vertex": 0, "part_s": 0.4}
