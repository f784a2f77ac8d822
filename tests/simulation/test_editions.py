"""Where nothing goes wrong, a change of the mesh costs next to nothing, and the sum is exact."""

from collections.abc import Iterator
from functools import cache

import pytest

from flower_dhb.peer.protocol.edition import Editions

from .campaign import run_one
from .field import PRIME
from .plan import Plan
from .world import World

SEEDS = range(16)


@cache
def _worlds() -> tuple[World, ...]:
    found = [run_one(seed, "growth") for seed in SEEDS]
    assert [violation for _, violation in found if violation is not None] == []
    return tuple(world for world, _ in found)


def _due(plan: Plan) -> Iterator[tuple[int, int, int]]:
    """All edges of all rounds, by the edition that holds: round, and both ends."""
    known = Editions(mesh.row(0) for mesh in plan.meshes)
    for r in range(1, plan.meshes[-1].rounds + 1):
        edition = known.at(r)
        assert edition is not None
        for i, j in plan.meshes[edition.number - 1].weights:
            yield r, i, j


def test_everything_that_can_change_has_changed() -> None:
    kinds = {kind for seed in SEEDS for mesh in Plan(seed, "growth").meshes for kind in mesh.kinds}
    assert kinds == {"weights", "add edge", "drop edge", "join", "leave", "more", "fewer"}


@pytest.mark.thorough
def test_all_edges_count_in_all_rounds_but_for_a_few_as_new_neighbors_come_into_step() -> None:
    """Neighbors are in step; those that become neighbors may be a few rounds apart."""
    due = counted = 0
    for world in _worlds():
        for r, i, j in _due(world.plan):
            here, there = world.hosts[i].verdicts.get(r), world.hosts[j].verdicts.get(r)
            due += 1
            counted += here is not None and there is not None and j in here[1] and i in there[1]
        assert not world.watch.open
        assert world.counts["differences"] == 0
        assert {host.outcome for host in world.hosts} == {"done"}
    assert due > 500
    assert counted >= 0.98 * due


def test_the_sum_is_that_of_steps_and_of_what_who_joins_brings() -> None:
    """Through all changes, and with what those had at their end who left."""
    joined = 0
    for world in _worlds():
        total = sum(host.state.x for host in world.hosts)
        steps = sum(host.state.steps for host in world.hosts)
        brought = sum(host.state.jumps for host in world.hosts)
        joined += sum(host.state.jumps != 0 for host in world.hosts)
        assert (total - len(world.hosts) * world.start_x - steps - brought) % PRIME == 0
    assert joined > 5
