"""Layout: which arrays are parameters, and how they lie in flat vectors."""

import json

import numpy as np
import pytest

from flower_dhb import ConfigError, PayloadError
from flower_dhb.types import STATISTICS, Layout, unnamed_statistics

MODEL = {
    "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn.running_mean": np.array([10.0, 11.0], np.float32),
    "bn.running_var": np.array([20.0, 21.0], np.float32),
    "bn.num_batches_tracked": np.array(5),
    "bn.weight": np.array([6.0, 7.0], np.float32),
    "scale": np.array(8.0, np.float32),
}
LAYOUT = Layout.of(MODEL)
NO_STATISTICS = np.zeros(0, np.float32)


def changed(**arrays):
    return {name: arrays.get(name.replace(".", "_"), array) for name, array in MODEL.items()}


def test_parameters_lie_in_the_order_of_the_arrays():
    parameters, statistics = LAYOUT.flatten(MODEL)
    np.testing.assert_array_equal(parameters, np.arange(9, dtype=np.float32))
    np.testing.assert_array_equal(statistics, [10, 11, 20, 21])
    assert (LAYOUT.size, LAYOUT.statistics_size) == (9, 4)
    assert parameters.dtype == statistics.dtype == LAYOUT.dtype == np.float32


def test_the_order_of_the_first_model_holds_for_all_others():
    backwards = dict(reversed(MODEL.items()))
    np.testing.assert_array_equal(LAYOUT.flatten(backwards)[0], np.arange(9))


def test_unflatten_is_the_inverse():
    found = LAYOUT.unflatten(*LAYOUT.flatten(MODEL), LAYOUT.local(MODEL))
    assert list(found) == list(MODEL)
    for name, array in MODEL.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_integers_and_booleans_stay_local():
    arrays = {"w": np.ones(2), "count": np.array(3), "mask": np.array([True, False])}
    layout = Layout.of(arrays)
    assert set(layout.local(arrays)) == {"count", "mask"}
    assert layout.size == 2
    assert layout.dtype == np.float64


@pytest.mark.parametrize("direction", ["flatten", "unflatten", "local"])
def test_nothing_is_shared_with_what_was_handed_in(direction):
    """An app that trains in place must not change an agent's state, nor the other way."""
    arrays = {name: array.copy() for name, array in MODEL.items()}
    parameters, statistics = LAYOUT.flatten(arrays)
    local = LAYOUT.local(arrays)
    found = LAYOUT.unflatten(parameters, statistics, local)
    pairs = {
        "flatten": [(parameters, arrays["conv.weight"]), (statistics, arrays["bn.running_var"])],
        "unflatten": [
            (found["conv.weight"], parameters),
            (found["bn.running_var"], statistics),
            (found["bn.num_batches_tracked"], local["bn.num_batches_tracked"]),
        ],
        "local": [(local["bn.num_batches_tracked"], arrays["bn.num_batches_tracked"])],
    }
    assert not any(np.shares_memory(a, b) for a, b in pairs[direction])


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (["float16"], "float32"),
        (["float16", "float32"], "float32"),
        (["float32", "float64"], "float64"),
        (["float16", "float64"], "float64"),
        ([">f4"], "float32"),
    ],
)
def test_parameters_take_their_common_dtype_and_at_least_float32(dtypes, common):
    arrays = {f"w{i}": np.array([1.5, -2.25], dtype) for i, dtype in enumerate(dtypes)}
    layout = Layout.of(arrays)
    parameters, _ = layout.flatten(arrays)
    assert parameters.dtype.name == layout.dtype.name == common
    assert parameters.dtype.isnative
    found = layout.unflatten(parameters, NO_STATISTICS, {})
    assert [array.dtype.str for array in found.values()] == [a.dtype.str for a in arrays.values()]
    np.testing.assert_array_equal(found["w0"], [1.5, -2.25])


