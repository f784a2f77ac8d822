"""The flight recorder and the replay of what it wrote: each deviation is found, and named."""

import json
import re
import shutil
import stat

import numpy as np
import pytest
import tomli_w
import xxhash
from safetensors.numpy import load_file, save_file

from flower_dhb import ConfigError, HeavyBall, Topology, __version__
from flower_dhb.agent import codec
from flower_dhb.agent.node import Node
from flower_dhb.cli import main
from flower_dhb.cli.replay import grouped
from flower_dhb.peer.device.journal import Contents, Journal
from flower_dhb.peer.watch.recorder import Recorder, fingerprint
from flower_dhb.peer.watch.records import RECORD_FORMAT, Spans, read_record
from flower_dhb.peer.watch.replay import Finding, of_mesh
from flower_dhb.types import Layout
from tests.support.editions import edition, write_editions

SIZE, ROUNDS = 5, 4
GRAPH = Topology.path(3)
RULE = HeavyBall(momentum=0.8, momentum_mixing=0.5)
LOST = {2: {(0, 1)}}  # edges that do not count, by round


def train(node, k):
    """One step towards a target of the agent's own, as far as the round is old."""
    rng = np.random.default_rng([node.vertex, k])
    return {"x": node.parameters + 0.1 * rng.standard_normal(SIZE)}


def weights(vertex):
    return {j: float(w) for j, w in enumerate(GRAPH.row(vertex)) if w or j == vertex}


def home(directory, vertex):
    return directory / f"vertex-{vertex}" / "state" / "record"


def run(directory, mode="payloads", rule=RULE, rejoins=(), epochs=None):
    """Three agents on a path for some rounds, each with a recorder.

    rejoins: (round, vertex). epochs: by round and vertex, whether an epoch begins when the round
    ends; if not, when it begins.
    """
    epochs = epochs or {}
    start = {"x": np.linspace(-1.0, 1.0, SIZE)}
    layout = Layout.of(start)
    nodes = [Node.start(v, rule, weights(v), layout, start) for v in range(3)]
    recorders = [Recorder(home(directory, v), mode) for v in range(3)]
    for k in range(1, ROUNDS + 1):
        taking_part = [v for v in range(3) if (k, v) not in rejoins]
        for node in nodes:
            if epochs.get((k, node.vertex)) is False:
                node.join_epoch(1)
        payloads = {v: nodes[v].adapt(k, train(nodes[v], k)) for v in taking_part}
        frames = {
            v: codec.encode(payload, run="r", round=k, vertex=v) for v, payload in payloads.items()
        }
        for v in taking_part:
            node, received = nodes[v], {}
            for j in node.neighbors:
                if j in payloads and (min(v, j), max(v, j)) not in LOST.get(k, ()):
                    node.offer(j, k, payloads[j])
                    received[j] = frames[j]
            before = node.snapshot
            node.combine()
            if epochs.get((k, v)):
                node.open_epoch(0)
            recorders[v].ended(k, k, frames[v], received, before, node.snapshot)
        for v in set(range(3)) - set(taking_part):
            heard = {j: payloads[j] for j in nodes[v].neighbors}
            nodes[v] = Node.rejoin(v, rule, weights(v), layout, {}, k, heard)
            recorders[v].rejoined(k, nodes[v].snapshot)
    for recorder in recorders:
        recorder.close()
    return nodes


def replay(directory, rule=RULE):
    write_editions(directory, edition(GRAPH))
    return of_mesh({"algorithm": rule.to_config()}, directory)


def found(directory, rule=RULE):
    return [str(finding) for finding in replay(directory, rule).findings()]


def edit_arrays(directory, vertex, k, what, **changes):
    """Change vectors in a file of the record."""
    path = home(directory, vertex) / f"round-{k}-{what}.safetensors"
    arrays = load_file(path)
    for name, change in changes.items():
        key = name.replace("__", "/")
        arrays[key] = change(arrays[key])
    save_file(arrays, path)


