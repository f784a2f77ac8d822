"""What was mended stays mended."""

import pytest

from .campaign import run_one
from .regressions import REGRESSIONS


@pytest.mark.parametrize(("seed", "profile", "defect"), REGRESSIONS)
def test_a_schedule_that_broke_a_promise_once(seed: int, profile: str, defect: str) -> None:
    _, violation = run_one(seed, profile)
    assert violation is None, defect
