"""The bridge between our nouns and Flower's records, which are read as a stranger's.

Two messages cross Flower: an `Instruction` from the relay to an agent, and the agent's
`Answer`. Payloads travel as codec frames, one Flower `Array` each, because every array
entry costs Flower objects and requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from flower_dhb.agent.codec import checksum
from flower_dhb.agent.compression import NONE, Compression
from flower_dhb.algorithms import Algorithm, algorithm_from_config
from flower_dhb.errors import FlowerDhbError, PayloadError, StateError
from flower_dhb.flower.arrays import record_of
from flower_dhb.flower.fields import MOST, Fields
from flower_dhb.flower.local_rounds import LocalLine, LocalRounds
from flower_dhb.flower.profile import Spent
from flower_dhb.flower.segment import MOST_ROUNDS, RoundLine, Segment
from flower_dhb.metrics import SKETCH
from flower_dhb.types import Encryption, Entry, Layout

__all__ = [
    "PROTOCOL",
    "Answer",
    "Ask",
    "Farewell",
    "Instruction",
    "Question",
    "common_length",
    "digest_of",
    "failure_text",
    "read_request",
    "records_of",
]

PROTOCOL = "flower_dhb"
PROTOCOL_VERSION = 7
_COMMON = "flower_dhb.common"
_PAYLOADS, _REJOIN = "flower_dhb.payloads", "flower_dhb.rejoin"
_START, _LOCAL = "flower_dhb.start", "flower_dhb.local"
_PAYLOAD, _PARAMETERS = "flower_dhb.payload", "flower_dhb.parameters"
_EVALUATES, _EVALUATED = "flower_dhb.evaluates", "flower_dhb.evaluated."
_SEGMENT = "flower_dhb.segment"  # an answer's rounds
_LOCALLY, _LOCAL_EVALUATES = "flower_dhb.local_rounds", "flower_dhb.local_evaluates"
_SKETCH = "sketch"  # beside the document: its numbers would be long as text

# Characters of a document that are read at most: an agent's is short, a large model's layout
# is long.
_LIMIT_ANSWER, _LIMIT_INSTRUCTION = 2**22, 2**26

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

Ask = Literal["vertex", "train", "evaluate", "report", "segment", "finish"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """The relay asks a node which vertex it is, in a `train` message: any app takes those.

    run: of which the node's announcement is to be, if it has keys of a mesh.
    """

    run: str

    def to_records(self) -> RecordDict:
        """As the content of a message."""
        return _records({"ask": "vertex", "run": self.run})


@dataclass(frozen=True, kw_only=True)
class Farewell:
    """The relay tells an agent that a run is over, so that its state can go."""

    run: str
    vertex: int

    def to_records(self) -> RecordDict:
        """As the content of a message."""
        return _records({"ask": "finish", "run": self.run, "vertex": self.vertex})


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What the relay asks of an agent, with everything the agent needs for it.

    ask: `train`, `evaluate`, `report` (only send your parameters), or `segment` (hold some rounds
    with your neighbors). round: the round to train, or the one evaluated; of a segment its last.
    state_round: the round that the agent's parameters are of once it has combined. payloads: frames
    of that round, by neighbor. weights: of that round. mean_weights: of all graphs that take turns,
    by which an agent begins again; empty where there is one graph. sends: whether anybody is to get
    the payload of the round to train; otherwise it stays with the agent. rejoin: the newest (round,
    frame) of each neighbor, for an agent that has lost its state. start: initial vectors as a
    frame, before round 1 only. local: initial values of the arrays that stay with the agent.
    report: whether the answer shall hold the parameters. measure: whether it shall hold their
    projection, for the consensus distance. screen: whether the agent is to screen the payloads, as
    its rule says; not where that was done before. epoch: the newest that is known of; an agent that
    trains joins it. attempt: how often the run was taken up again, after its ServerApp had died.
    evaluates: with `train`, what the app finds in the config of an evaluation of the combined
    model, which comes before training; None for none; with `segment`, the same of the evaluations
    in it. segment: the rounds to hold. locally: with `train`, rounds without an exchange that the
    agent trains before it. encryption: whether payloads are sealed for the neighbors.
    announcements: of the neighbors, for whom the agent is to seal its payload. announced: the
    `digest_of` its own that the relay has. compression: of payloads. whole: whether the
    payload is to be sent as it is for once, since a neighbor does not hold the one of which it
    would be a change.
    """

    ask: Ask
    run: str
    round: int
    vertex: int
    state_round: int
    weights: Mapping[int, float]
    algorithm: Algorithm
    layout: Layout
    mean_weights: Mapping[int, float] = field(default_factory=dict)
    sends: bool = True
    payloads: Mapping[int, Array] = field(default_factory=dict)
    rejoin: Mapping[int, tuple[int, Array]] = field(default_factory=dict)
    start: Array | None = None
    local: Mapping[str, Array] = field(default_factory=dict)
    report: bool = False
    measure: bool = False
    screen: bool = True
    epoch: int = 0
    attempt: int = 0
    evaluates: ConfigRecord | None = None
    segment: Segment | None = None
    locally: LocalRounds | None = None
    encryption: Encryption = "none"
    announcements: Mapping[int, str] = field(default_factory=dict)
    announced: str = ""
    compression: Compression = NONE
    whole: bool = False
    arrays_key: str = "arrays"
    config_key: str = "config"

    def to_records(self, config: ConfigRecord | None = None) -> RecordDict:
        """As the content of a message, with the user's own config beside it."""
        document = {
            "ask": self.ask,
            "run": self.run,
            "round": self.round,
            "vertex": self.vertex,
            "state_round": self.state_round,
            "weights": sorted(self.weights.items()),
            "mean_weights": sorted(self.mean_weights.items()),
            "sends": self.sends,
            "rejoin_rounds": [[j, r] for j, (r, _) in sorted(self.rejoin.items())],
            "report": self.report,
            "measure": self.measure,
            "screen": self.screen,
            "epoch": self.epoch,
            "attempt": self.attempt,
            "encryption": self.encryption,
            "announcements": sorted(self.announcements.items()),
            "announced": self.announced,
            "whole": self.whole,
            "arrays_key": self.arrays_key,
            "config_key": self.config_key,
        }
        if self.segment is not None:
            document["segment"] = self.segment.to_document()
        if self.locally is not None:
            document["locally"] = self.locally.to_document()
        records = _records(document)
        records[_COMMON] = ConfigRecord(
            {"json": _write(self.algorithm, self.layout, self.compression)}
        )
        if config is not None:
            records[self.config_key] = config
        if self.evaluates is not None:
            records[_EVALUATES] = self.evaluates
        if self.locally is not None:
            records[_LOCAL_EVALUATES] = self.locally.evaluates
        if self.payloads:
            records[_PAYLOADS] = record_of({str(j): a for j, a in self.payloads.items()})
        if self.rejoin:
            records[_REJOIN] = record_of({str(j): a for j, (_, a) in self.rejoin.items()})
        if self.start is not None:
            records[_START] = record_of({"start": self.start})
        if self.local:
            records[_LOCAL] = record_of(dict(self.local))
        return records

    @classmethod
    def of(cls, fields: Fields, records: RecordDict) -> Instruction:
        """Inverse of `to_records`. Raises PayloadError or ConfigError for what it cannot be."""
        algorithm, layout, compression = _read(_text_of(records, _COMMON))
        rounds = fields.rounds("rejoin_rounds")
        rejoin = _by_vertex(records, _REJOIN)
        if set(rejoin) != set(rounds):
            raise PayloadError(
                f"unreadable message: payloads of vertices {sorted(rejoin)} to rejoin from, rounds "
                f"of {sorted(rounds)}"
            )
        ask, segment, locally = _ask(fields), fields.part("segment"), fields.part("locally")
        if (ask == "segment") != (segment is not None):
            raise PayloadError(
                f"unreadable message: '{ask}' {'without' if segment is None else 'with'} a segment"
            )
        configs = records_of(records, ConfigRecord)
        number = fields.integer("round", 0 if locally is None else 2)
        if locally is not None and ask != "train":
            raise PayloadError(f"unreadable message: '{ask}' with local rounds")
        return cls(
            ask=ask,
            run=fields.text("run"),
            round=number,
            vertex=fields.integer("vertex", 0),
            state_round=fields.integer("state_round", 0),
            weights=fields.weights("weights"),
            mean_weights=fields.weights("mean_weights"),
            sends=fields.flag("sends"),
            algorithm=algorithm,
            layout=layout,
            payloads=_by_vertex(records, _PAYLOADS),
            rejoin={j: (rounds[j], array) for j, array in rejoin.items()},
            start=_arrays(records, _START).get("start"),
            local=_arrays(records, _LOCAL),
            report=fields.flag("report"),
            measure=fields.flag("measure"),
            screen=fields.flag("screen"),
            epoch=fields.integer("epoch", 0),
            attempt=fields.integer("attempt", 0),
            evaluates=configs.get(_EVALUATES),
            segment=None if segment is None else Segment.of(segment),
            locally=None
            if locally is None
            else LocalRounds.of(locally, number, configs.get(_LOCAL_EVALUATES)),
            encryption=cast(Encryption, fields.choice("encryption", get_args(Encryption))),
            announcements=fields.texts_by_vertex("announcements"),
            announced=fields.text("announced"),
            compression=compression,
            whole=fields.flag("whole"),
            arrays_key=fields.text("arrays_key"),
            config_key=fields.text("config_key"),
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an agent answers.

    failure: why there is no payload, empty if all went well; detail: its traceback, if the
    app raised. state_round: round of its
    combined parameters, -1 if it could not combine or keep its state. rejoined: it had
    lost its state. refused: payloads that it did not accept, a text each. quarantined:
    neighbors whose payload of this round it will not use. payload: frame
    of the trained round. parameters: frame of its parameters, if asked for. sketch: their
    projection, if asked for, at most SKETCH numbers. metrics: the
    app's own. evaluated: the app's metrics of the evaluation that came before training;
    evaluation_failure: why there are none. keeps_file: its state lies in a file, which is to go
    when the run is over. epoch: of its memory and of the payload. policy: of whoever runs the
    node, in words; empty if there is none. spent: its time. lines: what it tells of the rounds of
    a segment. locally: the same of the local rounds before the one that was asked for. address:
    where other nodes reach this one, empty if they do not. direct: whether it can hold rounds with
    its neighbors. remarks: what else the history should tell. announcement: who it is and how
    payloads are sealed for it, if it has keys of a mesh; an agent that trains says it again only if
    the relay has another one. base: of which round the payload is a change, -1 if it is of none.
    """

    ask: Ask
    vertex: int
    round: int = 0
    state_round: int = 0
    failure: str = ""
    detail: str = ""
    rejoined: bool = False
    refused: tuple[str, ...] = ()
    quarantined: tuple[int, ...] = ()
    payload: Array | None = None
    parameters: Array | None = None
    sketch: tuple[float, ...] = ()
    metrics: RecordDict = field(default_factory=RecordDict)
    evaluated: RecordDict = field(default_factory=RecordDict)
    evaluation_failure: str = ""
    keeps_file: bool = False
    epoch: int = 0
    policy: str = ""
    spent: Spent | None = None
    lines: tuple[RoundLine, ...] = ()
    locally: tuple[LocalLine, ...] = ()
    address: str = ""
    direct: bool = False
    remarks: tuple[str, ...] = ()
    announcement: str = ""
    base: int = -1

    def to_records(self) -> RecordDict:
        """As the content of a reply; the app's metrics keep their keys."""
        document = {
            "ask": self.ask,
            "vertex": self.vertex,
            "round": self.round,
            "state_round": self.state_round,
            "failure": self.failure,
            "evaluation_failure": self.evaluation_failure,
            "detail": self.detail,
            "rejoined": self.rejoined,
            "refused": list(self.refused),
            "quarantined": list(self.quarantined),
            "keeps_file": self.keeps_file,
            "epoch": self.epoch,
            "policy": self.policy,
            "spent": [] if self.spent is None else list(astuple(self.spent)),
            "address": self.address,
            "direct": self.direct,
            "remarks": list(self.remarks),
            "announcement": self.announcement,
            "base": self.base,
        }
        records = RecordDict(dict(self.metrics.items()))
        records.update({f"{_EVALUATED}{key}": record for key, record in self.evaluated.items()})
        # Ours come last: a record of the app that has one of our keys must not replace it.
        records[PROTOCOL] = _records(document)[PROTOCOL]
        if self.sketch:
            cast(ConfigRecord, records[PROTOCOL])[_SKETCH] = np.array(self.sketch, "<f8").tobytes()
        if self.lines:
            text = json.dumps({"rounds": [line.to_document() for line in self.lines]})
            sketches = np.concatenate([line.sketch for line in self.lines]).astype("<f8")
            records[_SEGMENT] = ConfigRecord({"json": text, _SKETCH: sketches.tobytes()})
        if self.locally:
            text = json.dumps({"rounds": [line.to_document() for line in self.locally]})
            records[_LOCALLY] = ConfigRecord({"json": text})
        if self.payload is not None:
            records[_PAYLOAD] = record_of({"payload": self.payload})
        if self.parameters is not None:
            records[_PARAMETERS] = record_of({"parameters": self.parameters})
        return records

    @property
    def trained(self) -> bool:
        """Whether it says that its round is trained, with a payload or without."""
        return self.ask == "train" and not self.failure and self.state_round >= 0

    @property
    def evaluation(self) -> Answer:
        """What it says of the evaluation that came before training, as of one by itself."""
        failure = self.evaluation_failure
        return replace(self, ask="evaluate", metrics=self.evaluated, failure=failure, payload=None)

    @property
    def app_metrics(self) -> dict[str, Any]:
        """All metric records in one mapping."""
        merged: dict[str, Any] = {}
        for record in records_of(self.metrics, MetricRecord).values():
            merged |= dict(record.items())
        return merged

    @classmethod
    def from_records(cls, records: RecordDict) -> Answer | None:
        """Read a reply's content; None if no agent of ours wrote it.

        Raises PayloadError if it is not an answer that an agent can give, StateError if it
        is of another version of this protocol, and nothing else, whatever it holds.
        """
        fields = _fields(records, _LIMIT_ANSWER)
        if fields is None:
            return None
        spent = fields.numbers("spent", 4)
        found = records_of(records, MetricRecord)
        _check_metrics(found)
        metrics = {key: r for key, r in found.items() if not key.startswith(_EVALUATED)}
        evaluated = {
            key.removeprefix(_EVALUATED): r for key, r in found.items() if key not in metrics
        }
        return cls(
            ask=_ask(fields),
            vertex=fields.integer("vertex", -1),
            round=fields.integer("round", 0),
            state_round=fields.integer("state_round", -1),
            failure=fields.text("failure"),
            evaluation_failure=fields.text("evaluation_failure"),
            detail=fields.text("detail"),
            rejoined=fields.flag("rejoined"),
            refused=fields.texts("refused"),
            quarantined=fields.vertices("quarantined"),
            payload=_arrays(records, _PAYLOAD).get("payload"),
            parameters=_arrays(records, _PARAMETERS).get("parameters"),
            sketch=_sketch(records),
            metrics=RecordDict(dict(metrics)),
            evaluated=RecordDict(dict(evaluated)),
            keeps_file=fields.flag("keeps_file"),
            epoch=fields.integer("epoch", 0),
            policy=fields.text("policy"),
            spent=Spent(*spent) if spent else None,
            lines=_lines(records),
            locally=_local_lines(records),
            address=fields.text("address"),
            direct=fields.flag("direct"),
            remarks=fields.texts("remarks"),
            announcement=fields.text("announcement"),
            base=fields.integer("base", -1),
        )


def read_request(records: RecordDict) -> Question | Farewell | Instruction | None:
    """What a message asks of an agent; None if it is not one of ours.

    Raises StateError if it is of another version of this protocol, PayloadError or
    ConfigError if it is not a request that a relay can make, and nothing else.
    """
    fields = _fields(records, _LIMIT_INSTRUCTION)
    if fields is None:
        return None
    match _ask(fields):
        case "vertex":
            return Question(run=fields.text("run"))
        case "finish":
            return Farewell(run=fields.text("run"), vertex=fields.integer("vertex", 0))
        case _:
            return Instruction.of(fields, records)


def records_of(records: RecordDict, kind: type[R]) -> dict[str, R]:
    """The records of one kind, by key.

    Flower's own `array_records` and the like return views that refer to themselves: they keep
    all arrays in memory until Python looks for cycles.
    """
    return {key: record for key, record in records.items() if isinstance(record, kind)}


def _arrays(records: RecordDict, key: str) -> dict[str, Array]:
    record = records.get(key)
    return dict(record.items()) if isinstance(record, ArrayRecord) else {}


def _sketch(records: RecordDict) -> tuple[float, ...]:
    return _numbers(cast(ConfigRecord, records[PROTOCOL]), SKETCH)


def _numbers(record: ConfigRecord, most: int) -> tuple[float, ...]:
    value = record.get(_SKETCH, b"")
    if not isinstance(value, bytes) or len(value) % 8 or len(value) > 8 * most:
        raise PayloadError(
            f"unreadable message: '{_SKETCH}' is of type {type(value).__name__}, expected the "
            f"bytes of at most {most} numbers"
        )
    return tuple(np.frombuffer(value, "<f8").tolist())


def _lines(records: RecordDict) -> tuple[RoundLine, ...]:
    """What an agent tells of a segment's rounds, each once and in their order."""
    record = records.get(_SEGMENT)
    if not isinstance(record, ConfigRecord):
        return ()
    fields = Fields.parse(record.get("json"), limit=_LIMIT_INSTRUCTION)
    documents = fields.documents("rounds")
    sketches, lines, begin = _numbers(record, MOST_ROUNDS * SKETCH), [], 0
    for document in documents:
        line = RoundLine.of(document)
        size = Fields.of(document).integer("sketch", 0, SKETCH)
        lines.append(replace(line, sketch=sketches[begin : begin + size]))
        begin += size
    rounds = [line.round for line in lines]
    if rounds != sorted(set(rounds)) or begin != len(sketches):
        raise PayloadError("unreadable message: rounds of a segment are doubled or out of order")
    return tuple(lines)


def _local_lines(records: RecordDict) -> tuple[LocalLine, ...]:
    """What an agent tells of its local rounds, each once and in their order."""
    record = records.get(_LOCALLY)
    if not isinstance(record, ConfigRecord):
        return ()
    fields = Fields.parse(record.get("json"), limit=_LIMIT_INSTRUCTION)
    lines = tuple(LocalLine.of(document) for document in fields.documents("rounds"))
    for line in lines:
        _check_metrics(records_of(line.metrics, MetricRecord))
        _check_metrics(records_of(line.evaluated, MetricRecord))
    rounds = [line.round for line in lines]
    if rounds != sorted(set(rounds)):
        raise PayloadError("unreadable message: local rounds are doubled or out of order")
    return lines


def _by_vertex(records: RecordDict, key: str) -> dict[int, Array]:
    arrays = _arrays(records, key)
    if not all(name.isascii() and name.isdecimal() and len(name) < 16 for name in arrays):
        raise PayloadError(
            f"unreadable message: '{key}' holds {sorted(arrays)[:5]}, expected vertices"
        )
    return {int(name): array for name, array in arrays.items()}


def _ask(fields: Fields) -> Ask:
    return cast(Ask, fields.choice("ask", get_args(Ask)))


# Rule and layout are the same for all agents of a run, so they are written and read once.
# The texts of large models are long: few are kept, enough for runs at the same time.


def common_length(algorithm: Algorithm, layout: Layout) -> tuple[int, int]:
    """Characters of what all instructions of a run have in common, and how many are read."""
    return len(_write(algorithm, layout, NONE)), _LIMIT_INSTRUCTION


@lru_cache(maxsize=8)
def _write(algorithm: Algorithm, layout: Layout, compression: Compression) -> str:
    document = {"algorithm": algorithm.to_config(), "layout": layout.to_config()}
    return json.dumps({**document, "compression": str(compression)})


@lru_cache(maxsize=8)
def _read(text: str) -> tuple[Algorithm, Layout, Compression]:
    fields = Fields.parse(text, limit=_LIMIT_INSTRUCTION)
    try:
        algorithm = algorithm_from_config(fields.get("algorithm"), from_message=True)
        layout = Layout.from_config(fields.get("layout"))
        compression = Compression.parse(fields.text("compression"))
    except FlowerDhbError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise PayloadError(f"unreadable message: rule or layout: {str(error)[:200]}") from None
    for entry in layout.entries:
        _check_entry(entry)
    if len({entry.name for entry in layout.entries}) != len(layout.entries):
        raise PayloadError("unreadable message: two arrays of the layout have the same name")
    return algorithm, layout, compression


def _check_entry(entry: Entry) -> None:
    kinds = {"parameter": "f", "statistic": "f", "local": "iub"}
    fits = (
        type(entry.name) is str
        and all(type(side) is int and 0 <= side <= MOST for side in entry.shape)
        and type(entry.kind) is str
        and entry.dtype.kind in kinds.get(entry.kind, "")
    )
    if not fits:
        raise PayloadError(
            f"unreadable message: array {str(entry.name)[:50]!r} of the layout is "
            f"{entry.dtype}{list(entry.shape)[:5]}, {str(entry.kind)[:20]!r}"
        )


def _check_metrics(metrics: Mapping[str, MetricRecord]) -> None:
    """Integers that no float can hold would end the means over agents."""
    for record in metrics.values():
        for name, value in record.items():
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(x, int) and abs(x) >= 2**64 for x in numbers):
                raise PayloadError(f"unreadable message: metric '{name}' is beyond 64 bits")