def edit_line(directory, vertex, k, change):
    """Change a line of the record; None deletes it."""
    path = home(directory, vertex) / "record.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (line,) = (line for line in lines if line["round"] == k)
    if change is None:
        lines.remove(line)
    else:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# --- the record ---------------------------------------------------------------------------


def test_a_fingerprint_is_of_names_and_bytes():
    a, b = np.arange(3.0), np.arange(2.0, dtype=np.float32)
    want = xxhash.xxh3_64(b"a" + a.tobytes() + b"bb" + b.tobytes()).hexdigest()
    assert fingerprint({"a": a, "bb": b}) == want
    assert fingerprint({"a": np.arange(6.0)[::2] / 2}) == fingerprint({"a": a})
    assert fingerprint({"c": a}) != fingerprint({"a": a})


@pytest.mark.parametrize("mode", ["checksums", "payloads"])
def test_a_line_a_round_and_with_payloads_the_vectors(tmp_path, mode):
    nodes = run(tmp_path, mode)
    folder = home(tmp_path, 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert [line["trained_as"] for line in lines] == [1, 2, 3, 4]
    assert [sorted(line["received"]) for line in lines] == [
        ["0", "2"],
        ["2"],
        ["0", "2"],
        ["0", "2"],
    ]
    start = np.linspace(-1.0, 1.0, SIZE)
    assert lines[0]["from"] == fingerprint({"x": start})
    assert [line["from"] for line in lines[1:]] == [line["to"] for line in lines[:-1]]
    assert lines[-1]["to"] == fingerprint({"x": nodes[1].parameters})
    other = [json.loads(s) for s in (home(tmp_path, 2) / "record.jsonl").read_text().splitlines()]
    assert other[2]["received"]["1"] == lines[2]["sent"]
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    if mode == "checksums":
        assert files == []
        return
    assert len(files) == 2 * ROUNDS
    shared = load_file(folder / "round-1-shared.safetensors")
    assert set(shared) == {
        "before/parameters",
        "before/memory/displacement",
        "sent/folded",
        "trained",
    }
    np.testing.assert_array_equal(shared["before/parameters"], start)
    np.testing.assert_array_equal(shared["before/memory/displacement"], np.zeros(SIZE))
    step = 0.1 * np.random.default_rng([1, 1]).standard_normal(SIZE)
    np.testing.assert_array_equal(shared["trained"], start + step)
    np.testing.assert_array_equal(shared["sent/folded"], start + step)
    last = load_file(folder / f"round-{ROUNDS}-combined.safetensors")
    np.testing.assert_array_equal(last["parameters"], nodes[1].parameters)
    assert set(last) == {"parameters", "memory/displacement"}


def test_a_recorder_that_is_off_says_so_and_has_no_files(tmp_path):
    recorder = Recorder(tmp_path / "off", "off")
    recorder.begins_after(3)
    recorder.close()
    assert not recorder.on
    assert not (tmp_path / "off").exists()


def test_who_began_again_from_its_neighbors_says_so(tmp_path):
    node = run(tmp_path / "other")[0]
    recorder = Recorder(tmp_path / "here", "checksums")
    recorder.rejoined(3, node.snapshot)
    recorder.close()
    (line,) = (tmp_path / "here" / "record.jsonl").read_text().splitlines()
    to = fingerprint({"x": node.parameters})
    by_whom = {"format": RECORD_FORMAT, "software": __version__}
    told = {"round": 3, "rejoined": True, "to": to, "left_epoch": 0}
    assert json.loads(line) == by_whom | told


@pytest.mark.parametrize("joins", ["before training", "at the end of a round"])
def test_memory_that_an_epoch_begins_anew_is_no_finding(tmp_path, joins):
    rule = HeavyBall(form="tracking")
    open_at = {(3, v): joins == "at the end of a round" for v in range(3)}
    run(tmp_path, rule=rule, epochs=open_at)
    replayed = replay(tmp_path, rule)
    assert [str(finding) for finding in replayed.findings()] == []
    assert replayed.rounds_computed == 3 * ROUNDS


def test_memory_that_changes_without_an_epoch_is_a_finding(tmp_path):
    rule = HeavyBall(form="tracking")
    run(tmp_path, rule=rule, epochs={(3, 1): False})
    path = home(tmp_path, 1) / "record.jsonl"
    path.write_text(re.sub('"(left_)?epoch": 1', r'"\g<1>epoch": 0', path.read_text()))
    (finding, *_) = replay(tmp_path, rule).findings()
    assert (finding.vertex, finding.round) == (1, 3)
    assert "did not begin from the" in finding.text


def test_lines_of_rounds_that_a_crash_undid_are_dropped(tmp_path):
    run(tmp_path, "checksums")
    path = home(tmp_path, 1) / "record.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + lines[0][:20])
    Recorder(home(tmp_path, 1), "checksums").begins_after(3)
    assert path.read_text() == "".join(lines[:3])


def test_a_round_that_is_not_pending_has_no_vectors_to_keep(tmp_path):
    node = run(tmp_path / "other")[0]
    frame = codec.encode({"folded": np.ones(SIZE)}, run="r", round=5, vertex=0)
    recorder = Recorder(tmp_path, "payloads")
    recorder.ended(5, 4, frame, {}, node.snapshot, node.snapshot)
    recorder.close()
    assert sorted(p.name for p in tmp_path.glob("*round*")) == ["round-5-combined.safetensors"]
    line = read_record(tmp_path, 0).lines[5]
    assert (line["trained_as"], line["received"]) == (4, {})
    assert line["sent"] == fingerprint({"folded": np.ones(SIZE)})


def test_a_record_goes_on_where_it_was_and_is_written_at_once(tmp_path):
    node = run(tmp_path / "other")[0]
    for k in (1, 2):
        recorder = Recorder(tmp_path / "here", "checksums")
        recorder.rejoined(k, node.snapshot)
        assert len((tmp_path / "here" / "record.jsonl").read_text().splitlines()) == k
        recorder.close()


def test_a_line_that_a_crash_cut_off_and_a_round_that_was_done_again(tmp_path):
    path = tmp_path / "record.jsonl"
    lines = ['{"round": 1, "to": "a"}', '{"round": 1, "to": "b"}', "[1]", '{"x": 1}', '{"round": 2']
    path.write_text("\n".join(lines))
    record = read_record(tmp_path, 4)
    assert (record.vertex, dict(record.lines)) == (4, {1: {"round": 1, "to": "b"}})
    assert record.arrays(1, "shared") is None


def test_where_there_is_no_record(tmp_path):
    with pytest.raises(ConfigError, match=r"record.jsonl: No such file.*; set record = \"payloads"):
        read_record(tmp_path, 0)
    with pytest.raises(ConfigError, match=r'no records; set record = "payloads" in peer.toml'):
        replay(tmp_path)


# --- what the replay finds ----------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        HeavyBall(payload="separate"),
        HeavyBall(form="buffer"),
        HeavyBall(form="tracking"),
    ],
    ids=str,
)
def test_an_honest_run_is_computed_again_to_the_bit(tmp_path, rule):
    run(tmp_path, rule=rule)
    again = replay(tmp_path, rule)
    assert list(again.findings()) == []
    assert (again.rounds_checked, again.rounds_computed) == (3 * ROUNDS, 3 * ROUNDS)


