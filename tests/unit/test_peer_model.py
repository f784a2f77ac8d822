"""The current model of a peer: read at any time, written with its origin, taken as a start."""

import dataclasses
import json
import shutil
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save, save_file

from flower_dhb import ConfigError, StateError, __version__
from flower_dhb.cli import main
from flower_dhb.errors import DamageError
from flower_dhb.peer.device import journal, model
from flower_dhb.peer.device.daemon import Peer, Result
from flower_dhb.peer.device.journal import Journal
from flower_dhb.peer.device.model import Model, current_model, read_start
from flower_dhb.peer.mesh.create import MeshPlan, create_mesh, local_hosts
from flower_dhb.peer.watch.ledger import FORMAT, read_ledger
from flower_dhb.peer.watch.records import RECORD_FORMAT, read_record
from flower_dhb.types import Layout
from tests.support.events import Events
from tests.support.peers import APP, Mesh

# A state of vertex 0 of a path of two, four numbers, killed in its second round.
OLD = Path(__file__).parents[1] / "support" / "states" / "release-0.1.0"
OLD_RUN = "quadratics-2184f71a"
ROUNDS, SIZE = 3, 4


def settings_of(folder, rounds=ROUNDS, **overrides):
    peer = {"linger-s": 2.0, "timing": {"ceiling-s": 10.0, "least-s": 10.0}}
    kept = {"topology": "path:2", "rounds": rounds, "size": SIZE, **overrides}
    mesh = Mesh(folder, n=2, plaintext=True, peer=peer, **kept)
    return [mesh.settings(v) for v in mesh.paths]


def run(settings):
    """Run peers at the same time. Returns their results."""
    peers = [Peer(one) for one in settings]
    with ThreadPoolExecutor(len(peers)) as pool:
        ends = {peer.settings.vertex: pool.submit(peer.run) for peer in peers}
        done, _ = wait(ends.values(), 30, FIRST_EXCEPTION)
        if len(done) < len(ends) or any(end.exception() for end in done):
            for peer in peers:
                peer.stop()
        return {vertex: end.result(30) for vertex, end in ends.items()}


@pytest.fixture(scope="module")
def over(tmp_path_factory):
    """Settings of two peers whose run is over."""
    settings = settings_of(tmp_path_factory.mktemp("over") / "m")
    assert run(settings) == {0: Result(True), 1: Result(True)}
    return settings


@pytest.fixture
def state(over, tmp_path):
    """A state directory of vertex 0, to be changed."""
    return Path(shutil.copytree(over[0].state_dir, tmp_path / "state"))


def metadata(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()


def written(found, path):
    """A model as a file."""
    path.write_bytes(b"".join(found.pieces()))
    return path


def edited(path, change):
    """A file of a state whose `about` says something else, and says it rightly."""
    header = metadata(path)
    about = json.loads(header["about"])
    change(about)
    text = json.dumps(about)
    header = {"about": text, "checksum": journal.xxhash.xxh3_64_hexdigest(text.encode())}
    path.write_bytes(save(load_file(path), metadata=header))


# --- writing ------------------------------------------------------------------------------


def test_all_kinds_of_arrays_are_written_as_safetensors_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "_PIECE_BYTES", 64)
    arrays = {
        "a.running_mean": np.arange(5, dtype=np.float32),
        "b": np.arange(33, dtype=np.float64).reshape(3, 11) / 7,
        "c": np.float32(2.5).reshape(()),
        "d": np.array([[1, 2], [3, 4]], np.float16),
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 2), np.float32),
        "steps": np.int64(7).reshape(()),
    }
    layout = Layout.of(arrays)
    parameters, statistics = layout.flatten(arrays)
    found = Model(
        layout=layout, parameters=parameters, statistics=statistics, local=layout.local(arrays),
        run="r", mesh="m", vertex=3, round=12,
    )  # fmt: skip
    assert max(len(piece) for piece in list(found.pieces())[1:]) <= 64
    path = written(found, tmp_path / "x.safetensors")
    assert path.stat().st_size == found.n_bytes
    read = load_file(path)
    assert sorted(read) == sorted(arrays)
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)
    about = metadata(path)
    assert Layout.from_config(json.loads(about.pop("layout"))) == layout
    assert about == {
        "run": "r", "mesh": "m", "vertex": "3", "round": "12", "software": __version__,
    }  # fmt: skip
    arrays, origin = read_start(path)
    assert sorted(arrays) == sorted(read)
    assert origin == "round 12 of vertex 3 in run 'r'"


