"""What a run leaves: Flower's Result, the history, each agent's model, and the warnings."""

from __future__ import annotations

from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import ArrayRecord
from flwr.common import log
from flwr.serverapp.strategy import Result

from flower_dhb.errors import RoundError
from flower_dhb.metrics import RoundRecord, agents_text

__all__ = ["ServerlessResult"]


@dataclass(eq=False, repr=False)
class ServerlessResult(Result):
    """Flower's Result; the history; and each agent's own model.

    arrays: the network average of the final models, formed once for whoever goes on with
    it; no agent ever has it. Where there is none, reading it raises RoundError, which says
    why and what to set. history: one record a round. models: final model by vertex, empty
    unless asked for. missing: agents of which nothing is in the result, since their final
    models did not come, or, where nobody asked for models, their last payloads.
    """

    history: list[RoundRecord] = field(default_factory=list)
    models: dict[int, ArrayRecord] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin without an average."""
        self._why_no_arrays = "the run has not finished"

    # A property in place of Flower's field: its `__init__` assigns to it, too.
    @property  # type: ignore[misc]
    def arrays(self) -> ArrayRecord:
        """The network average. Raises RoundError if there is none."""
        if not self.has_arrays:
            raise RoundError(
                f"result.arrays: there is no network average, since {self._why_no_arrays}"
            )
        return self._arrays

    @arrays.setter
    def arrays(self, arrays: ArrayRecord) -> None:
        self._arrays = arrays

    @property
    def has_arrays(self) -> bool:
        """Whether `arrays` can be read."""
        return len(self._arrays) > 0

    def lacks_arrays(self, why: str) -> None:
        """Say why there is no average: the end of "there is no network average, since"."""
        self._why_no_arrays = why

    def require_all(self) -> None:
        """Raise RoundError if the result lacks agents: the last line of an app that wants all.

        Flower marks a run as failed only if its ServerApp raises an error. Call this when all
        results are written.
        """
        if self.missing:
            raise RoundError(self.incomplete)

    @property
    def incomplete(self) -> str:
        """One sentence that says which agents the result lacks, empty if it lacks none."""
        if not self.missing:
            return ""
        last = f" of round {self.history[-1].round}" if self.history else ""
        return (
            f"the run has ended, but its result lacks {agents_text(self.missing)}: see the "
            f"events{last} and before it in the history for the cause"
        )

    def warn(self, text: str) -> None:
        """Keep a warning, and log it."""
        self.warnings.append(text)
        log(WARNING, "%s", text)

    def __repr__(self) -> str:
        """Rounds, arrays, models and the last metrics, one line each."""
        last = [
            f"{what} (round {max(metrics)}): {dict(metrics[max(metrics)].items())}"
            for what, metrics in (
                ("train_metrics_clientapp", self.train_metrics_clientapp),
                ("evaluate_metrics_clientapp", self.evaluate_metrics_clientapp),
                ("evaluate_metrics_serverapp", self.evaluate_metrics_serverapp),
            )
            if metrics
        ]
        arrays = f"{len(self._arrays)} arrays" if self.has_arrays else "none"
        lines = [
            f"{len(self.history)} rounds; network average: {arrays}; {len(self.models)} models",
            *last,
            *(f"warning: {text}" for text in self.warnings),
        ]
        return "\n".join(lines)
