"""Messages between relay and agents: what is sent is what is read, and nothing else is taken."""

import json
import sys
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from flower_dhb import DSGD, ConfigError, HeavyBall, PayloadError, RoundError, StateError
from flower_dhb.agent.codec import Header, decode
from flower_dhb.flower.arrays import (
    START_VERTEX,
    array_record,
    frame_array,
    frame_of,
    named_arrays,
    npy_array,
    start_frame,
)
from flower_dhb.flower.fields import MOST, Fields
from flower_dhb.flower.local_rounds import LocalLine, LocalRounds
from flower_dhb.flower.profile import Spent
from flower_dhb.flower.records import (
    PROTOCOL,
    PROTOCOL_VERSION,
    Answer,
    Farewell,
    Instruction,
    Question,
    failure_text,
    read_request,
    records_of,
)
from flower_dhb.types import Layout

ARRAYS = {"w": np.zeros((2, 3), np.float32), "n": np.array(1)}
LAYOUT = Layout.of(ARRAYS)
FRAMES = {j: frame_array(bytes([j] * 4)) for j in range(6)}


def instruction(**changes):
    kept = {
        "ask": "train", "run": "r", "round": 5, "vertex": 3, "state_round": 4,
        "weights": {3: 0.5, 2: 0.2, 10: 0.3}, "algorithm": HeavyBall(momentum=0.25),
        "layout": LAYOUT,
    }  # fmt: skip
    return Instruction(**(kept | changes))


def document(records):
    return json.loads(records[PROTOCOL]["json"])


def edited(records, **changes):
    """The same message with other values in its document; None drops one."""
    found = {k: v for k, v in (document(records) | changes).items() if v is not None}
    records[PROTOCOL] = ConfigRecord({"json": json.dumps(found)})
    return records


# --- requests -----------------------------------------------------------------------------


def test_the_shortest_instruction_and_the_longest_come_back():
    for made in (
        instruction(),
        instruction(ask="report", round=0, vertex=0, state_round=0),
        instruction(locally=LocalRounds(first=4)),
        instruction(
            locally=LocalRounds(
                first=2, evaluated=(2, 4), measured=(3,), evaluates=ConfigRecord({"batch": 8})
            )
        ),
        instruction(
            ask="evaluate",
            payloads={2: FRAMES[2], 10: FRAMES[3]},
            rejoin={2: (7, FRAMES[4]), 10: (3, FRAMES[5])},
            start=FRAMES[0],
            local={"n": npy_array(np.array(1))},
            report=True,
            measure=True,
            epoch=4,
            encryption="neighbors",
            announcements={2: "who 2 is", 10: ""},
            announced="00ff",
            arrays_key="a",
            config_key="c",
        ),
    ):
        assert read_request(made.to_records()) == made


def test_the_users_config_lies_under_the_key_of_the_strategy():
    config = ConfigRecord({"lr": 0.1})
    assert instruction(config_key="c").to_records(config)["c"]["lr"] == 0.1
    assert "config" not in instruction().to_records()


def test_question_and_farewell():
    assert read_request(Question(run="r").to_records()) == Question(run="r")
    farewell = Farewell(run="r", vertex=4)
    assert read_request(farewell.to_records()) == farewell


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"config": ConfigRecord({"json": "{}"})}),
        RecordDict({PROTOCOL: ConfigRecord({"x": 1})}),
        RecordDict({PROTOCOL: MetricRecord({"json": 1})}),
    ],
)
def test_what_is_none_of_ours_is_left_alone(records):
    assert read_request(records) is None
    assert Answer.from_records(records) is None


@pytest.mark.parametrize("version", [0, 1, PROTOCOL_VERSION + 1])
def test_another_version_is_told(version):
    text = f"message is of protocol version {version}, expected {PROTOCOL_VERSION}; relay and"
    for read, made in (
        (read_request, Question(run="r")),
        (read_request, instruction()),
        (Answer.from_records, Answer(ask="train", vertex=1)),
    ):
        with pytest.raises(StateError, match=text):
            read(edited(made.to_records(), version=version))