# --- the current model --------------------------------------------------------------------


@pytest.mark.thorough
def test_at_the_end_the_current_model_is_the_model(over):
    for one in over:
        found = current_model(one.state_dir, print)
        left = one.state_dir / "model.safetensors"
        assert left.read_bytes() == b"".join(found.pieces())
        about = metadata(left)
        assert (about["run"], about["mesh"]) == (one.run, one.mesh)
        assert (about["vertex"], about["round"]) == (str(one.vertex), str(ROUNDS))


def test_an_open_round_does_not_belong_to_it(state):
    """Killed after the payload of round 3 was written: the model is that of round 2."""
    before = current_model(state, print).parameters
    (state / "round-3.safetensors").unlink()
    found = current_model(state, print)
    assert found.round == 2
    assert np.abs(found.parameters - before).max() > 0.0


def test_a_damaged_file_is_told_and_the_one_before_is_taken(state):
    path = state / "round-3.safetensors"
    data = path.read_bytes()
    told = []
    path.write_bytes(data[:100])
    assert current_model(state, told.append).round == 2
    assert told[0].startswith("round-3.safetensors is damaged")
    for file in state.glob("*-*.safetensors"):
        file.write_bytes(b"x" * 50)
    with pytest.raises(DamageError, match=r"no file of the state can be used: round-3.safetens"):
        current_model(state, print)


def test_files_that_go_while_they_are_read_are_those_of_a_running_peer(state, monkeypatch):
    whole, calls = model._model_in, []

    def one_that_goes(path):
        calls.append(path.name)
        if len(calls) < 4:
            raise FileNotFoundError(path)
        return whole(path)

    monkeypatch.setattr(model, "_model_in", one_that_goes)
    told = []
    assert current_model(state, told.append).round == 3
    assert (told, len(calls)) == ([], 4)


def test_where_there_is_no_model_it_is_said_which_one_counts(state, tmp_path):
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "absent"):
        with pytest.raises(StateError, match=r"no state of a peer.*'state-dir'.*start.safetensors"):
            current_model(tmp_path / nothing, print)
    for path in state.glob("*-*.safetensors"):
        edited(path, lambda about: about["state"]["records"].clear())
    with pytest.raises(StateError, match=r"no round has been trained yet; the model is that of"):
        current_model(state, print)


def test_the_command(over, state, tmp_path, capsys, monkeypatch):
    out = tmp_path / "deep" / "model.safetensors"
    assert main(["export", str(state), "--out", str(out)]) == 0
    assert out.read_bytes() == (over[0].state_dir / "model.safetensors").read_bytes()
    told = capsys.readouterr().out
    assert told.startswith(f"{out}: round 3 of vertex 0 in run '{over[0].run}', 1 arrays")
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(over[1].state_dir.parent)]) == 0  # the device's whole folder
    assert metadata(Path("vertex-1-round-3.safetensors"))["vertex"] == "1"
    assert main(["export", str(tmp_path)]) == 1
    assert "holds no state of a peer" in capsys.readouterr().err


# --- a start ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["round-3", "payload-3", "model"])
def test_whatever_a_peer_leaves_is_a_start_for_another_mesh(state, tmp_path, name):
    path = state / f"{name}.safetensors"
    arrays, origin = read_start(path)
    k = 2 if name == "payload-3" else 3
    assert origin.startswith(f"round {k} of vertex 0 in run 'quadratics-")
    plan = MeshPlan(
        app=APP, out=tmp_path / "m", hosts=local_hosts(2), start=str(path), plaintext=True,
        overrides={"topology": "path:2", "size": SIZE},
    )  # fmt: skip
    create_mesh(plan)
    made = load_file(tmp_path / "m" / "vertex-1" / "start.safetensors")
    assert list(made) == ["x"]
    np.testing.assert_array_equal(made["x"], arrays["x"])
    if k == 3:
        np.testing.assert_array_equal(made["x"], current_model(state, print).arrays()["x"])


def test_the_order_of_a_start_is_that_of_its_file(tmp_path):
    """All devices flatten a model alike. The library's own reader shuffles names each time."""
    arrays = {f"layer-{i}": np.zeros(i + 1, (np.float32, np.int64)[i % 2]) for i in range(20)}
    save_file(arrays, tmp_path / "start.safetensors")
    in_place = list(load_file(tmp_path / "start.safetensors"))
    assert sorted(in_place) == sorted(arrays)
    for _ in range(5):
        assert list(read_start(tmp_path / "start.safetensors")[0]) == in_place


