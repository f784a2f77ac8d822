"""A problem of one's own: what fits is compared on, what does not is refused by name."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flower_dhb.compare import Comparison, TorchTask, compare
from flower_dhb.compare.store import Store
from flower_dhb.compare.tasks import make_task
from flower_dhb.compare.torch_task import accuracy
from flower_dhb.compare.training import Training
from flower_dhb.engine.engine import Engine
from flower_dhb.errors import ConfigError
from flower_dhb.problems.digits import load_digits
from flower_dhb.topology.graph import Topology


def samples(m: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(m, 3, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def net() -> nn.Module:
    return nn.Linear(3, 3)


def absolute(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean()


def task(**changes: object) -> TorchTask:
    values = {"module": net, "train": samples(), "test": samples(30, 1), "name": "quadrants"}
    return TorchTask(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.thorough
def test_ten_lines_compare_methods_on_a_model_of_ones_own(tmp_path: Path) -> None:
    setting = Comparison(
        problem=task(targets=(0.6,)),
        topologies=["ring:4", Topology.star(4), "one-peer:4"],
        splits=["iid", "classes:2"],
        methods=["dmsgd", "dsgd:screening=off"],
        optimizers=["sgd", "adamw"],
        local_steps=[1, 3],
        seeds=1,
        rounds=4,
        evaluate_every=2,
    )
    results = compare(setting, Store(tmp_path))
    assert len(results.outcomes) == 3 * 2 * 2 * 2 * 2
    assert [case.name for case in setting.cases][:3] == [
        "ring:4 iid",
        "ring:4 iid, adamw",
        "ring:4 iid, 3 local steps",
    ]
    rates = {(o.case.optimizer, o.learning_rate) for o in results.outcomes}
    assert rates == {("sgd", 0.05), ("adamw", 0.0005)}  # adaptive steps begin at a hundredth
    finals = {o.runs[0].mean[-1] for o in results.outcomes}
    assert len(finals) > 5
    frame = results.frame()
    assert len(frame) == len(results.outcomes)
    assert set(frame["optimizer"]) == {"sgd", "adamw"}
    assert list(results.frame(curves=True)["round"].unique()) == [2, 4]


def test_scores_are_the_metric_of_each_agents_own_outputs() -> None:
    goal = samples()[0].sum(1, keepdim=True)
    other = samples(2100, 2)[0]  # more than are scored at once
    regression = task(
        module=partial(nn.Linear, 3, 1),
        train=(samples()[0].numpy(), goal.numpy()),
        test=(other, other.sum(1, keepdim=True)),
        loss=absolute,
        metric="loss",
    )
    assert (regression.metric, regression.rising, regression.share) == ("loss", False, False)
    problem = regression.problem(4, "iid", 0, Training(batch_size=8, optimizer="momentum:0.5"))
    engine = Engine(problem, Topology.ring(4), make_rule(), learning_rate=0.1)
    engine.run(2)
    found = regression.scores(engine, "test")
    for vector, score in zip(engine.parameters, found.agents, strict=True):
        output = other @ vector[:3].reshape(1, 3).T + vector[3]
        assert score == pytest.approx(float(absolute(output, other.sum(1, keepdim=True))), rel=1e-5)
    assert len(set(found.agents)) == 4
    with pytest.raises(ConfigError, match=r"targets of 'quadrants' are no classes.*labels="):
        regression.problem(4, "classes:1", 0)
    named = task(
        module=partial(nn.Linear, 3, 1),
        train=(samples()[0], goal),
        labels=samples()[1].numpy(),
        test=(other, other.sum(1, keepdim=True)),
        loss=absolute,
        metric="loss",
    )
    assert named.problem(4, "classes:1", 0).n_agents == 4


def make_rule():
    from flower_dhb.algorithms import HeavyBall

    return HeavyBall()


def test_a_fifth_is_held_out_and_labels_stay_with_their_samples() -> None:
    x, y = samples()
    found = task(labels=y)
    held, kept = found.parts["validation"][0], found.parts["train"][0]
    assert (len(held), len(kept)) == (12, 48)
    rows = {tuple(row) for row in x.tolist()}
    assert {tuple(row) for row in [*held.tolist(), *kept.tolist()]} == rows
    np.testing.assert_array_equal(found.labels, found.parts["train"][1].numpy())
    whole = task(validation=samples(10, 3))
    assert len(whole.parts["train"][0]) == 60
    dataset = task(train=TensorDataset(x, y), validation=TensorDataset(*samples(10, 3)))
    torch.testing.assert_close(dataset.parts["train"][0], x)
    assert dataset.digest == whole.digest


def test_what_makes_a_module_begins_elsewhere_with_each_seed() -> None:
    made, given = task(), task(module=net())
    starts = [t.make_module(seed).weight.tolist() for t in (made, given) for seed in (0, 1, 0)]
    assert starts[0] == starts[2] != starts[1]
    assert starts[3] == starts[4]
    state = torch.random.get_rng_state()
    made.make_module(5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_digest_is_of_data_model_and_code() -> None:
    same = task()
    assert same.digest == task().digest
    x, y = samples()
    changed = x.clone()
    changed[3, 1] += 1e-6
    others = [
        task(train=(changed, y)),
        task(test=samples(30, 2)),
        task(module=partial(nn.Linear, 3, 4)),
        task(module=nn.Sequential(nn.Linear(3, 3))),
        task(metric="loss"),
        task(labels=1 - y.clip(0, 1)),
        task(backend="loop"),
    ]
    assert len({same.digest, *(other.digest for other in others)}) == 8
    sent = pickle.loads(pickle.dumps(same))  # noqa: S301 (our own)
    assert sent.digest == same.digest
    assert sent.problem(4, "iid", 0).n_agents == 4


NAN = torch.tensor([[0.0, 1.0, 2.0], [float("nan"), 0.0, 1.0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": (torch.zeros(5, 3), torch.zeros(4).long())}, r"shapes \(5, 3\) and \(4,\)"),
        ({"train": (NAN.repeat(9, 1), torch.zeros(18).long())}, "9 of 18 samples have inputs that"),
        ({"test": (torch.zeros(0, 3), torch.zeros(0).long())}, "test: there are no samples"),
        ({"train": (torch.zeros(3, 3), torch.zeros(3).long())}, "too few to hold a fifth out"),
        ({"train": torch.zeros(5, 3)}, "sample 0 is no pair"),
        ({"train": 3}, r"train must be \(inputs, targets\) or a torch Dataset"),
        ({"train": (["a"], ["b"])}, "numbers"),
        ({"test": (torch.zeros(5, 4), torch.zeros(5).long())}, r"differ in shape: train \(3,\)"),
        ({"module": partial(nn.Linear, 4, 3)}, r"Linear does not take inputs of shape \(8, 3\)"),
        ({"module": dict}, "module must be a torch module"),
        ({"module": partial(nn.Linear, 3, 2)}, r"the loss of outputs \(8, 2\) and targets \(8,\)"),
        ({"loss": lambda output, _y: output}, "the loss of outputs .* cannot be had"),
        ({"loss": lambda output, _y: output.mean() / 0}, "is .*(nan|inf) before anything is"),
        ({"loss": "mse"}, "loss must be a function"),
        ({"metric": "f1"}, "metric must be a function of outputs and targets, or 'loss'"),
        ({"metric": lambda _o, _y: "good"}, "the metric of outputs .* cannot be had"),
        ({"labels": [1, 2]}, r"labels must be \(60,\) integers"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**changes)


def test_fewer_samples_than_agents_is_said_before_anything_runs() -> None:
    few = task(train=samples(10), validation=samples(5))
    with pytest.raises(ConfigError, match="10 samples cannot be divided among 16 agents"):
        Comparison(problem=few, topologies=["ring:16"], methods=["dsgd"])


def test_digits_are_a_torch_task_with_the_apps_draws() -> None:
    digits = make_task("digits-mlp")
    data = load_digits()
    assert isinstance(digits, TorchTask)
    assert digits.parts["test"][0] is not None
    torch.testing.assert_close(digits.parts["validation"][0], data.validation_x)
    assert digits._score is accuracy
