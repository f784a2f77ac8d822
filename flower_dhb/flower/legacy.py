"""Apps of Flower's older form: a `client_fn` that makes a client with `fit` and `evaluate`.

Such an app reads and writes records of other names than an app with `@app.train()`, and its
arrays have no names. Here they get those of the arrays that it was sent, in their order.
"""

from __future__ import annotations

from logging import WARNING
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log

from flower_dhb.errors import PayloadError, RoundError
from flower_dhb.flower.arrays import record_of
from flower_dhb.flower.records import records_of

__all__ = ["in_new_form", "remedy"]

_WORDS = {"train": ("fitins", "fitres"), "evaluate": ("evaluateins", "evaluateres")}
_EMPTY = "_empty"  # what Flower writes for an empty list of arrays
_EXAMPLES = "num-examples"
_NO_MOD = (
    "the app has a client_fn, whose messages a mod cannot read; take consensus_mod out of its mods "
    "and wrap it: app = decentralize(app)"
)

_told: set[str] = set()  # metrics of which this process has said that they are left out


def in_new_form(app: ClientApp) -> ClientAppCallable:
    """The app as one that takes plain arrays and a config; itself, unless it has a `client_fn`.

    What `fit` and `evaluate` return becomes what a newer app would answer: the arrays, and
    one record of metrics with `num-examples` and, of `evaluate`, `loss`.
    """
    if getattr(app, "_call", None) is None:  # which only a client_fn sets
        return app

    def call(message: Message, context: Context) -> Message:
        words = _WORDS.get(message.metadata.message_type)
        arrays = records_of(message.content, ArrayRecord)
        configs = records_of(message.content, ConfigRecord)
        if (
            words is None
            or (len(arrays), len(configs)) != (1, 1)
            or f"{words[0]}.config" in configs
        ):
            return app(message, context)  # none of ours
        (sent,), (config,) = arrays.values(), configs.values()
        message.content = RecordDict({f"{words[0]}.parameters": sent, f"{words[0]}.config": config})
        reply = app(message, context)
        if reply.has_error():
            return reply
        return Message(_answer(reply.content, words[1], list(sent)), reply_to=message)

    return call


def remedy(error: BaseException) -> str:
    """What to do if an app failed for having a `client_fn`; empty if that was not the cause."""
    missing = error.args[0] if isinstance(error, KeyError) and error.args else ""
    return _NO_MOD if missing in [f"{asked}.parameters" for asked, _ in _WORDS.values()] else ""


def _answer(content: RecordDict, answered: str, names: list[str]) -> RecordDict:
    """A client's answer as records of the newer form."""
    status = records_of(content, ConfigRecord).get(f"{answered}.status", ConfigRecord())
    if status.get("code", 0) != 0:
        raise RoundError(
            f"the client answered with status {status['code']!r}: {status['message']!r}"
        )
    metrics = _numbers(records_of(content, ConfigRecord).get(f"{answered}.metrics"))
    numbers = records_of(content, MetricRecord)
    if f"{answered}.loss" in numbers:
        metrics["loss"] = numbers[f"{answered}.loss"]["loss"]
    metrics[_EXAMPLES] = numbers[f"{answered}.num_examples"]["num_examples"]
    records = RecordDict({"metrics": MetricRecord(metrics)})
    found = records_of(content, ArrayRecord).get(f"{answered}.parameters")
    if found is not None:
        records["arrays"] = _named(found, names)
    return records


def _named(found: ArrayRecord, names: list[str]) -> ArrayRecord:
    arrays: list[Array] = [array for key, array in found.items() if key != _EMPTY]
    if len(arrays) != len(names):
        raise PayloadError(
            f"the app's fit returned {len(arrays)} arrays, expected {len(names)}: those that it "
            "was given, in the same order"
        )
    return record_of(dict(zip(names, arrays, strict=True)))


def _numbers(metrics: ConfigRecord | None) -> dict[str, Any]:
    """The metrics that are numbers; texts and bytes have no mean over agents."""
    found: dict[str, Any] = {}
    for name, value in (metrics or {}).items():
        if isinstance(value, bool | int | float):
            found[name] = float(value) if isinstance(value, float) else int(value)
        elif name not in _told:
            _told.add(name)
            log(WARNING, "metric '%s' is no number, so it is left out of the metrics", name)
    return found