def test_what_is_no_start_is_refused_where_it_enters(state, tmp_path):
    cut = tmp_path / "round-3.safetensors"
    for name in ("round-1", "payload-2"):
        shutil.copyfile(OLD / f"{name}.safetensors", tmp_path / f"{name}.safetensors")
        layout = Layout.of({"x": np.ones(SIZE)}).to_config()
        new = {"format": 2, "layout": layout, "mesh": "m", "vertex": 0}
        edited(tmp_path / f"{name}.safetensors", lambda about, new=new: about.update(new))
    arrays, origin = read_start(tmp_path / "payload-2.safetensors")
    assert origin.startswith("round 1 of vertex 0")
    np.testing.assert_array_equal(arrays["x"], current_model(tmp_path, print).parameters)
    (tmp_path / "round-1.safetensors").unlink()  # the file that it grew from
    with pytest.raises(DamageError, match=r"payload-2.safetensors lacks round-1.safetensors"):
        current_model(tmp_path, print)
    with pytest.raises(ConfigError, match=r"no readable initial arrays: No such file"):
        read_start(tmp_path / "payload-2.safetensors")
    cut.write_bytes((state / "round-3.safetensors").read_bytes()[:-3])
    with pytest.raises(ConfigError, match=r"round-3.safetensors: no readable initial arrays"):
        read_start(cut)
    relay = tmp_path / "relay.safetensors"
    save_file({"parameters": np.ones(3)}, relay, metadata={"about": "{}"})
    with pytest.raises(ConfigError, match=r"lacks the names of the model's arrays.*agent-000"):
        read_start(relay)
    with pytest.raises(ConfigError, match=r"let the peer end one round with this release"):
        read_start(OLD / "round-1.safetensors")


# --- releases -----------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_state_of_the_release_before_goes_on(tmp_path):
    """Devices are upgraded one by one, each with the state that it has."""
    with Events() as heard:
        made = settings_of(tmp_path / "m", 4, momentum=0.8)
        settings = [dataclasses.replace(one, run=OLD_RUN) for one in made]
        shutil.copytree(OLD, settings[0].state_dir)
        assert run(settings) == {0: Result(True), 1: Result(True)}
        assert [e["round"] for e in heard.named("resumed") if e["vertex"] == 0] == [1]
        assert heard.named("damaged") == []
    about = metadata(settings[0].state_dir / "round-4.safetensors")["about"]
    assert json.loads(about)["format"] == FORMAT
    assert current_model(settings[0].state_dir, print).round == 4


def test_a_state_of_a_later_release_is_refused_by_name_and_not_as_damaged(state, over):
    def later(about):
        about["format"], about["software"] = FORMAT + 1, "9.8.7"
        about.pop("record")

    told = []
    edited(state / "round-3.safetensors", later)
    found = Journal(state, over[0].run, told.append)
    why = (
        rf"round-3.safetensors: is of format {FORMAT + 1}, written by flower_dhb 9.8.7; "
        rf"this is flower_dhb {__version__}, which reads formats up to {FORMAT}"
    )
    with pytest.raises(ConfigError, match=why):
        found.load()
    with pytest.raises(ConfigError, match=why):
        current_model(state, told.append)
    with pytest.raises(ConfigError, match=why):
        read_ledger(state)
    assert told == []
    one = dataclasses.replace(over[0], state_dir=state, on_damage="rejoin")
    with pytest.raises(ConfigError, match=why):
        Peer(one)
    assert not (state / "damaged-1").exists()


def test_a_record_of_a_later_release_is_refused_by_name(tmp_path):
    path = tmp_path / "record.jsonl"
    line = {"format": RECORD_FORMAT, "software": __version__, "round": 1, "sent": "a"}
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "round": 2})[:-9])
    assert list(read_record(tmp_path, 0).lines) == [1]
    path.write_text(json.dumps({"round": 1, "sent": "a"}) + "\n")  # up to release 0.1
    assert list(read_record(tmp_path, 0).lines) == [1]
    path.write_text(json.dumps({**line, "format": RECORD_FORMAT + 1, "software": "9.8.7"}) + "\n")
    with pytest.raises(ConfigError, match=r"record.jsonl: is of format 2, written by flower_dhb 9"):
        read_record(tmp_path, 0)
