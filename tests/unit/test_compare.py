"""`flower-dhb compare`: tuning, targets, resuming, bad input; and the problems compared on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression as Sklearn

from flower_dhb.algorithms import method
from flower_dhb.cli import main
from flower_dhb.compare import tasks, workers
from flower_dhb.compare.comparison import compare
from flower_dhb.compare.report import NOT_REACHED
from flower_dhb.compare.results import Spread, first_reaching
from flower_dhb.compare.runs import Curves, Run
from flower_dhb.compare.runs import execute as execute_on
from flower_dhb.compare.settings import Comparison
from flower_dhb.compare.store import Store
from flower_dhb.compare.tuning import (
    MAX_WIDENINGS,
    Point,
    best_point,
    learning_score,
    most_points,
    search,
    widen,
)
from flower_dhb.errors import ConfigError
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.logistic import LogisticRegression
from flower_dhb.problems.quadratic import Quadratic

pytestmark = pytest.mark.thorough

SMALL = {
    "problem": "digits-logistic",
    "topologies": ("ring:4",),
    "splits": ("iid",),
    "methods": ("dmsgd", "dsgd"),
    "seeds": 2,
    "rounds": 6,
    "evaluate_every": 2,
}


def curves(average: list[float], stopped: str = "") -> Curves:
    at = list(range(1, len(average) + 1))
    return Curves(at, average, average, average, average, [2.0 * k for k in at], [0.5], stopped)


def execute(comparison: Comparison, run: Run, name: str = "dmsgd") -> Curves:
    return execute_on(run, comparison.task, comparison.graphs[run.topology], method(name))


def test_score_is_the_area_under_both_curves() -> None:
    assert learning_score(curves([0.2, 0.6]), 2, rising=True) == pytest.approx(0.4)
    assert learning_score(curves([1e-2, 1e-4]), 2, rising=False) == pytest.approx(3.0)
    assert learning_score(curves([0.9], "round 2: gone"), 2, rising=True) == -math.inf


def test_grid_widens_while_the_best_is_at_its_edge() -> None:
    assert widen({0.1: [1.0], 0.2: [2.0], 0.4: [1.5]}, 0) is None
    assert widen({0.1: [1.0], 0.2: [2.0]}, 0) == 0.4
    assert widen({0.1: [3.0], 0.2: [2.0]}, 0) == 0.05
    assert widen({0.1: [3.0], 0.2: [2.0]}, MAX_WIDENINGS) is None
    assert widen({0.1: [3.0]}, 0) is None
    low, high = Point(0.1), Point(0.2)
    assert best_point({low: [2.0, 0.0], high: [1.0, 1.0]}) == low  # equal: the smaller
    assert best_point({low: [2.0, 0.0], high: [1.0, -math.inf]}) == low


def tuned(score, *settings: object) -> tuple[Point, list[Point]]:
    """Where a search ends that has one seed's score of each point, and all that it tried."""
    course, tried = search(*settings), {}  # type: ignore[arg-type]
    wanted = next(course)
    while True:
        assert not set(wanted) & set(tried)  # nothing is tried twice
        tried |= {point: [score(point)] for point in wanted}
        try:
            wanted = course.send(tried)
        except StopIteration as end:
            return end.value, list(tried)


def hill(rate: float, momentum: float, mixing: float):
    """A score with one top; rate and momentum trade against each other, as they do."""

    def score(point: Point) -> float:
        own = dict(point.settings)
        step = point.learning_rate / (1.0 - own["momentum"])
        off = math.log(step / (rate / (1.0 - momentum))) ** 2
        return -off - 9 * (own["momentum"] - momentum) ** 2 - (own["momentum_mixing"] - mixing) ** 2

    return score


@pytest.mark.parametrize("how", ["coordinate", "grid"])
def test_momentum_and_its_mixing_are_tuned_beside_the_rate(how: str) -> None:
    grid, start = (0.1, 0.2, 0.4), {"momentum": 0.9, "momentum_mixing": 0.5}
    axes = {"momentum": (0.0, 0.5, 0.8, 0.9), "momentum_mixing": (0.0, 0.5, 1.0)}
    best, tried = tuned(hill(0.8, 0.5, 1.0), grid, start, axes, how)
    assert best.settings == (("momentum", 0.5), ("momentum_mixing", 1.0))
    assert 0.8 / math.sqrt(2.0) <= best.learning_rate <= 0.8 * math.sqrt(2.0)  # grids double
    assert len(tried) <= most_points(grid, axes, how)
    assert len(tried) >= (36 if how == "grid" else 12)
    rate_alone, _ = tuned(lambda p: -abs(math.log(p.learning_rate / 0.2)), grid, {}, {}, how)
    assert rate_alone == Point(0.2)


