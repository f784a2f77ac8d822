"""Sealed payloads in Flower's deployment: each byte that the SuperLink stores is read here, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.deployment import Deployment, Run

from flower_dhb.peer.mesh.identities import IdentityPlan, create_identities

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("quick_programs"),
]

N, SIZE = 3, 4000
SETTINGS = {"rounds": 2, "size": SIZE, "topology": f"path:{N}", "momentum": 0.0}


class Reader:
    """Looks at all that a SuperLink stores, and at agents' states, for as long as a run goes on.

    stored: each page that ever stood in the SuperLink's files. trained: pieces of what agents have
    trained, which with no momentum is what they send. secrets: these, and of their models and keys.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._stop = threading.Event()
        self._pages: set[bytes] = set()
        self.stored: list[bytes] = []
        self.trained: set[bytes] = set()
        self.secrets: set[bytes] = set()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.is_set():
            self._once()
            self._stop.wait(0.3)
        self._once()

    def _once(self) -> None:
        for path in self._deployment.folder.glob("vertex-*/state/*"):
            try:
                if path.suffix == ".secret":
                    self.secrets.add(path.read_bytes())
                elif path.suffix == ".safetensors":
                    for name, vector in load_file(path).items():
                        if name in ("parameters", "trained") and vector.any():
                            self.secrets.update(_parts(vector))
                            self.trained.update(_parts(vector) if name == "trained" else ())
            except (OSError, ValueError):  # replaced at this moment
                continue
        folder = self._deployment.folder
        for path in [*folder.glob("link.db*"), *(folder / "link").rglob("*")]:
            try:
                data = path.read_bytes() if path.is_file() else b""
            except OSError:
                continue
            for at in range(0, len(data), 4096):
                page = data[at : at + 4096]
                if page not in self._pages:
                    self._pages.add(page)
                    self.stored.append(page)

    def found(self) -> set[bytes]:
        """Secrets that the SuperLink has stored."""
        everything = b"".join(self.stored)
        return {part for part in self.secrets if part in everything}

    def count(self, text: bytes) -> int:
        return sum(text in page for page in self.stored)


def _parts(vector: np.ndarray) -> list[bytes]:
    """A few runs of 32 bytes that no other vector has."""
    data = vector.tobytes()
    return [data[at : at + 32] for at in range(0, len(data) - 32, len(data) // 7)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("sealed")) as deployment:
        create_identities(IdentityPlan(out=deployment.mesh, vertices=N))
        deployment.addresses = dict.fromkeys(range(N))  # nobody dials anybody
        deployment.start_link()
        for vertex in range(N):
            kept = deployment.folder / f"vertex-{vertex}" / "model.safetensors"
            deployment.start_node(vertex, model_file=str(kept))
        yield deployment


def models(deployment: Deployment) -> list[np.ndarray]:
    homes = [deployment.folder / f"vertex-{vertex}" for vertex in range(N)]
    return [load_file(home / "model.safetensors")["0"] for home in homes]


def test_a_superlink_stores_no_payload_that_it_could_read(deployment: Deployment) -> None:
    with Reader(deployment) as reader:
        run = Run.submit(
            deployment, SETTINGS, encryption="neighbors", bind_nodes=True, collect_models=False
        )
        rows = run.finish(400.0)
    sealed = models(deployment)
    assert len(reader.secrets) > N
    assert reader.count(b"DHBE") >= N, "sealed payloads lie in the database"
    assert reader.found() == set()

    # The same run in clear comes after it: its payloads stay in the database.
    with Reader(deployment) as clear:
        run = Run.submit(deployment, SETTINGS)
        plain_rows = run.finish(400.0)
    assert clear.found() & clear.trained, "this is how payloads would be found"
    assert [row["missing"] for row in rows] == [[]] * 2
    assert [row["events"] for row in rows] == [[]] * 2
    for one, other in zip(sealed, models(deployment), strict=True):
        assert one.tobytes() == other.tobytes(), "the same numbers to the bit"
    overhead = rows[-1]["bytes_sent"] / plain_rows[-1]["bytes_sent"]
    assert 1.0 < overhead < 1.02, overhead
    assert not list(Path(deployment.folder).glob("vertex-*/state/*.secret")), "gone with the run"