def test_checksums_alone_are_checked_and_not_computed(tmp_path):
    run(tmp_path, "checksums")
    again = replay(tmp_path)
    assert list(again.findings()) == []
    assert (again.rounds_checked, again.rounds_computed) == (3 * ROUNDS, 0)


def test_the_records_of_some_are_checked_as_far_as_they_go(tmp_path):
    run(tmp_path)
    (home(tmp_path, 0) / "record.jsonl").unlink()
    home(tmp_path, 0).rename(tmp_path / "elsewhere")
    again = replay(tmp_path)
    assert list(again.findings()) == []
    # Vertex 1 heard 0 in all rounds but the second.
    assert (again.rounds_checked, again.rounds_computed) == (2 * ROUNDS, ROUNDS + 1)


def test_a_round_that_was_taken_from_the_neighbors_is_no_deviation(tmp_path):
    run(tmp_path, rejoins={(3, 0)})
    again = replay(tmp_path)
    assert list(again.findings()) == []
    assert again.rounds_checked == 3 * ROUNDS - 1
    edit_line(tmp_path, 0, 3, lambda line: line.update(to="elsewhere"))
    assert found(tmp_path) == [
        "vertex 0, round 4: did not begin from the parameters of its round before"
    ]


def add(amount):
    def change(vector):
        vector = vector.copy()
        vector[2] += amount
        return vector

    return change


