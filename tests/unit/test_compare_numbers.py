"""What a comparison reports, once more by hand: curves, scores, which part of the data, keys."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flower_dhb.algorithms import HeavyBall, algorithm_from_config, method
from flower_dhb.compare.comparison import compare
from flower_dhb.compare.report import Column, Table, _lines
from flower_dhb.compare.results import Outcome, Spread
from flower_dhb.compare.runs import Curves, Run
from flower_dhb.compare.runs import execute as execute_on
from flower_dhb.compare.settings import Case, Comparison
from flower_dhb.compare.store import Store
from flower_dhb.compare.tasks import TASKS, Task, make_task
from flower_dhb.compare.training import Training
from flower_dhb.compare.tuning import Point, best_point, learning_score, widen
from flower_dhb.compare.workers import Work
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.reference import simulate
from flower_dhb.errors import ConfigError
from flower_dhb.metrics import consensus_distance
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.logistic import LogisticRegression
from flower_dhb.problems.models import make_model
from flower_dhb.problems.quadratic import Quadratic
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.turns import share_every

RULE = HeavyBall(momentum=0.5)
RUN = Run(
    problem="quadratic",
    data="of the quadratic",
    topology="star:5",
    weights="metropolis",
    graph=Topology.star(5).digest,
    split="iid",
    algorithm=RULE.to_config(),
    code="of the rule",
    learning_rate=0.4,
    seed=3,
    rounds=7,
    evaluate_every=3,
    batch_size=16,
    local_steps=1,
    optimizer="sgd",
    schedule="constant",
    part="test",
)


def execute(run: Run) -> Curves:
    """The run on the problem, graph and rule that its names mean."""
    return execute_on(
        run,
        make_task(run.problem),
        Topology.parse(run.topology, run.weights),
        algorithm_from_config(run.algorithm),
    )


def done(work: Work, task: Task) -> Curves:
    return execute_on(work.run, task, Topology.parse(work.run.topology), work.algorithm)


def test_curves_of_a_quadratic_are_those_of_the_law() -> None:
    source = Quadratic.random(5, condition=50.0, heterogeneity=1.0, seed=3)
    rate = 0.4 / source.largest_curvature
    x = simulate(RULE, Topology.star(5), source.start, source.local_step(rate), 7)
    away = x - source.optimum()
    own = np.linalg.norm(away, axis=2) / np.linalg.norm(source.optimum())
    average = np.linalg.norm(away.mean(axis=1), axis=1) / np.linalg.norm(source.optimum())
    at = [3, 6, 7]  # every third round, and the last one
    found = execute(RUN)
    assert found.rounds == at
    np.testing.assert_allclose(found.average, average[at], rtol=1e-12)
    np.testing.assert_allclose(found.mean, own[at].mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.worst, own[at].max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.consensus, [consensus_distance(x[k]) for k in at], rtol=1e-12)
    # 8 messages a round of 10 float64.
    np.testing.assert_allclose(found.megabytes, [k * 8 * 80 / 1e6 for k in at], rtol=1e-12)
    np.testing.assert_allclose(found.agents, own[7], rtol=1e-12)
    assert found.stopped == ""


def test_a_run_that_diverges_ends_with_its_last_good_evaluation() -> None:
    found = execute(replace(RUN, learning_rate=300.0, rounds=20, evaluate_every=1))
    assert found.stopped == f"round {len(found.rounds) + 1}: parameters have grown beyond 1e+08"
    assert found.rounds == list(range(1, len(found.rounds) + 1))
    assert 1 <= len(found.rounds) < 20
    assert np.isfinite(found.agents).all()
    np.testing.assert_allclose(found.worst[-1], max(found.agents))
    at_once = execute(replace(RUN, learning_rate=1e300, rounds=20, evaluate_every=5))
    assert at_once.rounds == []
    assert at_once.stopped == "round 5: parameters of agents 0 to 4 are NaN or infinite"
    # Nothing was finite but the start, which is at distance 1 for each.
    np.testing.assert_allclose(at_once.agents, 1.0)


def test_a_schedule_multiplies_the_rate_of_each_round() -> None:
    run = replace(RUN, schedule="step:0.5@2", evaluate_every=1, rounds=4)
    source = Quadratic.random(5, condition=50.0, heterogeneity=1.0, seed=3)
    steps = {
        k: source.local_step((0.4 if k <= 2 else 0.2) / source.largest_curvature)
        for k in range(1, 5)
    }
    x = simulate(RULE, Topology.star(5), source.start, lambda x, k: steps[k](x, k), 4)
    own = np.linalg.norm(x - source.optimum(), axis=2) / np.linalg.norm(source.optimum())
    np.testing.assert_allclose(execute(run).mean, own[1:].mean(axis=1), rtol=1e-12)


def test_links_fail_as_the_run_says() -> None:
    whole, broken, other = (
        execute(replace(RUN, failures=p, seed=s)) for p, s in ((0.0, 3), (0.5, 3), (0.5, 4))
    )
    assert broken.megabytes[-1] < whole.megabytes[-1]
    assert broken.megabytes != other.megabytes
    assert broken == execute(replace(RUN, failures=0.5))


@pytest.mark.parametrize("name", ["batch_size", "local_steps"])
def test_settings_of_the_digits_reach_the_training(name: str) -> None:
    task, training = make_task("digits-logistic"), Training(**{name: 7})
    problem = task.problem(4, "iid", 0, training)
    assert getattr(problem, name) == 7
    assert task.problem(4, "iid", 0, training) is problem
    other = task.problem(4, "iid", 1, training)
    assert other is not problem
    assert other.seed == 1
    assert problem.model is other.model  # traced once
    assert task.problem(4, "iid", 0) is not problem
    adaptive = task.problem(4, "iid", 0, Training(optimizer="adamw"))
    assert adaptive.optimizer.name == "adamw"


@pytest.mark.parametrize("part", ["validation", "test"])
def test_scores_are_accuracies_on_that_part_of_the_digits(part: str) -> None:
    data = load_digits()
    x, y = getattr(data, f"{part}_x"), getattr(data, f"{part}_y")
    task = make_task("digits-logistic")
    engine = Engine(task.problem(4, "iid", 2), Topology.ring(4), RULE, learning_rate=0.2)
    engine.agents.parameters += 0.3 * torch.randn(
        4, 650, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    found = task.scores(engine, part)

    def accuracy(vector: torch.Tensor) -> float:
        weight, bias = vector[:640].reshape(10, 64), vector[640:]
        order = [name for name, _ in make_model("logistic", 0).named_parameters()]
        assert order == ["weight", "bias"]
        return float((((x @ weight.T) + bias).argmax(1) == y).double().mean())

    expected = [accuracy(vector) for vector in engine.parameters]
    assert len(set(expected)) > 1
    np.testing.assert_allclose(found.agents, expected, atol=1e-12)
    assert found.average == pytest.approx(accuracy(engine.parameters.mean(0)), abs=1e-12)


def test_a_digits_run_reports_its_worst_agent_and_starts_from_the_seeds_model() -> None:
    run = replace(RUN, problem="digits-logistic", split="classes:2", rounds=2, evaluate_every=1)
    found = execute(run)
    assert found.worst[-1] == min(found.agents)
    assert found.mean[-1] == pytest.approx(np.mean(found.agents), abs=1e-12)
    task = make_task("digits-logistic")
    problem = task.problem(5, "classes:2", 3, Training(batch_size=16))
    vector = torch.nn.utils.parameters_to_vector(make_model("logistic", 3).parameters())
    start = problem.start(torch.device("cpu")).parameters
    torch.testing.assert_close(start, vector.detach().expand(5, -1), rtol=0, atol=0)
    engine = Engine(problem, Topology.star(5), RULE, learning_rate=0.4)
    engine.run(2)
    np.testing.assert_allclose(found.agents, task.scores(engine, "test").agents)


def test_errors_are_relative_to_the_start_and_steps_to_the_curvature() -> None:
    task = make_task("breast-cancer")
    source = LogisticRegression.breast_cancer(4, "classes:1", seed=2)
    problem = task.problem(4, "classes:1", 2)
    engine = Engine(problem, Topology.ring(4), RULE, learning_rate=0.5)
    before = task.scores(engine, "validation")
    np.testing.assert_allclose(before.agents, 1.0, rtol=1e-12)
    assert before.average == pytest.approx(1.0)
    engine.step()
    step = source.local_step(0.5 / source.largest_curvature)
    expected = simulate(RULE, Topology.ring(4), source.start, step, 1)[1] - source.optimum()
    scale = np.linalg.norm(source.optimum())
    after = task.scores(engine, "test")
    np.testing.assert_allclose(after.agents, np.linalg.norm(expected, axis=1) / scale, rtol=1e-9)
    assert after.average == pytest.approx(np.linalg.norm(expected.mean(0)) / scale, rel=1e-9)


def test_averaging_has_no_curvature_and_starts_apart() -> None:
    task = make_task("averaging")
    engine = Engine(task.problem(4, "iid", 0), Topology.ring(4), RULE, learning_rate=1.0)
    scores = task.scores(engine, "test")
    assert scores.average == pytest.approx(0.0, abs=1e-14)
    assert np.sqrt((scores.agents**2).mean()) == pytest.approx(1.0)


def test_what_each_problem_is_compared_by() -> None:
    tasks = {name: make_task(name) for name in TASKS}
    assert set(tasks) == {
        *("digits-logistic", "digits-mlp", "digits-cnn"),
        *("quadratic", "logistic", "breast-cancer", "averaging"),
    }
    for name, task in tasks.items():
        digits = name.startswith("digits")
        assert task.name == name
        assert (task.metric, task.rising) == (("accuracy", True) if digits else ("error", False))
        assert task.targets == ((0.9, 0.95) if digits else (1e-2, 1e-6))
        assert task.share is digits
        assert task.rounds == (300 if digits else 500)
        assert task.splits is (digits or name == "breast-cancer")
        grid = (0.05, 0.1, 0.2, 0.4, 0.8) if digits else (0.1, 0.2, 0.4, 0.8)
        assert task.grid == ((1.0,) if name == "averaging" else grid)
    with pytest.raises(ConfigError, match="did you mean 'digits-mlp'"):
        make_task("digits-mpl")


# --- keys and tuning ------------------------------------------------------------------------

CHANGES = {
    "problem": "logistic",
    "data": "of another",
    "graph": Topology.star(6).digest,
    "weights": "lazy",
    "split": "classes:1",
    "algorithm": HeavyBall().to_config(),
    "code": "of another",
    "optimizer": "adamw",
    "compression": "int8",
    "schedule": "cosine",
    "learning_rate": 0.41,
    "seed": 4,
    "rounds": 8,
    "evaluate_every": 2,
    "batch_size": 17,
    "local_steps": 2,
    "part": "validation",
    "failures": 0.01,
    "attack": "noise",
    "attackers": 2,
    "attack_from": 3,
}


def test_every_setting_is_part_of_the_key() -> None:
    assert {*CHANGES, "topology"} == set(asdict(RUN))
    # A graph is what it is, whatever it is called.
    assert replace(RUN, topology="field.edges").key == RUN.key
    keys = {replace(RUN, **{name: value}).key for name, value in CHANGES.items()}
    assert len(keys | {RUN.key}) == len(CHANGES) + 1
    assert replace(RUN).key == RUN.key


def curves(**changes: object) -> Curves:
    values = {
        "rounds": [2, 5],
        "average": [0.5, 1.0],
        "mean": [0.3, 0.6],
        "worst": [0.0, 0.0],
        "consensus": [1.0, 1.0],
        "megabytes": [1.0, 2.0],
        "agents": [0.6],
        "stopped": "",
    }
    return Curves(**(values | changes))  # type: ignore[arg-type]


def test_a_score_is_the_area_under_the_mean_of_both_curves() -> None:
    # (2 * 0.4 + 3 * 0.8) / 10
    assert learning_score(curves(), 10, rising=True) == pytest.approx(0.32)
    expected = -(2 * math.log10(0.4) + 3 * math.log10(0.8)) / 10
    assert learning_score(curves(), 10, rising=False) == pytest.approx(expected)
    exact = curves(average=[0.0, 0.0], mean=[0.0, 0.0])
    assert learning_score(exact, 5, rising=False) == pytest.approx(16.0)
    assert learning_score(curves(stopped="round 3: gone"), 10, rising=True) == -math.inf
    assert learning_score(curves(rounds=[]), 10, rising=True) == -math.inf


def test_the_best_point_is_that_of_the_mean_and_of_equals_the_smallest() -> None:
    scores = {0.4: [1.0, 0.0], 0.1: [0.2, 0.9], 0.2: [0.9, 0.2]}
    assert best_point({Point(rate): s for rate, s in scores.items()}) == Point(0.1)
    assert best_point({Point(0.1): [-math.inf, 5.0], Point(0.2): [0.0, 0.0]}) == Point(0.2)


@pytest.mark.parametrize(
    ("scores", "widenings", "expected"),
    [
        ({0.1: [1.0], 0.2: [0.0], 0.8: [0.0]}, 0, 0.05),
        ({0.1: [0.0], 0.2: [0.0], 0.8: [1.0]}, 0, 3.2),
        ({0.1: [0.0], 0.2: [1.0], 0.8: [0.0]}, 0, None),
        ({0.1: [1.0]}, 0, None),
        ({0.1: [1.0], 0.3: [0.0]}, 5, 0.0333),
        ({0.1: [1.0], 0.3: [0.0]}, 6, None),
    ],
)
def test_a_grid_goes_on_where_the_best_is_at_its_edge(scores, widenings, expected) -> None:
    assert widen(scores, widenings) == expected


# --- the whole comparison -------------------------------------------------------------------


def comparison(**changes: object) -> Comparison:
    settings = {
        "problem": "quadratic",
        "topologies": ["star:4", "ring:4"],
        "splits": ["iid"],
        "methods": ["dsgd", "dmsgd:momentum=0.5"],
        "seeds": 2,
        "rounds": 6,
        "evaluate_every": 4,
        "tune": True,
        "grid": (0.2, 0.4),
    }
    return Comparison(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.thorough
def test_a_comparison_tunes_on_validation_data_and_reports_test_data(tmp_path: Path) -> None:
    setting = comparison()
    seen: list[tuple[int, int]] = []
    found = compare(setting, Store(tmp_path), progress=lambda *at: seen.append(at)).outcomes
    assert [(o.case.topology, o.method) for o in found] == [
        *(("star:4", "dsgd"), ("star:4", "dmsgd:momentum=0.5")),
        *(("ring:4", "dsgd"), ("ring:4", "dmsgd:momentum=0.5")),
    ]
    runs = 0
    for outcome in found:
        rule = method(outcome.method)
        scores = {}
        for rate in (trial.learning_rate for trial in outcome.tried):
            works = [
                setting.work(outcome.case, rule, rate, seed, "validation") for seed in range(2)
            ]
            trials = [done(work, setting.task) for work in works]
            scores[rate] = np.mean([learning_score(trial, 6, rising=False) for trial in trials])
        assert {t.learning_rate: t.score for t in outcome.tried} == pytest.approx(scores)
        assert list(scores) == sorted(scores)
        assert set(scores) >= {0.2, 0.4}
        best = max(sorted(scores), key=lambda rate, scores=scores: scores[rate])
        assert outcome.learning_rate == best
        # The grid went on until the best was inside, or six times.
        assert min(scores) < best < max(scores) or len(scores) == 8
        works = [setting.work(outcome.case, rule, best, seed) for seed in range(2)]
        assert outcome.runs == [done(work, setting.task) for work in works]
        runs += 2 * len(scores) + 2
    cost = setting.cost()
    assert (cost.least, cost.most, cost.final) == (4 * 2 * 2, 4 * 2 * 8, 4 * 2)
    assert seen[0] == (0, cost.least + cost.final)
    assert seen[-1] == (runs, runs)
    assert all(done <= total for done, total in seen)
    assert len(list(tmp_path.iterdir())) == runs


def test_without_tuning_all_take_the_first_rate(tmp_path: Path) -> None:
    setting = comparison(tune=False, grid=(0.4, 0.2))
    for outcome in compare(setting, Store(tmp_path)).outcomes:
        assert (outcome.learning_rate, outcome.tried) == (0.4, [])
        assert len(outcome.runs) == 2
        assert outcome.runs[0] != outcome.runs[1]


def test_a_comparison_takes_what_its_problem_says_where_nothing_is_said() -> None:
    plain = Comparison(
        problem="averaging", topologies=["ring:4"], splits=["iid", "classes:2"], methods=["dsgd"]
    )
    assert (plain.rounds, tuple(plain.targets)) == (500, (1e-2, 1e-6))
    assert plain.rates(plain.cases[0]) == (1.0,)
    assert tuple(plain.splits) == ("",)  # there are no samples to split
    assert (plain.seeds, plain.evaluate_every, plain.batch_size) == (3, 5, 32)
    assert (plain.local_steps, plain.optimizers, plain.schedules) == ((1,), ("sgd",), ("constant",))
    assert (plain.weights, plain.failures, plain.tune) == ("metropolis", 0.0, False)
    (case,) = plain.cases
    assert case.name == "ring:4"
    own = comparison(
        problem="digits-logistic",
        targets=(0.5,),
        failures=0.25,
        batch_size=3,
        local_steps=[2, 4],
        optimizers=["momentum:0.8"],
        schedules=["cosine"],
        weights="lazy",
    )
    assert own.targets == (0.5,)
    case = own.cases[3]
    assert case.name == "ring:4 iid, 4 local steps, momentum:0.8, cosine"
    run = own.work(case, method("dmsgd:momentum=0.5"), 0.3, 9).run
    assert (run.problem, run.topology, run.weights, run.split) == (
        "digits-logistic",
        "ring:4",
        "lazy",
        "iid",
    )
    assert (run.optimizer, run.schedule) == ("momentum:0.8", "cosine")
    assert run.graph == Topology.ring(4, "lazy").digest
    rare = comparison(problem="digits-logistic", methods=["dsgd"], share_every=4)
    graph = share_every(Topology.star(4), 4)
    assert rare.work(rare.cases[0], method("dsgd"), 0.3, 9).run.graph == graph.digest
    assert run.data == own.task.digest
    assert run.algorithm == HeavyBall(momentum=0.5).to_config()
    assert (run.learning_rate, run.seed, run.rounds, run.evaluate_every) == (0.3, 9, 6, 4)
    assert (run.batch_size, run.local_steps, run.part, run.failures) == (3, 4, "test", 0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": []}, "methods must be different and at least one"),
        ({"methods": ["dsgd", "dsgd"]}, "methods must be different"),
        ({"topologies": ["ring:4", "ring:4"]}, "topologies must be different"),
        ({"share_every": 0}, "share_every must be at least 1.*got 0"),
        ({"seeds": 0}, "seeds must be at least 1.*got 0"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"local_steps": [0]}, "local_steps must be at least 1"),
        ({"local_steps": [2]}, "problem 'quadratic' takes one gradient step a round"),
        ({"optimizers": ["adamww"]}, "did you mean 'adamw'"),
        ({"schedules": ["cosin"]}, "did you mean 'cosine'"),
        ({"methods": "dsgd"}, "methods must be a sequence, got 'dsgd'"),
        ({"how": "random"}, "how must be coordinate or grid, got 'random'"),
        ({"search": {"momentun": (0.5,)}}, "none of the methods has a setting 'momentun'"),
        ({"search": {"momentum": ()}}, "values of 'momentum' must be finite"),
        ({"search": {"momentum": (0.5,)}, "tune": False}, "set tune, too"),
        ({"problem": 3}, "problem is 3, which has no 'name': return a TorchTask"),
        ({"grid": (0.1, 0.0)}, "learning rates must be finite and above 0"),
        ({"grid": (math.inf,)}, "learning rates must be finite and above 0"),
        ({"failures": 1.0}, r"failures must be in \[0, 1\), got 1.0"),
        ({"failures": -0.1}, r"failures must be in \[0, 1\)"),
        ({"topologies": ["directed-ring:4"]}, "method 'dsgd' on 'directed-ring:4': .*undirected"),
    ],
)
def test_comparisons_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        comparison(**changes)


def wide_table(name: str, settings: dict[str, float], columns: int) -> Table:
    """One row with scores of five digits and their intervals."""
    case = Case(topology="ring:16", split="iid")
    score = Spread(0.98765, 0.01234, 0.98, 0.9, 1.0, 3, 3)
    kinds = [
        Column(f"a score of kind {k}", f"score {k} %", lambda s: s, lambda v: f"{100 * v:.1f}")
        for k in range(columns)
    ]
    return Table(
        case,
        kinds,
        [
            (
                Outcome(case=case, method=name, learning_rate=0.003, settings=settings),
                [score] * columns,
            )
        ],
    )


LONG = "a_package.with_a_long_name.and_modules_within_it:ARuleThatSaysWhatItDoes:and-a-setting=0.5"


@pytest.mark.parametrize("columns", [1, 3, 6, 12])
@pytest.mark.parametrize("name", ["dsgd", "dmsgd", LONG, "x" * 200])
def test_a_table_is_80_columns_wide_whatever_its_names(name: str, columns: int) -> None:
    tuned = {} if name == "dsgd" else {"momentum": 0.987654, "momentum_mixing": 0.123457}
    text = _lines(wide_table(name, tuned, columns), wide=False)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("98.8") == columns  # no number is lost
    pieces = ["x" * 70] if name.startswith("x") else name.split(":")
    for piece in [*pieces, *(setting.replace("_", "-") for setting in tuned)]:
        assert piece in text
    assert text.count("x") >= name.count("x")
