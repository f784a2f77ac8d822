"""Agents that lie: what a few of them send in place of what their rule says."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flower_dhb.errors import ConfigError, unknown

__all__ = ["ATTACKS", "CUT_OUT", "Attack", "Attackers"]

CUT_OUT = "cut-out"
_SCALES = {"sign-flip": -1.0, "scale-10": 10.0, "scale-100": 100.0, "scale-1e30": 1e30}
ASCENT, OLD, NOISE = "ascent", "old-model", "noise"

# By name: what each does. All else an attacker does as its rule says.
ATTACKS = {
    ASCENT: "trains away from what its data say: gradient ascent",
    "sign-flip": "sends its payload with the other sign",
    "scale-10": "sends 10 times its payload",
    "scale-100": "sends 100 times its payload",
    "scale-1e30": "sends 10^30 times its payload",
    OLD: "sends the payload of its first round as an attacker again and again",
    NOISE: "adds normal noise to its payload, as long as the payload itself",
    CUT_OUT: "sends nothing and hears nothing: what the others can do without it",
}


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Which agents lie, how, and from when on.

    kind: one of `ATTACKS`. vertices: the agents. since: the first round of it. seed: of the
    noise.

    Raises ConfigError for an unknown kind, or for agents or a round that cannot be.
    """

    kind: str
    vertices: tuple[int, ...]
    since: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ATTACKS:
            raise ConfigError(unknown("attack", self.kind, ATTACKS))
        if not self.vertices or len(set(self.vertices)) != len(self.vertices):
            raise ConfigError(f"an attack needs different agents, got {self.vertices}")
        if min(self.vertices) < 0:
            raise ConfigError(f"an attack's agents are vertices of the graph: {self.vertices}")
        if isinstance(self.since, bool) or not isinstance(self.since, int) or self.since < 1:
            raise ConfigError(f"an attack begins in a round of at least 1, got {self.since!r}")


@dataclass
class Attackers:
    """The agents of an attack in one run of the engine."""

    attack: Attack
    n_agents: int
    _old: dict[str, Tensor] = field(default_factory=dict)
    _noise: dict[str, Tensor] = field(default_factory=dict)
    _round: int = 0

    def __post_init__(self) -> None:
        """Refuse agents that the graph lacks, and a graph of nobody else."""
        a = self.attack
        if max(a.vertices) >= self.n_agents or len(a.vertices) >= self.n_agents:
            raise ConfigError(
                f"attack by agents {list(a.vertices)}: the graph has the vertices 0 … "
                f"{self.n_agents - 1}, of which at least one must be honest"
            )

    @property
    def honest(self) -> list[int]:
        """Everybody else."""
        return [v for v in range(self.n_agents) if v not in self.attack.vertices]

    @property
    def cut_out(self) -> bool:
        """Whether the attackers have no part at all."""
        return self.attack.kind == CUT_OUT

    def trained(self, round: int, x: Tensor, trained: Tensor) -> None:
        """Change, in place, what attackers come to by training from `x`; both `(n, d)`."""
        if self.attack.kind == ASCENT and round >= self.attack.since:
            rows = list(self.attack.vertices)
            trained[rows] = 2.0 * x[rows] - trained[rows]

    def payload(self, round: int, name: str, vector: Tensor, part: slice, size: int) -> Tensor:
        """Some columns of a vector as they are sent, `(n, width)`.

        part: which columns, of `size` in all. Columns of a round may be asked for again.
        """
        kind, rows = self.attack.kind, list(self.attack.vertices)
        if round < self.attack.since or kind in (ASCENT, CUT_OUT):
            return vector
        if kind in _SCALES:
            sent = vector.clone()
            sent[rows] = _SCALES[kind] * vector[rows]
            return sent
        if kind == OLD:
            kept = self._old.setdefault(name, vector.new_empty(len(rows), size))
            if round == self.attack.since:
                kept[:, part] = vector[rows]
            sent = vector.clone()
            sent[rows] = kept[:, part]
            return sent
        sent = vector.clone()
        length = vector[rows].square().mean(-1, keepdim=True).sqrt()
        sent[rows] += length * self._drawn(round, name, vector, size)[:, part]
        return sent

    def _drawn(self, round: int, name: str, like: Tensor, size: int) -> Tensor:
        """Standard normal noise of a round, `(attackers, size)`."""
        if round != self._round:
            self._round = round
            self._noise.clear()
        if name not in self._noise:
            a = self.attack
            draws = [
                np.random.default_rng([a.seed, v, round, len(self._noise)]).standard_normal(size)
                for v in a.vertices
            ]
            self._noise[name] = torch.from_numpy(np.stack(draws)).to(like)
        return self._noise[name]