def test_statistics_have_a_dtype_of_their_own():
    arrays = {"w": np.ones(1, np.float64), "running_var": np.ones(2, np.float16)}
    layout = Layout.of(arrays)
    assert layout.flatten(arrays)[1].dtype == layout.statistics_dtype == np.float32
    assert layout.dtype == np.float64


@pytest.mark.parametrize(
    "name",
    ["bn.running_mean", "running_var", "a.b.moving_mean", "batch_normalization/moving_variance"],
)
def test_statistics_are_known_by_name(name):
    assert Layout.of({"w": np.ones(1), name: np.ones(3)}).statistics_size == 3


@pytest.mark.parametrize("name", ["running_mean.weight", "bn.Running_Mean", "running_means"])
def test_names_that_only_resemble_statistics_are_parameters(name):
    layout = Layout.of({"w": np.ones(1), name: np.ones(3)})
    assert (layout.size, layout.statistics_size) == (4, 0)


def test_patterns_of_statistics_are_an_option():
    layout = Layout.of(MODEL, statistics=("*_mean", "scale"))
    assert [e.name for e in layout.entries if e.kind == "statistic"] == ["bn.running_mean", "scale"]
    assert (layout.size, layout.statistics_size) == (10, 3)


def test_statistics_are_named_by_index_as_the_arrays_of_keras_have_numbers_for_names():
    """Indices count all arrays, those of integers too."""
    arrays = {
        "0": np.ones((2, 3), np.float32),
        "1": np.array([7]),
        **{str(i): np.full(3, i, np.float32) for i in (2, 3, 4, 5)},
    }
    layout = Layout.of(arrays, [4, np.int64(5)])
    assert [e.kind for e in layout.entries] == [
        *("parameter", "local", "parameter", "parameter", "statistic", "statistic")
    ]
    np.testing.assert_array_equal(layout.flatten(arrays)[1], [4, 4, 4, 5, 5, 5])
    mixed = Layout.of({"w": np.ones(2), "a": np.ones(2), "ema_b": np.ones(2)}, (1, "ema_*"))
    assert [e.kind for e in mixed.entries] == ["parameter", "statistic", "statistic"]


def test_statistics_are_chosen_by_a_function_of_name_and_array():
    asked = {}

    def small(name, array):
        asked[name] = array
        return np.bool_(array.max() < 0)

    arrays = {"w": np.ones(2), "low": np.full(3, -1.0), "n": np.array([-5])}
    layout = Layout.of(arrays, small)
    assert [e.kind for e in layout.entries] == ["parameter", "statistic", "local"]
    assert asked.keys() == {"w", "low"}, "integers stay with the agent anyway"
    assert asked["low"] is arrays["low"]


def test_no_statistics_at_all():
    assert Layout.of(MODEL, ()).statistics_size == 0


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (["ema_*"], r"no array matches 'ema_\*'; the 3 arrays are 'w', 'n', 'running_var'"),
        ([3], r"no array 3; the model's 3 arrays have the indices 0 to 2"),
        ([-1], "no array -1"),
        ([1], r"array 1 \('n'\) is int64; only floating-point arrays.*Is the index right"),
        ([True], "got True among them"),
        ([0.0], "got 0.0 among them"),
        ([None], "got None among them"),
        ("*running_var", "a sequence of name patterns and indices, or a callable"),
        (2, "got 2"),
        (lambda name, array: array, "must answer True or False, got array.* for 'w'"),
        (lambda name, array: None, "must answer True or False, got None for 'w'"),
        (lambda name, array: True, "no floating-point parameters"),
    ],
)
def test_statistics_that_are_none(statistics, message):
    arrays = {"w": np.ones(2), "n": np.array(1), "running_var": np.ones(2)}
    with pytest.raises(ConfigError, match=message):
        Layout.of(arrays, statistics)


def test_default_patterns_may_meet_nothing():
    layout = Layout.of({"w": np.ones(2), "ema": np.ones(1)}, (*STATISTICS, "ema"))
    assert layout.statistics_size == 1


