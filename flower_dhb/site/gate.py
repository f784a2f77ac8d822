"""Looks at an app before any of its code runs: which apps a node's policy allows.

In a SuperNode's own process for an app, Flower installs the app and loads it; our mod comes with
the app, so it is too late to ask. `flower-dhb supernode` has that process start here: the policy is
read, the app's digest is taken, and an app that is not allowed is neither installed nor loaded. One
that is allowed is called with the policy around it, whatever mods it has.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flower_dhb.agent.policy import Policy
from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.flower.records import PROTOCOL, Answer
from flower_dhb.site.mod import respond

__all__ = ["check_flower", "environment", "guard", "main"]

_PROGRAM = "flwr-clientapp"
# Flower's program for one call of an app, and what it calls there, in this order.
_RUNTIME = "flwr.supernode.runtime.run_clientapp"
_CALLS = (
    "pull_task_input",
    "install_from_fab",
    "install_app_dependencies",
    "get_load_client_app_fn",
)


def check_flower() -> ModuleType:
    """Flower's program for one call of an app. Raises ConfigError if it is not as expected."""
    try:
        runtime = importlib.import_module(_RUNTIME)
    except ImportError as error:
        raise ConfigError(f"this version of Flower cannot be guarded: {error}") from None
    missing = [call for call in _CALLS if not callable(getattr(runtime, call, None))]
    if missing:
        raise ConfigError(
            f"this version of Flower cannot be guarded: {_RUNTIME} lacks {', '.join(missing)}"
        )
    return runtime


def environment(folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a SuperNode whose apps start here.

    folder: takes the program that stands before Flower's own in `PATH`.
    """
    program = folder / _PROGRAM
    words = [sys.executable, "-P", "-m", __name__]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    program.chmod(0o700)
    own = str(Path(sys.executable).parent)
    return {**inherited, "PATH": os.pathsep.join([str(folder), own, inherited.get("PATH", "")])}


def main() -> None:
    """Flower's own program for one call of an app, guarded."""
    guard(check_flower())
    sys.argv[0] = _PROGRAM
    importlib.import_module("flwr.supernode.cli.flwr_clientapp").flwr_clientapp()


def guard(runtime: ModuleType) -> None:
    """Have Flower's program ask the node's policy before it installs and loads an app."""
    task = _Task()
    pull, install = runtime.pull_task_input, runtime.install_from_fab
    dependencies, loader = runtime.install_app_dependencies, runtime.get_load_client_app_fn

    def pull_guarded(*words: Any, **options: Any) -> Any:
        found = pull(*words, **options)
        _, context, _, fab = found
        task.begin(context.node_config, fab.content)
        return found

    def install_guarded(*words: Any, **options: Any) -> Any:
        return None if task.refusal else install(*words, **options)

    def dependencies_guarded(*words: Any, **options: Any) -> Any:
        task.check_installation()
        return None if task.refusal else dependencies(*words, **options)

    def loader_guarded(*words: Any, **options: Any) -> Callable[..., ClientApp]:
        load = loader(*words, **options)

        def load_guarded(*about: Any) -> ClientApp:
            return _Refused(task.refusal) if task.refusal else _Guarded(load(*about), task)

        return load_guarded

    vars(runtime).update(
        pull_task_input=pull_guarded,
        install_from_fab=install_guarded,
        install_app_dependencies=dependencies_guarded,
        get_load_client_app_fn=loader_guarded,
    )


class _Task:
    """One call of an app: the node's policy, and why the app must not run, empty if it may."""

    def __init__(self) -> None:
        self.policy, self.node_config = Policy(), dict[str, Any]()
        self.refusal = "the app was not looked at before it was to be loaded"

    def begin(self, node_config: Mapping[str, Any], fab: bytes) -> None:
        """Hear of the call, before anything is done for it."""
        try:
            self.node_config = dict(node_config)
            self.policy = Policy.of_node_config(node_config)
            self.policy.check_app(hashlib.sha256(fab).hexdigest())
        except FlowerDhbError as error:
            self.refusal = str(error)
        else:
            self.refusal = ""

    def check_installation(self) -> None:
        """What the app needs is about to be installed."""
        if not self.refusal and not self.policy.installation:
            self.refusal = (
                "this node's policy lets nothing be installed for an app; install what it needs by "
                "hand, and start the SuperNode without --allow-runtime-dependency-installation"
            )


class _Guarded(ClientApp):
    """An app with the policy around it; the node config is the operator's, as it was read."""

    def __init__(self, inner: ClientApp, task: _Task) -> None:
        super().__init__()
        self._inner, self._task = inner, task

    def __call__(self, message: Message, context: Context) -> Message:
        context.node_config = dict(self._task.node_config)
        return respond(message, context, self._inner, self._task.policy)


class _Refused(ClientApp):
    """Stands in for an app that must not run, and says why."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self._why = why

    def __call__(self, message: Message, context: Context) -> Message:
        del context  # which is none of its business
        if PROTOCOL not in message.content:
            raise ConfigError(self._why)
        told = Answer(ask="vertex", vertex=-1, failure=self._why)
        return Message(told.to_records(), reply_to=message)


if __name__ == "__main__":
    main()
