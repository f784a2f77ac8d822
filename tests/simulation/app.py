"""The app of an agent, and the rule that combines: exact, linear, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from flower_dhb.peer.protocol.events import Payload

from .field import PRIME, Value, digest, inverse

__all__ = ["State"]


class State:
    """What an agent's app holds; never changed, always replaced.

    x: parameter. y: tracker, kept so that over all agents of an epoch its sum is that of g,
    the last local steps. step: what training added, None before it. value: what is shared in
    the open round, None before it is known. count: how many rounds with a verdict led here.
    memory_from: the same, when the tracker began at zero. mixed: the last round in which a
    neighbor had a part. steps, flux, jumps: the parts of x
    that came from training, from neighbors, and from beginning again; x is always their sum
    and the start.
    """

    __slots__ = (
        "count",
        "epoch",
        "flux",
        "g",
        "jumps",
        "memory_flux",
        "memory_from",
        "mixed",
        "step",
        "steps",
        "value",
        "x",
        "y",
    )

    def __init__(self, x: int, mixed: int = 0) -> None:
        self.x = x
        self.y = self.g = 0
        self.step: int | None = None
        self.value: Value | None = None
        self.epoch = 0
        self.count = self.memory_from = 0
        self.mixed = mixed
        self.steps = self.flux = self.jumps = self.memory_flux = 0

    def copy(self) -> State:
        """The same, to be changed."""
        new = State.__new__(State)
        new.x, new.y, new.g, new.step, new.value = self.x, self.y, self.g, self.step, self.value
        new.epoch, new.count, new.memory_from = self.epoch, self.count, self.memory_from
        new.steps, new.flux, new.jumps = self.steps, self.flux, self.jumps
        new.memory_flux, new.mixed = self.memory_flux, self.mixed
        return new

    def trained(self, rng: Random, epoch: int, *, early: bool, tracks: bool) -> State:
        """After a local step. early: what is shared was known before. tracks: with memory."""
        new = self.copy()
        new.step = step = rng.randrange(1, PRIME)
        if tracks:
            if epoch != new.epoch:
                new.y = new.g = new.memory_flux = 0
                new.epoch, new.memory_from = epoch, new.count
            u = (new.y + step - new.g) % PRIME
            new.value = ((new.x + u) % PRIME, u)
        elif not early:
            new.value = ((new.x + step) % PRIME, 0)
        return new

    def shown(self) -> State:
        """With what is shared before training."""
        new = self.copy()
        new.value, new.step = (self.x, 0), None
        return new

    def payload(self) -> Payload:
        """What is shared in the open round."""
        assert self.value is not None
        return Payload(digest(self.value), self.value)

    def combined(
        self,
        round: int,
        weights: Mapping[int, int],
        payloads: Mapping[int, Payload],
        *,
        early: bool,
    ) -> tuple[State, dict[int, tuple[int, int]]]:
        """After a round. Returns the state, and what each neighbor's payload moved."""
        assert self.value is not None
        z, u = self.value
        moved = {}
        flux = memory = 0
        for j, payload in payloads.items():
            other = payload.handle
            w = weights[j]
            moved[j] = (w * (other[0] - z) % PRIME, w * (other[1] - u) % PRIME)
            flux += moved[j][0]
            memory += moved[j][1]
        new = self.copy()
        if early:
            z += self.step or 0
        new.steps = (self.steps + z - self.x) % PRIME
        new.x, new.y = (z + flux) % PRIME, (u + memory) % PRIME
        new.g = self.step or 0
        new.flux, new.memory_flux = (self.flux + flux) % PRIME, (self.memory_flux + memory) % PRIME
        new.step = new.value = None
        new.count = self.count + 1
        if payloads:
            new.mixed = round
        return new, moved

    def rejoined(
        self, round: int, payloads: Mapping[int, tuple[int, Payload]], epoch: int
    ) -> State:
        """The neighbors' mean, and no memory."""
        new = self.copy()
        share = inverse(len(payloads))
        new.x = sum(payload.handle[0] for _, payload in payloads.values()) * share % PRIME
        new.jumps = (self.jumps + new.x - self.x) % PRIME
        new.y = new.g = new.memory_flux = 0
        new.step = new.value = None
        new.epoch, new.memory_from, new.mixed = epoch, new.count, round
        return new

    def untrained(self) -> State:
        """As it was before training that failed."""
        new = self.copy()
        new.step = new.value = None
        return new
