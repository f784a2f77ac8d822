from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "header", "chunk", "ack", "refusal", "goodbye", "release", "heartbeat", "seek", "receipt", "bulletin")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    SEEK_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    BULLETIN_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    header: Header
    chunk: bytes
    ack: Ack
    refusal: Refusal
    goodbye: Goodbye
    release: Release
    heartbeat: Heartbeat
    seek: Seek
    receipt: Receipt
    bulletin: Bulletin
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., header: _Optional[_Union[Header, _Mapping]] = ..., chunk: _Optional[bytes] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., seek: _Optional[_Union[Seek, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., bulletin: _Optional[_Union[Bulletin, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "run", "vertex", "neighbor", "agreement", "round", "closed", "done", "digest", "counted", "holds", "doubts", "one_sided", "epoch", "pace_s", "bulletins", "edition", "software")
    class AgreementEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class BulletinsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERTEX_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOR_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    DOUBTS_FIELD_NUMBER: _ClassVar[int]
    ONE_SIDED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PACE_S_FIELD_NUMBER: _ClassVar[int]
    BULLETINS_FIELD_NUMBER: _ClassVar[int]
    EDITION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    version: int
    run: str
    vertex: int
    neighbor: int
    agreement: _containers.ScalarMap[str, str]
    round: int
    closed: int
    done: bool
    digest: int
    counted: Counted
    holds: int
    doubts: _containers.RepeatedScalarFieldContainer[int]
    one_sided: _containers.RepeatedScalarFieldContainer[int]
    epoch: int
    pace_s: float
    bulletins: _containers.ScalarMap[str, int]
    edition: int
    software: str
    def __init__(self, version: _Optional[int] = ..., run: _Optional[str] = ..., vertex: _Optional[int] = ..., neighbor: _Optional[int] = ..., agreement: _Optional[_Mapping[str, str]] = ..., round: _Optional[int] = ..., closed: _Optional[int] = ..., done: bool = ..., digest: _Optional[int] = ..., counted: _Optional[_Union[Counted, _Mapping]] = ..., holds: _Optional[int] = ..., doubts: _Optional[_Iterable[int]] = ..., one_sided: _Optional[_Iterable[int]] = ..., epoch: _Optional[int] = ..., pace_s: _Optional[float] = ..., bulletins: _Optional[_Mapping[str, int]] = ..., edition: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class Counted(_message.Message):
    __slots__ = ("round", "mine", "yours")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MINE_FIELD_NUMBER: _ClassVar[int]
    YOURS_FIELD_NUMBER: _ClassVar[int]
    round: int
    mine: int
    yours: int
    def __init__(self, round: _Optional[int] = ..., mine: _Optional[int] = ..., yours: _Optional[int] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("run", "round", "vertex", "vectors", "total_bytes", "checksum", "whole", "ack", "closed", "counted", "epoch", "final", "edition", "changes", "base")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERTEX_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    EDITION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    vertex: int
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    total_bytes: int
    checksum: int
    whole: bytes
    ack: int
    closed: int
    counted: Counted
    epoch: int
    final: bool
    edition: int
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    base: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., vertex: _Optional[int] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., total_bytes: _Optional[int] = ..., checksum: _Optional[int] = ..., whole: _Optional[bytes] = ..., ack: _Optional[int] = ..., closed: _Optional[int] = ..., counted: _Optional[_Union[Counted, _Mapping]] = ..., epoch: _Optional[int] = ..., final: bool = ..., edition: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., base: _Optional[int] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("round", "bytes")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    round: int
    bytes: int
    def __init__(self, round: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("name", "dtype", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    size: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("round", "digest")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: int
    digest: int
    def __init__(self, round: _Optional[int] = ..., digest: _Optional[int] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class Seek(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("round", "reason", "text", "known")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OTHER: _ClassVar[Refusal.Reason]
        MALFORMED: _ClassVar[Refusal.Reason]
        IDENTITY: _ClassVar[Refusal.Reason]
        AGREEMENT: _ClassVar[Refusal.Reason]
        STALE: _ClassVar[Refusal.Reason]
        AHEAD: _ClassVar[Refusal.Reason]
        REPEATED: _ClassVar[Refusal.Reason]
        SIZE: _ClassVar[Refusal.Reason]
        CHECKSUM: _ClassVar[Refusal.Reason]
        CONTENT: _ClassVar[Refusal.Reason]
        BUSY: _ClassVar[Refusal.Reason]
        EPOCH: _ClassVar[Refusal.Reason]
        SCREENED: _ClassVar[Refusal.Reason]
        EDITION: _ClassVar[Refusal.Reason]
        ESTIMATE: _ClassVar[Refusal.Reason]
        BULLETIN: _ClassVar[Refusal.Reason]
    OTHER: Refusal.Reason
    MALFORMED: Refusal.Reason
    IDENTITY: Refusal.Reason
    AGREEMENT: Refusal.Reason
    STALE: Refusal.Reason
    AHEAD: Refusal.Reason
    REPEATED: Refusal.Reason
    SIZE: Refusal.Reason
    CHECKSUM: Refusal.Reason
    CONTENT: Refusal.Reason
    BUSY: Refusal.Reason
    EPOCH: Refusal.Reason
    SCREENED: Refusal.Reason
    EDITION: Refusal.Reason
    ESTIMATE: Refusal.Reason
    BULLETIN: Refusal.Reason
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    round: int
    reason: Refusal.Reason
    text: str
    known: int
    def __init__(self, round: _Optional[int] = ..., reason: _Optional[_Union[Refusal.Reason, str]] = ..., text: _Optional[str] = ..., known: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("done", "text", "counted", "closed")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    done: bool
    text: str
    counted: Counted
    closed: int
    def __init__(self, done: bool = ..., text: _Optional[str] = ..., counted: _Optional[_Union[Counted, _Mapping]] = ..., closed: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("bytes", "clock_us")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_US_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    clock_us: int
    def __init__(self, bytes: _Optional[int] = ..., clock_us: _Optional[int] = ...) -> None: ...

class Bulletin(_message.Message):
    __slots__ = ("kind", "number", "total_bytes", "offset", "data")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    kind: str
    number: int
    total_bytes: int
    offset: int
    data: bytes
    def __init__(self, kind: _Optional[str] = ..., number: _Optional[int] = ..., total_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class NewsRequest(_message.Message):
    __slots__ = ("bulletins",)
    class BulletinsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    BULLETINS_FIELD_NUMBER: _ClassVar[int]
    bulletins: _containers.ScalarMap[str, int]
    def __init__(self, bulletins: _Optional[_Mapping[str, int]] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class PublishReply(_message.Message):
    __slots__ = ("kind", "number", "refused")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    number: int
    refused: str
    def __init__(self, kind: _Optional[str] = ..., number: _Optional[int] = ..., refused: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("challenge", "certificate")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    challenge: str
    certificate: bytes
    def __init__(self, challenge: _Optional[str] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("request", "certificate", "proof", "refused")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    certificate: bytes
    proof: bytes
    refused: str
    def __init__(self, request: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., refused: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("sketch",)
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    sketch: int
    def __init__(self, sketch: _Optional[int] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("vertex", "run", "round", "rounds", "phase", "seconds_per_round", "bytes_sent", "bytes_received", "neighbors", "sketch", "counts", "metrics", "software", "uptime_s", "alone_since", "evaluated", "since_round_s", "stalled_s", "lately", "took_part", "waits_for", "failures", "last_error", "disk", "clock_s", "ago_s", "train_s", "wait_s", "left_s", "evaluation_error", "certificate_ends", "authority_ends", "bulletins", "certificate", "issuer", "trusts")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class AgoSEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class BulletinsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERTEX_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_ROUND_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    NEIGHBORS_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    ALONE_SINCE_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    SINCE_ROUND_S_FIELD_NUMBER: _ClassVar[int]
    STALLED_S_FIELD_NUMBER: _ClassVar[int]
    LATELY_FIELD_NUMBER: _ClassVar[int]
    TOOK_PART_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    CLOCK_S_FIELD_NUMBER: _ClassVar[int]
    AGO_S_FIELD_NUMBER: _ClassVar[int]
    TRAIN_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_ERROR_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_ENDS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_ENDS_FIELD_NUMBER: _ClassVar[int]
    BULLETINS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    TRUSTS_FIELD_NUMBER: _ClassVar[int]
    vertex: int
    run: str
    round: int
    rounds: int
    phase: str
    seconds_per_round: float
    bytes_sent: int
    bytes_received: int
    neighbors: _containers.RepeatedCompositeFieldContainer[Neighbor]
    sketch: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.ScalarMap[str, int]
    metrics: _containers.ScalarMap[str, float]
    software: str
    uptime_s: float
    alone_since: int
    evaluated: _containers.RepeatedScalarFieldContainer[str]
    since_round_s: float
    stalled_s: float
    lately: int
    took_part: int
    waits_for: _containers.RepeatedScalarFieldContainer[int]
    failures: int
    last_error: str
    disk: str
    clock_s: float
    ago_s: _containers.ScalarMap[str, float]
    train_s: float
    wait_s: float
    left_s: float
    evaluation_error: str
    certificate_ends: int
    authority_ends: int
    bulletins: _containers.ScalarMap[str, int]
    certificate: str
    issuer: str
    trusts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vertex: _Optional[int] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., phase: _Optional[str] = ..., seconds_per_round: _Optional[float] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., neighbors: _Optional[_Iterable[_Union[Neighbor, _Mapping]]] = ..., sketch: _Optional[_Iterable[float]] = ..., counts: _Optional[_Mapping[str, int]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., software: _Optional[str] = ..., uptime_s: _Optional[float] = ..., alone_since: _Optional[int] = ..., evaluated: _Optional[_Iterable[str]] = ..., since_round_s: _Optional[float] = ..., stalled_s: _Optional[float] = ..., lately: _Optional[int] = ..., took_part: _Optional[int] = ..., waits_for: _Optional[_Iterable[int]] = ..., failures: _Optional[int] = ..., last_error: _Optional[str] = ..., disk: _Optional[str] = ..., clock_s: _Optional[float] = ..., ago_s: _Optional[_Mapping[str, float]] = ..., train_s: _Optional[float] = ..., wait_s: _Optional[float] = ..., left_s: _Optional[float] = ..., evaluation_error: _Optional[str] = ..., certificate_ends: _Optional[int] = ..., authority_ends: _Optional[int] = ..., bulletins: _Optional[_Mapping[str, int]] = ..., certificate: _Optional[str] = ..., issuer: _Optional[str] = ..., trusts: _Optional[_Iterable[str]] = ...) -> None: ...

class Neighbor(_message.Message):
    __slots__ = ("vertex", "up", "round", "deadline_s", "misses", "one_sided", "in_doubt", "closed", "done", "pace_s", "heard_s", "down_s", "why_down", "dials", "agreed_s", "took_part", "quarantined_until", "differs")
    VERTEX_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    ONE_SIDED_FIELD_NUMBER: _ClassVar[int]
    IN_DOUBT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PACE_S_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    DOWN_S_FIELD_NUMBER: _ClassVar[int]
    WHY_DOWN_FIELD_NUMBER: _ClassVar[int]
    DIALS_FIELD_NUMBER: _ClassVar[int]
    AGREED_S_FIELD_NUMBER: _ClassVar[int]
    TOOK_PART_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    DIFFERS_FIELD_NUMBER: _ClassVar[int]
    vertex: int
    up: bool
    round: int
    deadline_s: float
    misses: int
    one_sided: int
    in_doubt: int
    closed: int
    done: bool
    pace_s: float
    heard_s: float
    down_s: float
    why_down: str
    dials: bool
    agreed_s: float
    took_part: int
    quarantined_until: int
    differs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vertex: _Optional[int] = ..., up: bool = ..., round: _Optional[int] = ..., deadline_s: _Optional[float] = ..., misses: _Optional[int] = ..., one_sided: _Optional[int] = ..., in_doubt: _Optional[int] = ..., closed: _Optional[int] = ..., done: bool = ..., pace_s: _Optional[float] = ..., heard_s: _Optional[float] = ..., down_s: _Optional[float] = ..., why_down: _Optional[str] = ..., dials: bool = ..., agreed_s: _Optional[float] = ..., took_part: _Optional[int] = ..., quarantined_until: _Optional[int] = ..., differs: _Optional[_Iterable[str]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("vertex", "round")
    VERTEX_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    vertex: int
    round: int
    def __init__(self, vertex: _Optional[int] = ..., round: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("what", "after")
    class What(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NOTHING: _ClassVar[FetchRequest.What]
        MODEL: _ClassVar[FetchRequest.What]
        HISTORY: _ClassVar[FetchRequest.What]
        LOG: _ClassVar[FetchRequest.What]
        RECORD: _ClassVar[FetchRequest.What]
    NOTHING: FetchRequest.What
    MODEL: FetchRequest.What
    HISTORY: FetchRequest.What
    LOG: FetchRequest.What
    RECORD: FetchRequest.What
    WHAT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    what: FetchRequest.What
    after: int
    def __init__(self, what: _Optional[_Union[FetchRequest.What, str]] = ..., after: _Optional[int] = ...) -> None: ...

class FetchPiece(_message.Message):
    __slots__ = ("file", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: File
    data: bytes
    def __init__(self, file: _Optional[_Union[File, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("name", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class MeasureRequest(_message.Message):
    __slots__ = ("data", "answer_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ANSWER_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    answer_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., answer_bytes: _Optional[int] = ...) -> None: ...

class MeasureReply(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
