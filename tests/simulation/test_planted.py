"""The simulator finds mistakes that are put in on purpose, each by the promise that it breaks."""

import pytest

from .campaign import run_one
from .planted import PLANTED, Planted, planted

pytestmark = pytest.mark.thorough

_LIMIT = 400  # schedules; most mistakes show in the first one tried


@pytest.mark.parametrize("mistake", PLANTED, ids=lambda m: m.mistake.replace(" ", "-"))
def test_a_planted_mistake_is_found(mistake: Planted) -> None:
    found = []
    with planted(mistake):
        for seed in range(mistake.first, mistake.first + _LIMIT):
            _, violation = run_one(seed, mistake.profile)
            if violation is not None:
                found.append(violation.promise)
                if violation.promise == mistake.breaks:
                    break
    assert mistake.breaks in found
    _, violation = run_one(seed, mistake.profile)
    assert violation is None, "without the mistake the same schedule is in order"


def test_every_promise_has_a_mistake_that_breaks_it() -> None:
    assert {mistake.breaks for mistake in PLANTED} == {
        "a stop",
        "bounds",
        "differences are known",
        "disk first",
        "due",
        "edges agree",
        "fresh or marked",
        "liveness",
        "memory",
        "network average",
        "no exception",
        "nobody is left out",
        "nobody waits in vain",
        "offers",
        "one edition",
        "rounds go up",
        "same bytes",
        "stale links",
    }
