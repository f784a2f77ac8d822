"""A ClientApp that is told to end, by real signals to this process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from flower_dhb import RoundError
from flower_dhb.site import ending
from flower_dhb.site.ending import Ending


@pytest.fixture(autouse=True)
def flowers() -> Iterator[list[int]]:
    """The handler that was there before, as Flower's is: it notes each signal."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


def terminate(after_s: float = 0.05) -> threading.Timer:
    timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    return timer


def app_that_takes(seconds: float) -> Callable[..., str]:
    def app(message: object, context: object) -> str:
        time.sleep(seconds)
        return "answer"

    return app


def call(made: Ending, seconds: float) -> str:
    return made.ends(app_that_takes(seconds))(None, None)  # type: ignore[arg-type,return-value]


def test_a_call_of_the_app_ends_with_the_signal(flowers: list[int]) -> None:
    made, begun = Ending(), time.monotonic()
    with made.heeded():
        terminate()
        with pytest.raises(RoundError, match="told to end"):
            call(made, 30.0)
        with pytest.raises(RoundError, match="told to end"):
            call(made, 0.0)  # no further call begins
    assert time.monotonic() - begun < 20.0
    assert flowers == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert flowers == [signal.SIGTERM], "outside of an answer it is Flower's"


def test_a_second_signal_is_flowers(flowers: list[int]) -> None:
    made = Ending()
    with made.heeded():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert flowers == [signal.SIGTERM]


def test_who_hears_of_it_ends_the_work_and_a_short_call_is_not_disturbed(flowers) -> None:
    made, heard = Ending(), []
    with made.heeded(), made.heard_by(lambda: heard.append("end")):
        terminate(0.05)
        assert call(made, 0.3) == "answer"
        assert call(made, 0.0) == "answer"
    assert (heard, flowers) == (["end"], [])


def test_who_comes_to_hear_of_it_later_hears_of_it_at_once() -> None:
    made, heard = Ending(), []
    with made.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        with made.heard_by(lambda: heard.append("end")):
            assert heard == ["end"]


@pytest.mark.parametrize("early", [False, True])
def test_a_call_that_takes_much_longer_is_ended_after_all(monkeypatch, flowers, early) -> None:
    monkeypatch.setattr(ending, "_PATIENCE_S", 0.2)
    made, heard, begun = Ending(), [], time.monotonic()
    with made.heeded():
        if early:
            os.kill(os.getpid(), signal.SIGTERM)
        with made.heard_by(lambda: heard.append("end")):
            if not early:
                terminate()
            with pytest.raises(RoundError, match="told to end"):
                call(made, 30.0)
    assert time.monotonic() - begun < 20.0
    assert (heard, flowers) == (["end"], [])


def test_nothing_is_pressed_once_the_work_has_ended(monkeypatch, flowers) -> None:
    monkeypatch.setattr(ending, "_PATIENCE_S", 0.1)
    made = Ending()
    with made.heeded(), made.heard_by(lambda: None):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
    assert flowers == []


def test_the_second_signal_ends_the_call_and_the_third_is_flowers(flowers: list[int]) -> None:
    made = Ending()
    with made.heeded(), made.heard_by(lambda: None):
        os.kill(os.getpid(), signal.SIGTERM)
        terminate()
        with pytest.raises(RoundError, match="told to end"):
            call(made, 30.0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert flowers == [signal.SIGTERM]
