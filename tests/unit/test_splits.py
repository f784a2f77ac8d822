"""Splits give each sample to one agent; batches repeat from their seed."""

import numpy as np
import pytest

from flower_dhb import ConfigError
from flower_dhb.problems.splits import batches, split

LABELS = np.repeat(np.arange(10), 30)
SPLITS = ["iid", "classes:1", "classes:2", "classes:10", "dirichlet:0.1", "dirichlet:100"]


@pytest.mark.parametrize("how", SPLITS)
@pytest.mark.parametrize("n_agents", [10, 16])
def test_each_sample_goes_to_exactly_one_agent_and_none_is_empty(how, n_agents):
    parts = split(LABELS, n_agents, how, seed=0)
    assert len(parts) == n_agents
    assert all(len(part) for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    assert all((np.diff(part) > 0).all() and part.dtype == np.int64 for part in parts)


@pytest.mark.parametrize("how", SPLITS)
def test_a_seed_gives_the_same_split_and_another_seed_another(how):
    def drawn(seed):
        return [part.tolist() for part in split(LABELS, 12, how, seed)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_iid_parts_are_equal_and_mixed():
    parts = split(LABELS, 7, "iid", seed=0)
    assert sorted(len(part) for part in parts) == [42, 43, 43, 43, 43, 43, 43]
    # A part of 42 of 300 that lacks more than two of ten classes has a chance below 1e-3.
    assert all(len(np.unique(LABELS[part])) >= 8 for part in parts)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_classes_per_agent_are_as_many_as_asked_for_and_shared_evenly(k):
    parts = split(LABELS, 20, f"classes:{k}", seed=0)
    held = [np.unique(LABELS[part]) for part in parts]
    assert {len(classes) for classes in held} == {k}
    # 20 k places for ten classes: each class has 2 k holders.
    holders = np.bincount(np.concatenate(held), minlength=10)
    assert holders.tolist() == [2 * k] * 10
    shares = [
        np.count_nonzero(LABELS[part] == c) for part in parts for c in np.unique(LABELS[part])
    ]
    assert set(shares) == {30 // (2 * k), -(-30 // (2 * k))}


def test_five_agents_of_two_classes_hold_all_ten():
    parts = split(LABELS, 5, "classes:2", seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


def test_labels_need_not_be_numbered_from_zero():
    parts = split(np.repeat([3, 7], 5), 2, "classes:1", seed=0)
    assert sorted(part.tolist() for part in parts) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_small_dirichlet_parameter_is_more_uneven_than_a_large_one():
    def largest_share(alpha):
        """Mean share of an agent's commonest class."""
        parts = split(LABELS, 8, f"dirichlet:{alpha}", seed=3)
        return np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts])

    assert largest_share(0.1) > 0.4 > 0.2 > largest_share(100)


@pytest.mark.parametrize(
    ("labels", "n_agents", "how", "message"),
    [
        (LABELS, 301, "iid", "300 samples cannot be divided among 301 agents"),
        (LABELS, 0, "iid", "300 samples cannot be divided among 0 agents"),
        ([], 1, "iid", "0 samples cannot be divided among 1 agents"),
        (LABELS, 4, "idd", "unknown split 'idd', did you mean 'iid'"),
        (LABELS, 4, "iid:3", "unknown split 'iid:3'"),
        (LABELS, 4, "classes", "split 'classes' needs a number after the colon"),
        (LABELS, 4, "classes:two", "split 'classes:two' needs a number"),
        (LABELS, 4, "classes:2.5", "split 'classes:2.5' needs a number"),
        (LABELS, 4, "classes:0", "split 'classes:0': there are 10 classes"),
        (LABELS, 4, "classes:11", "split 'classes:11': there are 10 classes"),
        (LABELS, 4, "classes:2", "covers 8 of 10 classes; the samples of the others would never"),
        (LABELS, 4, "dirichlet:", "needs a number after the colon"),
        (LABELS, 4, "dirichlet:0", "the parameter must be above 0"),
        (LABELS, 4, "dirichlet:nan", "the parameter must be above 0"),
        (LABELS, 4, "dirichlet:-1", "the parameter must be above 0"),
        # Two agents must share the one sample of class 1.
        ([0, 0, 0, 1], 4, "classes:1", "leaves agent . of 4 empty"),
        ([0, 0, 0, 0], 4, "dirichlet:0.001", "left an agent empty in each of 1000 draws"),
    ],
)
def test_splits_that_cannot_be(labels, n_agents, how, message):
    with pytest.raises(ConfigError, match=message):
        split(np.array(labels, dtype=int), n_agents, how, seed=0)


# --- batches -----------------------------------------------------------------------------


def draw(n_samples=50, batch_size=8, local_steps=3, seed=0, vertex=1, round=2):
    return batches(n_samples, batch_size, local_steps, seed=seed, vertex=vertex, round=round)


def test_a_batch_draws_without_replacement_from_all_samples():
    drawn = draw(batch_size=50, local_steps=2)
    assert drawn.shape == (2, 50)
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(np.sort(drawn, axis=1), [np.arange(50)] * 2)
    assert (drawn[0] != drawn[1]).any()


def test_few_samples_are_each_seen_equally_often_give_or_take_one():
    for step in draw(n_samples=3, batch_size=8):
        assert sorted(np.bincount(step, minlength=3)) == [2, 3, 3]


def test_one_sample_is_enough():
    assert draw(n_samples=1, batch_size=4, local_steps=1).tolist() == [[0, 0, 0, 0]]


def test_batches_repeat_from_seed_vertex_and_round():
    np.testing.assert_array_equal(draw(), draw())


@pytest.mark.parametrize("change", [{"seed": 1}, {"vertex": 2}, {"round": 3}])
def test_another_seed_vertex_or_round_gives_other_batches(change):
    assert (draw(**change) != draw()).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_samples": 0}, "agent 1 has no samples to train on"),
        ({"batch_size": 0}, "batch size and local steps must be at least 1, got 0 and 3"),
        ({"local_steps": 0}, "must be at least 1, got 8 and 0"),
    ],
)
def test_batches_of_nothing(change, message):
    with pytest.raises(ConfigError, match=message):
        draw(**change)