def test_who_combined_to_other_parameters(tmp_path):
    run(tmp_path)
    edit_arrays(tmp_path, 1, 2, "combined", parameters=add(0.25))
    assert found(tmp_path) == [
        "vertex 1, round 2: combined to other parameters, by up to 0.25",
        "vertex 1, round 2: the recorded parameters are not those of its own record",
    ]


def test_who_combined_to_another_momentum(tmp_path):
    run(tmp_path)
    edit_arrays(tmp_path, 1, 2, "combined", memory__displacement=add(-0.5))
    assert found(tmp_path) == [
        "vertex 1, round 2: combined to another 'displacement', by up to 0.5",
        "vertex 1, round 3: did not begin from the 'displacement' of its round before",
    ]


def test_who_began_from_somewhere_else(tmp_path):
    run(tmp_path)
    edit_arrays(tmp_path, 2, 3, "shared", before__parameters=add(1.0))
    texts = found(tmp_path)
    assert "vertex 2, round 3: the recorded start is not that of its own record" in texts
    edit_line(tmp_path, 0, 3, {}.update)
    edit_line(tmp_path, 0, 3, lambda line: line.update({"from": "0"}))
    texts = found(tmp_path)
    assert "vertex 0, round 3: did not begin from the parameters of its round before" in texts
    assert "vertex 0, round 3: the recorded start is not that of its own record" in texts


def test_who_sent_something_else_than_its_training_made(tmp_path):
    run(tmp_path)
    edit_arrays(tmp_path, 0, 3, "shared", sent__folded=add(1.0))
    assert found(tmp_path) == [
        "vertex 0, round 3: sent something else than its rule makes of its training",
        # Its neighbor did not combine what the sender says it sent.
        f"vertex 1, round 3: combined to other parameters, by up to {GRAPH.row(1)[0]:.3g}",
        f"vertex 1, round 3: combined to another 'displacement', by up to {GRAPH.row(1)[0]:.3g}",
    ]


def test_who_used_something_else_than_was_sent(tmp_path):
    run(tmp_path)
    sent = read_record(home(tmp_path, 1), 1).lines[3]["sent"]
    edit_line(tmp_path, 2, 3, lambda line: line["received"].update({"1": "feed"}))
    assert found(tmp_path) == [
        "vertex 2, round 3: counted the edge to 1, which sent another; neither of them knows: "
        f"{sent}, not feed"
    ]


def test_who_counted_an_edge_that_the_other_end_gave_up(tmp_path):
    run(tmp_path)
    edit_line(tmp_path, 1, 3, lambda line: line["received"].pop("2"))
    texts = found(tmp_path)
    assert [re.sub(r"[\d.e-]+$", "…", text) for text in texts] == [
        "vertex 1, round 3: combined to other parameters, by up to …",
        "vertex 1, round 3: combined to another 'displacement', by up to …",
        "vertex 2, round 3: counted the edge to 1, which did not count it; neither of them knows",
    ]