def test_what_a_rule_refuses_is_never_the_best(tmp_path: Path) -> None:
    setting = Comparison(
        problem="quadratic",
        topologies=("torus:2x4",),
        splits=(),
        methods=("dmsgd", "dsgd"),
        seeds=1,
        rounds=4,
        tune=True,
        grid=(0.4,),
        search={"momentum_mixing": (0.0, 1.0)},
        weights="uniform",
    )
    case = setting.cases[0]
    assert setting.axes("dsgd") == {}
    assert setting.axes("dmsgd") == {"momentum_mixing": (0.0, 0.5, 1.0)}
    assert setting.rule_at(case, "dmsgd", Point(0.4, (("momentum_mixing", 1.0),))) is None
    found, plain = compare(setting, Store(tmp_path)).outcomes
    scores = {trial.settings["momentum_mixing"]: trial.score for trial in found.tried}
    assert scores[1.0] == -math.inf
    assert found.settings["momentum_mixing"] == max(scores, key=lambda mixing: scores[mixing])
    assert found.settings["momentum_mixing"] != 1.0
    assert (plain.tried, plain.settings) == ([], {})


def test_targets_are_reached_or_said_not_to_be() -> None:
    run = curves([0.5, 0.9, 0.8, 0.96])
    assert first_reaching(run, "average", 0.9, True, "rounds") == 2
    assert first_reaching(run, "average", 0.9, True, "megabytes") == 4.0
    assert first_reaching(run, "average", 0.99, True, "rounds") == math.inf
    assert first_reaching(curves([0.1, 0.01]), "mean", 0.05, False, "rounds") == 2
    missed = Spread.of([math.inf, 30.0, math.inf])
    assert (missed.reached, missed.seeds) == (1, 3)
    assert missed.to_json()["median"] is missed.to_json()["mean"] is None
    assert Spread.of([10.0, 20.0, math.inf]).median == 20.0


def test_intervals_are_students_t() -> None:
    found = Spread.of([10.0, 30.0, 20.0])
    assert (found.mean, found.median, found.low, found.high) == (20.0, 20.0, 10.0, 30.0)
    # t(0.975, 2) = 4.303 (any table of Student's distribution), s = 10
    assert found.half == pytest.approx(4.303 * 10.0 / math.sqrt(3.0), rel=1e-4)
    assert math.isnan(Spread.of([3.0]).half)
    assert Spread.of([5.0, 5.0]).half == 0.0


def test_same_settings_same_key_and_same_bits() -> None:
    setting = Comparison(**SMALL)  # type: ignore[arg-type]
    rule = method("dmsgd")
    run = setting.work(setting.cases[0], rule, 0.1, 0).run
    assert run.key == setting.work(setting.cases[0], rule, 0.1, 0).run.key
    keys = {replace(run, **{k: v}).key for k, v in (("seed", 1), ("rounds", 7), ("part", "x"))}
    assert len(keys | {run.key}) == 4
    assert execute(setting, run) == execute(setting, run)
    assert execute(setting, run) != execute(setting, replace(run, seed=1))
    whole, broken = (execute(setting, r).megabytes[-1] for r in (run, replace(run, failures=0.3)))
    assert broken < whole


