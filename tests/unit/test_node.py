"""A node's round: the order of calls, who may offer what, and what is left after an error."""

import numpy as np
import pytest

from flower_dhb import DSGD, ConfigError, HeavyBall, Node, PayloadError, RoundError
from flower_dhb.algorithms import GradientTracking
from flower_dhb.types import Layout

# Agent 2 with neighbors 0 and 5. All weights are exact in binary.
WEIGHTS = {0: 0.25, 2: 0.5, 5: 0.25}


def model(*values, count=0):
    return {"w": np.array(values, float), "count": np.array(count)}


def start(algorithm=None, weights=None, arrays=None):
    arrays = model(8, 16) if arrays is None else arrays
    return Node.start(
        2, algorithm or HeavyBall(momentum=0.5), weights or WEIGHTS, Layout.of(arrays), arrays
    )


def folded(*values, dtype=float):
    return {"folded": np.array(values, dtype)}


def contents(node):
    s = node.snapshot
    return (
        s.round,
        s.state.parameters.tolist(),
        {name: vector.tolist() for name, vector in s.state.memory.items()},
        {name: array.tolist() for name, array in s.local.items()},
        node.pending_round,
        node.missing,
    )


def test_a_node_begins_at_round_zero_with_the_arrays_it_was_given():
    node = start()
    assert (node.round, node.pending_round, node.neighbors) == (0, None, (0, 5))
    np.testing.assert_array_equal(node.arrays()["w"], [8, 16])


def test_two_rounds_by_hand():
    """x = (8, 16), z = (12, 12): mix with (16, 4) and (0, 8) by 1/2, 1/4, 1/4."""
    node = start()
    sent = node.adapt(1, model(12, 12))
    np.testing.assert_array_equal(sent["folded"], [12, 12])  # no momentum yet
    node.offer(5, 1, folded(0, 8))
    node.offer(0, 1, folded(16, 4))
    assert node.combine() == ()
    np.testing.assert_array_equal(node.parameters, [10, 9])  # so d = (2, -7)
    # z + b w d with b = w = 1/2
    np.testing.assert_array_equal(node.adapt(2, model(10, 10))["folded"], [10.5, 8.25])
    assert node.combine() == (0, 5)
    # All weight on itself: the folded payload, and b (1 - w) d.
    np.testing.assert_array_equal(node.parameters, [11, 6.5])
    assert node.round == 2


def test_local_arrays_come_back_as_the_app_left_them():
    node = start()
    node.adapt(1, model(1, 1, count=41))
    node.combine()
    assert node.arrays()["count"] == 41


def test_training_in_place_does_not_touch_the_state():
    node = start(HeavyBall(momentum=0.5, order="combine-then-adapt"))
    arrays = node.arrays()
    arrays["w"] -= 4.0
    np.testing.assert_array_equal(node.parameters, [8, 16])
    node.adapt(1, arrays)
    arrays["w"][:] = np.nan
    node.combine()
    np.testing.assert_array_equal(node.parameters, [4, 12])


def test_a_missing_neighbors_weight_returns_to_the_agents_own_payload():
    node = start(DSGD())
    node.adapt(1, model(8, 0))
    node.offer(5, 1, {"parameters": np.array([0.0, 4.0])})
    assert node.missing == (0,)
    assert node.combine() == (0,)
    np.testing.assert_array_equal(node.parameters, [6, 1])


def test_a_payload_that_the_other_end_could_not_use_does_not_count():
    node = start(DSGD())
    node.adapt(1, model(8, 0))
    for sender in (0, 5):
        node.offer(sender, 1, {"parameters": np.array([0.0, 4.0])})
    assert node.combine(use={5}) == (0,)
    np.testing.assert_array_equal(node.parameters, [6, 1])


def test_being_allowed_does_not_make_up_for_not_having_arrived():
    node = start(DSGD())
    node.adapt(1, model(8, 0))
    assert node.combine(use={0, 5}) == (0, 5)


def test_an_agent_may_be_late_and_skip_rounds():
    node = start()
    node.adapt(4, model(8, 16))
    node.combine()
    assert node.round == 4


