"""The files that an operator may fetch from a peer: their names, and no others."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flower_dhb.peer.wire import relay_pb2 as pb

__all__ = ["HISTORY", "LEDGER", "LOG", "MODEL", "RECORD", "round_of", "what_of"]

MODEL, HISTORY, LOG = "model.safetensors", "history.jsonl", "peer.log"
RECORD, LEDGER = "record.jsonl", "ledger.json"
_VECTORS = re.compile(r"round-([0-9]{1,18})-(?:shared|combined)\.safetensors", re.ASCII)
What = pb.FetchRequest.What
_NAMES: Mapping[str, pb.FetchRequest.What] = {
    MODEL: What.MODEL,
    HISTORY: What.HISTORY,
    LOG: What.LOG,
    f"{LOG}.1": What.LOG,
    RECORD: What.RECORD,
    LEDGER: What.RECORD,
}


def what_of(name: str) -> pb.FetchRequest.What:
    """To which kind a file belongs by its name; NOTHING for any other name."""
    return _NAMES.get(name, What.NOTHING if round_of(name) is None else What.RECORD)


def round_of(name: str) -> int | None:
    """The round whose recorded vectors a file holds by its name, None for another file."""
    found = _VECTORS.fullmatch(name)
    return None if found is None else int(found[1])
