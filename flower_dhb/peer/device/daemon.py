"""One peer: its agent, its edges, and the round loop that waits for neighbors only.

Order of a round: train; share; close (agree with each neighbor whether the edge
counts); combine; write a checkpoint while the next round trains. A payload leaves only
when the state that it grew from is on the disk, so a peer that is killed at any moment
has lost at most the round it was in, and trains that round again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from flower_dhb.errors import ConfigError, RoundError
from flower_dhb.files import sync, write_durably
from flower_dhb.peer.device.app import Agent, Outcome
from flower_dhb.peer.device.checkpoint import Checkpoint, Checkpoints
from flower_dhb.peer.device.flwr_adapter import load_client_app
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.exchange import Exchange
from flower_dhb.peer.watch.recorder import Recorder
from flower_dhb.peer.watch.status import FINISHED, Progress, serve_metrics
from flower_dhb.peer.wire.frames import Bytes, relabel
from flower_dhb.peer.wire.transport import Transport
from flower_dhb.types import NDArrays

__all__ = ["Peer"]

_FAILURES_LIMIT = 10  # rounds in a row
_UNKNOWN_PACE_S = 1.0


class Peer:
    """A device's part of a run. `run` returns when the last round is over, or on `stop`.

    Raises ConfigError if the settings, the app, or the files of the device do not fit.
    """

    def __init__(self, settings: PeerSettings, monitor: Monitor | None = None) -> None:
        self.settings = settings
        self.monitor = monitor or Monitor(settings.vertex)
        arrays = _read_start(settings.start)
        app = load_client_app(settings.app, settings.client_app)
        self.agent = Agent(
            app,
            vertex=settings.vertex,
            run=settings.run,
            algorithm=settings.algorithm,
            weights=settings.weights,
            arrays=arrays,
            node_config=settings.node_config,
            run_config=settings.run_config,
            train_config=settings.train_config,
            evaluate_config=settings.evaluate_config,
        )
        self.exchange = Exchange(
            settings.vertex,
            settings.neighbors,
            rounds=settings.rounds,
            timing=settings.timing,
            monitor=self.monitor,
        )
        self.progress = Progress(settings.run, settings.rounds, self.exchange, self.monitor)
        self.transport = Transport(
            vertex=settings.vertex,
            run=settings.run,
            vectors=self.agent.vectors,
            agreement=self._agreement(arrays),
            exchange=self.exchange,
            monitor=self.monitor,
            listen=settings.listen,
            dial=settings.dial,
            tls=settings.tls,
            status=self.progress.reply,
            limits=settings.limits,
        )
        self._checkpoints = Checkpoints(
            settings.state_dir, settings.run, lambda why: self.monitor.warning("damaged", why=why)
        )
        self._history = _History(settings.state_dir / "history.jsonl")
        self._recorder = Recorder(settings.state_dir / "record", settings.record)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._stopping = threading.Event()
        self._stop_metrics: Callable[[], None] | None = None
        self._failures = 0

    # --- life -------------------------------------------------------------------------

    def run(self) -> bool:
        """Take part until the run is over. Returns whether it is, or was stopped before."""
        try:
            self._resume()
            self.transport.start()
            if self.settings.metrics_port:
                self._stop_metrics = serve_metrics(
                    self.settings.metrics_port, self.progress, self.exchange, self.monitor
                )
            self.progress.phase = "connecting"
            # Whoever comes back finds a run under way: one neighbor is enough to go on.
            least = 1 if self.exchange.closed else len(self.exchange.edges)
            missing = self.exchange.wait_for(least, self.settings.start_timeout_s)
            if missing:
                self.monitor.warning("starting-without", neighbors=missing)
            while self.exchange.closed < self.settings.rounds and not self._stopping.is_set():
                self._next()
            return self._finish()
        finally:
            self._close()

    def stop(self) -> None:
        """End after the current call of the app; what was finished is kept."""
        self._stopping.set()
        self.exchange.stop()

    def _resume(self) -> None:
        found = self._checkpoints.load()
        if found is None:
            return
        self.agent.load(found.document["agent-round"], found.arrays, found.document["records"])
        self.exchange.resume(found.round)
        self._history.keep_until(found.round)
        self.progress.round = found.round
        self.progress.parameters = self.agent.snapshot().state.parameters
        self.monitor.event("resumed", round=found.round)

    def _finish(self) -> bool:
        done = self.exchange.closed >= self.settings.rounds
        self._saved()
        if done:
            self.progress.phase = FINISHED
            snapshot = self.agent.snapshot()
            arrays = self.agent.layout.unflatten(
                snapshot.state.parameters, snapshot.statistics, snapshot.local
            )
            model = save({name: np.asarray(a, order="C") for name, a in arrays.items()})
            write_durably(self.settings.state_dir / "model.safetensors", model)
            self.exchange.finish()
            self.monitor.event("finished", round=self.exchange.closed)
            self.exchange.wait_for_finish(self.settings.linger_s)
        return done

    def _close(self) -> None:
        self.exchange.stop()
        self.transport.stop()
        self._writer.shutdown(wait=True)
        self._history.close()
        self._recorder.close()
        if self._stop_metrics is not None:
            self._stop_metrics()

    # --- rounds -----------------------------------------------------------------------

    def _next(self) -> None:
        """Take part in the next round, or begin again from the neighbors after a long absence."""
        planned = min(self.exchange.next_round(), self.settings.rounds)
        missed = planned - self.exchange.closed - 1
        if missed > self.settings.away_rounds and self._rejoin(missed):
            return
        self._round(planned)

    def _rejoin(self, missed: int) -> bool:
        self.progress.phase = "rejoining"
        newest = self.exchange.newest(self.settings.timing.ceiling_s)
        if not newest:
            return False
        label = max(k for k, _ in newest.values())
        outcome = self.agent.rejoin(newest, evaluate=self._evaluates(label))
        self.exchange.skip(label)
        self.monitor.count("rejoined")
        self.monitor.warning("rejoined", round=label, missed=missed, neighbors=sorted(newest))
        self._recorder.rejoined(label, self.agent.snapshot())
        entry = {"rejoined": True, "neighbors": sorted(newest)}
        self._keep(label, {**entry, "evaluate": dict(outcome.metrics)})
        return True

    def _round(self, k: int) -> None:
        begin = time.monotonic()
        self.progress.phase = "training"
        early = self.agent.early(k)
        label = 0
        if early is not None:
            self._saved()
            label = self.exchange.share(k, early)
        before = self.agent.snapshot() if self._recorder.on else None
        outcome = self.agent.train(k)
        trained_s = time.monotonic() - begin
        if self._stopping.is_set():
            return
        if outcome.frame is None:
            self._skip(max(k, label), outcome, begin)
            return
        self._failures = 0
        if early is None:
            self._saved()
            label = self.exchange.share(k, outcome.frame)
        self.progress.phase = "waiting"
        received = self.exchange.close(label)
        if self._stopping.is_set():
            return
        if not received:
            self._pace(begin)
        waited_s = time.monotonic() - begin - trained_s
        if before is not None:
            self._recorder.shared(label, k, outcome.frame, received, before, self.agent.snapshot())
        self._combine(label, k, received, outcome, begin, trained_s, waited_s)

    def _combine(
        self,
        label: int,
        k: int,
        received: Mapping[int, Bytes],
        trained: Outcome,
        begin: float,
        trained_s: float,
        waited_s: float,
    ) -> None:
        payloads = {j: f if label == k else relabel(f, k) for j, f in received.items()}
        combined = self.agent.combine(k, payloads, evaluate=self._evaluates(label))
        for text in combined.refused:
            self.monitor.count("refused.agent")
            self.monitor.warning("refused", reason="agent", why=text)
        missing = [j for j in self.settings.neighbors if j not in received]
        metrics = {"train": dict(trained.metrics), "evaluate": dict(combined.metrics)}
        flat = {**metrics["train"], **metrics["evaluate"]}
        self.progress.metrics |= {
            name: float(v) for name, v in flat.items() if isinstance(v, int | float)
        }
        seconds = time.monotonic() - begin
        parameters = self.agent.snapshot().state.parameters
        self.progress.finished_round(label, seconds, parameters)
        for j in missing:
            self.monitor.count("missing", j)
        self.monitor.event(
            "round",
            round=label,
            seconds=round(seconds, 4),
            train_s=round(trained_s, 4),
            wait_s=round(waited_s, 4),
            missing=missing,
            metrics={n: round(v, 5) for n, v in flat.items() if isinstance(v, float)},
        )
        if self._recorder.on:
            self._recorder.combined(label, self.agent.snapshot())
        self._keep(
            label,
            {
                "seconds": seconds,
                "train_seconds": trained_s,
                "wait_seconds": waited_s,
                "missing": missing,
                **metrics,
            },
        )

    def _evaluates(self, label: int) -> bool:
        every = self.settings.evaluate_every
        return bool(every) and (label % every == 0 or label == self.settings.rounds)

    def _skip(self, label: int, outcome: Outcome, begin: float) -> None:
        """The app failed: this agent is missing in the round, its state is as it was."""
        self._failures += 1
        self.monitor.count("app-failed")
        self.monitor.warning("app-failed", round=label, why=outcome.failure)
        self.exchange.skip(label)
        self.progress.round = label
        self._keep(label, {"failure": outcome.failure})
        if self._failures >= _FAILURES_LIMIT:
            raise RoundError(
                f"vertex {self.settings.vertex}: the app failed in {self._failures} rounds in a "
                f"row, last in round {label}: {outcome.failure}"
            )
        self._pace(begin)

    def _pace(self, begin: float) -> None:
        """Keep the usual time of a round where no neighbor sets it.

        A peer that is cut off, or whose app fails at once, would else run ahead through
        all rounds, and take its neighbors with it when it is back.
        """
        usual = self.progress.seconds_per_round or _UNKNOWN_PACE_S
        self._stopping.wait(max(0.0, begin + usual - time.monotonic()))

    # --- what is kept -----------------------------------------------------------------

    def _keep(self, label: int, entry: dict[str, Any]) -> None:
        """Write history and checkpoint, beside the next round's training."""
        self._saved()
        arrays, records = self.agent.save()
        document = {"agent-round": self.agent.round, "records": records}
        due = label % self.settings.checkpoint_every == 0 or label >= self.settings.rounds

        def write() -> None:
            self._history.append({"round": label, **entry}, durable=due)
            if due:
                self._checkpoints.save(Checkpoint(label, arrays, document))

        self._saving = self._writer.submit(write)

    def _saved(self) -> None:
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def _agreement(self, arrays: NDArrays) -> dict[str, str]:
        start = xxhash.xxh3_64()
        for name, array in arrays.items():
            start.update(name.encode())
            start.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return {
            "topology": self.settings.graph,
            "algorithm": json.dumps(self.settings.algorithm.to_config(), sort_keys=True),
            "layout": xxhash.xxh3_64_hexdigest(json.dumps(self.agent.layout.to_config()).encode()),
            "start": start.hexdigest(),
            "rounds": str(self.settings.rounds),
        }


class _History:
    """One JSON line a round."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def append(self, entry: dict[str, Any], *, durable: bool) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        if durable:
            sync(self._file)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def keep_until(self, last: int) -> None:
        """Drop the entries of rounds that a crash undid, and a line that it cut off."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["round"] <= last:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_durably(self._path, "".join(kept).encode())


def _read_start(path: Path) -> NDArrays:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: no readable initial arrays: {error}") from None
