"""What an operator may ask a peer, beside the edges between peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from flower_dhb.errors import FlowerDhbError, NotNowError, StateError
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import LIMIT_BYTES, Board, BulletinError

__all__ = [
    "FETCH",
    "NEWS",
    "PUBLISH",
    "RENEW",
    "SERVICE",
    "STATUS",
    "STOP",
    "Operations",
    "document_of",
]

SERVICE = "flower_dhb.peer.v1.Relay"
NEWS = f"/{SERVICE}/News"
STATUS, STOP, FETCH, PUBLISH, RENEW = (
    f"/{SERVICE}/{name}" for name in ("Status", "Stop", "Fetch", "Publish", "Renew")
)

_STORED_S = 5.0  # the operator waits so long to hear that a bulletin is on the disk


def _no_files(_: pb.FetchRequest) -> Iterator[pb.FetchPiece]:
    raise StateError("it hands out no files")


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Answers to the operator; each is called from a thread of gRPC.

    fetch: raises NotNowError while others fetch, another error of this package where there is
    nothing that could be sent, and OSError if it cannot be read.
    """

    status: Callable[[pb.StatusRequest], pb.StatusReply]
    stop: Callable[[pb.StopRequest], pb.StopReply]
    fetch: Callable[[pb.FetchRequest], Iterator[pb.FetchPiece]] = _no_files
    renew: Callable[[pb.RenewRequest], pb.RenewReply] = lambda _: pb.RenewReply(
        refused="a mesh in plaintext has no certificates"
    )

    def handlers(
        self, admit: Callable[[Any, str], None], board: Board
    ) -> dict[str, grpc.RpcMethodHandler]:
        """For gRPC, by name.

        admit: aborts the call of whoever is not the operator. board: takes what is published.
        """

        def status(request: pb.StatusRequest, context: Any) -> pb.StatusReply:
            admit(context, "asks for status")
            return self.status(request)

        def stop(request: pb.StopRequest, context: Any) -> pb.StopReply:
            admit(context, "asks it to stop")
            return self.stop(request)

        def fetch(request: pb.FetchRequest, context: Any) -> Iterator[pb.FetchPiece]:
            admit(context, "asks for files")
            try:
                yield from self.fetch(request)
            except NotNowError as error:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except FlowerDhbError as error:
                context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            except OSError as error:
                context.abort(grpc.StatusCode.DATA_LOSS, error.strerror or str(error))

        def publish(requests: Iterator[pb.PublishRequest], context: Any) -> pb.PublishReply:
            admit(context, "publishes a bulletin")
            return _published(requests, board)

        def renew(request: pb.RenewRequest, context: Any) -> pb.RenewReply:
            admit(context, "renews its certificate")
            return self.renew(request)

        return {
            "Renew": grpc.unary_unary_rpc_method_handler(
                renew, pb.RenewRequest.FromString, pb.RenewReply.SerializeToString
            ),
            "Status": grpc.unary_unary_rpc_method_handler(
                status, pb.StatusRequest.FromString, pb.StatusReply.SerializeToString
            ),
            "Stop": grpc.unary_unary_rpc_method_handler(
                stop, pb.StopRequest.FromString, pb.StopReply.SerializeToString
            ),
            "Fetch": grpc.unary_stream_rpc_method_handler(
                fetch, pb.FetchRequest.FromString, pb.FetchPiece.SerializeToString
            ),
            "Publish": grpc.stream_unary_rpc_method_handler(
                publish, pb.PublishRequest.FromString, pb.PublishReply.SerializeToString
            ),
        }


def document_of(reply: pb.StatusReply) -> dict[str, Any]:
    """All that a peer answered, as a plain document."""
    document: dict[str, Any] = MessageToDict(reply)
    return document


def _published(requests: Iterator[pb.PublishRequest], board: Board) -> pb.PublishReply:
    raw = bytearray()
    for request in requests:
        raw += request.data
        if len(raw) > LIMIT_BYTES:
            return pb.PublishReply(refused=f"more than {LIMIT_BYTES} bytes")
    try:
        notice = board.take(bytes(raw), "the operator")
    except BulletinError as error:
        return pb.PublishReply(refused=str(error))
    stored = board.wait(notice, _STORED_S)
    return pb.PublishReply(
        kind=notice.kind,
        number=board.known().get(notice.kind, 0),
        refused="" if stored else "its disk does not take it; it will be tried again",
    )
