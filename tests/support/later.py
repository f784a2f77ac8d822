"""A peer of a later release: `python -m tests.support.later minor|major ... peer PEER.TOML`.

A minor release adds to the protocol: a kind of frame after each short frame, fields in Hello and
Header, a part of the agreement. A major one speaks another version of it. What stands before
`peer` among the arguments is passed over, so that this goes before a command of `Mesh`.
"""

from __future__ import annotations

import sys
from typing import Any

SOFTWARE = "9.8.7"
LATER = b"\xfa\x3e\x04more"  # field 1007 of any message, which no version knows


def be_later(kind: str) -> None:
    """Make this process one of a later release, before it loads the peers' modules."""
    import flower_dhb

    flower_dhb.__version__ = SOFTWARE
    from flower_dhb.peer.wire import frames

    if kind == "major":
        frames.VERSION += 1
        return
    from flower_dhb.peer.wire.agreement import Agreement
    from flower_dhb.peer.wire.link import StreamLink

    put_offer, put, send = frames.put_offer, Agreement.put, StreamLink.send

    def put_more_in_header(offer: Any, header: Any) -> None:
        put_offer(offer, header)
        header.MergeFromString(LATER)

    def put_more_in_hello(self: Agreement, neighbor: int, hello: Any) -> None:
        put(self, neighbor, hello)
        hello.agreement["later"] = "x"
        hello.MergeFromString(LATER)

    def send_more(self: StreamLink, message: Any) -> None:
        send(self, message)
        with self._ready:
            self._control.append(LATER)

    frames.put_offer = put_more_in_header
    Agreement.put = put_more_in_hello  # type: ignore[method-assign]
    StreamLink.send = send_more  # type: ignore[method-assign]


if __name__ == "__main__":
    be_later(sys.argv[1])
    from flower_dhb.cli import main

    raise SystemExit(main(sys.argv[sys.argv.index("peer") :]))