def _records(document: dict[str, Any]) -> RecordDict:
    text = json.dumps({"version": PROTOCOL_VERSION, **document})
    return RecordDict({PROTOCOL: ConfigRecord({"json": text})})


def _text_of(records: RecordDict, key: str) -> str:
    record = records.get(key)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if type(text) is not str:
        raise PayloadError(f"unreadable message: it lacks the text '{key}'")
    return text


def _fields(records: RecordDict, limit: int) -> Fields | None:
    """The document of a message, None if it is not one of ours."""
    record = records.get(PROTOCOL)
    if not isinstance(record, ConfigRecord) or "json" not in record:
        return None
    fields = Fields.parse(record["json"], limit=limit)
    version = fields.integer("version", 0)
    if version != PROTOCOL_VERSION:
        raise StateError(
            f"message is of protocol version {version}, expected {PROTOCOL_VERSION}; relay and "
            "agents must run the same version of flower_dhb"
        )
    return fields


def digest_of(announcement: str) -> str:
    """A short name of an announcement, by which an agent knows whether the relay has its own."""
    return f"{checksum(announcement.encode()):016x}"


def failure_text(error: BaseException) -> str:
    """One line for the history; our own errors speak for themselves."""
    if isinstance(error, FlowerDhbError):
        return str(error)
    return f"{type(error).__name__}: {error}"