@pytest.mark.parametrize("j", [0, 2])
def test_who_used_a_payload_of_no_neighbor_or_its_own(tmp_path, j):
    run(tmp_path)
    sent = read_record(home(tmp_path, j), j).lines[3]["sent"]
    edit_line(tmp_path, 0, 3, lambda line: line["received"].update({str(j): sent}))
    texts = found(tmp_path)
    assert texts[0] == f"vertex 0, round 3: used a payload of {j}, which is no neighbor"


def test_who_used_a_payload_of_somebody_who_took_no_part(tmp_path):
    run(tmp_path)
    edit_line(tmp_path, 2, 3, lambda line: line.update({"rejoined": True}))
    assert found(tmp_path) == [
        "vertex 1, round 3: counted the edge to 2, which took no part in it; neither of them knows"
    ]


def test_a_round_that_is_missing_in_a_record_is_no_evidence_of_anything(tmp_path):
    run(tmp_path)
    edit_line(tmp_path, 2, 3, None)
    again = replay(tmp_path)
    assert again.findings() == []
    assert [str(unseen) for unseen in again.gaps] == [
        "edge 1–2, round 3: the record of vertex 2 has nothing of it",
        "vertex 2, round 3: not in its record",
    ]
    edit_line(tmp_path, 2, 4, lambda line: line.update({"to": "0"}))  # the rest is checked
    assert [f.round for f in replay(tmp_path).findings()] == [4]


def test_what_has_no_vectors_and_who_has_no_record_is_told_apart_from_guilt(tmp_path):
    run(tmp_path)
    for path in home(tmp_path, 2).glob("round-*"):
        path.unlink()
    again = replay(tmp_path)
    assert again.findings() == []
    assert [str(unseen) for unseen in again.no_evidence] == [
        # In round 2 only the edge to 0 is gone.
        "vertex 1, rounds 1–4: not computed again: there are no vectors of vertex 2",
        "vertex 2, rounds 1–4: not computed again: its record has no vectors of it",
    ]
    shutil.rmtree(home(tmp_path, 2))
    again = replay(tmp_path)
    assert again.findings() == []
    assert [str(unseen) for unseen in again.no_evidence] == [
        "vertex 2: there is no record of it",
        "vertex 1, rounds 1–4: not computed again: there are no vectors of vertex 2",
    ]


def command(directory, *words):
    """Exit status of `flower-dhb replay`, in a mesh of three."""
    write_editions(directory, edition(GRAPH))
    overview = {
        "mesh": "m", "run": "r", "topology": "path:3", "plaintext": True, "edges": [],
        "weights": "metropolis", "edition": 1, "next-vertex": 3, "device": {},
        "algorithm": RULE.to_config(),
        "hosts": [{"vertex": 0, "name": "arm"}, {"vertex": 1, "name": "eye"}, {"vertex": 2}],
    }  # fmt: skip
    (directory / "mesh.toml").write_text(tomli_w.dumps(overview))
    return main(["replay", str(directory), *words])


