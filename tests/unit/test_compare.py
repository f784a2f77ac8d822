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
from flower_dhb.compare import comparison as comparison_module
from flower_dhb.compare import runs, tasks
from flower_dhb.compare.comparison import compare
from flower_dhb.compare.report import NOT_REACHED, Spread, first_reaching, rows, to_json
from flower_dhb.compare.runs import Curves, Run, Store, execute
from flower_dhb.compare.settings import Comparison
from flower_dhb.compare.tuning import MAX_WIDENINGS, best_rate, learning_score, widen
from flower_dhb.errors import ConfigError
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.logistic import LogisticRegression
from flower_dhb.problems.quadratic import Quadratic

SMALL = {
    "problem": "digits-logistic",
    "topologies": ("ring:4",),
    "splits": ("iid",),
    "methods": ("dmsgd", "dsgd"),
    "seeds": 2,
    "rounds": 6,
    "evaluate_every": 2,
}


def curves(average: list[float], diverged: bool = False) -> Curves:
    at = list(range(1, len(average) + 1))
    return Curves(at, average, average, average, average, [2.0 * k for k in at], [0.5], diverged)


def test_score_is_the_area_under_both_curves() -> None:
    assert learning_score(curves([0.2, 0.6]), 2, rising=True) == pytest.approx(0.4)
    assert learning_score(curves([1e-2, 1e-4]), 2, rising=False) == pytest.approx(3.0)
    assert learning_score(curves([0.9], diverged=True), 2, rising=True) == -math.inf


def test_grid_widens_while_the_best_is_at_its_edge() -> None:
    assert widen({0.1: [1.0], 0.2: [2.0], 0.4: [1.5]}, 0) is None
    assert widen({0.1: [1.0], 0.2: [2.0]}, 0) == 0.4
    assert widen({0.1: [3.0], 0.2: [2.0]}, 0) == 0.05
    assert widen({0.1: [3.0], 0.2: [2.0]}, MAX_WIDENINGS) is None
    assert widen({0.1: [3.0]}, 0) is None
    assert best_rate({0.1: [2.0, 0.0], 0.2: [1.0, 1.0]}) == 0.1  # equal: the smaller
    assert best_rate({0.1: [2.0, 0.0], 0.2: [1.0, -math.inf]}) == 0.1


def test_targets_are_reached_or_said_not_to_be() -> None:
    run = curves([0.5, 0.9, 0.8, 0.96])
    assert first_reaching(run, "average", 0.9, True, "rounds") == 2
    assert first_reaching(run, "average", 0.9, True, "megabytes") == 4.0
    assert first_reaching(run, "average", 0.99, True, "rounds") == math.inf
    assert first_reaching(curves([0.1, 0.01]), "mean", 0.05, False, "rounds") == 2
    missed = Spread.of([math.inf, 30.0, math.inf])
    assert missed.text(str) == f"{NOT_REACHED} (1 of 3 seeds)"
    assert missed.to_json()["median"] is None
    assert Spread.of([math.inf] * 3).text(str) == NOT_REACHED
    assert Spread.of([10.0, 30.0, 20.0]).text(lambda v: f"{v:.0f}") == "20 (10-30)"
    assert Spread.of([10.0, 20.0, math.inf]).text(lambda v: f"{v:.0f}") == f"20 (10-{NOT_REACHED})"


