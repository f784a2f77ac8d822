"""The JSON document of a message, each value held against its type and range.

A document comes from another machine. Whatever is in it, reading it raises nothing but
PayloadError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from flower_dhb.errors import PayloadError

__all__ = ["MOST", "Fields"]

MOST = 2**53  # integers up to here are the same in every JSON reader
_LIMIT_TEXT = 20_000  # characters of one text; an error with its traceback is shorter
_LIMIT_TEXTS = 4096  # texts in a list; an agent has fewer neighbors than that


class Fields:
    """A document, read field by field."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    @classmethod
    def parse(cls, text: object, *, limit: int) -> Fields:
        """The document that a text holds; at most `limit` characters are read."""
        if type(text) is not str:
            raise PayloadError(f"unreadable message: its document is {_kind(text)}, expected text")
        if len(text) > limit:
            raise PayloadError(
                f"unreadable message: its document has {len(text)} characters, at most {limit} "
                "are read"
            )
        try:
            values = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"unreadable message: {_first_line(error)}") from None
        if type(values) is not dict:
            raise PayloadError(f"unreadable message: its document is {_kind(values)}")
        return cls(values)

    @classmethod
    def of(cls, document: object) -> Fields:
        """What a document holds that lies in another one."""
        if type(document) is not dict:
            raise PayloadError(f"unreadable message: a part of its document is {_kind(document)}")
        return cls(document)

    def part(self, name: str) -> Fields | None:
        """A document that lies in this one, None if there is none."""
        return Fields.of(self._values[name]) if name in self._values else None

    def get(self, name: str) -> Any:
        """A value as it is. Raises PayloadError if there is none."""
        if name not in self._values:
            raise PayloadError(f"unreadable message: it lacks '{name}'")
        return self._values[name]

    def integer(self, name: str, low: int, high: int = MOST) -> int:
        """An integer in [low, high]."""
        return _integer(name, self.get(name), low, high)

    def number(self, name: str, low: float, high: float) -> float:
        """A finite number in [low, high]."""
        value = self.get(name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise PayloadError(
                f"unreadable message: '{name}' is {_kind(value)}, expected a number in "
                f"[{low:g}, {high:g}]"
            )
        return float(value)

    def integers(self, name: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """At most so many integers in [low, high]."""
        value = self.get(name)
        if type(value) is not list or len(value) > most:
            raise PayloadError(
                f"unreadable message: '{name}' is {_kind(value)}, expected at most {most} integers"
            )
        return tuple(_integer(name, number, low, high) for number in value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if type(value) is not bool:
            raise PayloadError(f"unreadable message: '{name}' is {_kind(value)}, expected a flag")
        return value

    def text(self, name: str) -> str:
        """A text. The end of one that is very long is left out."""
        return _text(name, self.get(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(_text(name, text) for text in self._list(name, "texts"))

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Either none or so many finite numbers."""
        found = self._list(name, "numbers")
        fits = all(type(x) in (int, float) and abs(x) <= MOST for x in found)  # type: ignore[arg-type]
        if not fits or len(found) not in (0, count):
            raise PayloadError(
                f"unreadable message: '{name}' is a list of {len(found)}, expected {count} numbers"
            )
        return tuple(float(x) for x in found)  # type: ignore[arg-type]

    def vertices(self, name: str) -> tuple[int, ...]:
        """A list of vertices."""
        found = self._list(name, "vertices")
        return tuple(_integer(name, vertex, 0, MOST) for vertex in found)

    def documents(self, name: str) -> list[object]:
        """A list of what has to be read itself."""
        return self._list(name, "documents")

    def _list(self, name: str, what: str) -> list[object]:
        value = self.get(name)
        if type(value) is not list or len(value) > _LIMIT_TEXTS:
            raise PayloadError(
                f"unreadable message: '{name}' is {_kind(value)}, expected at most "
                f"{_LIMIT_TEXTS} {what}"
            )
        return value

    def texts_by_vertex(self, name: str) -> dict[int, str]:
        """A text for each of some vertices."""
        return {
            _integer(name, vertex, 0, MOST): _text(name, text)
            for vertex, text in _pairs(name, self._list(name, "pairs"))
        }

    def choice(self, name: str, choices: Collection[str]) -> str:
        """One of some texts."""
        value = self.text(name)
        if value not in choices:
            raise PayloadError(
                f"unreadable message: '{name}' is {value[:50]!r}, expected one of "
                f"{', '.join(choices)}"
            )
        return value

    def rounds(self, name: str) -> dict[int, int]:
        """A round for each of some vertices."""
        value = self.get(name)
        if type(value) is not list:
            raise PayloadError(f"unreadable message: '{name}' is {_kind(value)}")
        return {
            _integer(name, vertex, 0, MOST): _integer(name, number, 0, MOST)
            for vertex, number in _pairs(name, value)
        }

    def weights(self, name: str) -> dict[int, float]:
        """A mixing weight for each of some vertices."""
        value = self.get(name)
        if type(value) is not list:
            raise PayloadError(f"unreadable message: '{name}' is {_kind(value)}")
        found: dict[int, float] = {}
        for vertex, weight in _pairs(name, value):
            if type(weight) not in (int, float) or not abs(weight) <= 1e6:
                raise PayloadError(
                    f"unreadable message: '{name}' of vertex {vertex!r} is {_kind(weight)}, "
                    "expected a finite number"
                )
            found[_integer(name, vertex, 0, MOST)] = float(weight)
        return found


def _integer(name: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        found = value if type(value) is int and value.bit_length() < 100 else _kind(value)
        raise PayloadError(
            f"unreadable message: '{name}' is {found}, expected an integer in [{low}, {high}]"
        )
    return value


def _text(name: str, value: object) -> str:
    if type(value) is not str:
        raise PayloadError(f"unreadable message: '{name}' is {_kind(value)}, expected text")
    if len(value) > _LIMIT_TEXT:
        return f"{value[:_LIMIT_TEXT]} … ({len(value) - _LIMIT_TEXT} more characters)"
    return value


def _pairs(name: str, values: list[Any]) -> list[tuple[Any, Any]]:
    pairs = []
    for value in values:
        if type(value) is not list or len(value) != 2:
            raise PayloadError(
                f"unreadable message: '{name}' holds {_kind(value)}, expected a vertex and a value"
            )
        pairs.append((value[0], value[1]))
    return pairs


def _kind(value: object) -> str:
    """How messages name a value that may be of any size."""
    if value is None or type(value) is bool:
        return str(value)
    if type(value) is float and not math.isfinite(value):
        return str(value)
    return f"of type {type(value).__name__}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