# --- the numbers themselves ----------------------------------------------------------------

# Splits and batches are the same on every machine and in every runtime: they are drawn here once
# more, in the order that the documentation gives.
UNEVEN = np.random.default_rng(3).permutation(np.repeat([2, 5, 7, 8], [40, 31, 22, 7]))


def cut(items, n):
    """Equal parts, the first ones by one longer."""
    sizes = [len(items) // n + (i < len(items) % n) for i in range(n)]
    ends = np.cumsum(sizes)
    return [items[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def iid_again(n, seed):
    return cut(np.random.default_rng([seed, n]).permutation(100), n)


def classes_again(n, k, seed):
    rng = np.random.default_rng([seed, n])
    classes, order = rng.permutation([2, 5, 7, 8]), rng.permutation(n)
    takes = [(classes[p % 4], order[p // k]) for p in range(n * k)]
    parts = [[] for _ in range(n)]
    for label in dict.fromkeys(label for label, _ in takes):
        holders = [agent for other, agent in takes if other == label]
        samples = rng.permutation(np.flatnonzero(label == UNEVEN))
        for agent, part in zip(holders, cut(samples, len(holders)), strict=True):
            parts[agent] += part.tolist()
    return parts


def dirichlet_again(n, alpha, seed):
    rng = np.random.default_rng([seed, n])
    parts = [[] for _ in range(n)]
    while not all(parts):
        parts = [[] for _ in range(n)]
        for label in (2, 5, 7, 8):
            samples = rng.permutation(np.flatnonzero(label == UNEVEN))
            begin, share = 0, 0.0
            for agent, part in enumerate(rng.dirichlet([alpha] * n)):
                share += part
                end = len(samples) if agent == n - 1 else int(np.round(share * len(samples)))
                parts[agent] += samples[begin:end].tolist()
                begin = end
    return parts


@pytest.mark.parametrize(
    ("how", "again"),
    [
        ("iid", iid_again),
        ("classes:1", lambda n, seed: classes_again(n, 1, seed)),
        ("classes:3", lambda n, seed: classes_again(n, 3, seed)),
        ("dirichlet:0.3", lambda n, seed: dirichlet_again(n, 0.3, seed)),
        ("dirichlet:50", lambda n, seed: dirichlet_again(n, 50, seed)),
    ],
)
@pytest.mark.parametrize(("n", "seed"), [(4, 0), (7, 5)])
def test_a_split_is_drawn_as_documented(how, again, n, seed):
    expected = [sorted(int(i) for i in part) for part in again(n, seed)]
    assert [part.tolist() for part in split(UNEVEN, n, how, seed)] == expected


@pytest.mark.parametrize("alpha", ["inf", "-0.5", "1e400"])
def test_a_dirichlet_parameter_is_finite_and_above_zero(alpha):
    with pytest.raises(ConfigError, match="the parameter must be above 0"):
        split(UNEVEN, 4, f"dirichlet:{alpha}", 0)


def test_the_number_of_agents_is_part_of_the_seed():
    assert not set(split(UNEVEN, 2, "iid", 0)[0][:25]) <= set(np.sort(iid_again(4, 0)[0]))


def test_as_many_agents_as_samples_have_one_each():
    assert [len(part) for part in split(UNEVEN, 100, "iid", 0)] == [1] * 100


@pytest.mark.parametrize(("n_samples", "batch_size"), [(50, 8), (5, 5), (3, 8), (3, 9)])
def test_batches_are_drawn_as_documented(n_samples, batch_size):
    rng = np.random.default_rng([11, 4, 9])
    expected = []
    for _ in range(3):
        step = []
        while len(step) < batch_size:
            step += rng.permutation(n_samples).tolist()
        expected.append(step[:batch_size])
    found = batches(n_samples, batch_size, 3, seed=11, vertex=4, round=9)
    assert found.tolist() == expected


def test_no_two_of_seed_vertex_and_round_share_their_batches():
    """A vertex must not repeat its neighbor's batches a round later, nor under another seed."""
    drawn = {
        draw(seed=seed, vertex=vertex, round=k).tobytes()
        for seed in range(4)
        for vertex in range(4)
        for k in range(4)
    }
    assert len(drawn) == 64


@pytest.mark.parametrize("wrong", [-1, 1.5, True, None, "1"])
@pytest.mark.parametrize("name", ["seed", "vertex", "round"])
def test_seeds_that_are_none(name, wrong):
    with pytest.raises(ConfigError, match="must be integers and at least 0, got"):
        draw(**{name: wrong})


def test_a_split_needs_a_seed_that_is_one():
    with pytest.raises(ConfigError, match="must be integers and at least 0, got -1"):
        split(LABELS, 4, "iid", seed=-1)
