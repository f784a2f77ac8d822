"""Consensus distance, and the summary over agents."""

import json
import math

import numpy as np
import pytest

from flower_dhb import consensus_distance
from flower_dhb.metrics import RoundRecord, summarize

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


def test_consensus_distance_of_float32_is_computed_in_float64():
    """Around 2^24 a float32 mean of neighboring numbers would be off by as much as they are."""
    agents = np.array([[2.0**24], [2.0**24 + 2]], np.float32)
    assert consensus_distance(agents) == 1.0


# --- summary ---------------------------------------------------------------------------------


def test_mean_is_weighted_and_worst_and_best_are_not():
    per_agent = {0: {"accuracy": 0.5, "loss": 3.0}, 4: {"accuracy": 0.9, "loss": 1.0}}
    assert summarize(per_agent, {0: 1, 4: 3}) == {
        "accuracy": pytest.approx(0.8),  # (0.5 + 3 * 0.9) / 4
        "accuracy-worst": 0.5,
        "accuracy-best": 0.9,
        "loss": 1.5,
        "loss-worst": 3.0,
        "loss-best": 1.0,
    }


@pytest.mark.parametrize(
    "name", ["loss", "eval_loss", "Train-Loss", "error-rate", "perplexity", "mse", "distance"]
)
def test_of_losses_less_is_better(name):
    summary = summarize({0: {name: 1.0}, 1: {name: 2.0}}, {0: 1, 1: 1})
    assert (summary[f"{name}-worst"], summary[f"{name}-best"]) == (2.0, 1.0)


@pytest.mark.parametrize("name", ["accuracy", "f1", "auc"])
def test_of_all_else_more_is_better(name):
    summary = summarize({0: {name: 1.0}, 1: {name: 2.0}}, {0: 1, 1: 1})
    assert (summary[f"{name}-worst"], summary[f"{name}-best"]) == (1.0, 2.0)


def test_which_way_is_better_is_an_option():
    summary = summarize({0: {"age": 1.0}, 1: {"age": 2.0}}, {0: 1, 1: 1}, lower_is_better=("age",))
    assert summary["age-best"] == 1.0


@pytest.mark.parametrize("name", ["accuracy", "loss"])
@pytest.mark.parametrize("nan_at", [0, 1])
def test_nan_is_the_worst_wherever_it_stands(name, nan_at):
    per_agent = {0: {name: 1.0}, 1: {name: 1.0}}
    per_agent[nan_at] = {name: math.nan}
    summary = summarize(per_agent, {0: 1, 1: 1})
    assert math.isnan(summary[f"{name}-worst"])
    assert summary[f"{name}-best"] == 1.0
    assert math.isnan(summary[name])


def test_a_metric_that_some_agents_lack_is_averaged_over_the_others():
    summary = summarize({0: {"a": 1.0}, 1: {"b": 5.0}, 2: {"a": 4.0}}, {0: 1, 1: 10, 2: 2})
    assert (summary["a"], summary["b"]) == (3.0, 5.0)


def test_without_weights_all_agents_count_alike():
    assert summarize({0: {"a": 1.0}, 1: {"a": 2.0}}, {0: 0, 1: 0})["a"] == 1.5


def test_lists_are_averaged_element_by_element():
    per_agent = {0: {"per-class": [0.0, 1.0]}, 1: {"per-class": [4.0, 5.0]}}
    assert summarize(per_agent, {0: 3, 1: 1}) == {"per-class": [1.0, 2.0]}


def test_lists_that_do_not_match_are_left_out():
    assert summarize({0: {"a": [1.0]}, 1: {"a": [1.0, 2.0]}}, {0: 1, 1: 1}) == {}


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
