"""A SuperLink of one's own: free ports, its state in a chosen folder, gone when it is done."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flower_dhb.errors import ConfigError, RoundError

if TYPE_CHECKING:
    import psutil

__all__ = [
    "SuperLink",
    "end_family",
    "end_processes",
    "executable",
    "free_ports",
    "guard",
    "local_superlink",
    "wait_until_up",
]

_START_S, _STOP_S, _COMMAND_S = 60.0, 10.0, 120.0
_TRIES = 3


@dataclass(frozen=True)
class SuperLink:
    """A running local SuperLink in simulation mode, and the environment to reach it."""

    environment: Mapping[str, str]
    log_path: Path

    def submit(
        self, app: Path, n_agents: int, settings: Mapping[str, Any], cpus_per_agent: int = 1
    ) -> str:
        """Start a run of a Flower App; returns its run id.

        settings: overrides of the app's run config. Raises ConfigError with Flower's own
        words if the app or a setting is refused.
        """
        federation = f"num-supernodes={n_agents} client-resources-num-cpus={cpus_per_agent}"
        with tempfile.TemporaryDirectory(prefix="app-", dir=self.log_path.parent) as scratch:
            folder = _left_alone(app, Path(scratch))
            return self.start_run(folder, settings, "--federation-config", federation)

    def start_run(self, app: Path, settings: Mapping[str, Any], *words_of_run: str) -> str:
        """Have `flwr run` start an app as it lies there; returns its run id. Raises ConfigError."""
        from flower_dhb.runs.folder import (
            toml_text,  # the guard loads this module, too, and is quick
        )

        # A folder of its own for each run, so that runs may be submitted at the same time.
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.log_path.parent) as scratch:
            words = ["run", str(app), "--format", "json", *words_of_run]
            if settings:
                # One file, since Flower takes either one file or pairs.
                path = Path(scratch) / "run-config.toml"
                path.write_text(toml_text(settings), encoding="utf-8")
                words += ["--run-config", str(path)]
            answer = self.ask(words)
        if not answer.get("success"):
            raise ConfigError(f"flwr run: {answer.get('error-message') or answer}")
        return str(answer["run-id"])

    @contextmanager
    def log(self, run_id: str) -> Iterator[IO[str]]:
        """Lines that a run prints, as they come; they end with the run."""
        with subprocess.Popen(
            [executable("flwr"), "log", run_id, "--stream"],
            env=dict(self.environment),
            cwd=self.log_path.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            if process.stdout is None:  # pragma: no cover (PIPE was asked for)
                raise RoundError("flwr log has no output")
            try:
                yield process.stdout
            finally:
                if process.poll() is None:
                    import psutil

                    end_processes([psutil.Process(process.pid)])

    def status(self, run_id: str) -> tuple[str, str]:
        """Status of a run (such as `finished:completed`), and details."""
        runs = self.ask(["list", "--run-id", run_id, "--format", "json"]).get("runs") or [{}]
        return str(runs[0].get("status")), str(runs[0].get("status-details", ""))

    def ask(self, words: Sequence[str]) -> dict[str, Any]:
        """What a `flwr` command with `--format json` answers.

        Raises ConfigError with Flower's own words where it answers nothing of the kind, RoundError
        where it takes too long.
        """
        try:
            done = subprocess.run(
                [executable("flwr"), *words],
                env=dict(self.environment),
                cwd=self.log_path.parent,  # in an app's folder, Flower might move its settings
                capture_output=True,
                text=True,
                timeout=_COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RoundError(
                f"'flwr {words[0]}' gave no answer within {_COMMAND_S:g} s; see {self.log_path}"
            ) from None
        start = done.stdout.find("{")
        try:
            answer, _ = json.JSONDecoder().raw_decode(done.stdout[max(start, 0) :])
        except ValueError:
            raise ConfigError(
                f"flwr {words[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}"
            ) from None
        return dict(answer)


def _left_alone(app: Path, scratch: Path) -> Path:
    """The folder to submit: the app's own, or a copy of it that Flower may write to.

    `flwr run` moves an app's `[tool.flwr.federations]`, which older templates have, into a
    file of its own state, and comments it out in the app. The state of a SuperLink of one's
    own is of no lasting use, so this would lose the table.
    """
    document = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    if "federations" not in document.get("tool", {}).get("flwr", {}):
        return app
    import click
    import tomli_w  # both come with Flower
    from flwr.cli.build import build_fab_from_disk

    copy = scratch / app.name
    try:
        with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as bundle:
            bundle.extractall(copy)
    except (ValueError, click.ClickException) as error:
        raise ConfigError(f"{app}: {error}") from None
    # What the app includes and excludes has been; a pattern that matches nothing is refused.
    document = tomllib.loads((copy / "pyproject.toml").read_text(encoding="utf-8"))
    for key in ("fab-include", "fab-exclude"):
        document["tool"]["flwr"]["app"].pop(key, None)
    (copy / "pyproject.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
    return copy


@contextmanager
def local_superlink(home: Path, variables: Mapping[str, str] | None = None) -> Iterator[SuperLink]:
    """Start a SuperLink on free loopback ports with its state below `home`; end it after.

    variables: of the environment, for the SuperLink and the runs that it starts. All that
    it started ends with it. Raises ConfigError if Flower is not installed here, RoundError
    if the SuperLink does not come up, OSError if `home` cannot be written.
    """
    home.mkdir(parents=True, exist_ok=True)
    log_path = home / "superlink.log"
    process, environment = _start(home, log_path, dict(variables or {}))
    try:
        yield SuperLink(environment, log_path)
    finally:
        _end(process)


def _start(
    home: Path, log_path: Path, variables: dict[str, str]
) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start the SuperLink; on another port if somebody took the first one meanwhile."""
    for tries_left in reversed(range(_TRIES)):
        port = free_ports(1)[0]
        environment = _environment(home, port) | variables
        command = [executable("flower-superlink"), "--insecure", "--simulation"]
        command += ["--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
        guarded = [sys.executable, "-c", "from flower_dhb.runs.superlink import guard; guard()"]
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                [*guarded, *command],
                env=environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.PIPE,
            )
        try:
            wait_until_up(process, port, log_path)
        except BaseException as error:
            ended = process.poll() is not None
            _end(process)
            if not (tries_left and ended and isinstance(error, RoundError)):
                raise
        else:
            break
    return process, environment


