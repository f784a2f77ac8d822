"""Consensus distance, and the summary over agents."""

import json
import math

import numpy as np
import pytest

from flower_dhb import PayloadError, consensus_distance
from flower_dhb.metrics import (
    RoundRecord,
    Summary,
    agents_text,
    distance_from,
    sketch,
    summarize,
    weights_of,
)

# --- consensus distance --------------------------------------------------------------------


def test_consensus_distance_by_hand():
    """Mean (3, 4); distances 5, 5, 0 and 0: the root of 50 / 4."""
    agents = [[0.0, 0.0], [6.0, 8.0], [3.0, 4.0], [3.0, 4.0]]
    assert consensus_distance(np.array(agents)) == math.sqrt(12.5)
    assert consensus_distance([np.array(x) for x in agents]) == math.sqrt(12.5)


def test_consensus_distance_of_one_agent_is_zero_and_of_none_unknown():
    assert consensus_distance([np.arange(5.0)]) == 0.0
    assert math.isnan(consensus_distance([]))


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1])
def test_consensus_distance_counts_every_element_once(size):
    """Two agents that differ by 2 in each element: 1 from the mean, so the root of the size."""
    agents = np.stack([np.full(size, 5.0), np.full(size, 7.0)])
    assert consensus_distance(agents) == pytest.approx(math.sqrt(size), rel=1e-15)


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        ([[1.0, 2.0], [3.0]], r"agent 1 has shape \(1,\), agent 0 \(2,\)"),
        # A longer vector must not be cut to the first one's length.
        ([[1.0], [3.0, 4.0]], r"agent 1 has shape \(2,\), agent 0 \(1,\)"),
        ([np.zeros((2, 2)), np.zeros((2, 2))], r"agent 0 has shape \(2, 2\)"),
        ([1.0, 2.0], r"agent 0 has shape \(\)"),
    ],
)
def test_agents_whose_vectors_differ_have_no_consensus_distance(agents, message):
    with pytest.raises(PayloadError, match=f"consensus distance: {message}"):
        consensus_distance(agents)


def test_consensus_distance_of_float32_is_computed_in_float64():
    """Around 2^24 a float32 mean of neighboring numbers would be off by as much as they are."""
    agents = np.array([[2.0**24], [2.0**24 + 2]], np.float32)
    assert consensus_distance(agents) == 1.0


# --- summary ---------------------------------------------------------------------------------


def test_mean_is_weighted_and_worst_and_best_are_not():
    per_agent = {0: {"accuracy": 0.5, "loss": 3.0}, 4: {"accuracy": 0.9, "loss": 1.0}}
    summary = summarize(per_agent, {0: 1, 4: 3})
    assert list(summary) == ["accuracy", "loss"]
    accuracy, loss = summary["accuracy"], summary["loss"]
    assert accuracy.mean == pytest.approx(0.8)  # (0.5 + 3 * 0.9) / 4
    assert (accuracy.worst, accuracy.best) == (0.5, 0.9)
    assert loss == Summary(1.5, worst=3.0, best=1.0)


@pytest.mark.parametrize(
    "name", ["loss", "eval_loss", "Train-Loss", "error-rate", "perplexity", "mse", "distance"]
)
def test_of_losses_less_is_better(name):
    summary = summarize({0: {name: 1.0}, 1: {name: 2.0}}, {0: 1, 1: 1})
    assert (summary[name].worst, summary[name].best) == (2.0, 1.0)


@pytest.mark.parametrize("name", ["accuracy", "f1", "auc"])
def test_of_all_else_more_is_better(name):
    summary = summarize({0: {name: 1.0}, 1: {name: 2.0}}, {0: 1, 1: 1})
    assert (summary[name].worst, summary[name].best) == (1.0, 2.0)


def test_which_way_is_better_is_an_option():
    summary = summarize({0: {"age": 1.0}, 1: {"age": 2.0}}, {0: 1, 1: 1}, lower_is_better=("age",))
    assert summary["age"].best == 1.0


@pytest.mark.parametrize("name", ["accuracy", "loss"])
@pytest.mark.parametrize("nan_at", [0, 1])
def test_nan_is_the_worst_wherever_it_stands(name, nan_at):
    per_agent = {0: {name: 1.0}, 1: {name: 1.0}}
    per_agent[nan_at] = {name: math.nan}
    summary = summarize(per_agent, {0: 1, 1: 1})
    assert math.isnan(summary[name].worst)
    assert summary[name].best == 1.0
    assert math.isnan(summary[name].mean)


def test_a_metric_that_some_agents_lack_is_averaged_over_the_others():
    summary = summarize({0: {"a": 1.0}, 1: {"b": 5.0}, 2: {"a": 4.0}}, {0: 1, 1: 10, 2: 2})
    assert (summary["a"].mean, summary["b"].mean) == (3.0, 5.0)


def test_without_weights_all_agents_count_alike():
    assert summarize({0: {"a": 1.0}, 1: {"a": 2.0}}, {0: 0, 1: 0})["a"].mean == 1.5
    assert summarize({0: {"a": 1.0}, 1: {"a": 2.0}}, {})["a"].mean == 1.5


def test_lists_are_averaged_element_by_element():
    per_agent = {0: {"per-class": [0.0, 1.0]}, 1: {"per-class": [4.0, 5.0]}}
    assert summarize(per_agent, {0: 3, 1: 1}) == {"per-class": Summary([1.0, 2.0])}