def test_the_payload_is_the_same_each_time_it_is_asked_for():
    node = start()
    sent = node.adapt(1, model(12, 12))
    np.testing.assert_array_equal(node.payload()["folded"], sent["folded"])


def test_a_node_can_be_put_down_and_taken_up_between_any_two_calls():
    def once(interrupted):
        node = start()
        for k in (1, 2):
            node.adapt(k, model(3 * k, -k))
            if interrupted:
                node = Node(2, node.algorithm, WEIGHTS, node.layout, node.snapshot)
            node.offer(0, k, folded(k, k))
            node.combine()
            if interrupted:
                node = Node(2, node.algorithm, WEIGHTS, node.layout, node.snapshot)
        return contents(node)

    assert once(interrupted=True) == once(interrupted=False)


# --- what is refused, and leaves the node as it was -------------------------------------


def fresh():
    return start()


def trained():
    node = start()
    node.adapt(1, model(12, 12))
    return node


def heard():
    node = trained()
    node.offer(0, 1, folded(1, 1))
    return node


def combined():
    node = trained()
    node.combine()
    return node


REFUSALS = {
    "offer before adapt": (
        fresh,
        lambda node: node.offer(0, 1, folded(1, 1)),
        RoundError,
        "agent 2: no round is pending; call adapt first",
    ),
    "combine before adapt": (fresh, lambda node: node.combine(), RoundError, "no round is pending"),
    "payload before adapt": (fresh, lambda node: node.payload(), RoundError, "no round is pending"),
    "combine twice": (combined, lambda node: node.combine(), RoundError, "no round is pending"),
    "adapt twice": (
        trained,
        lambda node: node.adapt(2, model(1, 1)),
        RoundError,
        "agent 2: round 1 is not combined yet, cannot begin round 2",
    ),
    "adapt to the same round": (
        combined,
        lambda node: node.adapt(1, model(1, 1)),
        RoundError,
        "agent 2: parameters are of round 1, got round 1",
    ),
    "adapt NaN": (
        fresh,
        lambda node: node.adapt(1, model(1, np.nan)),
        PayloadError,
        "round 1, agent 2: 'w' holds 1 values that are not finite",
    ),
    "adapt another shape": (
        fresh,
        lambda node: node.adapt(1, model(1, 2, 3)),
        PayloadError,
        r"round 1, agent 2: 'w' is float64\[3\], expected float64\[2\]",
    ),
    "stranger": (
        trained,
        lambda node: node.offer(1, 1, folded(1, 1)),
        PayloadError,
        "round 1, neighbor 1: not a neighbor of agent 2",
    ),
    "itself": (
        trained,
        lambda node: node.offer(2, 1, folded(1, 1)),
        PayloadError,
        "round 1, neighbor 2: not a neighbor of agent 2",
    ),
    "twice": (
        heard,
        lambda node: node.offer(0, 1, folded(1, 1)),
        PayloadError,
        "round 1, neighbor 0: a payload of this round has been accepted already",
    ),
    "another round": (
        trained,
        lambda node: node.offer(0, 2, folded(1, 1)),
        PayloadError,
        "round 2, neighbor 0: agent 2 is in round 1",
    ),
    "another length": (
        trained,
        lambda node: node.offer(0, 1, folded(1, 1, 1)),
        PayloadError,
        r"round 1, neighbor 0: payload holds \['folded float64\[3\]'\], expected "
        r"\['folded float64\[2\]'\]; all agents must run the same model and algorithm",
    ),
    "not flat": (
        trained,
        lambda node: node.offer(0, 1, {"folded": np.ones((2, 1))}),
        PayloadError,
        r"folded float64\[2, 1\]",
    ),
    "another dtype": (
        trained,
        lambda node: node.offer(0, 1, folded(1, 1, dtype=np.float32)),
        PayloadError,
        r"folded float32\[2\]",
    ),
    "another rule's vectors": (
        trained,
        lambda node: node.offer(0, 1, {"parameters": np.ones(2)}),
        PayloadError,
        r"payload holds \['parameters float64\[2\]'\]",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_why_and_changes_nothing(case):
    prepare, call, error, message = REFUSALS[case]
    node = prepare()
    before = contents(node)
    with pytest.raises(error, match=message):
        call(node)
    assert contents(node) == before


@pytest.mark.parametrize(
    "weights", [{0: 0.5, 5: 0.5}, {0: 0.5, 2: 0.25}, {0: 0.5, 2: float("nan")}, {}]
)
def test_weights_that_are_no_row_of_a_mixing_matrix(weights):
    arrays = model(1, 2)
    with pytest.raises(ConfigError, match="agent 2: weights of itself and its neighbors must sum"):
        Node.start(2, DSGD(), weights, Layout.of(arrays), arrays)


# --- running statistics ------------------------------------------------------------------


def normalized(w, variance):
    return {"w": np.array([w], float), "running_var": np.array([variance], np.float32)}


def test_statistics_are_averaged_with_the_weights_and_carry_no_momentum():
    node = start(arrays=normalized(0, 1))
    variances = iter([(8, 16), (2, 4)])
    for k, (own, others) in enumerate(variances, start=1):
        sent = node.adapt(k, normalized(k, own))
        assert list(sent) == ["folded", "statistics"]
        for sender in (0, 5):
            statistics = np.array([others], np.float32)
            node.offer(sender, k, {"folded": np.zeros(1), "statistics": statistics})
        node.combine()
        # Half of its own and half of the others': 12, then 3, whatever came before.
        assert node.arrays()["running_var"] == [(own + others) / 2]


def test_a_missing_neighbors_statistics_are_replaced_by_ones_own():
    node = start(arrays=normalized(0, 1))
    node.adapt(1, normalized(0, 8))
    node.offer(0, 1, {"folded": np.zeros(1), "statistics": np.array([16.0], np.float32)})
    node.combine()
    assert node.arrays()["running_var"] == [10]


def test_a_variance_stays_positive_under_negative_weights():
    """Weights -1/2, 1, 1/2 would make 1/2 of variances 1 and 1/4, minus 1/2 of 16, negative.

    Their absolute shares are 1/4, 1/2, 1/4: 4 + 1/2 + 1/16.
    """
    node = start(weights={0: -0.5, 2: 1.0, 5: 0.5}, arrays=normalized(0, 1))
    node.adapt(1, normalized(0, 1))
    node.offer(0, 1, {"folded": np.zeros(1), "statistics": np.array([16.0], np.float32)})
    node.offer(5, 1, {"folded": np.zeros(1), "statistics": np.array([0.25], np.float32)})
    node.combine()
    assert node.arrays()["running_var"] == [4.5625]


# --- rejoin ------------------------------------------------------------------------------


def rejoin(payloads, weights=None, arrays=None):
    arrays = model(0, 0, count=3) if arrays is None else arrays
    layout = Layout.of(arrays)
    return Node.rejoin(
        2, HeavyBall(momentum=0.5), weights or WEIGHTS, layout, layout.local(arrays), 6, payloads
    )


def test_an_agent_rejoins_at_its_neighbors_weighted_average_without_momentum():
    node = rejoin({5: folded(0, 8), 0: folded(16, 4)}, weights={0: 0.375, 2: 0.5, 5: 0.125})
    np.testing.assert_array_equal(node.parameters, [12, 5])  # 3/4 of agent 0, 1/4 of agent 5
    np.testing.assert_array_equal(node.snapshot.state.memory["displacement"], [0, 0])
    assert (node.round, node.pending_round) == (6, None)
    assert node.arrays()["count"] == 3
    node.adapt(7, model(1, 1))
    assert node.combine() == (0, 5)


def test_one_neighbor_is_enough_to_rejoin():
    np.testing.assert_array_equal(rejoin({5: folded(3, 7)}).parameters, [3, 7])


def test_statistics_rejoin_too():
    payloads = {
        j: {"folded": np.ones(1), "statistics": np.array([v], np.float32)}
        for j, v in ((0, 2.0), (5, 4.0))
    }
    assert rejoin(payloads, arrays=normalized(0, 1)).arrays()["running_var"] == [3.0]


@pytest.mark.parametrize("weights", [{0: -0.5, 2: 1.0, 5: 0.5}, {0: -0.25, 2: 1.5, 5: -0.25}])
def test_rejoining_under_negative_weights_stays_between_the_neighbors(weights):
    node = rejoin({0: folded(0, 8), 5: folded(16, 4)}, weights=weights)
    np.testing.assert_array_equal(node.parameters, [8, 6])


@pytest.mark.parametrize(
    ("payloads", "error", "message"),
    [
        ({}, RoundError, "round 6, agent 2: state is lost and no neighbor's payload is here"),
        ({1: folded(1, 1)}, PayloadError, "round 6, neighbor 1: not a neighbor of agent 2"),
        ({2: folded(1, 1)}, PayloadError, "round 6, neighbor 2: not a neighbor of agent 2"),
        (
            {0: folded(1)},
            PayloadError,
            r"round 6, neighbor 0: payload holds \['folded float64\[1\]",
        ),
        ({0: {"parameters": np.ones(2)}}, PayloadError, "payload holds"),
    ],
)
def test_there_is_nothing_to_rejoin_from(payloads, error, message):
    with pytest.raises(error, match=message):
        rejoin(payloads)


# --- epochs ------------------------------------------------------------------------------


def tracked(tracker, *values):
    return {"parameters": np.array(values, float), "tracker": np.array(tracker, float)}


def in_round_two():
    """A tracking agent whose memory is not zero: x = (10, 9), both of its memories too."""
    node = start(GradientTracking())
    node.adapt(1, model(12, 12))  # the step, and so the tracker, is (4, -4)
    node.offer(0, 1, tracked([8, 0], 16, 4))
    node.offer(5, 1, tracked([0, 4], 0, 8))
    node.combine()
    assert node.snapshot.state.memory["mixed_tracker"].tolist() == [4, -1]
    assert node.snapshot.state.memory["last_step"].tolist() == [4, -4]
    return node


def test_a_newer_epoch_begins_with_a_correction_of_zero_and_the_same_parameters():
    node = in_round_two()
    node.join_epoch(3)
    assert node.epoch == 3
    assert node.round == 1
    np.testing.assert_array_equal(node.parameters, [10, 9])
    assert all(not vector.any() for vector in node.snapshot.state.memory.values())
    sent = node.adapt(2, model(11, 7))  # as in a first round: the tracker is the step
    np.testing.assert_array_equal(sent["tracker"], [1, -2])
    np.testing.assert_array_equal(sent["parameters"], [11, 7])
    assert node.epoch == 3
    node.combine()
    assert node.epoch == 3


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_an_epoch_that_is_not_newer_changes_nothing(epoch):
    node = in_round_two()
    node.join_epoch(3)
    node.adapt(2, model(11, 7))
    before = contents(node)
    node.join_epoch(epoch)  # not even refused: the round that is pending stays what it was
    assert contents(node) == before
    assert node.epoch == 3


def test_a_payload_belongs_to_the_epoch_in_which_it_was_made():
    node = in_round_two()
    node.adapt(2, model(11, 7))
    before = contents(node)
    with pytest.raises(RoundError, match="round 2 of epoch 0 is not combined yet, cannot begin e"):
        node.join_epoch(1)
    assert contents(node) == before
    assert node.epoch == 0


@pytest.mark.parametrize(("known", "own", "opened"), [(0, 0, 1), (4, 0, 5), (0, 2, 3), (2, 2, 3)])
def test_who_breaks_the_sum_opens_the_epoch_after_all_that_are_known(known, own, opened):
    node = in_round_two()
    node.join_epoch(own)
    node.open_epoch(known)
    assert node.epoch == opened
    assert all(not vector.any() for vector in node.snapshot.state.memory.values())


def test_a_rule_that_conserves_nothing_opens_no_epoch():
    node = rejoin({5: folded(3, 7)})
    node.open_epoch(0)
    assert node.epoch == 0
