"""The app's own part of a run config: what is learned, from which data, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clients.cancer import Cancer
from clients.cifar10 import Cifar10
from clients.cifar100 import Cifar100
from clients.digits import Digits
from clients.fashion_mnist import FashionMnist
from clients.lora import TextLora
from clients.mnist import Mnist
from clients.networks import NORMALIZATIONS, normalized
from clients.text import Text
from clients.workload import Workload
from flower_dhb import ConfigError
from flower_dhb.errors import unknown
from flower_dhb.problems.optimizers import LocalOptimizer, Schedule
from flower_dhb.runs.config import (
    get_choice,
    get_flag,
    get_integer,
    get_number,
    get_text,
    key_of_rounds,
)

__all__ = ["WORKLOADS", "Settings"]

WORKLOADS: dict[str, type[Workload]] = {
    "digits": Digits,
    "cancer": Cancer,
    "text": Text,
    "text-lora": TextLora,
    "mnist": Mnist,
    "fashion-mnist": FashionMnist,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the fields say is what the keys of the run config mean (docs/run-config.md)."""

    workload: Workload
    model: str
    normalization: str
    split: str
    augment: bool
    local_steps: int
    batch_size: int
    learning_rate: float
    optimizer: LocalOptimizer
    schedule: Schedule
    rounds: int
    device: str
    seed: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Read them. Raises ConfigError that names the key, what was found and what is allowed."""
        name = get_choice(values, "workload", "digits", WORKLOADS)
        workload = WORKLOADS[name](
            Path(get_text(values, "data-dir", "data")).expanduser(),
            get_flag(values, "download", False),
        )
        model = get_text(values, "model", "auto")
        if model not in ("auto", *workload.models):
            raise ConfigError(
                f"run config: workload '{name}': {unknown('model', model, workload.models)}"
            )
        try:
            optimizer = LocalOptimizer.parse(get_text(values, "optimizer", "sgd"))
            schedule = Schedule.parse(get_text(values, "schedule", "constant"))
        except ConfigError as error:
            raise ConfigError(f"run config: {error}") from None
        return cls(
            workload=workload,
            model=workload.models[0] if model == "auto" else model,
            normalization=get_choice(values, "normalization", "auto", NORMALIZATIONS),
            split=get_text(values, "split", "classes:2"),
            augment=get_flag(values, "augment", True),
            local_steps=get_integer(values, "local-steps", 1, least=1),
            batch_size=get_integer(values, "batch-size", 32, least=1),
            learning_rate=get_number(values, "learning-rate", 0.4, above=0.0),
            optimizer=optimizer,
            schedule=schedule,
            rounds=get_integer(values, key_of_rounds(values), 100, least=1),
            device=get_text(values, "device", "auto"),
            seed=get_integer(values, "seed", 0, least=0),
        )

    def build(self) -> nn.Module:
        """A model whose weights are drawn from torch's generator, as it stands."""
        return normalized(self.workload.build(self.model), self.normalization)

    def new_model(self) -> nn.Module:
        """The model that all agents start from: its weights come from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.build()

    def rate(self, round: int) -> float:
        """The learning rate of a round."""
        return self.schedule.rate(self.learning_rate, round, self.rounds)

    def device_of(self, vertex: int) -> torch.device:
        """Where an agent computes; with several GPUs, agents take turns.

        Raises ConfigError for a device that is not there.
        """
        there = torch.cuda.device_count()
        if self.device == "cpu" or (self.device == "auto" and there == 0):
            return torch.device("cpu")
        kind, _, number = self.device.partition(":")
        if self.device == "auto" or (kind == "cuda" and not number and there > 0):
            return torch.device("cuda", vertex % there)
        if kind == "cuda" and number.isdecimal() and int(number) < there:
            return torch.device("cuda", int(number))
        raise ConfigError(
            f"run config: 'device' must be auto, cpu, cuda (agents take turns on all GPUs) or "
            f"cuda:NUMBER, got '{self.device}'; this process sees {there} GPUs"
        )
