"""Every command of `docs/operating.md`, in its order, on a fleet of real processes.

The test is the field: it unpacks a device's folder where the page says so, starts what has been
unpacked, carries files. Addresses of the page are mapped to loopback; the desk's commands run in
this process, all else as it is written there.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from flower_dhb.cli import main
from flower_dhb.peer.device.ending import Ending
from flower_dhb.peer.mesh import editions
from flower_dhb.runs.superlink import free_ports
from tests.support.peers import APP, ROOT, Process
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
CARRIED = ("key.pem", "certificate.pem", "authority.pem")
# They say by their status that somebody is needed: a device behind NAT cannot be asked.
MAY_SAY_SO = ("mesh status", "mesh fetch", "mesh stop", "mesh renew")


def sections() -> Iterator[tuple[str, list[str]]]:
    """Title of each section, and its commands."""
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```console\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        assert all(line.startswith("$ ") for line in lines), lines
        yield part.partition("\n")[0], [line[2:].partition("  #")[0] for line in lines]


class Field:
    """The devices, each in a folder of its own, as somebody has unpacked it there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fleet = folder, folder / "fleet"
        self.changed = threading.Condition()
        self.devices: dict[int, Path] = {}
        self.running: dict[int, Process] = {}
        found = sorted(set(re.findall(r"10\.0\.0\.\d+:\d+", PAGE)))
        ports = free_ports(len(found))
        self._addresses = {old: f"127.0.0.1:{port}" for old, port in zip(found, ports, strict=True)}

    def here(self, text: str) -> str:
        for old, new in self._addresses.items():
            text = text.replace(old, new)
        return text

    def type(self, command: str) -> str:
        """A command at the desk. Returns what it prints."""
        words = shlex.split(self.here(command))
        target = None
        if ">" in words:
            target = self.folder / words[words.index(">") + 1]
            words = words[: words.index(">")]
        assert words[0] == "flower-dhb"
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.chdir(self.folder):
            status = main(words[1:])
        assert status == 0 or " ".join(words[1:3]) in MAY_SAY_SO, (command, status)
        if target is not None:
            target.write_text(said.getvalue())
        if words[1:3] == ["mesh", "renew"] and "--vertex" in words:
            self.carry(int(words[-1]))
        return said.getvalue()

    def unpack(self, vertex: int) -> None:
        """Carry a device's folder out, and start what is in it."""
        if vertex in self.running:
            self.running[vertex].end()
        home = self.folder / f"device-{len(list(self.folder.glob('device-*')))}"
        shutil.copytree(self.fleet / f"vertex-{vertex}", home)
        self.devices[vertex] = home
        self.start(vertex)

    def start(self, *vertices: int) -> None:
        for v in vertices or self.devices:
            if v in self.running:
                self.running[v].end()
            self.running[v] = Process(self.devices[v] / "peer.toml", self.changed)

    def carry(self, vertex: int) -> None:
        """A new key and certificate to one device."""
        for name in CARRIED:
            shutil.copy2(self.fleet / f"vertex-{vertex}" / name, self.devices[vertex] / name)

    def end(self) -> None:
        for process in self.running.values():
            process.end()

    # --- what is seen ----------------------------------------------------------------------

    def rounds(self, vertex: int, event: str = "round") -> list[dict]:
        return [e for e in list(self.running[vertex].events) if e.get("event") == event]

    def passes(self, vertices: list[int], rounds: int = 6) -> None:
        """Wait until all of these have had rounds together, begun after this moment."""
        first = max((e["round"] for v in vertices for e in self.rounds(v)[-1:]), default=0) + 1

        def together() -> bool:
            return all(
                sum(
                    e["round"] > first and not {*vertices} & {*e["missing"]} for e in self.rounds(v)
                )
                >= rounds
                for v in vertices
            )

        self.wait(together, f"{vertices} in common rounds after {first}")

    def wait(self, holds, what: str, limit_s: float = 30.0) -> None:
        try:
            wait_for(holds, what, limit_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.tail()}") from None

    def tail(self) -> str:
        return "\n".join(f"{v}: {e}" for v, p in self.running.items() for e in p.events[-3:])


