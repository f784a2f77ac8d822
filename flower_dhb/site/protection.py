"""A node's own word on keys: who it announces to be, and whether its payloads are sealed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context

from flower_dhb.agent.policy import Policy
from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.flower.mod import Protect, Sealing, vertex_of, who
from flower_dhb.flower.records import Answer, Instruction, Question
from flower_dhb.flower.store import Store, open_store

if TYPE_CHECKING:
    from flower_dhb.site.keys import MeshKeys

__all__ = ["ENCRYPTION", "MESH", "check_segment", "introduce", "node_keys", "protection"]

MESH, ENCRYPTION = "mesh", "encryption"  # keys of the node config


def introduce(question: Question, context: Context, policy: Policy) -> Answer:
    """Say which vertex this node is, where others reach it, and announce it if it has keys.

    A node whose keys are of another vertex, expired or revoked says so, and takes no part.
    """
    address = context.node_config.get("address")
    answer = replace(
        who(context, policy),
        address=address if isinstance(address, str) else "",
        direct=isinstance(context.node_config.get(MESH), str),
    )
    if answer.failure or not (MESH in context.node_config or ENCRYPTION in context.node_config):
        return answer
    try:
        wants_encryption(context)
        keys = node_keys(context)
        if keys is None:
            return answer
        from flower_dhb.site.sealing import Sealer

        secret = open_store(context, question.run, answer.vertex).secret()
        sealer = Sealer(keys, question.run, secret, {})
        return replace(answer, announcement=sealer.announcement())
    except (FlowerDhbError, OSError) as error:
        return Answer(ask="vertex", vertex=-1, failure=f"vertex {answer.vertex}: {error}")


def node_keys(context: Context) -> MeshKeys | None:
    """The keys that the node config names, None if it names none. Raises ConfigError."""
    directory = context.node_config.get(MESH)
    if directory is None:
        return None
    if not isinstance(directory, str) or not directory:
        raise ConfigError(f"node config: '{MESH}' must name a directory, got {directory!r}")
    from flower_dhb.site.keys import MeshKeys

    return MeshKeys.load(Path(directory), vertex_of(context))


def wants_encryption(context: Context) -> bool:
    """Whether the node lets payloads leave it only sealed. Raises ConfigError for other words."""
    value = context.node_config.get(ENCRYPTION, "none")
    if value not in ("none", "neighbors"):
        raise ConfigError(
            f"node config: '{ENCRYPTION}' must be 'none' or 'neighbors', got {value!r}"
        )
    if value == "neighbors" and MESH not in context.node_config:
        raise ConfigError(
            f"node config: {ENCRYPTION}='neighbors' needs {MESH}='…', the node's directory of the "
            "mesh"
        )
    return bool(value == "neighbors")


def check_segment(instruction: Instruction, context: Context) -> None:
    """Refuse direct rounds that would tell of parameters what only neighbors may have.

    Between neighbors their connections are encrypted. Raises ConfigError.
    """
    segment = instruction.segment
    tells = instruction.report or (segment is not None and bool(segment.measured))
    if tells and (wants_encryption(context) or instruction.encryption != "none"):
        raise ConfigError("parameters are asked for, and they leave this node only sealed")


def protection(context: Context) -> Protect:
    """What becomes of payloads at this node, once an instruction is there."""
    return partial(_protect, context)


def _protect(context: Context, instruction: Instruction, store: Store) -> Sealing | None:
    if instruction.encryption == "none":
        if wants_encryption(context):
            raise ConfigError(
                f"this node's config says {ENCRYPTION}='neighbors', and this run's payloads would "
                'leave it as they are; set encryption = "neighbors" in the run config, or '
                'ServerlessStrategy(..., encryption="neighbors")'
            )
        return None
    keys = node_keys(context)
    if keys is None:
        raise ConfigError(
            f"this run's payloads are sealed for the neighbors, which needs {MESH}='…' in the node "
            "config: the node's directory as 'flower-dhb mesh' writes it"
        )
    from flower_dhb.site.sealing import Sealer

    try:
        secret = store.secret()
    except OSError as error:
        raise ConfigError(f"the node's secret of this run cannot be kept: {error}") from None
    return Sealer(keys, instruction.run, secret, instruction.announcements)
