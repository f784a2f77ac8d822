"""Values that several commands read in the same form."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flower_dhb.errors import ConfigError
from flower_dhb.files import flat

__all__ = ["AUTHORITY_DAYS", "DEVICE_DAYS", "check_days", "nested", "pairs", "read_settings"]

_PAIR = re.compile(r"""(\S+?)=('[^']*'|"[^"]*"|\S+)""")  # as Flower reads them

# As in peer/mesh/certificates, which is not loaded for the sake of a help text; a test compares.
AUTHORITY_DAYS, DEVICE_DAYS = 7300, 825


def check_days(days: int, option: str = "--days") -> None:
    """Raise ConfigError unless a certificate is valid for a day at least."""
    if not days >= 1:
        raise ConfigError(f"{option} must be at least 1, got {days}: no device would be let in")


def pairs(words: list[str], option: str) -> dict[str, Any]:
    """`KEY=VALUE` with values of TOML; a value that is none is a text. Raises ConfigError."""
    values: dict[str, Any] = {}
    for word in words:
        key, mark, text = word.partition("=")
        if not mark:
            raise ConfigError(f"{option}: expected KEY=VALUE, got '{word}'")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Keys such as `timing.ceiling-s` as tables."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        table, _, name = key.rpartition(".")
        (found.setdefault(table, {}) if table else found)[name] = value
    return found


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """All `--run-config` values as one flat mapping; later ones win.

    Each is pairs KEY=VALUE with TOML values, or the name of a TOML file. Raises ConfigError.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        where = f"--run-config {setting!r}"
        try:
            document = tomllib.loads(_toml(setting))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{where}: {why}") from None
        values |= flat(document, where)
    return values


def _toml(setting: str) -> str:
    if setting.endswith(".toml"):
        return Path(setting).expanduser().read_text(encoding="utf-8")
    if left := _PAIR.sub("", setting).strip():
        raise ValueError(f"{left!r} is neither KEY=VALUE nor a .toml file")
    for key, value in _PAIR.findall(setting):
        try:
            tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            raise ValueError(
                f"{value} is no TOML value; a text needs quotes: '{key}=\"…\"'"
            ) from None
    return "\n".join(f"{key} = {value}" for key, value in _PAIR.findall(setting))
