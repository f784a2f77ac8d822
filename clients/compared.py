"""The app's workloads as problems of `flower-dhb compare --preset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clients.agents import samples_of
from clients.digits import Digits
from clients.settings import WORKLOADS, Settings
from flower_dhb.compare.tasks import Task
from flower_dhb.compare.torch_task import TorchTask
from flower_dhb.problems.digits import load_digits

__all__ = ["task"]

# Attention asks about its inputs in Python, which cannot be batched over agents.
_ONE_AFTER_THE_OTHER = ("transformer", "random-base", "saved-base")


def task(values: Mapping[str, Any]) -> Task:
    """What a run config learns: the same data, models and start.

    The digits have validation data of their own, so split and batches are the app's, too; of all
    other training samples a fifth is held out to tune with. Images are not varied, and all become
    floats at once: 614 MB for CIFAR.
    """
    settings = Settings.of(values)
    workload = settings.workload
    training, test = (samples_of(workload, train=train) for train in (True, False))
    held_out = None
    if isinstance(workload, Digits):
        digits = load_digits()
        held_out = digits.validation_x, digits.validation_y
    name = next(name for name, kind in WORKLOADS.items() if type(workload) is kind)
    return TorchTask(
        settings.build,
        (workload.prepare(training.x), training.y),
        validation=held_out,
        test=(workload.prepare(test.x), test.y),
        name=f"{name}-{settings.model}",
        targets=(0.9, 0.95),
        backend="loop" if settings.model in _ONE_AFTER_THE_OTHER else "batched",
    )
