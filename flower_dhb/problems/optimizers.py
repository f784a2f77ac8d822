"""Words for how an agent trains between two exchanges: its optimizer and its learning rates.

The same words mean the same in the engine, in the app and in comparisons. Only `make`
loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flower_dhb.errors import ConfigError, unknown

if TYPE_CHECKING:
    import torch

__all__ = ["OPTIMIZERS", "SCHEDULES", "LocalOptimizer", "Schedule"]

# What may be written for an optimizer: its settings where nothing else is said, those of
# torch.optim. The first is the one that a bare number after the colon sets.
OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {"weight-decay": 0.0},
    "momentum": {"momentum": 0.9, "weight-decay": 0.0},
    "nesterov": {"momentum": 0.9, "weight-decay": 0.0},
    "adam": {"weight-decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "adamw": {"weight-decay": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
}

# What may be written for a schedule, with the form of each.
SCHEDULES = {
    "constant": "constant",
    "cosine": "cosine or cosine:LAST",
    "linear": "linear or linear:LAST",
    "step": "step:FACTOR@ROUND,ROUND or step:FACTOR@50%,75%",
    "warmup": "warmup:ROUNDS or warmup:ROUNDS+ANOTHER",
}


@dataclass(frozen=True)
class LocalOptimizer:
    """The optimizer of an agent's local steps, with the arithmetic of `torch.optim`.

    Its state begins anew in each round: the momentum that outlives a round is the rule's,
    which the agents share.

    name: one of OPTIMIZERS. Settings that the optimizer lacks are 0, and so refused if set.
    With the gradient g, t the step within the round, counted from 1, and α the rate:

    - `sgd`: `x ← x − α (g + λ x)`, λ the weight decay;
    - `momentum`: `v ← μ v + g + λ x` (v = 0 before the first step), `x ← x − α v`;
    - `nesterov`: v as above, `x ← x − α (g + λ x + μ v)`;
    - `adam`: `h = g + λ x`, `m ← β₁ m + (1−β₁) h`, `s ← β₂ s + (1−β₂) h²`,
      `x ← x − α (m / (1−β₁ᵗ)) / (√(s / (1−β₂ᵗ)) + ε)` (Kingma & Ba, arXiv 1412.6980);
    - `adamw`: `x ← (1 − α λ) x` first, then `adam` with h = g (Loshchilov & Hutter,
      arXiv 1711.05101).

    Raises
    ------
    ConfigError
        For an unknown name, or a setting that the optimizer lacks or that cannot be.
    """

    name: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError(unknown("optimizer", self.name, OPTIMIZERS))
        own = OPTIMIZERS[self.name]
        for setting in ("momentum", "weight-decay", "beta1", "beta2", "epsilon"):
            value = getattr(self, setting.replace("-", "_"))
            if setting not in own and value != 0.0:
                raise ConfigError(f"optimizer '{self.name}' has no {setting}, got {value}")
            share = setting in ("momentum", "beta1", "beta2")
            if not 0.0 <= value < (1.0 if share else math.inf):
                wanted = "in [0, 1)" if share else "finite and at least 0"
                raise ConfigError(
                    f"optimizer '{self.name}': {setting} must be {wanted}, got {value}"
                )
        if "epsilon" in own and not self.epsilon > 0.0:
            raise ConfigError(f"optimizer '{self.name}': epsilon must be above 0")

    @classmethod
    def parse(cls, text: str) -> LocalOptimizer:
        """Optimizer from its name, with settings after colons if need be.

        `sgd`, `sgd:weight-decay=0.0005`, `momentum:0.9`, `nesterov:0.9:weight-decay=0.0005`,
        `adamw`, `adamw:weight-decay=0.1:beta2=0.95`. Raises ConfigError for anything else,
        with the nearest word.
        """
        if not isinstance(text, str):
            raise ConfigError(f"an optimizer is a text such as 'momentum:0.9', got {text!r}")
        name, *settings = (part.strip() for part in text.strip().split(":"))
        if name not in OPTIMIZERS:
            raise ConfigError(unknown("optimizer", name, OPTIMIZERS))
        values = dict(OPTIMIZERS[name])
        for place, setting in enumerate(settings):
            key, equals, value = (part.strip() for part in setting.partition("="))
            if not equals and place == 0 and next(iter(values)) == "momentum":
                key, value = "momentum", key
            elif not equals:
                raise ConfigError(f"optimizer '{text}': '{setting}' is not setting=value")
            if key not in values:
                raise ConfigError(unknown(f"setting of optimizer '{name}'", key, values))
            values[key] = _number(f"optimizer '{text}': {key}", value)
        return cls(name, **{key.replace("-", "_"): value for key, value in values.items()})

    def __str__(self) -> str:
        """The text that `parse` reads, with what differs from the defaults."""
        words = [self.name]
        for setting, default in OPTIMIZERS[self.name].items():
            value = getattr(self, setting.replace("-", "_"))
            if setting == "momentum":
                words.append(f"{value:g}" if float(f"{value:g}") == value else repr(value))
            elif value != default:
                words.append(f"{setting}={value!r}")
        return ":".join(words)

    @property
    def plain(self) -> bool:
        """Whether it is SGD without anything: `x ← x − α g`."""
        return not (self.momentum or self.weight_decay or self.epsilon)

    def make(
        self, parameters: Iterable[torch.Tensor], learning_rate: float
    ) -> torch.optim.Optimizer:
        """The `torch.optim` optimizer of it, for the parameters of one agent's model."""
        import torch

        decay = self.weight_decay
        if self.name in ("adam", "adamw"):
            kind: Callable[..., Any] = (
                torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
            )
            betas = (self.beta1, self.beta2)
            return kind(  # type: ignore[no-any-return]
                parameters, lr=learning_rate, betas=betas, eps=self.epsilon, weight_decay=decay
            )
        return torch.optim.SGD(
            parameters,
            lr=learning_rate,
            momentum=self.momentum,
            weight_decay=decay,
            nesterov=self.name == "nesterov" and self.momentum > 0.0,
        )


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each round, from that of the run.

    name: one of SCHEDULES but `warmup`. last: what `cosine` and `linear` end with, as a
    share of the run's rate. factor: what `step` multiplies the rate with after each of
    `milestones`, which are rounds, or shares of the run where they are below 1. warmup:
    rounds in which the rate rises evenly to what follows.

    Raises
    ------
    ConfigError
        For an unknown name or a value that cannot be.
    """

    name: str = "constant"
    last: float = 0.0
    factor: float = 1.0
    milestones: tuple[float, ...] = ()
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES or self.name == "warmup":
            raise ConfigError(unknown("learning-rate schedule", self.name, SCHEDULES))
        if not 0.0 <= self.last <= 1.0:
            raise ConfigError(
                f"schedule '{self.name}': what it ends with is a share of the learning rate "
                f"in [0, 1], got {self.last}"
            )
        if not 0.0 < self.factor <= 1.0:
            raise ConfigError(f"schedule 'step': factor must be in (0, 1], got {self.factor}")
        if (self.name == "step") != bool(self.milestones):
            raise ConfigError(
                "schedule 'step' needs the rounds after which the rate falls, and only it has "
                "them: step:0.1@100,200"
            )
        for milestone in self.milestones:
            if not 0.0 < milestone < math.inf or (milestone > 1.0 and milestone % 1.0):
                raise ConfigError(
                    "schedule 'step': the rate falls after a round or a share of the run, "
                    f"such as 100 or 50%, got {milestone}"
                )
        if isinstance(self.warmup, bool) or not self.warmup >= 0 or self.warmup % 1:
            raise ConfigError(f"schedule: warmup must be a number of rounds, got {self.warmup!r}")

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Schedule from its name and what follows it.

        `constant`, `cosine`, `cosine:0.1` (ends at a tenth), `linear`, `step:0.1@100,200`,
        `step:0.1@50%,75%`, `warmup:10`, `warmup:10+cosine`. Raises ConfigError for anything
        else, with the nearest word.
        """
        if not isinstance(text, str):
            raise ConfigError(f"a learning-rate schedule is a text such as 'cosine', got {text!r}")
        warmup, rest = 0, text.strip()
        if rest.partition(":")[0].strip() == "warmup":
            first, _, rest = rest.partition("+")
            found = _number(f"schedule '{text}': warmup", first.partition(":")[2])
            warmup, rest = int(found) if found.is_integer() else -1, rest.strip() or "constant"
            if warmup < 1:
                raise ConfigError(f"schedule '{text}': warmup is a number of rounds from 1 on")
        name, colon, value = (part.strip() for part in rest.partition(":"))
        if name not in SCHEDULES or name == "warmup":
            raise ConfigError(unknown("learning-rate schedule", name, SCHEDULES))
        if name == "constant" and colon:
            raise ConfigError(f"schedule '{text}': 'constant' takes nothing after it")
        if name == "step":
            factor, at, rounds = value.partition("@")
            if not at:
                raise ConfigError(f"schedule '{text}' must have the form {SCHEDULES['step']}")
            milestones = tuple(_milestone(text, word) for word in rounds.split(","))
            factor_of = _number(f"schedule '{text}': the factor", factor)
            return cls(name, factor=factor_of, milestones=milestones, warmup=warmup)
        last = _number(f"schedule '{text}': what it ends with", value) if colon else 0.0
        return cls(name, last=last, warmup=warmup)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        word = self.name
        if self.name == "step":
            ends = [f"{m * 100!r}%" if m < 1.0 else f"{m:.0f}" for m in self.milestones]
            word = f"step:{self.factor!r}@{','.join(ends)}"
        elif self.last:
            word += f":{self.last!r}"
        if not self.warmup:
            return word
        return f"warmup:{self.warmup}" + ("" if word == "constant" else f"+{word}")

    @property
    def needs_rounds(self) -> bool:
        """Whether a round's rate depends on how many rounds the run has."""
        return self.name in ("cosine", "linear") or any(m < 1.0 for m in self.milestones)

    def rate(self, base: float, round: int, rounds: int) -> float:
        """Learning rate of a round: `base` times the share that the schedule has there.

        `cosine` and `linear` go over the rounds after the warm-up, from `base` in the first
        of them to `last` times `base` after the last: with R rounds and r done of them,
        `last + (1 − last) (1 + cos(π r / R)) / 2` and `1 − (1 − last) r / R`. A round beyond
        the run has the rate of its end. `step`'s rounds are those of the run, warm-up and all.

        round: from 1 on. rounds: of the whole run. Raises ConfigError if either is below 1.
        """
        if not round >= 1 or not rounds >= 1:
            raise ConfigError(f"rounds count from 1, got round {round} of {rounds}")
        return base * self._share(round, rounds)

    def _share(self, round: int, rounds: int) -> float:
        if round <= self.warmup:
            return round / self.warmup * self._share(self.warmup + 1, max(rounds, self.warmup + 1))
        done, of = round - 1 - self.warmup, rounds - self.warmup
        past = min(done / of, 1.0) if of > 0 else 1.0
        if self.name == "cosine":
            return self.last + (1.0 - self.last) * (1.0 + math.cos(math.pi * past)) / 2.0
        if self.name == "linear":
            return 1.0 - (1.0 - self.last) * past
        passed = sum(round > (m * rounds if m < 1.0 else m) for m in self.milestones)
        return self.factor**passed


def _milestone(text: str, word: str) -> float:
    what = f"schedule '{text}': a round"
    share = word.strip().endswith("%")
    value = _number(what, word.strip().removesuffix("%"))
    if share and not 0.0 < value < 100.0:
        raise ConfigError(f"schedule '{text}': a share of the run lies in (0 %, 100 %): {word}")
    if not share and (value < 1.0 or value % 1.0):
        raise ConfigError(f"schedule '{text}': rounds are whole numbers from 1 on, got {word}")
    return value / 100.0 if share else value


def _number(what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{what} must be a number, got '{text}'") from None
    if not math.isfinite(value):
        raise ConfigError(f"{what} must be finite, got '{text}'")
    return value