@pytest.fixture
def field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    monkeypatch.setattr(editions, "MARGIN_S", 2.0)
    field = Field(tmp_path)
    shutil.copytree(APP, tmp_path / "farm")
    settings = tmp_path / "farm" / "pyproject.toml"
    settings.write_text(settings.read_text().replace("step-s = 0.0", "step-s = 0.1"))
    hosts = re.search(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert hosts
    (tmp_path / "hosts.toml").write_text(field.here(hosts[1]))
    try:
        yield field
    finally:
        field.end()


def test_every_step_of_the_page(field: Field) -> None:
    done = []
    for title, commands in sections():
        said = [field.type(command) for command in commands]
        then = AFTERWARDS.get(title)
        assert then is not None or not commands, f"nobody looks at what '{title}' does"
        if then is not None:
            then(field, said)
            done.append(title)
    assert done == list(AFTERWARDS)


# --- the field's part of each section ----------------------------------------------------------


def _created(field: Field, said: list[str]) -> None:
    for vertex in range(4):
        field.unpack(vertex)
    field.passes([0, 1, 2, 3])


def _well(field: Field, said: list[str]) -> None:
    assert json.loads(said[1])["needs_somebody"] is False, said[0]


def _fetched(field: Field, said: list[str]) -> None:
    models = sorted((field.folder / "visit-1").rglob("*.safetensors"))
    assert len(models) >= 3, models
    with safe_open(models[0], "np") as found:
        assert int(found.metadata()["round"]) > 0
    out = field.folder / "behind-nat.safetensors"
    field.type(f"flower-dhb export {field.devices[3] / 'state'} --out {out}")
    assert out.is_file()


def _added(field: Field, said: list[str]) -> None:
    field.unpack(4)
    field.passes([0, 1, 2, 3, 4])


def _moved(field: Field, said: list[str]) -> None:
    home = field.devices[1]
    field.running[1].popen.send_signal(signal.SIGTERM)
    field.running[1].popen.wait(30)
    path = home / "peer.toml"
    new = field.here("10.0.0.21:9440")
    path.write_text(re.sub(r'^listen = ".*"$', f'listen = "{new}"', path.read_text(), flags=re.M))
    field.start(1)
    field.passes([0, 1, 2, 3, 4])


def _replaced(field: Field, said: list[str]) -> None:
    old = field.running.pop(2)
    field.unpack(2)
    try:
        field.passes([0, 1, 2, 3])
        assert not [e for e in old.events if e.get("event") == "finished"]
    finally:
        old.end()
    # Nobody believes device 4 any more; it runs, and is not among the others.
    field.wait(lambda: any(4 in e["missing"] for e in field.rounds(0)), "0 without 4")


def _removed(field: Field, said: list[str]) -> None:
    field.running.pop(4).end()
    field.devices.pop(4)
    field.passes([0, 1, 2, 3])


def _extended(field: Field, said: list[str]) -> None:
    field.passes([0, 1, 2, 3])


def _stopped(field: Field, said: list[str]) -> None:
    field.running[3].popen.send_signal(signal.SIGTERM)  # what `systemctl stop` sends
    for v, process in field.running.items():
        assert process.popen.wait(30) == Ending.STOPPED, (v, field.tail())
    before = {v: field.rounds(v)[-1]["round"] for v in field.running}
    field.start()
    field.passes([0, 1, 2, 3])
    for v, k in before.items():
        assert field.rounds(v, "resumed")[0]["round"] >= k - 1, (v, k)


def _renewed(field: Field, said: list[str]) -> None:
    told = "".join(said)
    for v in (0, 1, 2):
        assert f"vertex {v} has made a new key" in told, told
        assert field.rounds(v, "certificate-installed"), v
    field.passes([0, 1, 2, 3])


AFTERWARDS = {
    "At the desk, before anything is carried out": _created,
    "Is it well?": _well,
    "The model, while they train": _fetched,
    "One more device": _added,
    "A device has moved": _moved,
    "A device is broken, or stolen": _replaced,
    "A device leaves for good": _removed,
    "More rounds, other limits": _extended,
    "Stop for the winter, go on in spring": _stopped,
    "The second year: certificates": _renewed,
    "The third year: whoever had the key has left": _renewed,
}
