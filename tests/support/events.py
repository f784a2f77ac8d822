"""What the peers' code told its log, as events with their fields."""

from __future__ import annotations

import logging
from typing import Any

from flower_dhb.peer.monitor import LOGGER


class Events(logging.Handler):
    """Collects events while it is used as a context; what was set up before is put back."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, str, dict[str, Any]]] = []  # level, name, fields

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(getattr(record, "fields", {}))
        self.all.append((record.levelname.lower(), record.getMessage(), fields))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for _, event, fields in self.all if event == name]

    def __enter__(self) -> Events:
        self._before = LOGGER.level, LOGGER.propagate, LOGGER.handlers[:]
        LOGGER.handlers[:] = [self]
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        LOGGER.level, LOGGER.propagate, LOGGER.handlers[:] = self._before