def test_same_settings_same_key_and_same_bits() -> None:
    setting = Comparison(**SMALL)  # type: ignore[arg-type]
    run = setting.run(setting.cases[0], "dmsgd", 0.1, 0)
    assert run.key == setting.run(setting.cases[0], "dmsgd", 0.1, 0).key
    keys = {replace(run, **{k: v}).key for k, v in (("seed", 1), ("rounds", 7), ("part", "x"))}
    assert len(keys | {run.key}) == 4
    assert execute(run) == execute(run)
    assert execute(run) != execute(replace(run, seed=1))
    assert execute(replace(run, failures=0.3)).megabytes[-1] < execute(run).megabytes[-1]


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
    assert "The last agent of each graph: 'scale-100' from round 3 on" in capsys.readouterr().out
    found = json.loads((tmp_path / "compare.json").read_text())["outcomes"]
    screened, believed = (outcome["runs"][0] for outcome in found)
    assert len(screened["agents"]) == 4
    assert screened["worst"][-1] > 0.7
    assert believed["worst"][-1] < screened["worst"][-1] - 0.05
    assert screened["worst"][-1] == min(screened["agents"])


def test_an_attack_on_a_known_optimum_leaves_the_liar_out() -> None:
    setting = {"problem": "averaging", "splits": ("",), "topologies": ("complete:4",)}
    case = Comparison(**SMALL | setting, attack="cut-out")  # type: ignore[arg-type]
    found = execute(case.run(case.cases[0], "dsgd", 1.0, 0))
    assert len(found.agents) == 3
    assert found.consensus[-1] < 0.1  # the three agree, which the fourth does not
    assert found.average[-1] == pytest.approx(found.mean[-1])
    assert found.average[-1] > 0.1


def test_tuning_never_looks_at_test_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Run] = []

    def watched(run: Run) -> Curves:
        seen.append(run)
        return execute(run)

    monkeypatch.setattr(comparison_module, "execute", watched)
    setting = Comparison(**SMALL, tune=True, grid=(0.05, 0.1))  # type: ignore[arg-type]
    outcomes = compare(setting, Store(tmp_path))
    for outcome in outcomes:
        rule = method(outcome.method).to_config()
        own = [run for run in seen if run.algorithm == rule]
        tested = {run.learning_rate for run in own if run.part == "test"}
        assert tested == {outcome.learning_rate}
        assert {r.learning_rate for r in own if r.part == "validation"} == set(outcome.tried)
        assert outcome.learning_rate == max(outcome.tried, key=lambda r: outcome.tried[r])


