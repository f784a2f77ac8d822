"""A part in some rounds of a run that somebody else leads, and keeps.

A device with a `peer.toml` reads from its disk what it is and where it was, and writes there
what it does. In a segment of a Flower run both are given to it: the app with its state, the round
to begin with, and somebody who takes what is told of each round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from flower_dhb.peer.device.app import Agent

__all__ = ["Part"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a peer has no files for.

    app: whose store keeps the state. agreement: texts that neighbors must have in common. origin:
    the round that the app's parameters are of, 0 for an agent that is to begin with its
    neighbors' average in mid-run; epoch: of its memory. evaluated: rounds in which the app
    evaluates. measured: rounds of which the projection of the parameters is told. told: called with
    what is told of each round, as `history.jsonl` has it. differs: called with a text of the
    agreement that a neighbor has another one of, and with that.
    """

    app: Agent
    agreement: Mapping[str, str]
    origin: int
    epoch: int
    evaluated: Collection[int]
    measured: Collection[int]
    told: Callable[[Mapping[str, Any]], None]
    differs: Callable[[str, str], None]

    def append(self, entry: Mapping[str, Any], *, durable: bool) -> None:  # noqa: ARG002
        """Take a line in place of a file."""
        self.told(entry)

    def close(self) -> None:
        """There is nothing to close."""