BAD_REQUESTS = {
    "no version": ({"version": None}, "lacks 'version'"),
    "ask": ({"ask": "trains"}, "'ask' is 'trains', expected one of vertex, train, evaluate, rep"),
    "no ask": ({"ask": None}, "lacks 'ask'"),
    "run": ({"run": 3}, "'run' is of type int, expected text"),
    "round": ({"round": -1}, r"'round' is -1, expected an integer in \[0, "),
    "round as text": ({"round": "5"}, "'round' is of type str, expected an integer"),
    "true round": ({"round": True}, "'round' is True, expected an integer"),
    "half a round": ({"round": 0.5}, "'round' is of type float"),
    "vertex": ({"vertex": -1}, "'vertex' is -1"),
    "state_round": ({"state_round": -1}, "'state_round' is -1"),
    "report": ({"report": 1}, "'report' is of type int, expected a flag"),
    "measure": ({"measure": 0}, "'measure' is of type int, expected a flag"),
    "keys": ({"arrays_key": 1}, "'arrays_key' is of type int, expected text"),
    "config key": ({"config_key": 1}, "'config_key' is of type int, expected text"),
    "weights": ({"weights": {"3": 1}}, "'weights' is of type dict"),
    "a weight": ({"weights": [[3, "1"]]}, "'weights' of vertex 3 is of type str, expected a fin"),
    "a true weight": ({"weights": [[3, True]]}, "'weights' of vertex 3 is True"),
    "a large weight": ({"weights": [[3, 2e6]]}, "'weights' of vertex 3 is of type float"),
    "a weight of text": ({"weights": [["3", 1.0]]}, "'weights' is of type str, expected an int"),
    "a weight alone": ({"weights": [[3]]}, "'weights' holds of type list, expected a vertex and"),
    "rejoin rounds": ({"rejoin_rounds": [[1, 2]]}, r"vertices \[\] to rejoin from, rounds of \[1"),
    "a rejoin round": ({"rejoin_rounds": [[1, -2]]}, "'rejoin_rounds' is -2, expected an integer"),
    "rejoin vertex": ({"rejoin_rounds": [[-1, 2]]}, "'rejoin_rounds' is -1, expected an integer"),
    "rejoin map": ({"rejoin_rounds": {}}, "'rejoin_rounds' is of type dict"),
    "local rounds": ({"locally": [1]}, "a part of its document is of type list"),
    "no local round": ({"locally": {}}, "it lacks 'first'"),
    "a local round": ({"locally": {"first": 5}}, r"'first' is 5, expected .* in \[1, 4\]"),
    "before round 1": ({"locally": {"first": 0}}, "'first' is 0"),
    "before all rounds": ({"round": 1, "locally": {"first": 1}}, "'round' is 1"),
    "evaluated": (
        {"locally": {"first": 3, "evaluated": [2], "measured": []}},
        r"'evaluated' is 2, expected an integer in \[3, 4\]",
    ),
    "rounds of a report": ({"ask": "report", "locally": {"first": 3}}, "'report' with local rou"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_request_that_no_relay_makes_is_refused(case):
    changes, text = BAD_REQUESTS[case]
    with pytest.raises(PayloadError, match=f"^unreadable message: .*{text}"):
        read_request(edited(instruction().to_records(), **changes))


@pytest.mark.parametrize("name", ["x", "-1", "²", "1" * 16, ""])
def test_a_payload_of_no_vertex(name):
    records = instruction(payloads={2: FRAMES[2]}).to_records()
    (key,) = (k for k, record in records.items() if isinstance(record, ArrayRecord))
    records[key] = ArrayRecord({name: FRAMES[2]} if name else {"": FRAMES[2]})
    with pytest.raises(PayloadError, match=f"'{key}' holds .*, expected vertices"):
        read_request(records)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (["w", [2, 3], "<i4", "parameter"], r"'w' of the layout is int32\[2, 3\], 'parameter'"),
        (["w", [2, 3], "<f4", "local"], "'local'"),
        (["w", [2, 3], "<f4", "weight"], "'weight'"),
        (["w", [2, -3], "<f4", "parameter"], r"float32\[2, -3\]"),
        (["w", [2.5], "<f4", "parameter"], r"float32\[2.5\]"),
        (["w", [2**60], "<f4", "parameter"], "float32"),
        ([7, [2], "<f4", "parameter"], "'7' of the layout"),
        (["w", [2], "<f4", 3], "'3'"),
        (["w", [2], "no dtype", "parameter"], "rule or layout"),
        (["w", 2, "<f4", "parameter"], "rule or layout"),
        (["w", [2]], "rule or layout"),
        (["n", [2], "<f4", "parameter"], "two arrays of the layout have the same name"),
    ],
)
def test_a_layout_that_is_none(entry, text):
    records = instruction().to_records()
    (key,) = (k for k in records if k != PROTOCOL)
    found = json.loads(records[key]["json"])
    found["layout"][0] = entry
    records[key] = ConfigRecord({"json": json.dumps(found)})
    with pytest.raises(PayloadError, match=f"^unreadable message: .*{text}"):
        read_request(records)


