"""What each command prints fits into 80 columns, with every number whole."""

import argparse
import importlib
import re
from io import StringIO

import pytest
from rich.console import Console

from flower_dhb import RunFolder, Topology
from flower_dhb.cli import _COMMANDS, main
from flower_dhb.cli.fleet_view import View, draw
from flower_dhb.cli.lines import folded
from flower_dhb.cli.run_view import print_profile, print_table
from flower_dhb.flower.profile import PARTS
from flower_dhb.metrics import RoundRecord
from flower_dhb.runs.table import Row
from tests.support.fleets import Troubled
from tests.support.peers import APP as PEER_APP

# Commands, one after the other. {run} is the folder of a run, {mesh} a mesh that does not run;
# {out} is empty.
PRINTED = [
    "topology show torus:8x8 --parameters 7654321098",
    "topology show star:9 --momentum 0.123456 --momentum-mixing 0.0321 --condition 12345.6",
    "topology show one-peer:16",
    "topology optimize star:5",
    "topology suggest path:8 --add 3",
    "topology suggest ring:16",
    "compare --problem quadratic --topology ring:4 --methods dsgd --seeds 2 --rounds 2"
    " --targets 0.5,0.01,0.001 --no-pictures --jobs 1 --out {out}/compared",
    "doctor",
    "doctor {mesh}/vertex-0/peer.toml --no-app --timeout 0.1",
    "mesh status {mesh} --timeout-s 0.1",
    "mesh set {mesh} rounds=20 --at-round 4 --offline",
    "mesh renew {mesh} --all",
    "mesh identities --vertices 3 --out {out}/identities",
    "report {run} --csv {out}/rounds.csv",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders that the commands are about."""
    home = tmp_path_factory.mktemp("80")
    made = ["mesh", "create", "--app", str(PEER_APP), "--topology", "ring:3", "--rounds", "3"]
    assert main([*made, "--out", str(home / "mesh")]) == 0
    run = RunFolder(home, "demo", Topology.path(3), {"rounds": 2})
    for k in (1, 2):
        scores = {v: {"accuracy": 0.1 * k + 0.01 * v, "num-examples": 10} for v in range(3)}
        run.append(RoundRecord(round=k, evaluate=scores, consensus_distance=0.123456 * k))
    return {"mesh": home / "mesh", "run": run.path, "out": home}


def too_wide(text):
    """Lines that a terminal of 80 columns would break; those with a path may be as long as it."""
    return [line for line in text.splitlines() if len(line) > 80 and "/" not in line]


@pytest.mark.parametrize("words", PRINTED, ids=lambda words: " ".join(words.split()[:3]))
@pytest.mark.thorough
def test_what_a_command_prints(words, places, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main([word.format(**places) for word in words.split()])
    said = capsys.readouterr()
    print(said.out)  # for whoever looks: pytest -rP
    assert said.out, said.err
    assert too_wide(said.out) == []


def test_sentences_are_folded_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = folded(
        "a run of 1,234,567 rounds in /a/path/that/is/longer/than/any/terminal/is/wide: done"
    )
    assert "\n  " in text
    assert {"1,234,567", "/a/path/that/is/longer/than/any/terminal/is/wide:"} <= {*text.split()}


def commands(parser):
    """A parser and those of its actions."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from commands(each)


@pytest.mark.parametrize("name", _COMMANDS)
def test_what_a_command_says_of_itself(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = argparse.ArgumentParser(prog=f"flower-dhb {name}", description=_COMMANDS[name])
    importlib.import_module(f"flower_dhb.cli.{name}").configure(parser)
    for each in commands(parser):
        assert too_wide(each.format_help()) == []


def shown(rows, printed=print_table):
    console = Console(file=StringIO(), width=80)
    printed(rows, console)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["accuracy", "eval_top5_accuracy_of_the_held_out_site"])
def test_the_table_of_a_run_has_all_its_numbers(name):
    rows = [
        Row(
            round=k,
            metrics={name: 0.6111 + k / 1e9, f"{name}-worst": 0.5222},
            average_model={name: 0.7333},
            consensus_distance=0.0123,
            seconds=1.0,
        )
        for k in (1, 2, 100_000)
    ]
    text = shown(rows)
    assert too_wide(text) == []
    for number in ("100000", "1", "52.2%", "73.3%", "0.0123", "61.1%"):
        assert number in text
    assert "…" not in text


def test_the_table_of_a_round_has_all_its_numbers():
    row = Row(round=1, profile=dict.fromkeys(PARTS, 1234.5678))
    text = shown([row], print_profile)
    assert too_wide(text) == []
    assert text.count("1234.568") == len(PARTS)


def test_what_does_not_fit_into_the_line_of_a_device_is_left_out_whole():
    fleet = Troubled(12)
    fleet[3].waits_for.extend(range(100, 130))
    name = "a-metric-with-a-long-name"
    fleet[4].evaluated.append(name)
    fleet[4].metrics[name] = 0.123456
    lines = [line.plain for line in draw(fleet.status(), View(80))]
    assert max(map(len, lines)) <= 80
    (waits,) = [line for line in lines if "waits for 100" in line]
    listed = re.findall(r"\d+", waits.partition("waits for")[2])
    assert listed == [str(v) for v in range(100, 100 + len(listed))]
    assert len(listed) >= 2
    assert waits.endswith(", …")
    (measured,) = [line for line in lines if line.endswith("…") and "waits" not in line]
    assert measured.endswith("loss 0.123 …")