def test_the_command_sums_up_and_its_status_says_which_of_three_it_is(tmp_path, capsys):
    run(tmp_path)
    assert command(tmp_path) == 0
    assert capsys.readouterr().out == (
        "12 rounds of 3 devices checked, 12 of them computed again: 0 not as the law says\n"
        "0 edges of a round counted in doubt, 0 unknown\n"
    )
    ledger(tmp_path, 2, 1, doubts=[3])
    for k in (3, 4):
        edit_line(tmp_path, 2, k, lambda line: line["received"].pop("1"))
    for path in home(tmp_path, 0).glob("round-[124]-*"):
        path.unlink()
    for path in (*home(tmp_path, 2).glob("round-*"), *home(tmp_path, 1).glob("round-*")):
        path.unlink()
    edit_line(tmp_path, 2, 4, lambda line: line["received"].update({"1": "feed"}))
    edit_line(tmp_path, 0, 4, lambda line: line.update({"from": "feed"}))
    assert command(tmp_path) == 1
    sent = read_record(home(tmp_path, 1), 1).lines[4]["sent"]
    assert capsys.readouterr().out == (
        "not as the law says:\n"
        "  vertex 0, round 4: did not begin from the parameters of its round before\n"
        "  vertex 2, round 4: counted the edge to 1, which sent another; neither of them knows: "
        f"{sent}, not feed\n"
        "counted in doubt, at one end only, and known to have been:\n"
        "  edge 1–2, round 3: vertex 2's disk gave it up after its acknowledgment, in doubt\n"
        "no evidence:\n"
        "  vertex 0, rounds 1–2 and 4: not computed again: its record has no vectors of it\n"
        "  vertex 1, rounds 1–4: not computed again: its record has no vectors of it\n"
        "  vertex 2, rounds 1–4: not computed again: its record has no vectors of it\n"
        "  vertex 0, round 3: not computed again: there are no vectors of vertex 1\n"
        "names: 0 is arm, 1 is eye\n"
        "12 rounds of 3 devices checked, 0 of them computed again: 2 not as the law says\n"
        "1 edges of a round counted in doubt, 0 unknown\n"
    )
    assert command(tmp_path, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["in_doubt"][0]["edge"] == [1, 2]
    assert document["in_doubt"][0]["rounds"] == [[3, 3]]
    assert document["not_as_the_law_says"][1]["first"] == f": {sent}, not feed"
    assert document["no_evidence"][0]["rounds"] == [[1, 2], [4, 4]]
    shutil.rmtree(tmp_path / "vertex-0")
    shutil.rmtree(tmp_path / "vertex-1")
    assert command(tmp_path) == 3
    assert "vertex 0: there is no record of it" in capsys.readouterr().out


def test_what_is_the_same_in_many_rounds_is_one_line():
    findings = [Finding(1, k, "combined to other parameters", k / 100) for k in range(3, 900)]
    findings += [Finding(1, 950, "combined to other parameters", 0.5), Finding(2, 4, "y")]
    assert [str(group) for group in grouped(findings)] == [
        "vertex 1, rounds 3–899 and 950: combined to other parameters, by up to 8.99",
        "vertex 2, round 4: y",
    ]


def test_ranges_of_rounds_are_short_however_many_there_are():
    spans = Spans()
    for k in range(0, 100, 2):
        spans.add(k)
    assert str(spans) == "rounds 0, 2, 4, 6, 8, 10, 12 and 43 more ranges up to 98"
    assert len(spans) == 50


def test_a_record_is_read_block_by_block_and_the_later_line_of_a_round_holds(tmp_path):
    lines = [{"round": k, "to": k} for k in (*range(1, 700), 690, 691)]
    for i in (-2, -1):
        lines[i]["to"] = "again"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "record.jsonl").write_text(text + '{"round": 7')
    record = read_record(tmp_path, 0)
    assert list(record.lines) == list(range(1, 700))
    assert [record.lines[k]["to"] for k in (1, 257, 512, 690, 691, 692, 7)] == [
        1, 257, 512, "again", "again", 692, 7
    ]  # fmt: skip
    assert (0 in record.lines, 700 in record.lines, record.covers(1)) == (False, False, False)


def ledger(directory, vertex, neighbor, *, kind="round", at=4, **edge):
    """Write what a peer's disk says of one edge, as the journal does."""
    whole = {
        "counted": [4, 1, 2], "settled": True, "doubts": [], "one_sided": [],
        "doubts_total": len(edge.get("doubts", ())),
        "one_sided_total": len(edge.get("one_sided", ())),
    } | edge  # fmt: skip
    record = {"kept": [], "edges": {str(neighbor): whole}}
    journal = Journal(directory / f"vertex-{vertex}" / "state", "r", print)
    contents = Contents({"x": np.zeros(1)}, {})
    if kind == "round":
        journal.save(at, contents, record)
    else:
        journal.share(at, b"payload", contents, record)