def test_a_rule_that_nobody_knows():
    records = instruction().to_records()
    (key,) = (k for k in records if k != PROTOCOL)
    found = json.loads(records[key]["json"])
    found["algorithm"] = {"name": "unheard-of"}
    records[key] = ConfigRecord({"json": json.dumps(found)})
    with pytest.raises(ConfigError, match="unheard-of"):
        read_request(records)
    for record in (ConfigRecord({"x": 1}), MetricRecord({"json": 1})):
        records[key] = record
        with pytest.raises(PayloadError, match=f"it lacks the text '{key}'"):
            read_request(records)


def test_rule_and_layout_are_read_by_value():
    """Written and read once for a run; another rule or model is another."""
    for rule in (HeavyBall(momentum=0.25), HeavyBall(momentum=0.5), DSGD()):
        assert read_request(instruction(algorithm=rule).to_records()).algorithm == rule
    other = Layout.of({"w": np.zeros(3)})
    assert read_request(instruction(layout=other).to_records()).layout == other
    assert read_request(instruction().to_records()).layout == LAYOUT


# --- answers ------------------------------------------------------------------------------


def test_the_shortest_answer_and_the_longest_come_back():
    for made in (
        Answer(ask="vertex", vertex=-1),
        Answer(ask="train", vertex=0, state_round=-1, failure="x"),
        Answer(
            ask="evaluate",
            vertex=4,
            round=7,
            state_round=6,
            failure="f",
            rejoined=True,
            refused=("a", "b"),
            quarantined=(4, 7),
            payload=FRAMES[1],
            parameters=FRAMES[2],
            sketch=(0.5, -1.0),
            metrics=RecordDict({"m": MetricRecord({"loss": 0.5})}),
            evaluated=RecordDict({"m": MetricRecord({"loss": 0.25})}),
            evaluation_failure="e",
            keeps_file=True,
            spent=Spent(1.5, 2.5, 3.5, 0.5),
            remarks=("one", "two"),
            announcement="who I am",
            epoch=3,
        ),
        Answer(
            ask="train",
            vertex=1,
            locally=(
                LocalLine(round=2, failure="f", detail="a trace"),
                LocalLine(
                    round=4,
                    metrics=RecordDict({"m": MetricRecord({"n": 3, "x": float("inf")})}),
                    evaluated=RecordDict({"": MetricRecord({"list": [1, 2], "none": []})}),
                    evaluation_failure="e",
                    seconds=0.5,
                    app_s=0.25,
                    sketch=(0.1, -3.0),
                ),
            ),
        ),
    ):
        assert Answer.from_records(made.to_records()) == made


@pytest.mark.parametrize("value", ["text", 0.5, b"1234567", b"12345678" * 1025, [1.0]])
def test_a_projection_that_is_none(value):
    records = Answer(ask="report", vertex=0, sketch=(1.0,)).to_records()
    records["flower_dhb"]["sketch"] = value
    with pytest.raises(PayloadError, match=r"'sketch' is of type \w+, expected the bytes of at mo"):
        Answer.from_records(records)


