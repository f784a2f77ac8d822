"""What may leave a node, as whoever runs it has decided: the app has no say in it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError, PayloadError, unknown
from flower_dhb.types import Layout

__all__ = ["POLICY_KEYS", "Policy"]

_PREFIX = "policy-"  # of the keys of a node config, which is flat
_BLOCK = 2**16  # elements; a block's temporaries stay in the cache
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits that hold for every payload, report and metric of a node, whatever app it runs.

    An update is `δ = z − x`: what the app made of the parameters, and of the running statistics,
    that it was given. The node keeps and sends
    `x + δ · min(1, clip / ‖δ‖) + noise · clip · N(0, I)`, so whatever is computed from it later
    needs no more protection. Two clipped updates are at most `2 · clip` apart: a round is Gaussian
    local differential privacy whose standard deviation is `noise / 2` sensitivities.
    """

    clip: float | None = None
    """The longest update, as its L2 norm over all parameters and running statistics.

    Longer ones are shortened. Allowed: a number above 0.
    """
    noise: float = 0.0
    """Standard deviation of the Gaussian noise on each element of the update.

    It comes from the system's randomness, never from a seed. Needs `clip`. Unit: `clip`. Allowed: 0
    or more.
    """
    payload_bytes: int | None = None
    """The largest payload, or report of parameters, that leaves the node.

    Unit: bytes. Allowed: 1 or more.
    """
    metrics: tuple[str, ...] | None = None
    """The app's metrics that may leave the node.

    With this key an error of the app leaves by its type alone; its text stays in the node's log.
    Allowed: names; none of them, if the list is empty.
    """
    apps: tuple[str, ...] | None = None
    """SHA-256 digests of the apps that may run here, checked before their code is loaded.

    Allowed: 64 hexadecimal digits each.
    """
    installation: bool = True
    """Whether an app's dependencies may be installed when it is about to run.

    Allowed: true, false.
    """

    def __post_init__(self) -> None:
        for name in ("clip", "noise"):
            value = getattr(self, name)
            least = "above 0" if name == "clip" else "0 or more"
            number = isinstance(value, int | float) and not isinstance(value, bool)
            good = number and (0.0 < value < math.inf or (name == "noise" and value == 0.0))
            if not good and not (name == "clip" and value is None):
                raise ConfigError(f"policy: {name} must be a number, {least}, got {value!r}")
        if self.noise and self.clip is None:
            raise ConfigError(
                "policy: noise is measured in units of clip, since noise on an update of any "
                "length protects nothing; set clip too"
            )
        size = self.payload_bytes
        if size is not None and (type(size) is not int or size < 1):
            raise ConfigError(f"policy: payload-bytes must be an integer above 0, got {size!r}")
        for name in ("metrics", "apps"):
            texts = getattr(self, name)
            if texts is not None and not all(isinstance(text, str) for text in texts):
                raise ConfigError(f"policy: {name} must be a list of texts, got {texts!r}")
        for digest in self.apps or ():
            if not _DIGEST.fullmatch(digest):
                raise ConfigError(
                    f"policy: apps are SHA-256 digests of 64 hexadecimal digits, got {digest!r}"
                )
        if not isinstance(self.installation, bool):
            raise ConfigError(
                f"policy: installation must be true or false, got {self.installation!r}"
            )

    # --- where it is written ----------------------------------------------------------------

    @classmethod
    def of_table(cls, table: object) -> Policy:
        """The `[policy]` table of a `peer.toml`. Raises ConfigError."""
        if not isinstance(table, Mapping):
            raise ConfigError(f"[policy] must be a table, got {table!r}")
        values = dict(table)
        for key, value in values.items():
            if key not in POLICY_KEYS:
                raise ConfigError(unknown("key of [policy]", key, POLICY_KEYS))
            if key in ("metrics", "apps"):
                if not isinstance(value, list | tuple):
                    raise ConfigError(f"policy: {key} must be a list of texts, got {value!r}")
                values[key] = tuple(value)
        return cls(**{key.replace("-", "_"): value for key, value in values.items()})

    @classmethod
    def of_node_config(cls, config: Mapping[str, Any]) -> Policy:
        """The keys `policy-…` of a node config, lists as texts with commas. Raises ConfigError."""
        values: dict[str, Any] = {}
        for key, value in config.items():
            if not key.startswith(_PREFIX):
                continue
            name = key.removeprefix(_PREFIX)
            if name not in POLICY_KEYS:
                known = [_PREFIX + known for known in POLICY_KEYS]
                raise ConfigError(unknown("key of the node config", key, known))
            if name in ("metrics", "apps"):
                if not isinstance(value, str):
                    raise ConfigError(f"{key} must be a text, names with commas, got {value!r}")
                value = tuple(part for part in re.split(r"[\s,]+", value) if part)
            values[name.replace("-", "_")] = value
        return cls(**values)

    # --- what it says -----------------------------------------------------------------------

    @property
    def on(self) -> bool:
        """Whether anything is limited."""
        return self != Policy()

    def __str__(self) -> str:
        """What is limited, for the history; empty if nothing is."""
        parts = []
        if self.clip is not None:
            parts.append(f"clip {self.clip:g}")
        if self.noise:
            parts.append(f"noise {self.noise:g}")
        if self.payload_bytes is not None:
            parts.append(f"payloads of at most {self.payload_bytes} bytes")
        if self.metrics is not None:
            parts.append(f"metrics {', '.join(self.metrics) or 'none'}")
        if self.apps is not None:
            parts.append(f"{len(self.apps)} allowed app{'' if len(self.apps) == 1 else 's'}")
        if not self.installation:
            parts.append("no installation")
        return "; ".join(parts)

    # --- what it does -----------------------------------------------------------------------

    def bounded(
        self,
        layout: Layout,
        before: Sequence[NDArray[Any]],
        trained: Sequence[NDArray[Any]],
        draw: Callable[[int], NDArray[np.float64]],
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """What a node keeps and sends in place of what the app trained.

        before, trained: parameters `(d,)` and running statistics `(s,)`. draw: gives so many
        standard normal values, that nobody can foresee. An update that is short enough comes back
        as it is where there is no noise. Variances stay above 0. Raises PayloadError if the
        update has no finite length, or if it cannot be told which statistics are variances.
        """
        parameters, statistics = trained
        if self.clip is None:
            return parameters, statistics
        length = math.sqrt(sum(_squares(z, x) for z, x in zip(trained, before, strict=True)))
        if not math.isfinite(length):
            raise PayloadError("the update is too long to be clipped; take a smaller learning rate")
        factor = min(1.0, self.clip / length) if length > 0.0 else 1.0
        if factor == 1.0 and not self.noise:
            return parameters, statistics
        variances = _variances(layout) if self.noise and statistics.size else None
        sigma = self.noise * self.clip
        made = [_moved(x, z, factor, sigma, draw) for z, x in zip(trained, before, strict=True)]
        if variances is not None:
            np.maximum(made[1], 0, out=made[1], where=variances)
        return made[0], made[1]

    def check_payload(self, n_bytes: int, what: str) -> None:
        """Raise PayloadError if so many bytes may not leave the node."""
        if self.payload_bytes is not None and n_bytes > self.payload_bytes:
            raise PayloadError(
                f"{what} has {n_bytes} bytes, and this node's policy lets out {self.payload_bytes} "
                "at most; train a smaller model, or ask whoever runs the node"
            )

    def check_unasked(self) -> None:
        """Raise ConfigError if it should have been asked before the app was loaded."""
        if self.apps is not None or not self.installation:
            raise ConfigError(
                "this node's policy says which apps run, or that nothing is installed for them, "
                "and was not asked before this app was loaded; start the SuperNode with "
                "'flower-dhb supernode -- ...' in place of flower-supernode"
            )

    def lets_out(self, metric: str) -> bool:
        """Whether a metric of the app may leave the node."""
        return self.metrics is None or metric in self.metrics

    def check_app(self, digest: str) -> None:
        """Raise ConfigError unless an app with this digest may run here."""
        if self.apps is not None and digest not in self.apps:
            raise ConfigError(
                f"this node's policy does not allow the app with the digest {digest}; whoever runs "
                "the node can add it to the policy's apps"
            )


POLICY_KEYS = tuple(f.name.replace("_", "-") for f in fields(Policy))


def _blocks(size: int) -> list[slice]:
    return [slice(at, min(at + _BLOCK, size)) for at in range(0, size, _BLOCK)]


def _squares(trained: NDArray[Any], before: NDArray[Any]) -> float:
    total = 0.0
    for block in _blocks(trained.size):
        with np.errstate(over="ignore"):  # the sum says so
            moved = trained[block].astype(np.float64) - before[block]
            total += float(np.vdot(moved, moved))
    return total


def _moved(
    before: NDArray[Any],
    trained: NDArray[Any],
    factor: float,
    sigma: float,
    draw: Callable[[int], NDArray[np.float64]],
) -> NDArray[Any]:
    """`before + factor · (trained − before) + sigma · N(0, I)`, in double precision by block."""
    made = np.empty_like(trained)
    for block in _blocks(trained.size):
        x = before[block].astype(np.float64)
        z = x + factor * (trained[block] - x)
        if sigma:
            z += sigma * draw(z.size)
        made[block] = z
    return made


def _variances(layout: Layout) -> NDArray[np.bool_]:
    """Which elements of the running statistics are variances, by the names of their arrays."""
    pieces = []
    for entry in layout.entries:
        if entry.kind != "statistic":
            continue
        if entry.name.isdecimal():
            raise PayloadError(
                f"this node's policy adds noise, and array '{entry.name}' has a number for its "
                "name: it could be a variance, which must not become negative. Give the app's "
                "arrays their names"
            )
        pieces.append(np.full(entry.size, "var" in entry.name.lower()))
    return np.concatenate(pieces)
