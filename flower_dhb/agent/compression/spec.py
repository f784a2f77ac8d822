"""The words for a compression, such as `int8` or `topk:0.1+int4`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final

from flower_dhb.errors import ConfigError

__all__ = ["FORMS", "NONE", "Compression"]

VALUES: Final = ("bf16", "int8", "int4")
# What each is called, and what it does.
FORMS: Final = {
    "none": "payloads as they are",
    "bf16": "half the bytes",
    "int8": "a quarter of the bytes",
    "int4": "an eighth of the bytes",
    "topk:SHARE": "the largest of the changes since the last payload",
    "randk:SHARE": "some of the parameters, others in each round",
    "lowrank:RANK": "changes of weight matrices as products of narrow ones",
}
_WHOLE: Final = "whole"
_SPARSE, _LOW_RANK = ("topk", "randk"), "lowrank"
_MOST_RANK = 64


@dataclass(frozen=True)
class Compression:
    """How payloads are compressed.

    select : str
        `all`, `topk`, `randk` or `lowrank`: which numbers are sent.
    amount : float
        The share of the parameters in (0, 1) for `topk` and `randk`, the rank for `lowrank`,
        0 for `all`.
    values : str
        `float` (as in the payload), `bf16`, `int8` or `int4`: how each number is sent.
    rate : float
        `c` in `p_i + c sum_j W[i, j] (h_j - h_i)`, in (0, 1]: how far an agent follows what it
        knows of its neighbors. Compression that tells little needs a small one (CHOCO-SGD's
        consensus step size; Koloskova, Stich & Jaggi, ICML 2019, arXiv 1902.00340).
    changes : bool
        Whether changes since the last payload are sent, which both ends of an edge must hold, or
        the numbers themselves. `topk`, `randk` and `lowrank` send changes.

    Raises ConfigError for what does not exist.
    """

    select: str = "all"
    amount: float = 0.0
    values: str = "float"
    rate: float = 1.0
    changes: bool = True

    def __post_init__(self) -> None:
        if self.values not in ("float", *VALUES):
            raise ConfigError(f"compression: values must be float, {', '.join(VALUES)}")
        if self.select in _SPARSE:
            if not 0.0 < self.amount < 1.0:
                raise ConfigError(
                    f"compression '{self.select}': its share must be a number in (0, 1), got "
                    f"{self.amount:g}"
                )
        elif self.select == _LOW_RANK:
            if not (1 <= self.amount <= _MOST_RANK and self.amount == int(self.amount)):
                raise ConfigError(
                    f"compression 'lowrank': its rank must be an integer from 1 to {_MOST_RANK}, "
                    f"got {self.amount:g}"
                )
        elif self.select != "all":
            raise ConfigError(_unknown(self.select))
        if self.select != "all" and not self.changes:
            raise ConfigError(f"compression '{self.select}' sends changes, and nothing else")
        if not 0.0 < self.rate <= 1.0:
            raise ConfigError(f"compression '{self}': its rate must be in (0, 1], got {self.rate}")

    @classmethod
    def parse(cls, text: str | Compression) -> Compression:
        """`none`, `bf16`, `int8`, `int4`, or `topk:SHARE`, `randk:SHARE`, `lowrank:RANK`.

        To the last three, values may be added, `topk:0.1+int8`, and to all a rate, `topk:0.1@0.3`.
        `int8:whole`, and so on, sends numbers in place of their changes.

        Raises ConfigError that names the nearest known form.
        """
        if isinstance(text, Compression):
            return text
        if not isinstance(text, str):
            raise ConfigError(f"compression must be a text such as 'int8', got {text!r}")
        words, at, rate = text.strip().partition("@")
        what, plus, values = words.partition("+")
        kind, colon, amount = what.partition(":")
        if kind in ("none", *VALUES):
            if plus or (kind == "none" and (at or colon)) or (colon and amount != _WHOLE):
                also = "" if kind == "none" else f" or {kind}:{_WHOLE}"
                raise ConfigError(f"compression '{text}' is not of the form {kind}{also}")
            values = "float" if kind == "none" else kind
            return cls("all", 0.0, values, _number(text, rate) if at else 1.0, not colon)
        if kind not in (*_SPARSE, _LOW_RANK):
            raise ConfigError(_unknown(what))
        if not colon or (plus and values not in VALUES):
            form = next(form for form in FORMS if form.startswith(kind))
            raise ConfigError(
                f"compression '{text}' is not of the form {form}, to which +{', +'.join(VALUES)} "
                "may be added, as in topk:0.1+int8"
            )
        number = _number(text, amount)
        usual = _usual_rate(kind, number)
        return cls(kind, number, values or "float", _number(text, rate) if at else usual)

    def __str__(self) -> str:
        if self.select == "all":
            text = "none" if self.values == "float" else self.values
            text += "" if self.changes else f":{_WHOLE}"
            usual = 1.0
        else:
            text = f"{self.select}:{self.amount:g}"
            text += "" if self.values == "float" else f"+{self.values}"
            usual = _usual_rate(self.select, self.amount)
        return text if self.rate == usual else f"{text}@{self.rate:g}"

    @property
    def on(self) -> bool:
        """Whether anything is compressed."""
        return self != NONE

    @property
    def estimates(self) -> bool:
        """Whether a payload is sent as a change of the one before, which both ends must hold."""
        return self.changes and self.on

    @property
    def without_changes(self) -> Compression:
        """The same of the numbers themselves. Raises ConfigError where there is no such thing."""
        return replace(self, changes=False) if self.on else self


def _usual_rate(kind: str, amount: float) -> float:
    if kind == "topk":
        return min(1.0, round(2.0 * amount, 9))
    return 1.0 if kind == "randk" else 0.3


def _number(text: str, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"compression '{text}': '{word}' is not a number")
    return number


def _unknown(what: str) -> str:
    known = [form.partition(":")[0] for form in FORMS]
    near = get_close_matches(what.partition(":")[0], known, n=1)
    hint = f", did you mean '{near[0]}'?" if near else "."
    return f"unknown compression '{what}'{hint} Known are {', '.join(FORMS)}"


NONE: Final = Compression()