def test_the_apps_metrics_of_all_records_in_one():
    metrics = {"a": MetricRecord({"loss": 0.5, "n": 1}), "b": MetricRecord({"n": 2, "list": [1]})}
    found = Answer.from_records(
        Answer(ask="train", vertex=0, metrics=RecordDict(metrics)).to_records()
    )
    assert found.app_metrics == {"loss": 0.5, "n": 2, "list": [1]}


def test_a_record_of_the_app_under_one_of_our_keys_replaces_nothing():
    metrics = RecordDict({PROTOCOL: MetricRecord({"x": 1.0}), "m": MetricRecord({"y": 2.0})})
    found = Answer.from_records(Answer(ask="train", vertex=2, metrics=metrics).to_records())
    assert (found.vertex, found.app_metrics) == (2, {"y": 2.0})


BAD_ANSWERS = {
    "vertex": ({"vertex": -2}, r"'vertex' is -2, expected an integer in \[-1, "),
    "round": ({"round": -1}, r"'round' is -1, expected an integer in \[0, "),
    "state_round": ({"state_round": -2}, "'state_round' is -2"),
    "failure": ({"failure": 3}, "'failure' is of type int, expected text"),
    "rejoined": ({"rejoined": 0}, "'rejoined' is of type int, expected a flag"),
    "refused": ({"refused": "x"}, "'refused' is of type str, expected at most 4096 texts"),
    "a refusal": ({"refused": [1]}, "'refused' is of type int, expected text"),
    "quarantined": ({"quarantined": 3}, "expected at most 4096 vertices"),
    "a quarantine": ({"quarantined": [-1]}, r"'quarantined' is -1, expected an integer in \[0, "),
    "keeps_file": ({"keeps_file": None}, "lacks 'keeps_file'"),
    "ask": ({"ask": "x"}, "'ask' is 'x', expected one of"),
    "epoch": ({"epoch": -1}, r"'epoch' is -1, expected an integer in \[0, "),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_an_answer_that_no_agent_gives_is_refused(case):
    changes, text = BAD_ANSWERS[case]
    with pytest.raises(PayloadError, match=f"^unreadable message: .*{text}"):
        Answer.from_records(edited(Answer(ask="train", vertex=1).to_records(), **changes))


@pytest.mark.parametrize(
    ("value", "good"), [(2**64 - 1, True), (2**64, False), (-(2**64), False), ([1, 2**64], False)]
)
def test_metrics_beyond_what_a_float_can_hold(value, good):
    metrics = RecordDict({"m": MetricRecord({"n": value})})
    answer = Answer(ask="train", vertex=1, metrics=metrics)
    if good:
        assert Answer.from_records(answer.to_records()).app_metrics == {"n": value}
    else:
        with pytest.raises(PayloadError, match="metric 'n' is beyond 64 bits"):
            Answer.from_records(answer.to_records())


LINE = LocalLine(round=2).to_document()


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ({}, "'rounds' is of type dict"),
        ([3], "a part of its document is of type int"),
        ([LINE, LINE], "local rounds are doubled or out of order"),
        ([LINE | {"round": 0}], "'round' is 0"),
        ([LINE | {"failure": 1}], "'failure' is of type int"),
        ([LINE | {"metrics": [1]}], "'metrics' holds no metrics"),
        ([LINE | {"metrics": {"m": 3}}], "'metrics' holds no metrics"),
        ([LINE | {"metrics": {"m": {"n": "x"}}}], "metric 'n' is no number"),
        ([LINE | {"metrics": {"m": {"n": 2**64}}}], "metric 'n' is no number of 64 bits"),
        ([LINE | {"evaluated": {"m": {"n": [1, 0.5]}}}], "'evaluated'"),
        ([LINE | {"seconds": -1.0}], "'seconds' is of type float"),
        ([LINE | {"sketch": "?"}], "a projection is not of 1024 numbers at most"),
        ([LINE | {"sketch": "AAAA"}], "a projection is not of 1024 numbers at most"),
        ([LINE | {"sketch": "A" * 12_000}], "a projection is not of 1024 numbers at most"),
    ],
)
def test_local_rounds_that_no_agent_tells_of(lines, text):
    records = Answer(ask="train", vertex=0, locally=(LocalLine(round=1),)).to_records()
    records["flower_dhb.local_rounds"] = ConfigRecord({"json": json.dumps({"rounds": lines})})
    with pytest.raises(PayloadError, match=f"^unreadable message: .*{text}"):
        Answer.from_records(records)


