"""What an agent must know before it begins: its place in the graph, and its time limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from flower_dhb.peer.protocol.edition import Edition

__all__ = ["Config", "Timing"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time limits, in seconds.

    ceiling_s: longest wait for a neighbor. least_s: shortest deadline of a neighbor that
    is in good standing. factor: deadline in units of the neighbor's usual round time.
    reconnect_s: how long a broken connection may take to come back before the round
    goes on without it. resume_s: the same for an agent that has just been restarted, whose
    neighbors must notice that first. start_s: how long an agent waits for its neighbors
    before its first round. linger_s: how long one that has finished stays for those that have
    not. hello_s: time to say Hello. dead_after_s: silence after which a connection is dead, and a
    pause after which a payload is no longer waited for beyond its deadline. transfer_s: longest
    pause in a payload whose sender is alive. least_bytes_s: bytes a second below which a payload
    is cut off, transfer_s after it began.
    """

    ceiling_s: float = 60.0
    least_s: float = 1.0
    factor: float = 3.0
    reconnect_s: float = 2.0
    resume_s: float = 10.0
    start_s: float = 120.0
    linger_s: float = 10.0
    hello_s: float = 5.0
    dead_after_s: float = 8.0
    transfer_s: float = 60.0
    least_bytes_s: float = 1000.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """One agent of a run.

    editions: of the mesh, that are known at the start: at least one, and those that the agent's
    newest record is of. away_rounds: an agent that missed more rounds begins again from its
    neighbors. early: the rule knows its payload before training. conserves: the rule has memory
    whose mean over all agents it keeps, so that no agent may lose its share of it alone.
    """

    vertex: int
    editions: tuple[Edition, ...]
    timing: Timing = field(default_factory=Timing)
    away_rounds: int = 10
    early: bool = False
    conserves: bool = False
