"""What an agent must know before it begins: its place in the graph, and its time limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from flower_dhb.peer.protocol.edition import Edition

__all__ = ["Config", "Timing"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time limits, in seconds.

    In `peer.toml` the last six have other places: `start-timeout-s`, `linger-s`, and `[limits]`.
    """

    ceiling_s: float = 60.0
    """Longest wait for a neighbor in a round. Allowed: above 0."""
    least_s: float = 1.0
    """Shortest deadline of a neighbor that is in good standing. Allowed: above 0."""
    factor: float = 3.0
    """Deadline of a neighbor, in units of its usual round time.

    Unit: round times. Allowed: above 0.
    """
    reconnect_s: float = 2.0
    """How long a broken connection may take to come back before the round goes on.

    Allowed: above 0.
    """
    resume_s: float = 10.0
    """The same for an agent that has just been restarted.

    Its neighbors must notice that first. Allowed: above 0.
    """
    start_s: float = 120.0
    """How long an agent waits for its neighbors before its first round."""
    linger_s: float = 10.0
    """How long one that has finished stays for those that have not."""
    hello_s: float = 5.0
    """Time to say Hello."""
    dead_after_s: float = 8.0
    """Silence after which a connection is dead.

    After such a pause a payload is no longer waited for beyond its deadline.
    """
    transfer_s: float = 60.0
    """Longest pause in a payload whose sender is alive."""
    least_bytes_s: float = 1000.0
    """Rate below which a payload is cut off, `transfer_s` after it began. Unit: bytes/s."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One agent of a run.

    editions: of the mesh, that are known at the start: at least one, and those that the agent's
    newest record is of. away_rounds: an agent that missed more exchanges (rounds in which anybody
    was due) begins again from its neighbors. early: the rule knows its payload before training.
    conserves: the rule has memory whose mean over all agents it keeps, so that no agent may lose
    its share of it alone. origin: the round after which it begins, where the rounds before were
    held elsewhere; epoch: of its memory then.
    """

    vertex: int
    editions: tuple[Edition, ...]
    timing: Timing = field(default_factory=Timing)
    away_rounds: int = 10
    early: bool = False
    conserves: bool = False
    origin: int = 0
    epoch: int = 0
