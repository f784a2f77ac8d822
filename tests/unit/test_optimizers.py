"""Words for local optimizers and learning rates: what they mean, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from flower_dhb.errors import ConfigError
from flower_dhb.problems.optimizers import OPTIMIZERS, SCHEDULES, LocalOptimizer, Schedule


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("sgd", {}),
        ("sgd:weight-decay=0.0005", {"weight_decay": 0.0005}),
        ("momentum", {"momentum": 0.9}),
        ("momentum:0.8", {"momentum": 0.8}),
        ("momentum:momentum=0.8", {"momentum": 0.8}),
        ("nesterov : 0.95 : weight-decay = 1e-4", {"momentum": 0.95, "weight_decay": 1e-4}),
        ("adamw", {"weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
        (
            "adamw:weight-decay=0:beta2=0.95",
            {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8},
        ),
        ("adam", {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
    ],
)
def test_an_optimizer_is_read_from_words_and_says_them(text, settings) -> None:
    found = LocalOptimizer.parse(text)
    assert found == LocalOptimizer(text.partition(":")[0].strip(), **settings)
    assert LocalOptimizer.parse(str(found)) == found


def test_words_are_as_short_as_can_be() -> None:
    words = ["sgd", "momentum:0.9", "nesterov:0.5:weight-decay=0.001", "adamw", "adamw:beta1=0.8"]
    assert [str(LocalOptimizer.parse(word)) for word in words] == words
    words = ["constant", "cosine", "linear:0.1", "step:0.1@100,200", "warmup:5", "warmup:5+cosine"]
    assert [str(Schedule.parse(word)) for word in words] == words
    assert Schedule.parse(str(Schedule.parse("step:0.5@33%,50%"))).milestones == (0.33, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adamv", "unknown optimizer 'adamv', did you mean 'adam"),
        ("momentun:0.9", "unknown optimizer 'momentun', did you mean 'momentum'"),
        ("", "unknown optimizer ''"),
        (0.9, "an optimizer is a text such as 'momentum:0.9', got 0.9"),
        ("sgd:0.9", "optimizer 'sgd:0.9': '0.9' is not setting=value"),
        ("sgd:momentum=0.9", "unknown setting of optimizer 'sgd' 'momentum'"),
        ("adamw:weight-decai=1", "did you mean 'weight-decay'"),
        ("momentum:1", r"momentum must be in \[0, 1\), got 1.0"),
        ("momentum:nan", "momentum must be finite, got 'nan'"),
        ("momentum:much", "momentum must be a number, got 'much'"),
        ("momentum:0.9:0.8", "'0.8' is not setting=value"),
        ("adamw:beta2=1", r"beta2 must be in \[0, 1\)"),
        ("adamw:epsilon=0", "epsilon must be above 0"),
        ("sgd:weight-decay=-1", "weight-decay must be finite and at least 0, got -1.0"),
    ],
)
def test_what_is_no_optimizer_is_refused(text, message) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalOptimizer.parse(text)


def test_settings_are_checked_where_an_optimizer_is_made() -> None:
    with pytest.raises(ConfigError, match=r"optimizer .sgd. has no momentum, got 0\.9"):
        LocalOptimizer("sgd", momentum=0.9)
    with pytest.raises(ConfigError, match="weight-decay must be finite"):
        LocalOptimizer("sgd", weight_decay=math.nan)
    with pytest.raises(ConfigError, match="unknown optimizer 'adagrad'"):
        LocalOptimizer("adagrad")


@pytest.mark.parametrize(
    "text", [*OPTIMIZERS, "sgd:weight-decay=0.1", "nesterov:0.8", "momentum:0"]
)
def test_torch_does_what_the_equations_say(text: str) -> None:
    o = LocalOptimizer.parse(text)
    x, gradients = np.array([1.0, -2.0]), np.array([[0.5, 0.1], [-0.3, 0.4], [0.2, 0.0]])
    parameter = torch.tensor(x, requires_grad=True)
    optimizer = o.make([parameter], 0.1)
    v, m, s = np.zeros(2), np.zeros(2), np.zeros(2)
    for t, g in enumerate(gradients, 1):
        parameter.grad = torch.tensor(g)
        optimizer.step()
        if text.startswith("adam"):
            h = g + (o.weight_decay * x if o.name == "adam" else 0.0)
            x = x * (1.0 - 0.1 * o.weight_decay) if o.name == "adamw" else x
            m, s = o.beta1 * m + (1 - o.beta1) * h, o.beta2 * s + (1 - o.beta2) * h * h
            root = np.sqrt(s / (1 - o.beta2**t))
            x = x - 0.1 * m / (1 - o.beta1**t) / (root + o.epsilon)
        else:
            h = g + o.weight_decay * x
            v = o.momentum * v + h
            x = x - 0.1 * (h + o.momentum * v if o.name == "nesterov" else v)
        np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("constant", [2, 2, 2, 2]),
        ("cosine", [2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)]),
        ("cosine:0.5", [2, 1.5 + math.sqrt(0.125), 1.5, 1.5 - math.sqrt(0.125)]),
        ("linear", [2, 1.5, 1, 0.5]),
        ("linear:0.2", [2, 1.6, 1.2, 0.8]),
        ("step:0.1@1,3", [2, 0.2, 0.2, 0.02]),
        ("step:0.5@50%,75%", [2, 2, 1, 0.5]),
        ("warmup:2", [1, 2, 2, 2]),
        ("warmup:2+linear", [1, 2, 2, 1]),
        ("warmup:2+step:0.5@3", [1, 2, 2, 1]),
        ("warmup:8+cosine", [0.25, 0.5, 0.75, 1]),
    ],
)
def test_rates_of_four_rounds(text: str, rates: list[float]) -> None:
    schedule = Schedule.parse(text)
    np.testing.assert_allclose([schedule.rate(2.0, k, 4) for k in (1, 2, 3, 4)], rates)
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(("text", "rate"), [("cosine:0.1", 0.1), ("linear", 0.0)])
def test_a_round_beyond_the_run_has_the_rate_of_its_end(text: str, rate: float) -> None:
    assert Schedule.parse(text).rate(1.0, 99, 10) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "unknown learning-rate schedule 'cosin', did you mean 'cosine'"),
        (3, "a learning-rate schedule is a text"),
        ("constant:3", "'constant' takes nothing after it"),
        ("cosine:2", r"share of the learning rate in \[0, 1\], got 2.0"),
        ("cosine:nan", "must be finite"),
        ("linear:x", "must be a number, got 'x'"),
        ("step", "must have the form step:FACTOR@ROUND"),
        ("step:0.1", "must have the form step:FACTOR@ROUND"),
        ("step:0@5", r"factor must be in \(0, 1\]"),
        ("step:0.1@5,", "must be a number, got ''"),
        ("step:0.1@0", "rounds are whole numbers from 1 on, got 0"),
        ("step:0.1@2.5", "rounds are whole numbers from 1 on, got 2.5"),
        ("step:0.1@120%", "a share of the run"),
        ("warmup", "warmup must be a number"),
        ("warmup:0", "warmup is a number of rounds from 1 on"),
        ("warmup:2.5", "warmup is a number of rounds from 1 on"),
        ("warmup:2+warmup:3", "unknown learning-rate schedule 'warmup'"),
    ],
)
def test_what_is_no_schedule_is_refused(text, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.parse(text)


def test_rounds_count_from_one() -> None:
    for k, rounds in ((0, 5), (1, 0)):
        with pytest.raises(ConfigError, match="rounds count from 1"):
            Schedule().rate(1.0, k, rounds)
    with pytest.raises(ConfigError, match="only it has"):
        Schedule("cosine", milestones=(3,))
    with pytest.raises(ConfigError, match="warmup must be a number of rounds"):
        Schedule(warmup=1.5)  # type: ignore[arg-type]
    assert list(SCHEDULES) == ["constant", "cosine", "linear", "step", "warmup"]


def test_reading_words_loads_no_torch() -> None:
    code = (
        "import sys\nfrom flower_dhb.problems.optimizers import LocalOptimizer, Schedule\n"
        "LocalOptimizer.parse('adamw')\nSchedule.parse('cosine')\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
