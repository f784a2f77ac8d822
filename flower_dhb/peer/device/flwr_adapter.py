"""Every touch of Flower's private parts, in one place.

Outside a Flower task a `Message` cannot be made until the process has a task identity.
Nothing else here is private, but it is what else depends on the form of Flower's
objects: a test holds all of it against the installed Flower and fails loudly.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from flower_dhb.errors import ConfigError

__all__ = [
    "frame_view",
    "load_client_app",
    "make_context",
    "make_message",
    "take_identity",
]

_FRAME = "flower_dhb.frame"


def take_identity(run: int, node: int) -> None:
    """Give this process the identity that Flower's launcher gives to a task."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run
    TaskIdentity.node_id = node


def make_context(
    run: int, node: int, node_config: Mapping[str, Any], run_config: Mapping[str, Any]
) -> Context:
    """A node's context, as Flower's deployment makes it, with an empty state."""
    return Context(
        run_id=run,
        node_id=node,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(run_config),
    )


def make_message(content: RecordDict, kind: str, round: int, node: int) -> Message:
    """A message as the relay's: `train` or `evaluate`, in the group of its round."""
    return Message(content, dst_node_id=node, message_type=kind, group_id=str(round))


def frame_view(frame: bytes | bytearray | memoryview) -> Array:
    """A codec frame as one Flower array that is a view of it, for use in this process only.

    Flower's constructor takes `bytes` alone, which would copy every payload once more.
    """
    array = Array.__new__(Array)
    array.dtype, array.shape, array.stype = "uint8", (len(frame),), _FRAME
    array.data = cast(bytes, frame)
    return array


def load_client_app(directory: Path, reference: str) -> ClientApp:
    """The ClientApp at `module:name` of a Flower App's directory. Raises ConfigError."""
    module, _, name = reference.partition(":")
    path = str(directory.resolve())
    if path not in sys.path:
        sys.path.insert(0, path)
    try:
        app = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{directory}: cannot load ClientApp '{reference}': {error}") from error
    if not isinstance(app, ClientApp):
        raise ConfigError(
            f"{directory}: '{reference}' is a {type(app).__name__}, expected a flwr ClientApp"
        )
    return app
