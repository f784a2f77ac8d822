"""From the log of a Flower run to what its user wants to see: no input, no output, no clock.

A log holds what the app prints and logs, in the ServerApp and in the agents' processes, and
beside it what Flower and Ray say of themselves, which nobody asked for.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

__all__ = ["Failure", "Line", "Round", "RunLog", "without_colors"]

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_SOURCE = re.compile(r"^\((?P<name>\w+) pid=(?P<pid>\d+)(?:, ip=[\d.]+)?\) ?")
_REPEATED = re.compile(r" ?\[repeated (\d+)x across cluster\].*$")
_LEVEL = re.compile(r"^(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) ?: *")
_NOISE = re.compile(
    r"Using SuperLink: |Starting logstream for run_id |Starting Flower Simulation$"
    r"|Since flwr 1\.\d+, default simulated|Federation `.*` \(\d+ simulated SuperNodes\)"
    r"|Start `flwr-\w+` process$|ServerApp raised an exception$"
    r"|An unhandled exception occurred in the ServerApp|To change federation size, use"
    r"|Successfully installed \S+ to |Manually terminating Client"
    r"|Exit Code: \d+$|An unhandled exception occurred when running the simulation"
    r"|For more information, visit: <https://flower|Simulation raised an exception"
    r"|An exception occurred !! |An error was encountered\. Ending simulation"
    r"|agent \d+, round \d+: \w+(Error|Exception): "  # the strategy tells it, too
)
# How Flower's strategies tell what they do; ours tells its rounds in `_OURS`.
_CHATTER = re.compile(
    r"\t|Starting \w+ (strategy:|over \d+ rounds)|(configure|aggregate)_\w+: "
    r"|\[(INIT|ROUND \d+(/\d+)?|SUMMARY)\]$|Strategy execution finished in |Final results:$"
)
_OURS = re.compile(r"round \d+/\d+ ")
_FLOWERS_ROUND = re.compile(r"\[ROUND (\d+)(?:/(\d+))?\]$")
_FLOWERS_METRICS = re.compile(r"\t└──> Aggregated MetricRecord: (\{.*\})$")
_FLOWERS_END = re.compile(r"Strategy execution finished in |\[SUMMARY\]$")
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)$')
_OUTER = "RuntimeError: An error was encountered. Ending simulation."
_ALIKE = 3


@dataclass(frozen=True, kw_only=True)
class Line:
    """Something to show. kind: `said`, `trouble`, or `round`, where a round is told in words."""

    text: str
    kind: str = "said"


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round of one of Flower's own strategies. total: 0 if it is not known."""

    number: int
    total: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The end of a traceback: the error, and the last place in the app's own files."""

    error: str
    where: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"{self.error} ({self.where})" if self.where else self.error


@dataclass
class RunLog:
    """Reads a run's log line by line.

    apps: part of the path of the app's own files, where Flower installs apps. failure: the
    last error that the ServerApp's side showed.
    """

    apps: str = "/apps/"
    failure: Failure | None = None
    _tracebacks: dict[str, list[str]] = field(default_factory=dict)
    _round: Round | None = None
    _alike: Counter[str] = field(default_factory=Counter)

    def feed(self, line: str) -> Iterator[Line | Round]:
        """What one line of the log says."""
        line = without_colors(line)
        source, line, more = _split_source(line)
        if line.strip().endswith("Traceback (most recent call last):"):
            self._tracebacks[source] = []
            return
        if source in self._tracebacks:
            if not line or line.startswith(" "):
                self._tracebacks[source].append(line)
                return
            yield from self._end_of_traceback(source, line)
            return
        match = _LEVEL.match(line)
        text = line[match.end() :] if match else line
        if not text.strip() or _NOISE.match(text.strip()):
            return
        if match and match["level"] == "INFO" and not source:
            yield from self._flowers(text)
            if _CHATTER.match(text):
                return
            kind = "round" if _OURS.match(text) else "said"
            yield Line(text=text, kind=kind)
            return
        text = f"{'agents: ' if source else ''}{text}{more}"
        if match and match["level"] in ("WARNING", "ERROR", "CRITICAL"):
            yield from self._trouble(text)
        else:
            yield Line(text=text)

    def end(self) -> Iterator[Line | Round]:
        """What is left when the log has ended."""
        yield from self._close_round()
        left = sum(max(0, count - _ALIKE) for count in self._alike.values())
        if left:
            yield Line(text=f"{left} more lines like those above: --verbose", kind="trouble")

    def _flowers(self, text: str) -> Iterator[Round]:
        """Rounds of Flower's own strategies, each when it is over."""
        if match := _FLOWERS_ROUND.match(text):
            yield from self._close_round()
            self._round = Round(number=int(match[1]), total=int(match[2] or 0))
        elif self._round is not None and (match := _FLOWERS_METRICS.match(text)):
            self._round.metrics.update(_numbers(match[1]))
        elif _FLOWERS_END.match(text):
            yield from self._close_round()

    def _close_round(self) -> Iterator[Round]:
        if self._round is not None:
            yield self._round
        self._round = None

    def _end_of_traceback(self, source: str, line: str) -> Iterator[Line]:
        frames = [m for text in self._tracebacks.pop(source) if (m := _FRAME.match(text))]
        # A chain: the next traceback tells what came of this one.
        failure = Failure(error=line, where=self._where(frames))
        if source:
            yield from self._trouble(f"agents: {failure}")
        elif line != _OUTER:
            self.failure = failure

    def _where(self, frames: list[re.Match[str]]) -> str:
        """The last frame in the app's own files, with the path that its user knows."""
        own = [frame for frame in frames if self.apps in frame["file"]]
        if not own:
            return ""
        file = PurePath(own[-1]["file"].split(self.apps, 1)[1])
        return f"{'/'.join(file.parts[1:])}, line {own[-1]['line']}, in {own[-1]['name']}"

    def _trouble(self, text: str) -> Iterator[Line]:
        """A warning or an error, unless enough of its kind have been shown."""
        kind = re.sub(r"\d+", "#", text)
        self._alike[kind] += 1
        if self._alike[kind] <= _ALIKE:
            yield Line(text=text, kind="trouble")


def without_colors(line: str) -> str:
    """A line of a log as it is read in a file."""
    return _ANSI.sub("", line).rstrip()


def _split_source(line: str) -> tuple[str, str, str]:
    """The process that a line is of (empty: the ServerApp's), the line, and how often it came."""
    match = _SOURCE.match(line)
    if match is None:
        return "", line, ""
    line, more = line[match.end() :], ""
    if repeated := _REPEATED.search(line):
        line, more = line[: repeated.start()], f" ({repeated[1]} more like it)"
    return f"{match['name']} {match['pid']}", line, more


def _numbers(text: str) -> dict[str, float]:
    try:
        found = ast.literal_eval(re.sub(r": (nan|-?inf)\b", ": None", text))
    except (ValueError, SyntaxError):
        return {}
    return {str(n): float(v) for n, v in found.items() if isinstance(v, int | float)}
