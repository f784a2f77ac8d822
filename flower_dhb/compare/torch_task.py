"""A problem of one's own: any torch module, any data, any loss, any score."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flower_dhb.compare.sources import digest_of_code
from flower_dhb.compare.training import USUAL, VALIDATION, Scores, Training
from flower_dhb.engine.batched import LocalModel, Loss, cross_entropy
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Agents
from flower_dhb.engine.supervised import Supervised
from flower_dhb.errors import ConfigError
from flower_dhb.problems.splits import split
from flower_dhb.types import STATISTICS, Statistics

__all__ = ["TorchTask", "accuracy"]

Data: TypeAlias = Any  # (inputs, targets), tensors or arrays; or a torch Dataset of pairs
Metric: TypeAlias = Callable[[Tensor, Tensor], Any]
Pair: TypeAlias = tuple[Tensor, Tensor]

_SCORED_AT_ONCE = 2_000  # samples; the outputs of all agents on them lie in memory
_HELD_OUT = 0.2
_HOLD_OUT_SEED = 2021  # a run's seed must not choose its own validation data
_KEPT_PROBLEMS = 12


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of samples whose largest class score is that of the target."""
    return (output.argmax(-1) == target).double().mean()


class TorchTask:
    """Data, model, loss and score of a problem to compare methods on.

    Parameters
    ----------
    module : nn.Module, or a class or function without arguments that makes one
        The model. What makes one is called with torch's generator seeded by a run's seed, so
        each seed begins elsewhere; a module that is given begins with its own values always.
        Float32 or float64.
    train : pair of (inputs, targets), or a torch Dataset of such pairs
        Tensors or arrays, one row a sample; they are divided among the agents. A Dataset is
        read once into memory.
    test, validation : as `train`
        What final scores are of, and what tuning looks at. Without `validation` a fifth of
        `train` is held out for it, always the same.
    loss : callable
        `loss(output, target)`, a scalar, the mean over a batch.
    metric : callable or "loss"
        `metric(output, target)`, a number, of one agent's outputs on all samples of a part.
    name, rising, share
        What it is called; whether more is better (default: for `accuracy`); whether scores are
        shares of 1, shown in percent (default: as well).
    targets, grid, rounds
        Scores to reach, learning rates to begin tuning with, rounds of a run.
    labels : array of integers, optional
        Class of each training sample, for splits by class. Default: the targets, if they
        are classes.
    backend : str
        `batched`, or `loop` for modules that cannot be batched.
    statistics
        Which arrays are running statistics; see `Supervised`.

    Raises
    ------
    ConfigError
        If data and model do not fit each other, with the shapes found; if inputs or targets
        are not finite; if the loss is no finite scalar.
    """

    splits = True

    def __init__(
        self,
        module: nn.Module | Callable[[], nn.Module],
        train: Data,
        *,
        test: Data,
        validation: Data | None = None,
        loss: Loss = cross_entropy,
        metric: Metric | str = accuracy,
        name: str = "",
        rising: bool | None = None,
        share: bool | None = None,
        targets: Sequence[float] = (),
        grid: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
        rounds: int = 300,
        labels: Any = None,
        backend: str = "batched",
        statistics: Statistics = STATISTICS,
    ) -> None:
        if not callable(loss):
            raise ConfigError(f"loss must be a function of outputs and targets, got {loss!r}")
        if metric == "loss":
            metric = loss
        if not callable(metric):
            raise ConfigError(
                f"metric must be a function of outputs and targets, or 'loss', got {metric!r}"
            )
        self.module, self.loss, self.backend, self.statistics = module, loss, backend, statistics
        self._score: Metric = metric
        self.metric: str = "loss" if metric is loss else _name(metric)
        self.name = name or _name(module)
        self.rising = metric is accuracy if rising is None else rising
        self.share = metric is accuracy if share is None else share
        self.targets, self.grid, self.rounds = tuple(targets), tuple(grid), rounds
        self.parts, self.labels = _parts(train, validation, test, labels)
        self._check()
        self._model: LocalModel | None = None
        self._problems: OrderedDict[Any, Supervised] = OrderedDict()

    def make_module(self, seed: int) -> nn.Module:
        """The model of a seed; the global generator is left as it was."""
        if isinstance(self.module, nn.Module):
            return self.module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.module()
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"problem '{self.name}': module must be a torch module, or a class or function "
                f"that makes one, got {module!r:.80}"
            )
        return module

    def __getstate__(self) -> dict[str, Any]:
        """Without what was traced, for other processes."""
        return self.__dict__ | {"_model": None, "_problems": OrderedDict()}

    @cached_property
    def digest(self) -> str:
        """Of data, model and the code of all functions."""
        found = hashlib.sha256()
        for inputs, targets in self.parts.values():
            for tensor in (inputs, targets, self.labels):
                _add(found, tensor)
        module = self.make_module(0)
        found.update(repr(module).encode())
        for entry, value in module.state_dict().items():
            found.update(entry.encode())
            _add(found, value)
        kinds = {type(m) for m in module.modules()}
        ordered = sorted(kinds, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
        code = digest_of_code(self.loss, self._score, *ordered)
        settings = (self.rising, self.backend, self.loss is self._score, code)
        found.update(repr(settings).encode())
        return found.hexdigest()[:16]

    def problem(self, n_agents: int, how: str, seed: int, training: Training = USUAL) -> Supervised:
        """Split, initial values and batches that depend on the seed alone."""
        key = (n_agents, how, seed, training)
        if key in self._problems:
            self._problems.move_to_end(key)
            return self._problems[key]
        module = self.make_module(seed)
        inputs, targets = self.parts["train"]
        found = Supervised(
            module,
            inputs,
            targets,
            split(self._labels_for(how), n_agents, how, seed),
            batch_size=training.batch_size,
            local_steps=training.local_steps,
            optimizer=training.optimizer,
            seed=seed,
            loss=self.loss,
            backend=self.backend,
            statistics=self.statistics,
            model=self._model,
        )
        self._model = found.model  # traced once
        self._problems[key] = found
        if len(self._problems) > _KEPT_PROBLEMS:
            self._problems.popitem(last=False)
        return found

    def scores(self, engine: Engine, part: str) -> Scores:
        """The metric of the average model and of each agent's own."""
        inputs, targets = self.parts["validation" if part == VALIDATION else "test"]
        problem = cast(Supervised, engine.problem)
        (average,) = self._scores(problem, engine.average(), inputs, targets)
        return Scores(
            average, np.array(list(self._scores(problem, engine.agents, inputs, targets)))
        )

    def _scores(
        self, problem: Supervised, agents: Agents, inputs: Tensor, targets: Tensor
    ) -> Iterator[float]:
        device = agents.parameters.device
        pieces: list[list[Tensor]] = [[] for _ in agents.parameters]
        for first in range(0, len(inputs), _SCORED_AT_ONCE):
            piece = inputs[first : first + _SCORED_AT_ONCE].to(device)
            for block, outputs in problem.outputs(agents, piece):
                for agent, output in zip(range(block.start, block.stop), outputs, strict=True):
                    pieces[agent].append(output)
        targets = targets.to(device)
        for found in pieces:
            value = self._score(found[0] if len(found) == 1 else torch.cat(found), targets)
            yield float(value)

    def _labels_for(self, how: str) -> NDArray[np.integer]:
        if self.labels is not None:
            return self.labels
        if how.partition(":")[0] != "iid":
            raise ConfigError(
                f"split '{how}' is by class, and the targets of '{self.name}' are no classes: "
                "give TorchTask the class of each sample as labels=…, or split 'iid'"
            )
        return np.zeros(len(self.parts["train"][1]), np.int64)

    def _check(self) -> None:
        """Try model, loss and metric on some samples, before hours are spent."""
        module = self.make_module(0)
        shapes = {part: inputs.shape[1:] for part, (inputs, _) in self.parts.items()}
        if len(set(shapes.values())) > 1:
            said = ", ".join(f"{part} {tuple(shape)}" for part, shape in shapes.items())
            raise ConfigError(f"problem '{self.name}': samples differ in shape: {said}")
        inputs, targets = (tensor[:8] for tensor in self.parts["train"])
        was_training = module.training
        module.eval()
        try:
            with torch.no_grad():
                output = module(inputs)
        except Exception as error:
            raise ConfigError(
                f"problem '{self.name}': {type(module).__name__} does not take inputs of shape "
                f"{tuple(inputs.shape)} and dtype {_dtype(inputs)}: {_first_line(error)}"
            ) from error
        finally:
            module.train(was_training)
        for what, function in (("loss", self.loss), ("metric", self._score)):
            said = (
                f"problem '{self.name}': the {what} of outputs {_shape(output)} and targets "
                f"{tuple(targets.shape)} of dtype {_dtype(targets)}"
            )
            try:
                value = function(output, targets)
                number = float(value)
            except Exception as error:
                raise ConfigError(f"{said} cannot be had: {_first_line(error)}") from error
            if not math.isfinite(number):
                raise ConfigError(f"{said} is {number} before anything is trained")


def _parts(
    train: Data, validation: Data | None, test: Data, labels: Any
) -> tuple[dict[str, Pair], NDArray[np.integer] | None]:
    """The three parts of the data, and the classes of the training samples."""
    inputs, targets = _pair("train", train)
    classes = _labels(labels, inputs, targets)
    if validation is not None:
        held_out = _pair("validation", validation)
    else:
        held = int(_HELD_OUT * len(inputs))
        if held < 1:
            raise ConfigError(f"train: {len(inputs)} samples are too few to hold a fifth out")
        order = np.random.default_rng(_HOLD_OUT_SEED).permutation(len(inputs))
        away, kept = np.sort(order[:held]), np.sort(order[held:])
        held_out = inputs[away], targets[away]
        inputs, targets = inputs[kept], targets[kept]
        classes = None if classes is None else classes[kept]
    parts = {"train": (inputs, targets), "validation": held_out, "test": _pair("test", test)}
    return parts, classes


def _labels(labels: Any, inputs: Tensor, targets: Tensor) -> NDArray[np.integer] | None:
    if labels is None:
        classes = targets.dim() == 1 and not targets.is_floating_point()
        return targets.cpu().numpy().astype(np.int64) if classes else None
    found = np.asarray(labels)
    if found.shape != (len(inputs),) or found.dtype.kind not in "iub":
        raise ConfigError(
            f"labels must be ({len(inputs)},) integers, one a training sample, got shape "
            f"{found.shape} of dtype {found.dtype}"
        )
    return found.astype(np.int64)


def _pair(what: str, data: Data) -> Pair:
    """Inputs and targets as tensors, checked."""
    if isinstance(data, tuple | list) and len(data) == 2:
        inputs, targets = (_tensor(what, value) for value in data)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        inputs, targets = _collected(what, data)
    else:
        raise ConfigError(
            f"{what} must be (inputs, targets) or a torch Dataset with a length, got "
            f"{type(data).__name__}"
        )
    if inputs.dim() < 1 or targets.dim() < 1 or len(inputs) != len(targets):
        raise ConfigError(
            f"{what}: inputs and targets have a row for each sample; got shapes "
            f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    if len(inputs) == 0:
        raise ConfigError(f"{what}: there are no samples")
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        finite = torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise ConfigError(
                f"{what}: {int((~finite).sum())} of {len(tensor)} samples have {name} that are "
                f"not finite (NaN or infinite), sample {first} the first"
            )
    return inputs, targets


def _collected(what: str, dataset: Any) -> Pair:
    inputs, targets = [], []
    for at in range(len(dataset)):
        sample = dataset[at]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ConfigError(f"{what}: sample {at} is no pair (input, target): {sample!r:.80}")
        inputs.append(_tensor(what, sample[0]))
        targets.append(_tensor(what, sample[1]))
    try:
        return torch.stack(inputs), torch.stack(targets)
    except RuntimeError as error:
        raise ConfigError(f"{what}: samples differ in shape: {_first_line(error)}") from error


def _tensor(what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"dtype {array.dtype}")
        return torch.from_numpy(np.array(array))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what} must hold tensors or arrays of numbers, got {type(value).__name__}: {error}"
        ) from None


def _add(found: Any, tensor: Any) -> None:
    if tensor is None:
        found.update(b"none")
        return
    array = tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)
    found.update(f"{array.dtype.str}{array.shape}".encode())
    found.update(np.ascontiguousarray(array).tobytes())


def _name(thing: Any) -> str:
    if isinstance(thing, nn.Module):
        return type(thing).__name__
    return str(getattr(thing, "__name__", type(thing).__name__))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(output: Any) -> Any:
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
