"""The page of `flower-dhb report`: what it says, that nothing of a run is believed, its size."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from flower_dhb import ConfigError, RunFolder, Topology
from flower_dhb.cli import main
from flower_dhb.extras import installed
from flower_dhb.metrics import RoundRecord, size_text
from flower_dhb.pages import report as page_of
from flower_dhb.pages.html import data, escape
from flower_dhb.pages.model import MISSING, REJOINED, TOOK_PART, UNKNOWN
from flower_dhb.pages.reading import read_run, read_runs
from flower_dhb.pages.report import report
from flower_dhb.pages.rows import as_csv, as_parquet
from flower_dhb.pages.thinning import blocks, kept
from flower_dhb.pages.verdict import verdict
from flower_dhb.pages.words import duration, ranges

pytestmark = pytest.mark.thorough

LIBRARY = "globalThis.vegaEmbed = null;"
EVIL = "</script><img src=x onerror=alert(1)>'\"&\x00\ud800"
NAN = float("nan")
# Names of fields in the pictures' data.
_FIELDS = {*"r v lo hi avg x run share text mark a mx my y x2 y2 wide kind label step c".split()}  # noqa: SIM905


def record(k, n=4, **changes):
    evaluate = {
        v: {"accuracy": min(0.5 + 0.1 * k - 0.05 * v, 1.0), "loss": 2.0 / k, "num-examples": 10}
        for v in range(n)
    }
    values = {
        "evaluate": evaluate,
        "consensus_distance": 1.0 / k,
        "bytes_by_agent": dict.fromkeys(range(n), 200),
        "bytes_sent": 200 * n,
        "seconds": 0.5,
    }
    return RoundRecord(round=k, **(values | changes))


@pytest.fixture
def run(tmp_path):
    """A run of four agents on a path over three rounds; agent 2 is missing in the second."""
    config = {"rounds": 3, "topology": "path:4", "name": "demo", "seed": 0}
    folder = RunFolder(tmp_path, "demo", Topology.path(4), config)
    folder.draw_split(np.array([0, 0, 1, 1, 2]), [np.array([0, 1]), np.array([2]), [3], [4]])
    folder.append(record(1))
    bytes_by_agent = {0: 100, 1: 100, 3: 0}
    folder.append(
        record(
            2,
            missing=[2],
            bytes_by_agent=bytes_by_agent,
            bytes_sent=200,
            events=[(2, "failed: out of memory at 17")],
            warnings=["the agents drift apart; lower learning-rate"],
        )
    )
    folder.append(record(3, rejoined=[2], events=[(2, "failed: out of memory at 18")]))
    return folder.path


class Page(HTMLParser):
    """What a page has, in the order in which it has it."""

    VOID = ("meta", "link", "input", "br", "img", "hr")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        inside = self.open[-1] if self.open else ""
        (self.scripts if inside == "script" else self.words).append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def pictures(self):
        return [json.loads(text) for text in self.scripts if text.startswith('{"spec"')]


# --- reading ------------------------------------------------------------------------------


def test_a_run_is_read_as_it_was(run):
    found = read_run(run)
    assert (found.n_agents, found.planned, found.last_round, found.graph) == (4, 3, 3, "path:4")
    assert found.rounds.tolist() == [1, 2, 3]
    assert found.seconds.tolist() == [0.5, 1.0, 1.5]
    assert found.bytes.tolist() == [800, 1000, 1800]
    assert found.bands["accuracy"][0].tolist() == pytest.approx([0.525, 0.45, 0.6])
    assert found.part[:, 2].tolist() == [TOOK_PART, MISSING, REJOINED]
    assert found.missed.tolist() == [0, 0, 1, 0]
    assert found.split.tolist() == [[2, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert found.agent_bytes.tolist() == [500, 500, 400, 400]
    (event,) = found.events  # numbers do not make two of it
    assert (event.agents, event.times, event.first, event.last) == ([2], 2, 2, 3)
    assert found.versions["flower-dhb"]
    assert found.again.endswith("config.toml")
    assert not found.notes


def test_a_link_fails_with_either_of_its_ends(run):
    links = {(link.a, link.b): link for link in read_run(run).links}
    assert [links[edge].failed for edge in [(0, 1), (1, 2), (2, 3)]] == [0, 2, 2]
    assert links[0, 1].weight == pytest.approx(1 / 3)
    # Round 1: all of what 0 sent and half of what 1 sent. Rounds 2 and 3: 1 has no other partner.
    assert links[0, 1].bytes == (200 + 100) + (100 + 100) + (200 + 200)


def test_what_is_damaged_is_left_out_and_noted(run):
    with (run / "history.jsonl").open("a") as file:
        file.write('{"round": "4"}\n[1]\n{"round": true}\n{"round": 5, "accuracy_mean": 0.')
    (run / "config.toml").write_text("a = = 1")
    (run / "run.json").write_text("[")
    (run / "split.json").write_text('{"counts": [[1, 2], [3]]}')
    found = read_run(run)
    assert found.rounds.tolist() == [1, 2, 3]
    text = " ".join(found.notes)
    for name in ("history.jsonl: 4 lines are cut off", "config.toml", "run.json", "split.json"):
        assert name in text
    assert found.n_agents == 4  # by the lists of the history
    assert "graph is not known" in Page(report([found], LIBRARY)).text


def test_values_that_are_no_numbers_are_not_measured(run):
    line = {
        "round": 4,
        "accuracy_mean": NAN,
        "accuracy_worst": "x",
        "loss_mean": 10**400,
        "accuracy": [True, None, {}, 0.5, 9],
        "missing": [-1, 99, "0", True, 1],
        "events": ["x", {"agent": 99}],
        "warnings": 3,
        "seconds": float("inf"),
    }
    with (run / "history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    found = read_run(run)
    assert np.isnan(found.bands["accuracy"][3]).all()
    assert found.part[3].tolist() == [TOOK_PART, MISSING, TOOK_PART, TOOK_PART]
    assert found.last["accuracy"][3] == 0.5
    assert found.seconds[-1] == 1.5
    page = report([found], LIBRARY)
    assert "NaN" not in page
    Page(page)


def test_a_history_that_names_no_agent_is_read(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"round": 1, "accuracy_mean": 0.5}\n')
    found = read_run(tmp_path)
    assert (found.n_agents, found.last_round) == (0, 1)
    assert "stopped" not in verdict(found).sentence
    Page(report([found], LIBRARY))


@pytest.mark.parametrize("content", ["", "\n\n", "garbage\n"])
def test_a_run_without_a_round_says_so(run, content):
    (run / "history.jsonl").write_text(content)
    found = read_run(run)
    assert "No round was finished." in Page(report([found], LIBRARY)).text


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run: neither history\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        read_run(tmp_path / "absent")
    (tmp_path / "vertex-0").mkdir()
    with pytest.raises(ConfigError, match="no device has a history"):
        read_run(tmp_path)


# --- peers --------------------------------------------------------------------------------


@pytest.fixture
def fetched(tmp_path):
    """What `mesh fetch` brings of three devices on a path; the last joins in round 2."""
    for v in range(3):
        folder = tmp_path / "mesh" / f"vertex-{v}"
        folder.mkdir(parents=True)
        lines = []
        for k in range(1 if v < 2 else 2, 4):
            evaluate = {"accuracy": 0.5 + 0.1 * v, "num-examples": 1 + v}
            missing = [2] if v == 1 and k == 2 else [1] if v == 2 and k == 2 else []
            received = 100 * (2 if v == 1 else 1) - 100 * len(missing)
            told = {"seconds": 1.0, "bytes": received, "missing": missing, "evaluate": evaluate}
            lines.append({"round": k, **told})
        if v == 0:
            lines[1] = {"round": 2, "rejoined": True, "neighbors": [1]}
            lines[2] = {"round": 3, "failure": EVIL}
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        others = [{}, {"vertex": 2}] if v == 1 else [{"vertex": 1}]
        status = {"rounds": "3", "neighbors": others, "software": "0.1.0"}
        (folder / "status.json").write_text(json.dumps(status))
    return tmp_path / "mesh"


def test_peers_are_read_from_what_each_tells(fetched):
    found = read_run(fetched)
    assert (found.n_agents, found.planned, found.rounds.tolist()) == (3, 3, [1, 2, 3])
    assert found.part[:, 0].tolist() == [TOOK_PART, REJOINED, MISSING]
    assert found.part[:, 2].tolist() == [UNKNOWN, TOOK_PART, TOOK_PART]
    # Round 1: 0.5 with weight 1 and 0.6 with weight 2.
    assert found.bands["accuracy"][0].tolist() == pytest.approx([1.7 / 3, 0.5, 0.6])
    assert {(link.a, link.b): link.failed for link in found.links} == {(0, 1): 2, (1, 2): 1}
    assert {(link.a, link.b): link.bytes for link in found.links} == {(0, 1): 200, (1, 2): 200}
    assert found.versions == dict.fromkeys(["vertex 0", "vertex 1", "vertex 2"], "0.1.0")
    assert "overview.toml is not there" in found.notes[0]
    page = Page(report([found], LIBRARY))
    assert "of 3 rounds" in page.text
    assert "alert(1)" in page.text  # as text


def test_the_folder_of_a_mesh_has_names_weights_and_settings(fetched):
    (fetched / "mesh.toml").write_text(
        'topology = "path:3"\nweights = "metropolis"\n'
        'hosts = [{vertex = 0, name = "boat"}, {vertex = 1}, {vertex = 2}, {vertex = 3}]\n'
        "edges = [{between = [0, 1]}, {between = [1, 2]}, {between = [1]}]\n"
        "[device.run-config]\nrounds = 4\n"
    )
    found = read_run(fetched)
    assert found.planned == 3  # by the devices' own words
    for v in range(3):
        (fetched / f"vertex-{v}" / "status.json").unlink()
    found = read_run(fetched)
    assert found.planned == 4
    assert list(found.agents) == ["0 (boat)", "1", "2", "3"]
    assert found.config["device.run-config.rounds"] == 4
    assert found.notes == ["no history is there of vertices 3"]


# --- what a run comes to -------------------------------------------------------------------


def test_the_verdict_answers_four_questions(run):
    found = verdict(read_run(run))
    assert found.mood == "mixed"
    assert "4 agents finished 3 of 3 rounds with accuracy 72.5% on average" in found.sentence
    assert "agent 2 missed 1 of 3 rounds" in found.sentence
    assert "1.5 s (0.5 s a round) and 1.8 kB between agents" in found.sentence
    assert "lower learning-rate" in found.answers[3]


def test_a_run_that_was_cut_off_did_not_work(run):
    lines = (run / "history.jsonl").read_text().splitlines()
    (run / "history.jsonl").write_text(lines[0] + "\n")
    found = verdict(read_run(run))
    assert found.mood == "bad"
    assert "stopped after 1 of 3 rounds" in found.sentence
    assert "cut off" in found.answers[3]


def test_an_agent_far_below_the_others_is_named(tmp_path):
    folder = RunFolder(tmp_path, "low", Topology.ring(5), {"rounds": 1})
    evaluate = {v: {"accuracy": 0.2 if v == 3 else 0.9 + 0.01 * v} for v in range(5)}
    folder.append(record(1, n=5, evaluate=evaluate))
    said = verdict(read_run(folder.path)).answers[1]
    assert said == "Agent 3 ended far below the others, at 20.0%."


def course(tmp_path, mean, *, worst=None, split=None, distance=None, way=None, name="accuracy"):
    """What is said of a run whose mean score went so; None is what was not recorded."""
    lines = []
    for k, value in enumerate(mean, 1):
        row = {"round": k, f"{name}_mean": value, f"{name}_worst": worst or value}
        row[name] = [value, worst or value]
        row |= {"consensus_distance": (distance or {}).get(k), "distance_from_start": way}
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "history.jsonl").write_text("".join(lines))
    (tmp_path / "config.toml").write_text(f'topology = "path:2"\nrounds = {len(mean)}\n')
    if split:
        (tmp_path / "split.json").write_text(json.dumps({"counts": [[1, 1]] * split}))
    return verdict(read_run(tmp_path))


RISING = [0.2, 0.5, 0.7, 0.8, 0.85, 0.88, 0.89, 0.895, 0.9, 0.901]


@pytest.mark.parametrize(
    ("mean", "more", "mood", "says", "advice"),
    [
        (RISING, {}, "good", "nobody fell behind", "Nothing that this page can see."),
        (RISING, {"worst": 0.002}, "bad", "the worst agent (agent 1) is 90 points below the mean",
         "Give that agent more neighbors"),
        (RISING, {"worst": 0.75}, "mixed", "is 15 points below the mean", "more neighbors"),
        ([0.1] * 6, {}, "bad", "accuracy did not rise: 10.0% at first", "another learning rate"),
        ([0.95] * 6, {}, "good", "nobody fell behind", "Nothing"),
        ([0.2, 0.6, 0.9, 0.9, 0.4], {}, "bad", "fell again, from 90.0% in round 3", "smaller"),
        ([0.2, 0.6, 0.9, 0.9, 0.74], {}, "mixed", "fell again, from 90.0%", "smaller"),
        ([0.2, 0.6, 0.9, None, None], {}, "bad", "after round 3 accuracy was recorded no more",
         "diverged"),
        ([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], {}, "mixed", "still improved by 14.3%", "rounds"),
        ([0.2, 0.3, 0.4, 0.5, 0.51, 0.51], {}, "mixed", "51.0% is little", "under FedAvg"),
        ([0.08, 0.1, 0.12, 0.14], {"split": 10}, "bad", "guessing among 10 classes", "one agent"),
        ([0.4, 0.5, 0.6, 0.6], {"split": 100}, "mixed", "60.0% is little", "FedAvg"),
        ([2.0, 1.0, 0.5, 3.0], {"name": "loss"}, "bad", "rose again, from 0.5", "smaller"),
        ([2.0, 2.0, 2.0], {"name": "loss"}, "bad", "loss did not fall: 2 at first", "another"),
        ([2.0, 1.0, 0.5], {"name": "loss", "worst": 0.9}, "good", "nobody fell", "Nothing"),
        ([2.0, 1.0, 0.5], {"name": "loss", "worst": 1.2}, "mixed", "0.7 above the mean", "data"),
        ([0.9] * 10, {"distance": {k: 1.0 * k for k in range(1, 11)}}, "mixed",
         "the agents still moved apart", "spectral gap"),
        # They come as much further as they move apart.
        ([0.9] * 10, {"distance": dict.fromkeys(range(1, 11), 1.0), "way": 5.0}, "good", "", ""),
    ],
)  # fmt: skip
def test_the_verdict_looks_at_scores(tmp_path, mean, more, mood, says, advice):
    found = course(tmp_path, mean, **more)
    assert says in found.sentence
    assert advice in found.answers[3]
    assert found.mood == mood
    assert found.answers[3].count(". ") == 0  # one sentence


def test_a_config_without_weights_has_the_usual_ones(run):
    (run / "run.json").unlink()
    found = read_run(run)
    assert {(link.a, link.b) for link in found.links} == {(0, 1), (1, 2), (2, 3)}
    assert found.links[0].weight == pytest.approx(1 / 3)
    (run / "config.toml").write_text('topology = "path:4"\nweights = "lazy"\n')
    assert read_run(run).links[0].weight == pytest.approx(1 / 6)


# --- comparisons, simulated schedules --------------------------------------------------------


def comparison(folder, methods=("dmsgd", "dsgd"), seeds=2):
    """What `compare` writes, as far as it is read."""
    outcomes = []
    for at, method in enumerate(methods):
        for graph in ("path:3", "star:3"):
            curves = {
                "rounds": [5, 10], "mean": [0.5, 0.8 - 0.01 * at], "worst": [0.4, 0.7],
                "average": [0.6, 0.9], "consensus": [2.0, 1.0], "megabytes": [1.0, 2.0],
                "agents": [0.7, 0.8, 0.9], "stopped": "",
            }  # fmt: skip
            runs = [curves, {**curves, "mean": [0.7, 0.9], "stopped": "round 11: NaN"}][:seeds]
            outcomes.append({"topology": graph, "split": "iid", "local_steps": 1, "method": method,
                             "learning_rate": 0.1, "runs": runs})  # fmt: skip
    settings = {"weights": "metropolis", "rounds": 10, "topologies": ["path:3", "star:3"]}
    document = {"settings": settings, "metric": "accuracy", "versions": {}, "outcomes": outcomes}
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(document))
    return folder


def test_a_comparison_is_a_run_for_each_method_and_graph(tmp_path):
    found = read_runs(comparison(tmp_path / "c"))
    names = [f"{method}, {graph}" for method in ("dmsgd", "dsgd") for graph in ("path:3", "star:3")]
    assert [run.name for run in found] == names
    assert found[0].bands["accuracy"][:, :2].tolist() == [
        pytest.approx([0.6, 0.4]), pytest.approx([0.85, 0.7])
    ]  # fmt: skip
    assert np.isnan(found[0].bands["accuracy"][:, 2]).all()
    assert found[0].last["accuracy"].tolist() == [0.7, 0.8, 0.9]
    assert [(link.a, link.b) for link in found[1].links] == [(0, 1), (0, 2)]
    assert "a run was stopped: round 11: NaN" in found[0].warnings[0][1]
    page = Page(report(found, LIBRARY))
    assert "mean over 2 seeds" in page.text
    assert "from the worst agent to the mean" in page.text
    assert "Its graph is that of dmsgd, path:3." in page.text
    assert "nothing is known of" not in page.text


def test_of_many_methods_the_best_are_shown(tmp_path):
    found = read_runs(comparison(tmp_path / "c", methods="abcdef", seeds=1))
    assert [run.name[0] for run in found] == [*"aabbccdd"]
    assert "8 of 12 runs of the comparison are shown" in found[0].notes[0]


def test_a_comparison_that_goes_on_is_read_from_its_runs(tmp_path):
    words = ["--problem", "quadratic", "--methods", "dsgd,dmsgd", "--seeds", "1", "--rounds", "6"]
    out = tmp_path / "c"
    said = ["--topology", "ring:4", "--jobs", "1", "--no-pictures", "--out", str(out)]
    assert main(["compare", *words, *said]) == 0
    whole = read_runs(out)
    (out / "compare.json").unlink()
    part = read_runs(out)
    assert {run.name for run in part} == {run.name for run in whole} == {"dsgd", "dmsgd"}
    mean = {run.name: next(iter(run.bands.values()))[:, 0].tolist() for run in whole}
    assert {run.name: run.bands["error"][:, 0].tolist() for run in part} == mean
    assert "is not finished" in part[0].notes[0]
    (out / "compare.json").write_text("{")
    with pytest.raises(ConfigError, match=r"compare\.json: is damaged"):
        read_runs(out)


def test_a_simulated_schedule_leaves_what_can_be_read(tmp_path):
    from tests.simulation.campaign import run_one
    from tests.simulation.leaving import leave

    world, _ = run_one(3, "pairs")
    leave(world, tmp_path / "s")
    found = read_run(tmp_path / "s")
    assert found.n_agents == world.plan.size
    assert {(link.a, link.b) for link in found.links} == {*world.plan.edges}
    assert found.last_round == world.plan.rounds
    one, other = found.links[0].a, found.links[0].b
    stories = [world.hosts[v].verdicts for v in (one, other)]
    whole = sum(
        other in stories[0].get(r, (0, {}))[1] and one in stories[1].get(r, (0, {}))[1]
        for r in range(1, found.last_round + 1)
    )
    assert found.links[0].failed == found.last_round - whole > 0
    assert not found.notes


def test_words():
    sizes = [size_text(v) for v in (0, 999, 1000, 2.5e6, NAN)]
    assert sizes == ["0 B", "999 B", "1 kB", "2.5 MB", "–"]
    times = [duration(s) for s in (1.234, 300, 7500, 5e5)]
    assert times == ["1.23 s", "5 min", "2 h 5 min", "5 days"]
    assert ranges([1, 2, 3, 7]) == "1 to 3, 7"
    assert ranges(range(0, 10, 2), most=2) == "0, 2, 3 more times"


# --- the page ------------------------------------------------------------------------------


def test_the_page_has_all_parts_and_can_be_used_without_seeing_it(run):
    page = Page(report([read_run(run)], LIBRARY))
    for part in (
        "Verdict", "the agents drift apart", "Accuracy", "Loss", "Consensus distance",
        "Who contributed in which round", "Who talks to whom", "Which agent has which data",
        "out of memory", "The command that repeats it", "config.toml", "Python",
    ):  # fmt: skip
        assert part in page.text, part
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(b - a <= 1 for a, b in zip([0, *levels], levels, strict=False))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [attributes.get("aria-labelledby") for attributes in page.all("section")]
    assert set(named) <= set(ids)
    assert {each["for"] for each in page.all("label") if "for" in each} <= set(ids)
    charts = [each for each in page.all("div") if each.get("class") == "chart"]
    assert len(charts) == len(page.all("figure")) == len(page.pictures) == 6
    assert all(each["role"] == "img" and len(each["aria-label"]) > 40 for each in charts)
    figures = [tag for tag, _ in page.tags if tag in ("figure", "details", "table")]
    assert figures.count("figure") == "".join(figures).count("figuredetailstable")
    # The readout of a curve is a row of its table.
    for picture in page.pictures[:3]:
        assert len(picture["cursor"]) == 3
    assert [each["r"] for each in page.pictures[0]["spec"]["datasets"]["points"]] == [1, 2, 3]


def test_nothing_is_fetched_and_no_other_script_runs(run):
    text = report([read_run(run)], LIBRARY)
    page = Page(text)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    own = (files("flower_dhb.pages") / "page.js").read_text(encoding="utf-8")
    for script in (LIBRARY, own):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
        assert f"<script>{script}</script>" in text
    for _, attributes in page.tags:
        assert not {"src", "style", "srcset", "action"} & attributes.keys()
        assert attributes.get("href", "#").startswith(("#", "data:,"))
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in text
    assert "url(" not in text


def test_whatever_a_run_says_stays_text(tmp_path):
    topology = Topology.from_edges([("a", EVIL.replace("\ud800", "")), ("a", "b")], name="x<y>")
    config = {"topology": "<script>1</script>", "<b>": "<i>", "rounds": 1, "name": "n"}
    folder = RunFolder(tmp_path, "<script>alert(1)<", topology, config)
    what = EVIL.replace("\ud800", "")
    evaluate = {v: {f"accuracy{what}": 0.5, "]]>": 1.0} for v in range(3)}
    folder.append(record(1, n=3, evaluate=evaluate, warnings=[what], events=[(0, what)]))
    page = report([read_run(folder.path), read_run(folder.path)], LIBRARY)
    found = Page(page)
    assert not found.all("img")
    assert not found.all("b")
    scripts = found.all("script")
    assert len([each for each in scripts if "type" not in each]) == 2
    assert len(found.pictures) == len(found.all("figure"))
    assert "alert(1)" in found.text
    assert "\x00" not in page
    # No name of a run is a field or an expression of a picture.
    for picture in found.pictures:
        layers = json.dumps(picture["spec"]["layer"])
        used = set(re.findall(r'"field": "([^"]*)"', layers))
        assert used <= _FIELDS


def test_texts_are_safe_in_markup_and_in_scripts():
    assert escape(EVIL) == ("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&#x27;&quot;&amp;�?")
    text = data({"x": EVIL, "y": "<!--"})
    assert re.fullmatch(r'<script type="application/json">[^<>&]*</script>', text)
    assert json.loads(text.partition(">")[2].rpartition("<")[0])["y"] == "<!--"


def test_a_library_that_would_end_its_element_is_refused(run):
    with pytest.raises(ConfigError, match="cannot be put into a page"):
        report([read_run(run)], "a = '</SCRIPT>'")


def test_several_runs_stand_side_by_side(run, fetched):
    one, two = read_run(run), read_run(fetched)
    page = Page(report([one, two, one], LIBRARY))
    assert "Side by side" in page.text
    assert f"3: {run.name}" in page.text
    assert page.text.count("What that means for") == 3
    points = page.pictures[0]["spec"]["datasets"]["points"]
    assert {p["run"] for p in points} == {f"1: {run.name}", "2: mesh", f"3: {run.name}"}
    scale = page.pictures[0]["spec"]["layer"][1]["encoding"]["strokeDash"]["scale"]
    assert len({json.dumps(dash) for dash in scale["range"]}) == 3  # not by color alone
    for count in (0, 9):
        with pytest.raises(ConfigError, match=f"1 to 8 runs, got {count}"):
            report([one] * count, LIBRARY)


# --- long runs -----------------------------------------------------------------------------


def test_a_peak_survives_thinning():
    band = np.column_stack([np.zeros(10_000), np.arange(10_000.0)])
    band[4321, 0], band[777] = 5.0, NAN
    at = kept(band, 200)
    assert len(at) <= 200
    assert {0, 4321, 9999} <= set(at.tolist())
    assert 777 not in at
    assert kept(band[:50], 60).tolist() == [*range(50)]
    assert blocks(3, 5) == [(0, 1), (1, 2), (2, 3)]
    assert blocks(10, 4) == [(0, 2), (2, 5), (5, 7), (7, 10)]


def test_a_long_run_of_many_agents_stays_small(tmp_path):
    n, rounds = 100, 400
    folder = tmp_path / "long"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "history.jsonl").open("w") as file:
        for k in range(1, rounds + 1):
            scores = rng.random(n).round(6)
            row = {"round": k, "accuracy": scores.tolist(), "accuracy_mean": scores.mean(),
                   "accuracy_worst": scores.min(), "accuracy_best": scores.max(),
                   "missing": [k % n, (k * 7) % n], "seconds": 0.1, "bytes_sent": 1000,
                   "bytes_sent_by_agent": [10] * n, "consensus_distance": 1 / k,
                   "events": [{"agent": k % n, "what": f"kind {'x' * (k % 50)}"}]}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    (folder / "config.toml").write_text('topology = "complete:100"\nrounds = 400\n')
    page = report([read_run(folder)] * 8, LIBRARY)
    assert len(page) < 2_000_000  # with the library of 0.9 MB below 3 MB
    cells = [p for p in Page(page).pictures if "cells" in p["spec"].get("datasets", {})]
    assert all(len(p["spec"]["datasets"]["cells"]) <= 60 * 40 for p in cells)


# --- colors --------------------------------------------------------------------------------


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_of_texts_and_lines(scheme):
    css = (files("flower_dhb.pages") / "page.css").read_text(encoding="utf-8")
    blocks_ = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks_[scheme]))
    assert len(blocks_) == 2
    pairs = [(text, on) for text in ("ink", "muted", "link", "bad") for on in ("page", "card")]
    pairs += [(mood, "page") for mood in ("good", "mixed")]
    pairs += [("ink", f"step-{i}") for i in range(3)] + [("page", f"step-{i}") for i in (3, 4)]
    for text, on in pairs:
        assert contrast(colors[text], colors[on]) >= 4.5, (text, on)
    for i in range(8):
        assert contrast(colors[f"run-{i}"], colors["page"]) >= 4.5, i
    assert ":focus-visible { outline: 3px" in css


# --- the command ---------------------------------------------------------------------------


def test_the_command_writes_a_page_and_says_what_it_found(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page_of, "load", lambda *_: page_of)  # making the bundle takes seconds
    monkeypatch.setattr(page_of, "javascript_bundle", lambda _: LIBRARY, raising=False)
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "4 agents finished 3 of 3 rounds" in said
    assert f"written: {out}" in said
    Page(out.read_text(encoding="utf-8"))
    assert main(["report", str(tmp_path / "absent"), "--out", str(out)]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_without_the_extra_its_name_is_said(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flower_dhb.extras.find_spec", lambda _: None)
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == 2
    assert "pip install 'flower-dhb[report]'" in capsys.readouterr().err
    assert not out.exists()


def test_rounds_as_a_table(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flower_dhb.extras.find_spec", lambda _: None)  # no extra is needed
    out = tmp_path / "rounds.csv"
    assert main(["report", str(run), str(run), "--csv", str(out)]) == 0
    assert "6 rounds" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert [row["round"] for row in rows] == ["1", "2", "3"] * 2
    second = rows[1]
    assert second["missing"] == "1"
    assert second["rejoined"] == "0"
    assert rows[2]["rejoined"] == "1"
    assert [row["bytes"] for row in rows[:3]] == ["800", "1000", "1800"]
    assert [row["seconds"] for row in rows[:3]] == ["0.5", "1", "1.5"]
    assert float(second["consensus_distance"]) == 0.5
    assert float(second["accuracy_mean"]) == pytest.approx(0.625)
    assert float(second["accuracy_worst"]) == pytest.approx(0.55)
    assert float(second["accuracy_best"]) == pytest.approx(0.7)
    assert float(second["loss_worst"]) == 1.0


@pytest.mark.skipif(not installed("pyarrow"), reason="pyarrow is not installed (extra `parquet`)")
def test_rounds_as_parquet(run, tmp_path, capsys):
    import pyarrow.parquet

    out, beside = tmp_path / "rounds.parquet", tmp_path / "rounds.csv"
    assert main(["report", str(run), "--parquet", str(out), "--csv", str(beside)]) == 0
    assert capsys.readouterr().out.count("3 rounds") == 2
    table = pyarrow.parquet.read_table(out)
    assert str(table.schema.field("bytes").type) == "int64"
    assert str(table.schema.field("accuracy_mean").type) == "double"
    rows = list(csv.DictReader(io.StringIO(beside.read_text(encoding="utf-8"))))
    assert table.column_names == list(rows[0])
    for stored, written in zip(table.to_pylist(), rows, strict=True):
        assert stored.pop("run") == written.pop("run")
        assert stored == {k: float(v) if v else None for k, v in written.items()}
    strange = dataclasses.replace(read_run(run), name=EVIL)
    table = pyarrow.parquet.read_table(io.BytesIO(as_parquet([strange])))
    assert table["run"][0].as_py() == EVIL.replace("\ud800", "?")


def test_parquet_without_its_extra(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flower_dhb.extras.find_spec", lambda _: None)
    out = tmp_path / "rounds.parquet"
    assert main(["report", str(run), "--parquet", str(out)]) == 2
    assert "pip install 'flower-dhb[parquet]'" in capsys.readouterr().err
    assert not out.exists()


def test_names_in_a_table_are_no_formulas(run):
    read = dataclasses.replace(read_run(run), name="=1+1", bands={}, average_model={})
    assert as_csv([read]).splitlines()[1].startswith("'=1+1,1,")
    empty = dataclasses.replace(read, rounds=np.zeros(0, np.int64))
    assert as_csv([empty]).splitlines() == ["run,round"]
