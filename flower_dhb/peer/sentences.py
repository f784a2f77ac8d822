"""What each event of a peer's log says, as one sentence; the only place for these texts.

In a sentence `{round}` is a field of the event, and `{why!q}` a text that somebody else wrote,
which is put in quotation marks. A part in `[…]` is left out where one of its fields is missing
or empty. How a field is written follows from its name: `neighbor` and `neighbors` are vertices
with the names that the graph gives them, and what ends in `_s` is a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["SAID_BY_WHY", "SENTENCES", "fields_of", "in_words", "sentence"]

SENTENCES: Mapping[str, str] = {
    # --- begin and end ---
    "begins": "takes part in mesh {mesh} (run {run}) with flower_dhb {version}, app {app}"
    "[, listening on {listen}][, dialing {dials}][; resumes after round {resumes_after}]"
    "[; {begins_how}], until round {rounds}[; payloads compressed by {compression}]"
    "[; its policy: {policy}]",
    "ends": "ends: {how} (status {status})[, after round {round} of {rounds}]"
    "[, model in {model}][, after {duration_s}][; {why}]",
    "resumed": "goes on from its disk after round {round}",
    "finished": "the last round, {round}, is over; the model is written"
    "[, but no neighbor has had a part since round {alone_since}]"
    "[; the mesh has this device no more: {removed}]",
    # --- waiting ---
    "waits": "{what} since {since_s}[, for {neighbors}][: {why}]",
    "waits-for-certificate": "waits for a certificate that is valid: {why}",
    "certificate-valid": "the certificate is valid now[, after {after_s}]: the peer begins",
    # --- rounds ---
    "round": "round {round} is over in {seconds}: trained {train_s}, waited {wait_s}"
    "[; without {missing}][; {metrics}]",
    "caught-up": "what it trained as round {trained_as} counts as round {round}, in which its "
    "neighbors are",
    "rejoined": "is {missed} rounds behind: takes the model of {neighbors} and goes on from round "
    "{round}",
    "alone": "no neighbor has a part any more[, the last time in round {since}]: trains alone",
    "app-failed": "the app failed in round {round}: {why!q}",
    "starting-without": "begins without {neighbors}: not connected within the time to start",
    "epoch": "begins its memory anew from round {round}, so that what the rule conserves is right",
    # --- the mesh ---
    "edition": "knows edition {edition} of the mesh, for rounds from {begins} on; the run has "
    "{rounds} rounds",
    "goes-on": "the run goes on to round {rounds}: this peer takes part again",
    "edge-gone": "the mesh has no edge to {neighbor} any more; rounds of it that are not settled: "
    "{unsettled}",
    # --- neighbors ---
    "connected": "connected to {neighbor}, which is in round {round}[, after {after_s} without it]",
    "parted": "the connection to {neighbor} has ended: {why}",
    "goodbye": "{neighbor} says goodbye ({done}): {why!q}",
    "unreachable": "cannot reach {neighbor}[ at {address}]: {why}",
    "disconnected": "lost {neighbor}: {why}; dials it again",
    "cut-off": "cut {neighbor} off: {why}",
    "refused": "refused what {neighbor} sent[ ({reason})]: {why!q}",
    "refused-by-app": "the app's mod refused a payload that had counted: {why}",
    "refused-there": "{neighbor} refused what was sent[ ({reason})]: {why!q}",
    "differs": "{neighbor} differs, and may: {why!q}",
    "software": "{neighbor} runs flower_dhb {there}, this device {here}",
    "two-devices": "{why}",
    "quarantined": "what {neighbor} sends is not used until round {until_round}: three of its "
    "payloads in a row were absurd",
    "slow-link": "a payload of {bytes} from {neighbor} comes at {bytes_per_second} bytes a second "
    "and needs {needs_s}, but a round takes {ceiling_s} at most: {remedy}",
    "one-sided": "the edge to {neighbor} counted at one end only, in rounds {rounds}: a failure "
    "came between two acknowledgments",
    # --- strangers ---
    "turned-away": "turned somebody away ({reason}): {why!q}",
    "few-descriptors": "{why}",
    # --- the operator ---
    "bulletin": "has a new bulletin of the operator, {kind} {number}, from {source}",
    "bulletin-refused": "refused a bulletin[ from {source}] ({reason}): {why!q}",
    "bulletin-failed": "cannot do what the bulletin {kind} {number} says: {why!q}, in {where}",
    "asked-to-stop": "{by} stops this peer in round {round}",
    "fetched": "the operator fetches its {what}",
    # --- files ---
    "certificate-renewed": "uses its new key and certificate from the next connection on",
    "certificate-not-renewed": "the new key and certificate cannot be used yet, so the old ones "
    "stay: {why}",
    "certificate-installed": "has made a new key; the operator's certificate for it, {serial}, is "
    "valid until {ends}",
    "certificate-ends": "its {what} ends in {days_left} days, on {ends}: {what_now}",
    "damaged": "a file of the state is damaged and passed over: {why}",
    "state-set-aside": "no file of the state can be used; they are kept in {kept_in}, and the "
    "peer begins again from its neighbors: {why}",
    "state-directory-made-anew": "the state directory was gone, and has been made again",
    "disk-failed": "the disk takes nothing[ in {file}]: {why}; {what_now}",
    "disk-writes-again": "the disk takes what is written again[, after {after_s}]",
    # --- defects and libraries ---
    "reader-failed": "what {neighbor} sent has found a defect in {where}: {why!q}; please report "
    "it. The connection is dropped, the run goes on",
    "native": "gRPC says {why!q}",
}

# What a reason in words says as well.
SAID_BY_WHY = frozenset(("neighbor", "round", "part"))

_PART = re.compile(r"\[([^\[\]]*)\]")
_FIELD = re.compile(r"\{(\w+)(!q)?\}")
_VERTICES = ("neighbor", "neighbors", "missing", "dials")
# What the protocol says in one word.
_CAUSES = {
    ("cut-off", "silent"): "it said nothing for longer than 'limits.dead-after-s'",
    ("cut-off", "half-open"): "the connection stood, and no Hello came on it in time",
    ("cut-off", "slow-sender"): "a payload of its stopped, or was slower than "
    "'limits.least-bytes-s'",
    ("cut-off", "no-payload"): "it was asked for its model and sent none",
    ("cut-off", "flood of frames"): "it sent more short messages than 'limits.frames' allows",
    ("cut-off", "too many refusals"): "too much of what it sent was refused ('limits.refusals')",
    ("goodbye", "True"): "its last round is over",
    ("goodbye", "False"): "its run is not over",
    ("parted", "cancelled"): "the stream was cancelled, by this end or with its connection",
}


def fields_of(template: str) -> set[str]:
    """The fields that a sentence has a place for."""
    return {name for name, _ in _FIELD.findall(template)}


def sentence(
    event: str, fields: Mapping[str, Any], names: Mapping[int, str] | None = None
) -> str | None:
    """What an event says in words, None for one that has no sentence.

    names: of vertices. What the fields hold beyond the sentence is not in it.
    """
    template = SENTENCES.get(event)
    if template is None:
        return None

    def written(match: re.Match[str]) -> str:
        name, quoted = match.groups()
        text = _written(event, name, fields.get(name, "?"), names or {})
        return json.dumps(text, ensure_ascii=False) if quoted else text

    def part(match: re.Match[str]) -> str:
        present = (fields.get(name) not in (None, "", [], {}) for name in fields_of(match[1]))
        return match[1] if all(present) else ""

    return _FIELD.sub(written, _PART.sub(part, template))


def _written(event: str, name: str, value: Any, names: Mapping[int, str]) -> str:
    if name in _VERTICES:
        return _vertices(value if isinstance(value, list | tuple) else [value], names)
    if name == "metrics" and isinstance(value, Mapping):
        return ", ".join(f"{key} {number:.4g}" for key, number in value.items())
    if (name == "seconds" or name.endswith("_s")) and isinstance(value, int | float):
        return in_words(value)
    if name == "bytes" and isinstance(value, int):
        return f"{value:,} bytes"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return _CAUSES.get((event, str(value)), str(value))


def _vertices(vertices: list[Any] | tuple[Any, ...], names: Mapping[int, str]) -> str:
    called = [f"{v} ({names[v]})" if v in names else str(v) for v in vertices]
    *first, last = called or ["nobody"]
    if not first:
        return f"vertex {last}" if vertices and vertices[0] != "?" else "somebody"
    return f"vertices {', '.join(first)} and {last}"


_UNITS: tuple[tuple[str, int], ...] = (("d", 86400), ("h", 3600), ("min", 60))


def in_words(seconds: float) -> str:
    """A time as people say it: `3 h 20 min`, `45 s`, `0.031 s`."""
    if seconds < 60.0:
        return f"{seconds:.3g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    left, parts = round(seconds), []
    for unit, size in _UNITS:
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {unit}")
        elif parts:
            break
    if len(parts) == 1 and parts[0].endswith(" min") and left:
        parts.append(f"{left} s")
    return " ".join(parts[:2])