def test_records_of_one_kind():
    a, c = ArrayRecord(), ConfigRecord({"x": 1})
    records = RecordDict({"a": a, "m": MetricRecord({"y": 1}), "c": c})
    assert list(records_of(records, ArrayRecord)) == ["a"]
    assert records_of(records, ConfigRecord) == {"c": c}


def test_our_own_errors_speak_for_themselves():
    assert failure_text(RoundError("round 3: late")) == "round 3: late"
    assert failure_text(KeyError("x")) == "KeyError: 'x'"


# --- documents ----------------------------------------------------------------------------


def test_a_document_is_read_up_to_its_limit():
    text = json.dumps({"a": "b"})
    assert Fields.parse(text, limit=len(text)).text("a") == "b"
    with pytest.raises(PayloadError, match=f"has {len(text)} characters, at most {len(text) - 1}"):
        Fields.parse(text, limit=len(text) - 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "its document is of type int, expected text"),
        ("[1]", "its document is of type list"),
        ("{", "Expecting"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": Infinity}', "Infinity is no number"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_what_is_no_document(text, message):
    with pytest.raises(PayloadError, match=f"^unreadable message: .*{message}"):
        Fields.parse(text, limit=10**6)


@pytest.mark.parametrize(("value", "good"), [(MOST, True), (MOST + 1, False), (10**40, False)])
def test_integers_that_all_readers_agree_on(value, good):
    fields = Fields({"n": value})
    if good:
        assert fields.integer("n", 0) == value
    else:
        with pytest.raises(PayloadError, match="expected an integer in"):
            fields.integer("n", 0)
    for low, high in ((3, 5), (5, 7), (5, 5)):
        assert Fields({"n": 5}).integer("n", low, high) == 5
    for low, high in ((6, 7), (3, 4)):
        with pytest.raises(
            PayloadError, match=rf"'n' is 5, expected an integer in \[{low}, {high}"
        ):
            Fields({"n": 5}).integer("n", low, high)


def test_long_texts_are_shortened_and_long_lists_refused():
    assert Fields({"t": "x" * 20_000}).text("t") == "x" * 20_000
    assert Fields({"t": "x" * 20_003}).text("t") == "x" * 20_000 + " … (3 more characters)"
    assert len(Fields({"t": ["x"] * 4096}).texts("t")) == 4096
    with pytest.raises(PayloadError, match="expected at most 4096 texts"):
        Fields({"t": ["x"] * 4097}).texts("t")


def test_a_number_that_is_none_is_named_and_a_large_one_is_not_written_out():
    for value, text in ((None, "None"), (float("nan"), "nan"), (10**50, "of type int")):
        with pytest.raises(PayloadError, match=f"'n' is {text}, expected"):
            Fields({"n": value}).integer("n", 0)


def test_weights_of_either_kind_of_number_and_sign():
    found = Fields({"w": [[0, 1], [3, -0.5], [4, 1e6]]}).weights("w")
    assert found == {0: 1.0, 3: -0.5, 4: 1e6}
    assert all(type(w) is float for w in found.values())
    for bad in (-1.1e6, float("nan")):
        with pytest.raises(PayloadError, match="expected a finite number"):
            Fields({"w": [[0, bad]]}).weights("w")


# --- arrays -------------------------------------------------------------------------------

KINDS = {
    "vector": np.arange(3.0),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20.0).reshape(4, 5)[::2, ::3],
    "scalar": np.array(2.5),
    "empty": np.empty((0, 3), np.float32),
    "half": np.array([1.5, -2.0], np.float16),
    "integers": np.array([[1, -2]], np.int64),
    "flags": np.array([True, False]),
    "bytes": np.array([0, 255], np.uint8),
    "complex": np.array([1 + 2j]),
    "longdouble": np.array([1.5], np.longdouble),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_is_stored_as_numpy_would_and_read_back(kind):
    array = KINDS[kind]
    stored = npy_array(array)
    stream = BytesIO()
    np.lib.format.write_array(stream, np.asarray(array, order="C"), version=(1, 0))
    assert stored.data == stream.getvalue()
    assert (stored.dtype, stored.stype) == (array.dtype.name, "numpy.ndarray")
    assert tuple(stored.shape) == array.shape
    np.testing.assert_array_equal(stored.numpy(), array)  # Flower reads it, too
    found = named_arrays(array_record({"x": array}))["x"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("kind", ["matrix", "Fortran", "scalar", "empty"])
def test_what_numpy_writes_is_read_in_either_version_and_order(kind, version):
    array = KINDS[kind]
    stream = BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    stored = Array(array.dtype.name, tuple(array.shape), "numpy.ndarray", stream.getvalue())
    found = named_arrays({"x": stored})["x"]
    np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape
    assert not array.size or not found.flags.writeable


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8"])
def test_the_other_byte_order_is_turned_and_no_value_changes(dtype):
    array = np.array([1, -2, 300], dtype)
    found = named_arrays({"x": Array(array)})["x"]
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.dtype.isnative
    assert found.tolist() == [1, -2, 300]


GOOD = npy_array(np.arange(3.0)).data


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY", GOOD[:9], GOOD[:40], GOOD[:-1], b"x" * 200,
     GOOD.replace(b"(3,), ", b"(-3,),"), GOOD.replace(b"<f8", b"|O8")],
    ids=["none", "magic", "length", "header", "values", "other", "negative", "objects"],
)  # fmt: skip
def test_bytes_that_are_no_array(data):
    stored = Array("float64", (3,), "numpy.ndarray", data)
    with pytest.raises(PayloadError, match="'x' is not a readable array: "):
        named_arrays({"x": stored})