def test_test_data_change_no_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With other test data, tuning tries and takes the same; only the final scores differ."""
    setting = Comparison(**{**SMALL, "methods": ("dsgd",)}, tune=True, grid=(0.05, 0.1))  # type: ignore[arg-type]
    [expected] = compare(setting, Store(tmp_path / "true"))
    data = load_digits()
    wrong = replace(data, test_x=data.test_x.flip(1), test_y=(data.test_y + 1) % 10)
    monkeypatch.setattr(tasks, "load_digits", lambda: wrong)
    [found] = compare(setting, Store(tmp_path / "wrong"))
    assert (found.tried, found.learning_rate) == (expected.tried, expected.learning_rate)
    for ours, theirs in zip(found.runs, expected.runs, strict=True):
        assert ours.consensus == theirs.consensus
        assert max(ours.mean) < 0.5 < max(theirs.mean)
    other = replace(data, validation_x=data.validation_x.flip(1))
    monkeypatch.setattr(tasks, "load_digits", lambda: other)
    [third] = compare(setting, Store(tmp_path / "other"))
    assert third.tried != expected.tried


def test_a_graph_file_that_changes_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "field.edges"
    path.write_text("0 1\n1 2\n2 3\n")
    values = {**SMALL, "problem": "averaging", "topologies": (str(path),), "methods": ("dsgd",)}
    store = Store(tmp_path / "runs")
    before = Comparison(**values)  # type: ignore[arg-type]
    first = compare(before, store)
    path.write_text("0 1\n1 2\n2 3\n3 0\n")
    after = Comparison(**values)  # type: ignore[arg-type]
    second = compare(after, store)
    ring = Comparison(**{**values, "topologies": ("ring:4",)})  # type: ignore[arg-type]
    assert [o.runs for o in second] == [o.runs for o in compare(ring, store)]
    assert [o.runs for o in second] != [o.runs for o in first]
    assert before.graphs != after.graphs
    # What the first comparison still lacks belongs to a graph that is gone.
    runs._topology.cache_clear()
    missing = before.run(before.cases[0], "dsgd", 0.5, 7)
    with pytest.raises(ConfigError, match="no longer the graph that this comparison began with"):
        execute(missing)
    path.write_text("0 1\n1 2\n2 3\n")
    assert compare(Comparison(**values), store) == first  # type: ignore[arg-type]


def test_interrupted_comparison_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = Comparison(**SMALL)  # type: ignore[arg-type]
    expected = compare(setting, Store(tmp_path / "through"))
    done: list[Run] = []

    def stopping(run: Run) -> Curves:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(run)
        return execute(run)

    monkeypatch.setattr(comparison_module, "execute", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(setting, Store(tmp_path / "stopped"))
    later: list[Run] = []
    monkeypatch.setattr(
        comparison_module, "execute", lambda run: (later.append(run), execute(run))[1]
    )
    progress: list[tuple[int, int]] = []
    found = compare(setting, Store(tmp_path / "stopped"), progress=lambda *at: progress.append(at))
    assert found == expected
    assert len(later) == 1
    assert progress[-1] == (4, 4)
    damaged = next((tmp_path / "stopped").iterdir())
    damaged.write_bytes(b"{")
    assert compare(setting, Store(tmp_path / "stopped")) == expected


def test_diverged_runs_are_said_to_have(tmp_path: Path) -> None:
    # Exact zeros overflow to infinity in a few hundred rounds of a step five times too large.
    setting = Comparison(
        problem="quadratic",
        topologies=("ring:4",),
        splits=(),
        methods=("dsgd", "dmsgd"),
        seeds=1,
        rounds=700,
        grid=(40.0,),
    )
    table = rows(compare(setting, Store(tmp_path)), setting, setting.cases[0])
    assert "diverged" in table[1]
    assert NOT_REACHED in table[1]
    document = json.dumps(to_json(compare(setting, Store(tmp_path)), setting))
    assert "NaN" not in document
    assert "Infinity" not in document


def test_command_writes_table_json_and_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["compare", "--problem", "averaging", "--topology", "ring:8", "--methods"]
    words += ["dsgd,dmsgd:momentum=0.4", "--rounds", "60", "--seeds", "2", "--jobs", "1"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "dmsgd:momentum=0.4" in printed
    assert NOT_REACHED in printed
    assert (tmp_path / "ring-8.png").read_bytes().startswith(b"\x89PNG")
    assert "| dsgd |" in (tmp_path / "compare.md").read_text()
    assert main([*words, "--out", str(tmp_path), "--json", "--no-pictures"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "compare.json").read_text())
    by_method = {outcome["method"]: outcome for outcome in document["outcomes"]}
    first = by_method["dsgd"]["targets"][0]["rounds"]["worst"]["median"]
    second = by_method["dmsgd:momentum=0.4"]["targets"][0]["rounds"]["worst"]["median"]
    assert second < first


@pytest.mark.slow  # two fresh interpreters that import torch
def test_several_processes_give_the_same_numbers(tmp_path: Path) -> None:
    setting = Comparison(
        problem="averaging", topologies=("ring:4",), splits=(), methods=("dsgd",), rounds=5
    )
    one = compare(setting, Store(tmp_path / "one"), jobs=1)
    assert compare(setting, Store(tmp_path / "two"), jobs=2) == one


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
    monkeypatch.setattr(comparison_module, "execute", lambda run: pytest.fail(str(run)))
    assert main(["compare", "--problem", "averaging", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "--out: cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seeds", "rounds", "evaluate_every", "batch_size", "local_steps"])
@pytest.mark.parametrize("value", [1.5, True, -1])
def test_counts_are_integers(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1 and an integer"):
        Comparison(**{**SMALL, name: value})  # type: ignore[arg-type]


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
