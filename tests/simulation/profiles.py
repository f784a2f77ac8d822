"""Kinds of schedules: which faults happen, and how often."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CAMPAIGN", "PROFILES", "Profile"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How a schedule is drawn. Rates are expected numbers per agent or edge and run.

    crashes, stops, pauses: per agent. cuts: per edge. late_start: share of agents that begin late.
    third: chance that a third of the fleet goes down at once, once or twice. never: share of
    crashes without a restart. late_return: share of restarts after everybody else has finished.
    old_disk, no_disk: share of restarts with an earlier write, or with none. twins: chance of a
    second live instance. lacks: share of payloads that are sent a second time, whole, since the
    other end lacks what they are a change of. liar: chance that one agent lies. failures: share of
    trainings that fail. slow: share of agents that train ten times slower. wild: time limits over
    three decades, whether they make sense or not. dense: chance of 30 neighbors. early, conserves:
    share of runs whose rule is of that kind. revivals: per agent, of those that have finished.
    editions: of the mesh, at most, that follow the first; early_news: all learn of each long before
    it begins. turns: share of runs whose edges take turns. origin: the round after which the run
    begins, at most. agents, rounds: least and most, rounds after the origin. seconds: of a round,
    as powers of 10.
    """

    crashes: float = 0.0
    stops: float = 0.0
    pauses: float = 0.0
    cuts: float = 0.0
    late_start: float = 0.0
    third: float = 0.0
    never: float = 0.0
    late_return: float = 0.0
    old_disk: float = 0.0
    no_disk: float = 0.0
    twins: float = 0.0
    liar: float = 0.0
    failures: float = 0.0
    broken: float = 0.0
    lacks: float = 0.0
    slow: float = 0.1
    wild: float = 0.0
    dense: float = 0.0
    early: float = 0.3
    conserves: float = 0.0
    revivals: float = 0.0
    editions: int = 0
    early_news: bool = False
    turns: float = 0.0
    origin: int = 0
    agents: tuple[int, int] = (2, 6)
    rounds: tuple[int, int] = (3, 16)
    seconds: tuple[float, float] = (-2.0, 2.0)


PROFILES = {
    "calm": Profile(slow=0.2),
    "crashes": Profile(crashes=1.5, stops=0.2),
    "pairs": Profile(crashes=3.0, cuts=1.0, agents=(2, 3)),
    "links": Profile(broken=0.02, cuts=2.5, pauses=0.3),
    "thirds": Profile(third=1.0, crashes=0.3, agents=(3, 8)),
    "late": Profile(late_start=0.3, late_return=0.5, crashes=0.6, never=0.1, revivals=0.3),
    "sleepy": Profile(pauses=1.5, slow=0.4, cuts=0.5, stops=0.2),
    "failures": Profile(failures=0.15, crashes=0.5, cuts=0.3),
    "memory": Profile(conserves=1.0, crashes=1.0, cuts=0.5, early=0.0),
    "loss": Profile(conserves=0.5, crashes=1.0, old_disk=0.15, no_disk=0.3, cuts=0.3),
    "twins": Profile(twins=1.0, crashes=0.3, cuts=0.3),
    "liar": Profile(liar=1.0, crashes=0.5, cuts=0.5, agents=(3, 6)),
    "dense": Profile(dense=1.0, crashes=0.15, cuts=0.05, rounds=(3, 6)),
    "long": Profile(crashes=2.0, cuts=1.5, rounds=(20, 40), agents=(2, 4)),
    "sprint": Profile(
        crashes=0.3,
        no_disk=0.7,
        conserves=0.5,
        slow=0.0,
        agents=(3, 4),
        rounds=(60, 100),
        seconds=(-2.5, -1.5),
    ),
    "wild": Profile(
        crashes=1.0, cuts=1.0, pauses=0.5, stops=0.2, wild=1.0, failures=0.05, late_start=0.1
    ),
    "storm": Profile(
        crashes=1.5,
        stops=0.2,
        pauses=0.4,
        cuts=1.5,
        late_start=0.15,
        third=0.3,
        never=0.05,
        late_return=0.1,
        old_disk=0.03,
        no_disk=0.05,
        twins=0.1,
        liar=0.1,
        failures=0.03,
        broken=0.005,
        wild=0.2,
        conserves=0.3,
        revivals=0.1,
        agents=(2, 8),
    ),
}

PROFILES |= {
    "growth": Profile(editions=3, early_news=True, slow=0.0),
    "editions": Profile(editions=4, crashes=1.0, cuts=1.0, late_return=0.15, revivals=0.1),
    "mutable": Profile(
        editions=4,
        conserves=0.6,
        crashes=0.7,
        stops=0.2,
        pauses=0.2,
        cuts=0.7,
        late_start=0.1,
        late_return=0.2,
        never=0.04,
        no_disk=0.1,
        failures=0.02,
        broken=0.003,
        wild=0.1,
        rounds=(4, 24),
        agents=(2, 7),
    ),
}

# Rounds that one message of a deployment opens: the run is under way, disks may be empty.
PROFILES["segments"] = Profile(
    origin=300,
    crashes=0.7,
    stops=0.2,
    pauses=0.2,
    cuts=0.7,
    late_start=0.3,
    late_return=0.2,
    no_disk=0.5,
    conserves=0.3,
)

# Edges that take turns, so that agents may be some rounds apart, and rounds in which nobody shares.
PROFILES |= {
    "turns": Profile(
        turns=1.0,
        crashes=1.0,
        cuts=0.7,
        pauses=0.2,
        late_start=0.1,
        late_return=0.1,
        no_disk=0.1,
        failures=0.02,
        broken=0.005,
        conserves=0.3,
        revivals=0.1,
        rounds=(6, 30),
    ),
    "turned": Profile(
        turns=1.0,
        editions=3,
        conserves=0.3,
        crashes=0.5,
        cuts=0.5,
        late_return=0.1,
        never=0.03,
        wild=0.1,
        rounds=(6, 24),
    ),
}

# Agents that are told to end, at any moment, and come back.
PROFILES["stops"] = Profile(
    stops=2.5, crashes=0.2, cuts=0.3, pauses=0.2, turns=0.3, early=0.4, conserves=0.3, lacks=0.1
)
# Compressed payloads, of which some can be made nothing of and come again, whole.
PROFILES["changes"] = Profile(
    lacks=0.3, crashes=1.0, cuts=1.5, pauses=0.3, no_disk=0.1, conserves=0.3, early=0.5
)

CAMPAIGN = tuple(name for name in PROFILES if name not in ("dense", "sprint"))
"""Taken by turns; the others are large, and each has two seeds in a hundred."""
