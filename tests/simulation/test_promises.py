"""Schedules of all profiles: what must hold after every event holds. `test_many` has thousands."""

import pytest

from .campaign import run_seeds
from .profiles import PROFILES

pytestmark = pytest.mark.thorough

_EACH = 10
_LARGE = {"dense": 1, "sprint": 3}


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_no_promise_is_broken(profile: str) -> None:
    report = run_seeds(range(_LARGE.get(profile, _EACH)), profile)
    assert not report.broken, report.text()