def _end(process: subprocess.Popen[bytes]) -> None:
    end_family(process)
    if process.stdin is not None:
        process.stdin.close()


def _environment(home: Path, port: int) -> dict[str, str]:
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def guard() -> None:
    """Run the command in `sys.argv[1:]` until it ends or standard input does.

    That happens when the parent is gone, even by SIGKILL; the command's whole family is
    ended then, so that no SuperLink is left behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the parent decides
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parent = threading.Thread(target=_read_to_the_end, daemon=True)
    parent.start()
    try:
        while parent.is_alive() and process.poll() is None:
            parent.join(0.2)
    finally:
        end_family(process)
    sys.exit(process.returncode)


def _read_to_the_end() -> None:
    # By its number: a thread that holds the lock of `sys.stdin` crashes Python at exit.
    while os.read(0, 1024):
        pass


def wait_until_up(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    """Wait until a process listens on a port. Raises RoundError if it does not."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    text = log_path.read_text(encoding="utf-8", errors="replace") if log_path.exists() else ""
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing")
    raise RoundError(
        f"port {port} did not come up (exit status {process.poll()}); the last line of {log_path} "
        f"is: {last}"
    )


def end_family(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    if process.poll() is None:
        import psutil

        parent = psutil.Process(process.pid)
        end_processes([*parent.children(recursive=True), parent])
    process.wait()


def end_processes(processes: Sequence[psutil.Process]) -> None:
    """Ask processes to end, then make them."""
    import psutil

    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=_STOP_S)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_STOP_S)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on."""
    # Held open together, so that they differ.
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def executable(name: str) -> str:
    """Path of a program that is installed beside this Python."""
    path = Path(sys.executable).with_name(name)
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(f"'{name}' is not installed beside {sys.executable}: pip install flwr")
    return found