# --- where they may lie if names do not tell ------------------------------------------------


def numbered(*shapes):
    return {str(i): np.ones(shape, np.float32) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize(
    ("arrays", "places"),
    [
        (numbered((3, 3, 1, 8), (8,), (8,), (8,), (8,), (8, 4), (4,)), [3, 4]),
        (numbered((3, 3, 1, 8), (8,), (8,), (8,), (8,), (8,), (8, 4), (4,)), [4, 5]),
        (numbered((5, 8), (8,), (8,), (8, 4), (4,), (4,), (4,), (4,)), [1, 2, 6, 7]),
        (numbered((5, 8), (8,), (8, 4), (4,)), []),
        (numbered((5, 8), (8,), (4,)), []),
        ({"0": np.ones(3), "1": np.array([1, 2, 3]), "2": np.ones(3)}, []),
        ({"a": np.ones(3), "1": np.ones(3)}, None),
    ],
    ids=["keras", "bias before it", "two rows", "dense", "other lengths", "integers", "names"],
)
def test_the_last_two_vectors_of_a_row_may_be_statistics(arrays, places):
    assert unnamed_statistics(arrays) == places


def test_empty_arrays_take_no_room():
    arrays = {"w": np.ones(2), "none": np.ones((0, 3))}
    layout = Layout.of(arrays)
    assert layout.size == 2
    found = layout.unflatten(*layout.flatten(arrays), {})
    assert found["none"].shape == (0, 3)


def test_arrays_of_any_memory_order_are_read_row_by_row():
    array = np.arange(6.0).reshape(2, 3)
    layout = Layout.of({"w": array})
    np.testing.assert_array_equal(layout.flatten({"w": np.asfortranarray(array)})[0], np.arange(6))


def test_config_round_trip_through_json():
    assert Layout.from_config(json.loads(json.dumps(LAYOUT.to_config()))) == LAYOUT


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": np.ones(2, np.complex64)}, "array 'w' is complex64; only real floating-point"),
        ({"w": np.array(["a"])}, "array 'w' is <U1"),
        ({"w": np.array([None])}, "array 'w' is object"),
        ({}, "no floating-point parameters among 0 arrays"),
        ({"n": np.ones(2, int)}, r"no floating-point parameters among 1 arrays \['n'\]"),
        ({"running_var": np.ones(2)}, "no floating-point parameters"),
        ({"w": np.ones((0, 2))}, "no floating-point parameters"),
    ],
)
def test_models_that_hold_nothing_to_agree_on(arrays, message):
    with pytest.raises(ConfigError, match=message):
        Layout.of(arrays)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {name: array for name, array in MODEL.items() if name != "scale"},
            r"missing \['scale'\], unknown \[\]; all agents must run the same model",
        ),
        ({**MODEL, "fc": np.ones(1)}, r"missing \[\], unknown \['fc'\]"),
        (
            changed(bn_weight=np.ones(3, np.float32)),
            r"'bn.weight' is float32\[3\], expected float32\[2\]; all agents must run the same",
        ),
        (
            changed(conv_weight=np.ones((3, 2), np.float32)),
            r"'conv.weight' is float32\[3, 2\], expected float32\[2, 3\]",
        ),
        (changed(scale=np.array(1.0)), r"'scale' is float64\[\], expected float32\[\]"),
        (
            changed(bn_num_batches_tracked=np.array(5, np.int32)),
            r"'bn.num_batches_tracked' is int32\[\], expected int64\[\]",
        ),
        (
            changed(bn_weight=np.array([np.nan, np.inf], np.float32)),
            r"'bn.weight' holds 2 values that are not finite.*smaller learning rate",
        ),
        (
            changed(bn_running_var=np.array([1.0, np.nan], np.float32)),
            "'bn.running_var' holds 1 values that are not finite",
        ),
    ],
)
def test_flatten_names_what_does_not_fit(arrays, message):
    with pytest.raises(PayloadError, match=message):
        LAYOUT.flatten(arrays)
