"""What one check has found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Grade", "fine", "note", "wrong"]


class Grade(StrEnum):
    """How bad it is. A note is worth knowing; what is wrong keeps the device from its work."""

    FINE = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    subject: what was looked at, in few words. text: what it is like. remedy: what to do about it,
    whole sentences; empty if there is nothing to do.
    """

    grade: Grade
    subject: str
    text: str
    remedy: str = ""


def fine(subject: str, text: str) -> Finding:
    """Something that is as it should be."""
    return Finding(Grade.FINE, subject, text)


def note(subject: str, text: str, remedy: str = "") -> Finding:
    """Something that is worth knowing."""
    return Finding(Grade.NOTE, subject, text, remedy)


def wrong(subject: str, text: str, remedy: str) -> Finding:
    """Something that keeps the device from its work."""
    return Finding(Grade.WRONG, subject, text, remedy)
