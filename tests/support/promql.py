"""As much of Prometheus's language as deploy/alerts.yml uses, over the metrics of one moment.

Anything else is a SyntaxError: then either the rule is wrong, or this has to learn more.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<name>[a-zA-Z_]\w*)|(?P<text>"[^"]*")"""
    r"""|(?P<range>\[\d+[smhd]\])|(?P<sign>==|>=|<=|[<>(){},/=-]))"""
)
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "==": operator.eq, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "/": operator.truediv, "-": operator.sub,
}  # fmt: skip


class Moment:
    """Samples by name: labels and value. at: when they were taken. before: those of earlier."""

    def __init__(
        self,
        samples: Iterable[tuple[str, Mapping[str, str], float]],
        at: float,
        before: Moment | None = None,
    ) -> None:
        self.at, self.before = at, before
        self.named: dict[str, Vector] = {}
        for name, labels, value in samples:
            self.named.setdefault(name, {})[frozenset(labels.items())] = value

    def ask(self, text: str) -> list[tuple[dict[str, str], float]]:
        """What an expression finds: labels and value."""
        reading = _Reading(text, self)
        found = reading.expression()
        reading.expect("")
        return [(dict(labels), value) for labels, value in found.items()]


class _Reading:
    def __init__(self, text: str, moment: Moment) -> None:
        self._moment, self._tokens, at = moment, list[str](), 0
        text = text.strip()
        while at < len(text):
            token = _TOKEN.match(text, at)
            if token is None:
                raise SyntaxError(text[at:])
            self._tokens.append(token[0].strip())
            at = token.end()
        self._tokens.append("")

    def _is(self, *words: str) -> bool:
        return self._tokens[0] in words

    def _next(self) -> str:
        return self._tokens.pop(0)

    def expect(self, word: str) -> None:
        found = self._next()
        if found != word:
            raise SyntaxError(f"expected '{word}', found '{found}'")

    def expression(self) -> Vector:
        left = self._comparison()
        while self._is("and"):
            self._next()
            on = None
            if self._is("on"):
                self._next()
                on = self._names()
            right = {_only(labels, on) for labels in self._comparison()}
            left = {labels: v for labels, v in left.items() if _only(labels, on) in right}
        return left

    def _comparison(self) -> Vector:
        left = self._arithmetic()
        if not self._is(*_COMPARE):
            return left
        holds, limit = _COMPARE[self._next()], float(self._next())
        return {labels: value for labels, value in left.items() if holds(value, limit)}

    def _arithmetic(self) -> Vector:
        left = self._term()
        while self._is(*_ARITHMETIC):
            sign = _ARITHMETIC[self._next()]
            right = self._term()
            left = {
                labels: sign(value, right[labels]) if right[labels] or sign is operator.sub
                else float("nan")
                for labels, value in left.items()
                if labels in right
            }  # fmt: skip
        return left

    def _term(self) -> Vector:
        name = self._next()
        if name == "max":
            self.expect("by")
            by = self._names()
            grouped: Vector = {}
            for labels, value in self._inner().items():
                group = _only(labels, by)
                grouped[group] = max(value, grouped.get(group, value))
            return grouped
        if name == "abs":
            return {labels: abs(value) for labels, value in self._inner().items()}
        if name == "timestamp":
            return dict.fromkeys(self._inner(), self._moment.at)
        if name == "increase":
            return self._increase()
        return self._selected(name)

    def _inner(self) -> Vector:
        self.expect("(")
        found = self.expression()
        self.expect(")")
        return found

    def _increase(self) -> Vector:
        self.expect("(")
        name, tokens = self._next(), list(self._tokens)
        now = self._selected(name)
        earlier: Vector = {}
        if self._moment.before is not None:
            again = _Reading("", self._moment.before)
            again._tokens = tokens
            earlier = again._selected(name)
        if not re.fullmatch(r"\[\d+[smhd]\]", self._next()):
            raise SyntaxError("increase needs a range")
        self.expect(")")
        return {labels: value - earlier.get(labels, value) for labels, value in now.items()}

    def _selected(self, name: str) -> Vector:
        if not re.fullmatch(r"[a-zA-Z_]\w*", name):
            raise SyntaxError(f"expected the name of a metric, found '{name}'")
        wanted = set()
        if self._is("{"):
            self._next()
            while not self._is("}"):
                label = self._next()
                self.expect("=")
                wanted.add((label, self._next().strip('"')))
                if self._is(","):
                    self._next()
            self._next()
        found = self._moment.named[name]  # KeyError: there is no such metric
        return {labels: value for labels, value in found.items() if wanted <= labels}

    def _names(self) -> list[str]:
        self.expect("(")
        names = [self._next()]
        while self._is(","):
            self._next()
            names.append(self._next())
        self.expect(")")
        return names


def _only(labels: Labels, names: list[str] | None) -> Labels:
    return labels if names is None else frozenset(x for x in labels if x[0] in names)
