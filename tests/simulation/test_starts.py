"""Devices that are started in any order, minutes apart, at the limits that a device has."""

from itertools import pairwise, permutations

import pytest

from flower_dhb.peer.protocol.settings import Timing

from .starts import Starts
from .watch import Watch
from .world import World

pytestmark = pytest.mark.thorough

MINUTES = (0.0, 0.0, 106.0, 132.0, 140.0)
SOON_S = 15.0


class Clock(Watch):
    """Notes when each round ends at each agent, and who was missing."""

    def __init__(self, world):
        super().__init__(world)
        self.ended = {v: {} for v in range(world.plan.size)}

    def combined(self, process, effect, moved, state):
        super().combined(process, effect, moved, state)
        missing = set(process.host.neighbors) - set(effect.payloads)
        self.ended[process.vertex][effect.round] = (self.world.now, missing)


def common_since(plan):
    """Run the fleet. Returns when every edge counts in every round from then on."""
    world = World(plan)
    world.watch = watch = Clock(world)
    world.run()
    assert {host.outcome for host in world.hosts} == {"done"}
    since = 0.0
    for v, ended in watch.ended.items():
        complete = [r for r, (_, missing) in ended.items() if not missing]
        assert complete, f"agent {v} was never with all of its neighbors"
        broken = [r for r, (_, missing) in ended.items() if missing and r < plan.rounds - 3]
        first = min(r for r in ended if r > max(broken, default=0))
        since = max(since, ended[first][0])
    return since


ORDERS = sorted(set(permutations(MINUTES)))


@pytest.mark.parametrize("first_s", [0.0, 3.0, 8.0])
@pytest.mark.parametrize(
    ("graph", "order"),
    [
        ("ring:5", MINUTES),
        ("path:5", (132.0, 0.0, 140.0, 106.0, 0.0)),
        ("star:5", MINUTES),
        ("complete:5", MINUTES),
        *(("ring:5", order) for order in ORDERS[::25]),
        *(("path:5", order) for order in ORDERS[5::25]),
    ],
)
def test_all_share_rounds_soon_after_the_last_start(graph, order, first_s):
    """The first two waited for 314 and 375 s once, while 8 and 3 s went by in a first step."""
    since = common_since(Starts(graph, order, rounds=90, first_s=first_s))
    assert since < max(order) + SOON_S


def test_a_run_that_begins_at_once_misses_nothing_however_long_a_first_step_takes():
    """Ten times slower than the others, and more than a ceiling for a known pace allows."""
    plan = Starts("ring:5", (0.0,) * 5, rounds=20, train_s=(0.5, 0.5, 5.0, 0.5, 0.5))
    since = common_since(plan)
    assert since < 6.0


def test_one_that_is_slow_from_its_start_delays_the_others_by_a_few_of_their_rounds():
    """It begins late and takes a minute for a step: nobody waits for it as if it were gone."""
    plan = Starts("ring:4", (0.0, 0.0, 0.0, 130.0), rounds=300, train_s=(0.5, 0.5, 0.5, 60.0))
    world = World(plan)
    world.watch = watch = Clock(world)
    world.run()
    ended = [at for at, _ in watch.ended[1].values()]
    pauses = [b - a for a, b in pairwise(ended)]
    assert max(pauses) < 5.0


def test_with_other_limits_it_is_as_soon():
    timing = Timing(ceiling_s=3600.0, start_s=20.0)
    since = common_since(Starts("ring:5", (0.0, 30.0, 0.0, 50.0, 90.0), timing=timing, rounds=250))
    assert since < 90.0 + SOON_S