def test_another_serialization_is_named():
    stored = Array("float64", (3,), "pickle", GOOD)
    with pytest.raises(PayloadError, match=r"'x' is serialized as 'pickle', expected 'numpy.ndarr"):
        named_arrays({"x": stored})
    with pytest.raises(PayloadError, match=r"a payload is serialized as 'pickle', expected 'flow"):
        frame_of(stored)


def test_a_frame_as_an_array():
    array = frame_array(b"abc")
    assert (array.dtype, tuple(array.shape), frame_of(array)) == ("uint8", (3,), b"abc")


@pytest.mark.parametrize("statistics", [False, True])
def test_the_start_is_a_frame_of_nobody(statistics):
    arrays = {"w": np.arange(3.0, dtype=np.float32), "n": np.array(1)}
    want = {"parameters": arrays["w"]}
    if statistics:
        arrays["bn.running_var"] = np.array([4.0, 5.0])
        want["statistics"] = arrays["bn.running_var"]
    found = start_frame(Layout.of(arrays), arrays, "r").data
    vectors = decode(found, Header.of(want, run="r", round=0, vertex=START_VERTEX))
    assert {n: v.tolist() for n, v in vectors.items()} == {n: v.tolist() for n, v in want.items()}


def test_a_rule_that_a_message_names_is_imported_from_the_app_alone():
    """Importing a module runs it, and the ServerApp is not who runs the agent."""
    records = instruction().to_records()
    common = json.loads(records["flower_dhb.common"]["json"])
    common["algorithm"] = {"name": "antigravity:geohash"}
    records["flower_dhb.common"] = ConfigRecord({"json": json.dumps(common)})
    with pytest.raises(ConfigError, match="an agent imports no other because a message says so"):
        read_request(records)
    assert "antigravity" not in sys.modules
