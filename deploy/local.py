"""Flower's deployment on one machine: a SuperLink and SuperNodes as an operator starts them.

TLS with a certificate authority of its own, SuperNodes that log in with registered keys, a
database on the disk; every process is an ordinary `flower-superlink` or `flower-supernode`. The
demonstration, the tests and the benchmarks share it. docs/deployment.md says the same for
several machines.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from deploy.keys import write_certificates, write_key
from deploy.processes import HOME, kill_all, processes_of, runs
from flower_dhb.peer.mesh.certificates import write_private
from flower_dhb.peer.mesh.devices import folder_of
from flower_dhb.peer.mesh.identities import IdentityPlan, create_identities
from flower_dhb.runs.superlink import SuperLink, executable, free_ports, wait_until_up

__all__ = ["Deployment"]

ROOT = Path(__file__).resolve().parents[1]
# A SuperNode that is killed and started again at once ends with a failure for as long as the
# SuperLink believes that its key is in use, up to a minute; service managers try again.
_AGAIN = 'until "$@"; do sleep 5; done'
# Flower takes a second or two to load, and would for each key.
_REGISTER = """
import sys
from flwr.cli.app import app
for path in sys.argv[1:]:
    app(["supernode", "register", path], standalone_mode=False)
"""


class Deployment:
    """A SuperLink and its SuperNodes on loopback; leaving the `with` block ends them all.

    folder: where keys, the database, logs and each node's own files lie. variables: for the
    environment of all processes. authenticated: whether SuperNodes must show a registered key.
    executor: whether a service of its own runs the ServerApps, so that they outlive a SuperLink
    that is started again; otherwise the SuperLink does.

    All that was started ends also if this process is killed.
    """

    def __init__(
        self,
        folder: Path,
        variables: Mapping[str, str] | None = None,
        *,
        authenticated: bool = True,
        executor: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self.authenticated = authenticated
        self.executor = executor
        self.port = free_ports(1)[0]
        self.mesh = self.folder / "mesh"
        self.addresses: dict[int, str | None] = {}
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._ours: list[subprocess.Popen[bytes]] = []  # to be waited for at the end
        self.link: subprocess.Popen[bytes] | None = None
        home = self._fresh("user")
        self._environment = os.environ | {
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(executable('flwr')).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **(variables or {}),
        }
        write_certificates(self.folder)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\n'
            f"root-certificates = {json.dumps(str(self.folder / 'ca.pem'))}\n",
            encoding="utf-8",
        )
        self._watchdog = self._watch()

    def __enter__(self) -> Deployment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def flower(self) -> SuperLink:
        """The SuperLink as `flwr` sees it: its environment, and `status` and `log` of runs."""
        return SuperLink(self._environment | {HOME: str(self.folder / "user")}, self.log("link"))

    def log(self, name: str) -> Path:
        """The log of `link`, or of `vertex-3`."""
        return self.folder / f"{name}.log"

    def start_link(self) -> None:
        """Start the SuperLink, or start it again on the same port and the same database."""
        words = ["--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--database", str(self.folder / "link.db")]
        words += ["--ssl-ca-certfile", str(self.folder / "ca.pem")]
        words += ["--ssl-certfile", str(self.folder / "link.pem")]
        words += ["--ssl-keyfile", str(self.folder / "link.key")]
        if self.authenticated:
            words.append("--enable-supernode-auth")
        if self.executor:
            words += ["--isolation", "process", *self._secret()]
        home = self._fresh("link")
        self.link = self._start("flower-superlink", words, home, self.log("link"))
        self._ours.append(self.link)
        wait_until_up(self.link, self.port, self.log("link"))
        if self.executor and not self._processes("executor"):
            words = ["--runtime-api-address", f"127.0.0.1:{self.port}", *self._secret()]
            words += ["--root-certificates", str(self.folder / "ca.pem")]
            home = self._fresh("executor")
            self._ours.append(self._start("flower-superexec", words, home, self.log("executor")))

    def stop_link(self) -> None:
        """Kill the SuperLink and all that it started, as a power failure would."""
        kill_all(self._processes("link"))

    def make_mesh(self, n_agents: int, without_address: Collection[int] = ()) -> None:
        """Give each vertex a mesh identity and an address, for nodes that start from now on.

        without_address: vertices as behind NAT, which can dial only.
        """
        create_identities(IdentityPlan(out=self.mesh, vertices=n_agents))
        for vertex, port in enumerate(free_ports(n_agents)):
            here = None if vertex in without_address else f"127.0.0.1:{port}"
            self.addresses[vertex] = here

    def start_node(self, vertex: int, *, key: str = "", **config: Any) -> None:
        """Start the SuperNode of a vertex, and return once it is up.

        key: a name for another key than the vertex's first one; a SuperNode with a new key is
        a new node for the SuperLink. config: keys of the node config beside `vertex`,
        `state-dir` and, once there is a mesh, `mesh` and `address`; None leaves a key out.
        """
        self.start_nodes([vertex], key=key, **config)

    def start_nodes(self, vertices: Iterable[int], *, key: str = "", **config: Any) -> None:
        """Start several SuperNodes at once; see `start_node`."""
        wanted = list(vertices)
        if self.authenticated:
            self._register([self._key(vertex, key) for vertex in wanted])
        starting = {vertex: self._start_node(vertex, key, config) for vertex in wanted}
        for vertex, port in starting.items():
            wait_until_up(self.nodes[vertex], port, self.log(f"vertex-{vertex}"))

    def kill_node(self, vertex: int) -> None:
        """Kill a SuperNode and all that it started, as a power failure would."""
        kill_all(self._processes(f"vertex-{vertex}"))
        self.nodes.pop(vertex).wait()

    def app_of(self, vertex: int) -> list[psutil.Process]:
        """The processes in which a vertex's ClientApp runs at this moment."""
        return [p for p in self._processes(f"vertex-{vertex}") if runs(p, "flwr-clientapp")]

    def server_app(self) -> list[psutil.Process]:
        """The processes in which a ServerApp runs at this moment."""
        home = "executor" if self.executor else "link"
        return [p for p in self._processes(home) if runs(p, "flwr-serverapp")]

    def submit(self, app: Path, settings: Mapping[str, Any]) -> str:
        """Start a run of a Flower App; returns its run id."""
        return self.flower.start_run(app, settings)

    def end_of(self, run: str, seconds: float) -> tuple[str, str]:
        """How a run ended: its status and the details of it, once it is over or the time is up."""
        end, found = time.monotonic() + seconds, ("unknown", "")
        while not found[0].startswith("finished") and time.monotonic() < end:
            time.sleep(0.5)
            # Each question starts a process of Flower's, which costs seconds of a processor.
            if not self.server_app():
                found = self.flower.status(run)
        return found

    def flwr(self, words: Sequence[str]) -> dict[str, Any]:
        """What a `flwr` command with `--format json` answers."""
        return self.flower.ask(words)

    def end(self) -> None:
        """End all that was started."""
        while kill_all(self._processes()):
            pass
        for process in [*self.nodes.values(), *self._ours]:
            process.wait()
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog.wait()

    def _start_node(self, vertex: int, key: str, config: Mapping[str, Any]) -> int:
        port = free_ports(1)[0]
        home = self._fresh(f"vertex-{vertex}")
        (home / "state").mkdir(exist_ok=True)
        values: dict[str, Any] = {"vertex": vertex, "state-dir": str(home / "state")}
        if vertex in self.addresses:
            values["mesh"] = str(self.mesh / folder_of(vertex))
            values["address"] = self.addresses[vertex]
        values |= {name.replace("_", "-"): value for name, value in config.items()}
        words = ["--superlink", f"127.0.0.1:{self.port}"]
        words += ["--root-certificates", str(self.folder / "ca.pem")]
        words += ["--host", "127.0.0.1", "--port", str(port)]
        words += ["--node-config", " ".join(_pairs(values))]
        if self.authenticated:
            words += ["--auth-supernode-private-key", str(self._key(vertex, key))]
        log = self.log(f"vertex-{vertex}")
        command = ["-c", _AGAIN, "sh", executable("flower-supernode"), *words]
        self.nodes[vertex] = self._start("sh", command, home, log)
        return port

    def _secret(self) -> list[str]:
        """What the SuperLink and the service that runs its ServerApps have in common."""
        path = self.folder / "executor.secret"
        if not path.exists():
            write_private(path, secrets.token_bytes(32))
        return ["--superexec-auth-secret-file", str(path)]

    def _key(self, vertex: int, key: str) -> Path:
        return self._fresh(f"vertex-{vertex}") / f"node{key}"

    def _register(self, keys: Sequence[Path]) -> None:
        """Make and register those keys that are new: `flwr supernode register`, in one process."""
        new = [path for path in keys if not path.exists()]
        if not new:
            return
        for path in new:
            write_key(path)
        done = subprocess.run(
            [sys.executable, "-c", _REGISTER, *(f"{path}.pub" for path in new)],
            env=self.flower.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"flwr supernode register: {done.stdout}{done.stderr}")

    def _fresh(self, name: str) -> Path:
        """The folder of one party, which is also its Flower home."""
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _start(
        self, program: str, words: Sequence[str], home: Path, log: Path
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [executable(program), *words],
                env=self._environment | {HOME: str(home)},
                cwd=home,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the process that started the deployment
            )

    def _processes(self, name: str | None = None) -> list[psutil.Process]:
        return processes_of(self.folder if name is None else self.folder / name)

    def _watch(self) -> subprocess.Popen[bytes]:
        """A process that outlives this one for a moment, and ends what it has left."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "deploy" / "processes.py"), str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if value is not None:
            yield f"{key}={json.dumps(value)}"