KNOWN = {
    "by who counted": (2, 1, {"one_sided": [3]}),
    "by who did not": (1, 2, {"one_sided": [1, 3]}),
    "as a doubt": (1, 2, {"doubts": [3]}),
    "as not settled yet": (2, 1, {"counted": [3, 1, 2], "settled": False}),
    "among those too old to be listed": (1, 2, {"one_sided": [4], "one_sided_total": 2}),
}
UNKNOWN = {
    "nobody": (2, 1, {}),
    "another round": (2, 1, {"one_sided": [2, 4], "doubts": [1]}),
    "another edge": (1, 0, {"one_sided": [3]}),
    "settled": (2, 1, {"counted": [3, 1, 2]}),
    "another is not settled": (2, 1, {"counted": [4, 1, 2], "settled": False}),
    "all are listed": (1, 2, {"one_sided": [4]}),
}


@pytest.mark.parametrize("how", [*KNOWN, *UNKNOWN])
def test_an_edge_that_counted_at_one_end_is_no_finding_if_an_end_knows(tmp_path, how):
    run(tmp_path, "checksums")
    edit_line(tmp_path, 1, 3, lambda line: line["received"].pop("2"))
    vertex, neighbor, edge = (KNOWN | UNKNOWN)[how]
    ledger(tmp_path, vertex, neighbor, **edge)
    again = replay(tmp_path)
    assert len(list(again.findings())) == (how in UNKNOWN)
    assert again.one_sided == (how in KNOWN)


def test_the_newest_whole_record_of_a_disk_counts(tmp_path):
    run(tmp_path, "checksums")
    edit_line(tmp_path, 1, 3, lambda line: line["received"].pop("2"))
    ledger(tmp_path, 1, 2, at=3, one_sided=[3])
    ledger(tmp_path, 1, 2, at=4, kind="payload")
    assert len(found(tmp_path)) == 1
    ledger(tmp_path, 1, 2, at=4, one_sided=[3])  # of the same round, the state is the newer one
    assert found(tmp_path) == []
    ledger(tmp_path, 1, 2, at=5)
    assert len(found(tmp_path)) == 1
    path = tmp_path / "vertex-1" / "state" / "round-5.safetensors"
    path.write_bytes(path.read_bytes().replace(b"settled", b"Settled"))
    assert found(tmp_path) == []
    (path.parent / "round-9.safetensors").write_bytes(b"damaged")
    assert found(tmp_path) == []


@pytest.mark.parametrize("lost", [[1, 2, 3], [3, 4]])
def test_who_has_no_record_of_a_time_is_not_guilty(tmp_path, lost):
    """A disk that was lost, or a peer that was never started again."""
    run(tmp_path, "checksums")
    for k in lost:
        edit_line(tmp_path, 2, k, None)
    again = replay(tmp_path)
    assert list(again.findings()) == []
    assert again.unseen == len(lost)


def test_findings_come_by_vertex_and_round(tmp_path):
    run(tmp_path)
    for vertex, k in ((2, 4), (0, 3), (2, 1)):
        edit_line(tmp_path, vertex, k, lambda line: line.update(to="x"))
    places = [(f.vertex, f.round) for f in replay(tmp_path).findings()]
    assert places == [(0, 3), (0, 4), (2, 1), (2, 2), (2, 4)]
    assert str(Finding(3, 7, "x")) == "vertex 3, round 7: x"


def test_without_the_model_compressed_payloads_cannot_be_computed_again(tmp_path):
    run(tmp_path)
    replay(tmp_path)  # which writes the editions
    document = {"algorithm": RULE.to_config(), "device": {"compression": "int8"}}
    with pytest.raises(ConfigError, match=r"start\.safetensors: No such file .* put the file back"):
        of_mesh(document, tmp_path)
