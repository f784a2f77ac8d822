"""An app is looked at before it is installed or loaded, as the node's policy says."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from support.apps import numpy_app
from support.grid import LocalGrid

from flower_dhb import ConfigError, consensus_mod
from flower_dhb.flower.records import Answer, Question
from flower_dhb.site import gate

FAB = b"the app's code"
DIGEST = hashlib.sha256(FAB).hexdigest()


def call(
    node_config: dict[str, object], *, installs: bool = False, content: RecordDict | None = None
):
    """One call of an app as Flower's program makes it: what was done, and what was answered."""
    grid = LocalGrid(numpy_app(1, 4, mods=[consensus_mod]), 1)  # which gives us an identity
    context = grid.contexts[grid.node_of(0)]
    context.node_config = {"vertex": 0, **node_config}
    message = Message(Question(run="r").to_records() if content is None else content, 1, "train")
    done: list[str] = []

    def load(*_: object) -> ClientApp:
        done.append("load")
        # What the app's code could do when it is imported.
        context.node_config = {"vertex": 7}
        return numpy_app(1, 4, mods=[consensus_mod])

    runtime = SimpleNamespace(
        pull_task_input=lambda client: (message, context, None, SimpleNamespace(content=FAB)),
        install_from_fab=lambda content, skip_prompt: done.append("install"),
        install_app_dependencies=lambda path: done.append("dependencies"),
        get_load_client_app_fn=lambda multi_app: load,
    )
    gate.guard(runtime)  # type: ignore[arg-type]
    runtime.pull_task_input(None)
    runtime.install_from_fab(FAB, skip_prompt=True)
    if installs:
        runtime.install_app_dependencies("path")
    app = runtime.get_load_client_app_fn(multi_app=True)("id", "1", "hash")
    return done, Answer.from_records(app(message, context).content)


def test_an_allowed_app_runs_with_the_policy_as_it_was_before_its_code_was_loaded():
    config = {"policy-apps": f"{'0' * 64} {DIGEST}", "policy-clip": 1.0}
    done, answer = call(config)
    assert done == ["install", "load"]
    assert (answer.vertex, answer.failure) == (0, "")
    assert answer.policy == "clip 1; 2 allowed apps"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"policy-apps": "0" * 64}, f"does not allow the app with the digest {DIGEST}"),
        ({"policy-apps": ""}, f"does not allow the app with the digest {DIGEST}"),
        ({"policy-app": DIGEST}, "unknown key of the node config 'policy-app'"),
    ],
)
def test_another_app_is_neither_installed_nor_loaded(config, told):
    done, answer = call(config)
    assert done == []
    assert answer.vertex == -1
    assert told in answer.failure
    with pytest.raises(ConfigError, match=r"digest|unknown"):
        call(config, content=RecordDict())  # of another strategy: Flower makes it an error reply


def test_nothing_is_installed_for_an_app_where_the_policy_says_so():
    done, answer = call({"policy-installation": False}, installs=True)
    assert done == ["install"]  # the files of an app that is allowed, and nothing runs
    assert "lets nothing be installed" in answer.failure
    done, answer = call({"policy-installation": False})
    assert (done, answer.failure) == (["install", "load"], "")
    assert call({}, installs=True)[0] == ["install", "dependencies", "load"]


def test_a_policy_on_apps_that_nobody_has_asked_is_no_policy_and_is_told():
    grid = LocalGrid(numpy_app(1, 4, mods=[consensus_mod]), 1)
    node = grid.node_of(0)
    for config in ({"policy-apps": DIGEST}, {"policy-installation": False}):
        grid.contexts[node].node_config = {"vertex": 0, **config}
        (reply,) = grid.send_and_receive([Message(Question(run="r").to_records(), node, "train")])
        assert (
            "start the SuperNode with 'flower-dhb supernode"
            in Answer.from_records(reply.content).failure
        )


def test_flower_is_as_the_gate_expects_it():
    runtime = gate.check_flower()
    source = runtime.run_clientapp.__code__.co_names
    at = [source.index(call) for call in gate._CALLS]
    assert at == sorted(at), "called in another order"


def test_the_program_stands_before_flowers_own(tmp_path):
    found = gate.environment(tmp_path, {"PATH": "/usr/bin", "A": "b"})
    program = tmp_path / "flwr-clientapp"
    assert found["PATH"].startswith(f"{tmp_path}:")
    assert found["A"] == "b"
    assert program.stat().st_mode & 0o777 == 0o700
    assert "-m flower_dhb.site.gate" in program.read_text()