def test_an_attack_is_scored_by_the_honest_agents(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["compare", "--problem", "digits-logistic", "--topology", "complete:5", "--seeds", "1"]
    words += ["--methods", "dsgd,dsgd:screening=off", "--split", "iid", "--rounds", "8"]
    words += [
        "--learning-rates",
        "0.4",
        "--attack",
        "scale-100",
        "--attack-from",
        "3",
        "--no-pictures",
        "--jobs",
        "1",
    ]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert (
        "The last agent of each graph lies ('scale-100') from round 3 on" in capsys.readouterr().out
    )
    found = json.loads((tmp_path / "compare.json").read_text())["outcomes"]
    screened, believed = (outcome["runs"][0] for outcome in found)
    assert len(screened["agents"]) == 4
    assert screened["worst"][-1] > 0.7
    assert believed["worst"][-1] < screened["worst"][-1] - 0.05
    assert screened["worst"][-1] == min(screened["agents"])


def test_an_attack_on_a_known_optimum_leaves_the_liar_out() -> None:
    setting = {"problem": "averaging", "splits": ("",), "topologies": ("complete:4",)}
    case = Comparison(**SMALL | setting, attack="cut-out")  # type: ignore[arg-type]
    found = execute(case, case.work(case.cases[0], method("dsgd"), 1.0, 0).run, "dsgd")
    assert len(found.agents) == 3
    assert found.consensus[-1] < 0.1  # the three agree, which the fourth does not
    assert found.average[-1] == pytest.approx(found.mean[-1])
    assert found.average[-1] > 0.1


def test_tuning_never_looks_at_test_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Run] = []

    def watched(run: Run, *others: object) -> Curves:
        seen.append(run)
        return execute_on(run, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "execute", watched)
    setting = Comparison(**SMALL, tune=True, grid=(0.05, 0.1))  # type: ignore[arg-type]
    for outcome in compare(setting, Store(tmp_path)).outcomes:
        rule = method(outcome.method).to_config()
        own = [run for run in seen if run.algorithm == rule]
        tried = {trial.learning_rate: trial.score for trial in outcome.tried}
        assert {run.learning_rate for run in own if run.part == "test"} == {outcome.learning_rate}
        assert {r.learning_rate for r in own if r.part == "validation"} == set(tried)
        assert outcome.learning_rate == max(tried, key=lambda rate: tried[rate])