def test_lists_that_do_not_match_are_left_out():
    assert summarize({0: {"a": [1.0]}, 1: {"a": [1.0, 2.0]}}, {0: 1, 1: 1}) == {}


def test_an_agent_without_a_weight_is_not_in_the_mean_but_may_be_the_worst():
    per_agent = {0: {"accuracy": 0.6}, 1: {"accuracy": 0.8}, 2: {"accuracy": 0.1}}
    found = summarize(per_agent, {0: 1, 1: 3})["accuracy"]
    assert found.mean == pytest.approx(0.75)
    assert (found.worst, found.best) == (0.1, 0.8)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "metrics lack 'n', left out of the mean"),
        (-1, "metric 'n' must be a number >= 0, got -1; left out of the mean"),
        (math.nan, "must be a number >= 0, got nan"),
        (math.inf, "must be a number >= 0, got inf"),
        ([1.0], "must be a number >= 0, got [1.0]"),
    ],
)
def test_weights_that_are_none(value, told):
    metrics = {} if value is None else {"n": value}
    weights, events = weights_of({3: metrics, 1: {"n": 2}, 0: {"n": 0}}, "n")
    assert weights == {0: 0.0, 1: 2.0}
    ((vertex, text),) = events
    assert vertex == 3
    assert told in text


# --- distance from a point ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2**16 - 1, 2**16 + 1])
def test_distance_from_a_point_and_consensus_distance_are_two_sides_of_a_right_angle(size):
    agents, origin = np.stack([np.full(size, 5.0), np.full(size, 7.0)]), np.full(size, 2.0)
    found = distance_from(agents, origin)
    assert found == pytest.approx(math.sqrt(size * (9 + 25) / 2), rel=1e-14)
    way = math.sqrt(size) * 4.0
    assert found**2 == pytest.approx(consensus_distance(agents) ** 2 + way**2, rel=1e-14)
    assert math.isnan(distance_from([], origin))


# --- agents in words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vertices", "text"),
    [
        ([], "no agent"),
        ([4], "agent 4"),
        ([1, 0], "agents 0 and 1"),
        (range(8), "agents 0 to 7"),
        ([5, 0, 2, 2], "agents 0, 2 and 5"),
        ([9, 0, 2, 3, 4], "agents 0, 2 to 4 and 9"),
        ([0, 1, 2, 7, 8], "agents 0 to 2, 7 and 8"),
    ],
)
def test_agents_in_words(vertices, text):
    assert agents_text(vertices) == text


# --- record of a round -------------------------------------------------------------------------


def test_a_record_gives_one_value_for_each_vertex():
    record = RoundRecord(3, evaluate={0: {"accuracy": 1}, 2: {"accuracy": 0.5, "list": [1.0]}})
    assert record.values("accuracy", range(3)) == [1.0, None, 0.5]
    assert record.values("list", [2]) == [None]


def test_a_record_is_plain_values():
    record = RoundRecord(3, missing=[1], events=[(1, "late")])
    document = json.loads(json.dumps(record.to_dict()))
    assert (document["round"], document["missing"]) == (3, [1])
    assert document["events"] == [[1, "late"]]


def test_events_of_one_kind_are_told_once_in_the_order_in_which_they_came():
    record = RoundRecord(1, events=[(2, "late"), (0, "gone"), (0, "late"), (2, "late")])
    assert record.grouped_events == [([0, 2], "late"), ([0], "gone")]


def test_a_record_sums_up_with_its_own_weights():
    metrics = {0: {"loss": 1.0, "n": 1}, 1: {"loss": 5.0, "n": 3}}
    record = RoundRecord(
        1, train=metrics, evaluate={1: metrics[1]}, weighted_by_key="n", lower_is_better=()
    )
    assert record.train_summary == {"loss": Summary(4.0, worst=1.0, best=5.0)}
    assert record.evaluate_summary == {"loss": Summary(5.0, worst=5.0, best=5.0)}
    assert RoundRecord(1, train=metrics).train_summary["n"].mean == 2.0, "no weight, a metric"


# --- random projections -----------------------------------------------------------------


def test_a_sketch_adds_each_element_to_one_bucket_with_one_sign() -> None:
    """Written out: one draw for each element of a block of 2**16, from a seed that is a name."""
    x = np.random.default_rng(2).standard_normal(2**16 + 3)
    rng = np.random.default_rng(list(b"run"))
    want = np.zeros(8)
    for part in (x[: 2**16], x[2**16 :]):
        drawn = rng.integers(0, 16, len(part), dtype=np.uint16)
        for b in range(8):
            want[b] += part[drawn == b].sum() - part[drawn == b + 8].sum()
    np.testing.assert_allclose(sketch(x, 8, "run"), want, rtol=1e-9, atol=1e-9)
    assert not np.allclose(sketch(x, 8, "another run"), want)


def test_a_short_vector_is_its_own_sketch() -> None:
    x = np.arange(8.0)
    np.testing.assert_array_equal(sketch(x, 8, "run"), x)
    assert sketch(x, 8, "run") is not x, "what becomes of the vector does not change it"
    assert len(sketch(np.arange(9.0), 8, "run")) == 8


def test_differences_are_projected_to_the_difference_of_projections() -> None:
    """So the way from the start is measured with projections of its two ends."""
    one, other = np.random.default_rng(3).standard_normal((2, 5000))
    apart = sketch(one, 64, "run") - sketch(other, 64, "run")
    np.testing.assert_allclose(apart, sketch(one - other, 64, "run"), atol=1e-12)
