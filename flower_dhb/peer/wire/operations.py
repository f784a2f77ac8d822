"""What an operator may ask a peer, beside the edges between peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import LIMIT_BYTES, Board, BulletinError

__all__ = ["PUBLISH", "SERVICE", "STATUS", "STOP", "Operations"]

SERVICE = "flower_dhb.peer.v1.Relay"
STATUS, STOP, PUBLISH = (f"/{SERVICE}/{name}" for name in ("Status", "Stop", "Publish"))

_STORED_S = 5.0  # the operator waits so long to hear that a bulletin is on the disk


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Answers to the operator; each is called from a thread of gRPC."""

    status: Callable[[pb.StatusRequest], pb.StatusReply]
    stop: Callable[[pb.StopRequest], pb.StopReply]

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

        def publish(requests: Iterator[pb.PublishRequest], context: Any) -> pb.PublishReply:
            admit(context, "publishes a bulletin")
            return _published(requests, board)

        return {
            "Status": grpc.unary_unary_rpc_method_handler(
                status, pb.StatusRequest.FromString, pb.StatusReply.SerializeToString
            ),
            "Stop": grpc.unary_unary_rpc_method_handler(
                stop, pb.StopRequest.FromString, pb.StopReply.SerializeToString
            ),
            "Publish": grpc.stream_unary_rpc_method_handler(
                publish, pb.PublishRequest.FromString, pb.PublishReply.SerializeToString
            ),
        }


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