def test_test_data_change_no_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With other test data, tuning tries and takes the same; only the final scores differ."""
    settings = {**SMALL, "methods": ("dsgd",), "tune": True, "grid": (0.05, 0.1)}
    store = Store(tmp_path)  # one folder: what belongs to other data is not taken for it

    def outcome():
        [found] = compare(Comparison(**settings), store).outcomes  # type: ignore[arg-type]
        return found

    expected = outcome()
    data = load_digits()
    wrong = replace(data, test_x=data.test_x.flip(1), test_y=(data.test_y + 1) % 10)
    monkeypatch.setattr(tasks, "load_digits", lambda: wrong)
    found = outcome()
    assert (found.tried, found.learning_rate) == (expected.tried, expected.learning_rate)
    for ours, theirs in zip(found.runs, expected.runs, strict=True):
        assert ours.consensus == theirs.consensus
        assert max(ours.mean) < 0.5 < max(theirs.mean)
    other = replace(data, validation_x=data.validation_x.flip(1))
    monkeypatch.setattr(tasks, "load_digits", lambda: other)
    assert outcome().tried != expected.tried
    monkeypatch.undo()
    assert outcome() == expected


def test_a_graph_file_that_changes_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "field.edges"
    path.write_text("0 1\n1 2\n2 3\n")
    values = {**SMALL, "problem": "averaging", "topologies": (str(path),), "methods": ("dsgd",)}
    store = Store(tmp_path / "runs")

    def outcome(**changes: object):
        setting = Comparison(**{**values, **changes})  # type: ignore[arg-type]
        return compare(setting, store).outcomes[0]

    before = Comparison(**values)  # type: ignore[arg-type]
    first = outcome()
    path.write_text("0 1\n1 2\n2 3\n3 0\n")
    second = outcome()
    assert second.runs == outcome(topologies=("ring:4",)).runs
    assert second.runs != first.runs
    # The one that began before goes on with the graph that it has read.
    assert compare(before, Store(tmp_path / "other")).outcomes == (first,)
    path.write_text("0 1\n1 2\n2 3\n")
    assert outcome() == first
    turns = tmp_path / "rounds.edges"
    turns.write_text("0 1\n2 3\n---\n1 2\n")
    in_turn = outcome(topologies=(f"turns:{turns}",))
    assert in_turn.runs != first.runs
    turns.write_text("1 2\n---\n0 1\n2 3\n")
    assert outcome(topologies=(f"turns:{turns}",)).runs != in_turn.runs


def test_interrupted_comparison_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = Comparison(**SMALL)  # type: ignore[arg-type]
    expected = compare(setting, Store(tmp_path / "through")).outcomes
    done: list[Run] = []

    def stopping(run: Run, *others: object) -> Curves:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(run)
        return execute_on(run, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "execute", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(setting, Store(tmp_path / "stopped"))
    later: list[Run] = []

    def counting(run: Run, *others: object) -> Curves:
        later.append(run)
        return execute_on(run, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "execute", counting)
    progress: list[tuple[int, int]] = []
    store = Store(tmp_path / "stopped")
    found = compare(setting, store, progress=lambda *at: progress.append(at)).outcomes
    assert found == expected
    assert len(later) == 1
    assert progress[-1] == (4, 4)
    damaged = next((tmp_path / "stopped").iterdir())
    damaged.write_bytes(b"{")
    assert compare(setting, store).outcomes == expected


def test_stopped_runs_say_why_in_the_table(tmp_path: Path) -> None:
    setting = Comparison(
        problem="quadratic",
        topologies=("ring:4",),
        splits=(),
        methods=("dsgd", "dmsgd"),
        seeds=1,
        rounds=700,
        grid=(40.0,),
    )
    results = compare(setting, Store(tmp_path))
    text = results.text()
    assert text.count("stopped") == 6
    why = [run.stopped for outcome in results.outcomes for run in outcome.runs]
    assert all("parameters have grown beyond 1e+" in each for each in why)
    assert f"Stopped: dsgd on ring:4, seed 0: {why[0]}." in text
    assert NOT_REACHED in results.markdown()
    assert [row["stopped"] for row in results.records()] == why
    document = json.dumps(results.to_json())
    assert "NaN" not in document
    assert "Infinity" not in document


def test_command_writes_tables_numbers_and_pictures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["compare", "--problem", "averaging", "--topology", "ring:8", "--methods"]
    words += ["dsgd,dmsgd:momentum=0.4", "--rounds", "60", "--seeds", "2", "--jobs", "1"]
    assert main([*words, "--out", str(tmp_path), "--formats", "svg"]) == 0
    said = capsys.readouterr()
    assert "It takes 4 runs, as far as they are not done yet." in said.err
    assert max(len(line) for line in said.out.splitlines()[:8]) <= 80
    assert "dmsgd:momentum=0.4" in said.out
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    panels = ("-score", "-traffic", "-consensus", "-agents", "")
    assert names == {f"ring-8{panel}.svg" for panel in panels}
    assert "| dsgd |" in (tmp_path / "compare.md").read_text()
    assert r"\toprule" in (tmp_path / "compare.tex").read_text()
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 1 + 2 * 2
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 2 * 2 * 12
    assert main([*words, "--out", str(tmp_path), "--json", "--no-pictures"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "compare.json").read_text())
    by_method = {outcome["method"]: outcome for outcome in document["outcomes"]}
    first = by_method["dsgd"]["targets"][0]["rounds"]["worst"]["median"]
    second = by_method["dmsgd:momentum=0.4"]["targets"][0]["rounds"]["worst"]["median"]
    assert second < first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "dmsdg"], "did you mean 'dmsgd'"),
        (["--methods", "dmsgd:momentun=0.9"], "did you mean 'momentum'"),
        (["--methods", "dmsgd:momentum"], "not of the form setting=value"),
        (["--methods", "dmsgd,dmsgd"], "different"),
        (["--topology", "rng:16"], "did you mean 'ring'"),
        (["--split", "dirichelt:1"], "did you mean 'dirichlet:A'"),
        (["--problem", "digit-mlp"], "did you mean 'digits-mlp'"),
        (["--topology", "directed-ring:8", "--split", "iid"], "needs an undirected graph"),
        (["--topology", "torus:4x4", "--methods", "dmsgd:momentum_mixing=1"], "diverges"),
        (["--learning-rates", "a"], "takes numbers"),
        (["--learning-rates", "0"], "above 0"),
        (["--local-steps", "1.5"], "takes integers"),
        (["--schedule", "step:0.1@1,2,cosin"], "did you mean 'cosine'"),
        (["--search", "momentun"], "say which values of 'momentun' to try"),
        (["--formats", "gif"], "'gif' is none of pdf, svg, png"),
        (["--topology", "one-peer:12"], "needs a power of 2 agents"),
        (
            ["--preset", "nowhere.toml"],
            "nowhere.toml: No such file or directory; a preset is a",
        ),
        (["--problem", "nowhere:make"], "there is no module 'nowhere'"),
        (["--problem", "json:laods"], "module 'json' has no 'laods'"),
        (["--problem", "json:loads"], "cannot be made without arguments"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--failures", "1"], "failures"),
        (["--failures", "nan"], "failures"),
        (["--attack", "sign-flop"], "did you mean 'sign-flip'"),
        (["--attack", "noise", "--attackers", "16"], "fewer than the 16 agents, got 16"),
        (["--attack", "noise", "--attack-from", "0"], "a round of at least 1, got 0"),
        (["--targets", "nan"], "targets must be finite"),
        (["--rounds", "-5"], "rounds must be at least 1 and an integer, got -5"),
        (["--jobs", "-1"], "--jobs must be at least 0"),
        (["--topology", "ring:1_6"], "not of the form ring:N"),
    ],
)
def test_bad_input_names_what_is_valid(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    assert main(["compare", *words, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_found_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(workers, "execute", lambda *run: pytest.fail(str(run)))
    assert main(["compare", "--problem", "averaging", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "--out: cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seeds", "rounds", "evaluate_every", "batch_size", "local_steps"])
@pytest.mark.parametrize("value", [1.5, True, -1])
def test_counts_are_integers(name: str, value: object) -> None:
    given = [value] if name == "local_steps" else value
    with pytest.raises(ConfigError, match=f"{name} must be at least 1 and an integer"):
        Comparison(**{**SMALL, name: given})  # type: ignore[arg-type]


# --- the problems: optima found another way ---------------------------------------------


def test_quadratic_optimum_and_conditioning() -> None:
    q = Quadratic.random(5, 6, condition=20.0, curvature_spread=0.5, seed=1)

    def loss(x: np.ndarray) -> float:
        apart = x - q.centers
        return float(np.einsum("ia,iab,ib->", apart, q.curvature, apart)) / 2

    found = optimize.minimize(loss, q.start, method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(found.x, q.optimum(), atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(q.curvature.mean(axis=0))
    assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(20.0)
    numeric = optimize.approx_fprime(q.start, loss, 1e-6)
    np.testing.assert_allclose(q.gradient(np.zeros((5, 6))).sum(axis=0), numeric, atol=1e-4)
    equal = Quadratic.random(5, 6, heterogeneity=0.0, seed=1)
    assert np.ptp(equal.centers, axis=0).max() == 0.0


def test_logistic_optimum_is_scikit_learns() -> None:
    problem = LogisticRegression.breast_cancer(1, penalty=0.05)
    a, y = problem.features[0], problem.labels[0]
    # scikit-learn: C sum of losses + |w|^2 / 2, so C = 1 / (penalty m).
    model = Sklearn(C=1.0 / (0.05 * len(y)), fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(a, y)
    np.testing.assert_allclose(model.coef_[0], problem.optimum(), atol=1e-6)


def test_logistic_gradient_is_that_of_its_loss() -> None:
    problem = LogisticRegression.synthetic(3, samples=12, size=4, seed=2)

    def loss(x: np.ndarray) -> float:
        each = [
            np.log1p(np.exp(-y * (a @ x))).mean() + problem.penalty * x @ x / 2
            for a, y in zip(problem.features, problem.labels, strict=True)
        ]
        return float(np.mean(each))

    x = np.array([0.3, -0.2, 0.5, 0.1])
    numeric = optimize.approx_fprime(x, loss, 1e-7)
    np.testing.assert_allclose(
        problem.gradient(np.tile(x, (3, 1))).mean(axis=0), numeric, atol=1e-6
    )
    assert np.abs(problem.gradient(np.tile(problem.optimum(), (3, 1))).mean(axis=0)).max() < 1e-12
    split = LogisticRegression.breast_cancer(4, "classes:1")
    assert all(len(np.unique(y)) == 1 for y in split.labels)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Quadratic.random(3, condition=0.5), "condition"),
        (lambda: Quadratic.random(3, heterogeneity=-1.0), "heterogeneity"),
        (lambda: Quadratic.random(3, curvature_spread=1.0), "curvature_spread"),
        (lambda: LogisticRegression.synthetic(3, penalty=0.0), "penalty"),
    ],
)
def test_impossible_problems_are_refused(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]
