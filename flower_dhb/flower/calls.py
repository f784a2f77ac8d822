"""The app's evaluation, called from within its training message.

Flower hands a mod what comes after it for the message's own kind: in a `train` message that is
the app's train function, and nothing else. The ClientApp that Flower is calling knows the
others. This is the one place that looks for it, and a test holds it against the installed
Flower.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from flower_dhb.errors import ConfigError

__all__ = ["evaluate_of", "evaluate_with"]


def evaluate_with(
    call_next: ClientAppCallable, message: Message, context: Context, content: RecordDict
) -> Message:
    """What the app answers to an `evaluate` message that would come beside a `train` message.

    call_next: of the mod that got `message`. The app's random numbers are afterwards as they
    were before, so that its training draws the same ones with and without an evaluation.
    Raises ConfigError if the app has no evaluate function.
    """
    metadata = copy.copy(message.metadata)
    metadata.message_type = "evaluate"
    asked = copy.copy(message)
    asked.__dict__.update(_metadata=metadata, _content=content)
    with _same_random_numbers():
        return evaluate_of(call_next)(asked, context)


def evaluate_of(call_next: ClientAppCallable) -> ClientAppCallable:
    """What takes an `evaluate` message where a mod was given `call_next` for another one.

    Raises ConfigError if the app has no evaluate function.
    """
    if isinstance(call_next, ClientApp):  # wrapped by `decentralize`
        return call_next
    app = _app_that_is_called()
    if app is None or app._call is not None:  # of the form of a client_fn: one call for all
        return call_next
    found: ClientAppCallable | None = app._registered_funcs.get("evaluate.default")
    if found is None:
        raise ConfigError("the app has no evaluate function; add one, or set evaluate_every=0")
    return found


def _app_that_is_called() -> ClientApp | None:
    """The innermost ClientApp whose call has led here."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is ClientApp.__call__.__code__:
            app = frame.f_locals.get("self")
            return app if isinstance(app, ClientApp) else None
        frame = frame.f_back
    return None


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Put the global generators of Python, NumPy and PyTorch back to where they were."""
    torch: Any = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch and torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices) if torch else nullcontext():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
