"""The doctor names each fault that is injected, with its remedy, and finds none where none is."""

import contextlib
import datetime
import json
import os
import shutil
import socket
import ssl
import threading
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import grpc
import pytest

from flower_dhb.agent.compression import Compression
from flower_dhb.cli import main
from flower_dhb.errors import StateError
from flower_dhb.files import write_durably
from flower_dhb.peer.device.home import Home
from flower_dhb.peer.device.model import read_start
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.doctor import machine
from flower_dhb.peer.doctor.examination import _payload_bytes, device, machine_alone
from flower_dhb.peer.doctor.finding import Grade
from flower_dhb.peer.doctor.links import _rated, link
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.mesh.create import Host, MeshPlan, create_mesh, local_hosts
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.identity import utc_now
from flower_dhb.peer.wire.measuring import LIMIT_BYTES, Rate, Way, answer, measure, new_allowance
from flower_dhb.peer.wire.operations import Operations
from flower_dhb.peer.wire.transport import Transport
from tests.support.links import Shape, ShapedLinks

APP = Path(__file__).resolve().parents[1] / "support" / "peer_app"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A mesh of three; vertex 0 dials both others."""
    out = tmp_path_factory.mktemp("mesh") / "m"
    hosts = local_hosts(3)
    plan = MeshPlan(app=APP, out=out, hosts=hosts, overrides={"topology": "ring:3", "rounds": 3})
    create_mesh(plan)
    return out


@pytest.fixture
def mesh(made, tmp_path):
    """A copy of it that a test may break."""
    out = tmp_path / "m"
    shutil.copytree(made, out)
    return out


def of_device(mesh, **options):
    found = list(device(mesh / "vertex-0" / "peer.toml", 0.5, **options))
    assert all(f.text for f in found)
    assert all(f.remedy for f in found if f.grade is Grade.WRONG)
    return found


def wrong(findings, subject):
    """The one thing that is wrong with a subject; no other subject may be wrong but neighbors."""
    bad = [f for f in findings if f.grade is Grade.WRONG]
    found = [f for f in bad if f.subject.startswith(subject)]
    assert len(found) == 1, bad
    others = [f for f in bad if f not in found and not f.subject.startswith("vertex ")]
    assert others == []
    return f"{found[0].text} {found[0].remedy}"


def toml_of(mesh):
    return mesh / "vertex-0" / "peer.toml"


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- the machine --------------------------------------------------------------------------


def test_a_sound_machine(tmp_path, monkeypatch):
    for name in machine._PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    found = list(machine_alone(tmp_path / "not" / "yet"))
    assert not [f for f in found if f.grade is Grade.WRONG]
    assert {f.subject for f in found} > {"Python", "flwr", "grpcio", "memory", "clock"}
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_libraries_that_are_missing_or_of_another_version(monkeypatch):
    wanted = [
        "numpy>=99",
        "no-such-library>=1",
        "grpcio>=99; extra == 'peer'",
        "torch>=99; extra == 'x'",
    ]
    monkeypatch.setattr(machine, "requires", lambda _: wanted)
    found = {f.subject: f for f in machine.versions("peer") if f.grade is Grade.WRONG}
    assert set(found) == {"numpy", "no-such-library", "grpcio"}
    assert ">=99 is needed" in found["numpy"].text
    assert metadata.version("numpy") in found["numpy"].text
    assert "pip install 'numpy>=99'" in found["numpy"].remedy
    assert "pip install 'flower-dhb[peer]'" in found["no-such-library"].remedy
    assert {f.subject for f in machine.versions()} == {
        "Python",
        "flower-dhb",
        "numpy",
        "no-such-library",
    }


def test_disks_that_take_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    (found,) = machine.disk(tmp_path / "file" / "state", 0)
    assert found.grade is Grade.WRONG
    assert "nothing can be kept" in found.text
    full = list(machine.disk(tmp_path, 10**18))
    assert "will be needed" in full[0].text
    assert full[0].grade is Grade.WRONG
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_slow_or_lies_in_memory(tmp_path, monkeypatch):
    def slowly(*words, **options):
        time.sleep(machine._SLOW_DISK_S)
        write_durably(*words, **options)

    monkeypatch.setattr(machine, "write_durably", slowly)
    monkeypatch.setattr(machine, "_kind_of", lambda _: "tmpfs")
    slow, volatile = machine.disk(tmp_path, 0)
    assert slow.grade is volatile.grade is Grade.NOTE
    assert "durable write takes" in slow.text
    assert "lost with the power" in volatile.text


def test_kinds_of_file_systems_are_those_of_the_nearest_mount():
    if not Path("/proc/mounts").exists():
        pytest.skip("this system does not list its mounts")
    assert machine._kind_of(Path("/proc/self")) == "proc"
    assert machine._kind_of(Path(__file__)) not in ("", "proc")


def test_too_little_memory_and_too_few_descriptors():
    assert machine.memory(10**18).grade is Grade.WRONG
    assert machine.memory(1).grade is Grade.FINE
    few = machine.descriptors(10**9)
    assert few.grade is Grade.WRONG
    assert "LimitNOFILE" in few.remedy


def test_a_clock_that_is_behind():
    behind = machine.clock({"the certificate": time.time() + 7200.0, "the state": 0.0})
    assert behind.grade is Grade.WRONG
    assert "the certificate is from 2.0 hours later" in behind.text
    assert machine.clock({"the certificate": time.time() + 60.0}).grade is Grade.FINE


def test_a_proxy_and_a_busy_machine(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 1e3, 0.0))
    found = {f.subject: f for f in machine.surroundings()}
    assert "https_proxy set" in found["proxy"].text
    assert "no_proxy" in found["proxy"].remedy
    assert found["processors"].grade is Grade.NOTE


# --- what the device was given --------------------------------------------------------------


def test_a_device_whose_neighbors_are_not_there(mesh):
    found = of_device(mesh)
    refused = [f for f in found if f.grade is Grade.WRONG]
    assert len(refused) == len(addresses(mesh)[1]) > 0
    assert all("nobody listens there" in f.text for f in refused)
    assert any("loads in" in f.text for f in found if f.subject == "app")
    assert not (mesh / "vertex-0" / "state").exists()


def test_settings_that_cannot_be_read_or_meant(mesh):
    replace_in(toml_of(mesh), "rounds", "roundz")
    assert "roundz" in wrong(of_device(mesh), "peer.toml")
    toml_of(mesh).write_text("= what")
    assert "peer.toml" in wrong(of_device(mesh), "peer.toml")
    toml_of(mesh).unlink()
    assert "mesh create" in wrong(of_device(mesh), "peer.toml")


def test_a_model_that_is_missing_or_damaged(mesh):
    start = PeerSettings.load(toml_of(mesh)).start
    start.write_bytes(start.read_bytes()[:20])
    assert "Copy the file" in wrong(of_device(mesh), "start")
    start.unlink()
    assert "Copy the file" in wrong(of_device(mesh), "start")


TRAINING = (
    "from flwr.clientapp import ClientApp\napp = ClientApp()\n"
    "@app.train()\ndef train(message, context):\n    "
)


def test_an_app_that_cannot_be_loaded_or_does_not_train(mesh, tmp_path):
    broken = tmp_path / "app"
    broken.mkdir()
    before = toml_of(mesh).read_text().splitlines()

    def of_app(name, code, **options):
        (broken / f"{name}.py").write_text(code)
        lines = [
            f"app = {json.dumps(str(broken))}" if line.startswith("app =")
            else f'client-app = "{name}:app"' if line.startswith("client-app =")
            else line
            for line in before
        ]  # fmt: skip
        toml_of(mesh).write_text("\n".join(lines))
        return of_device(mesh, **options)

    lacking = "import no_such_library_at_all\n"
    assert "no_such_library_at_all" in wrong(of_app("doctor_1", lacking), "app")
    assert not [f for f in of_app("doctor_1", lacking, app=False) if f.subject == "app"]
    assert "SystemExit: 3" in wrong(of_app("doctor_2", "raise SystemExit(3)\n"), "app")
    fails = TRAINING + "raise ValueError('no data here')\n"
    assert "no data here" in wrong(of_app("doctor_3", fails, train=True), "training")
    ends = TRAINING + "raise SystemExit('enough')\n"  # which the mod lets through
    assert "SystemExit: enough" in wrong(of_app("doctor_4", ends, train=True), "training")


def test_settings_that_nobody_could_train_with(mesh, monkeypatch):
    """What is wrong before the app is asked is a finding, too."""

    def refuse(*_):
        raise StateError("its rule does not fit its model")

    monkeypatch.setattr("flower_dhb.peer.device.app.agent_of", refuse)
    text = wrong(of_device(mesh, train=True), "training")
    assert "StateError: its rule does not fit its model" in text


def test_a_round_of_training_is_timed(mesh):
    (found,) = [f for f in of_device(mesh, train=True) if f.subject == "training"]
    assert found.grade is Grade.FINE
    assert "local training takes" in found.text


def keys_of(mesh, **change):
    """Another key or certificate for vertex 0, by the mesh's own authority."""
    authority = Authority.load(mesh / "authority")
    vertex, days = change.get("vertex", 0), change.get("days", 100)
    key, certificate = authority.issue(vertex, days, change.get("start"))
    folder = mesh / "vertex-0"
    write_private(folder / "key.pem", key)
    write_durably(folder / "certificate.pem", certificate)


DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"days": 1, "start": utc_now() - 3 * DAY}, "expired"),
        ({"start": utc_now() + 3 * DAY}, "set the clock"),
        ({"vertex": 1}, "vertex/1"),
    ],
    ids=["expired", "not yet valid", "of another vertex"],
)
def test_certificates_that_do_not_hold(mesh, change, words):
    keys_of(mesh, **change)
    found = of_device(mesh)
    assert words in wrong(found, "certificate")
    assert any("not tried" in f.text for f in found)


def test_files_of_a_key_that_are_not_right(mesh):
    folder = mesh / "vertex-0"
    (folder / "key.pem").chmod(0o644)
    assert "chmod 600" in wrong(of_device(mesh), "certificate")
    (folder / "key.pem").chmod(0o600)
    (folder / "authority.pem").write_bytes(Authority.create("ffff0000").pem)
    assert "not signed by the authority" in wrong(of_device(mesh), "certificate")
    (folder / "certificate.pem").unlink()
    assert "cannot read" in wrong(of_device(mesh), "certificate")


def test_a_certificate_that_ends_soon(mesh):
    keys_of(mesh, days=10)
    (found,) = [f for f in of_device(mesh) if f.subject == "certificate"]
    assert found.grade is Grade.NOTE
    assert "for 10 days more" in found.text
    assert "mesh renew MESH --all" in found.remedy


def test_a_clock_behind_the_own_files(mesh):
    later = time.time() + 86400.0
    os.utime(mesh / "vertex-0" / "certificate.pem", (later, later))
    assert "24.0 hours later" in wrong(of_device(mesh), "clock")


def test_a_state_directory_that_cannot_be(mesh):
    (mesh / "vertex-0" / "state").write_text("a file")
    assert "nothing can be kept" in wrong(of_device(mesh), "disk")


# --- ways ----------------------------------------------------------------------------------


def addresses(mesh):
    """Of vertex 0, and of those that it dials."""
    loaded = PeerSettings.load(toml_of(mesh))
    return loaded.listen, dict(loaded.dial)


@pytest.fixture
def dialed(mesh):
    """A neighbor that vertex 0 dials, and its address."""
    _, dial = addresses(mesh)
    j = min(dial)
    return j, dial[j]


def test_a_port_that_somebody_has(mesh):
    listen, _ = addresses(mesh)
    host, port = listen.rsplit(":", 1)
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen(1)
        assert "ss -ltnp" in wrong(of_device(mesh), "listen")


@pytest.mark.parametrize(
    ("address", "words"),
    [("192.0.2.1:19440", "ip address"), ("no.such.host.invalid:1", "Write an")],
)
def test_an_address_that_is_not_this_device_s(mesh, monkeypatch, address, words):
    def unknown(*_words, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if address.startswith("no."):
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    listen, _ = addresses(mesh)
    replace_in(toml_of(mesh), listen, address)
    assert words in wrong(of_device(mesh), "listen")


def test_a_port_of_the_metrics_that_somebody_has(mesh):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        text = toml_of(mesh).read_text()
        toml_of(mesh).write_text(f"metrics-port = {port}\n{text}")
        assert "ss -ltnp" in wrong(of_device(mesh), "metrics-port")


def test_a_device_that_runs_has_its_port_by_right(mesh):
    listen, _ = addresses(mesh)
    host, port = listen.rsplit(":", 1)
    state = mesh / "vertex-0" / "state"
    with Home(state), socket.socket() as taken:
        taken.bind((host, int(port)))
        found = of_device(mesh)
    assert any("it runs on this machine" in f.text for f in found)
    assert not [f for f in found if f.subject.startswith("listen")]


@contextlib.contextmanager
def server(address, speak):
    """Something that listens where a neighbor should, and answers each caller with `speak`."""
    host, port = address.rsplit(":", 1)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(8)

        def serve():
            while True:
                try:
                    caller, _ = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), caller:
                    caller.settimeout(5.0)
                    speak(caller)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(6.0)


def as_device(mesh, vertex, tmp_path, *, believes=None, days=100, start=None, authority=None):
    """Speaks as a peer of a vertex does, up to the first bytes of HTTP/2."""
    own = authority or Authority.load(mesh / "authority")
    key, certificate = own.issue(vertex, days, start)
    (tmp_path / "shown.pem").write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "shown.pem")
    roots = believes or Authority.load(mesh / "authority")
    context.load_verify_locations(cadata=roots.pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])

    def speak(caller):
        with context.wrap_socket(caller, server_side=True) as secure:
            secure.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            secure.recv(1)

    return speak


def about(findings, j):
    (found,) = [f for f in findings if f.subject.startswith(f"vertex {j} ")]
    return found


@contextlib.contextmanager
def peer(mesh, j):
    """The connections of a neighbor that runs, at its own address."""
    settings = PeerSettings.load(mesh / f"vertex-{j}" / "peer.toml")
    transport = Transport(
        vertex=j,
        run=settings.run,
        vectors=(),
        agreement={},
        neighbors=settings.neighbors,
        deliver=lambda event: None,
        monitor=Monitor(j),
        listen=settings.listen,
        dial={},
        tls=settings.tls,
        operations=Operations(
            status=lambda request: pb.StatusReply(), stop=lambda request: pb.StopReply()
        ),
    )
    transport.start()
    try:
        yield transport
    finally:
        transport.stop(1.0)


def test_a_neighbor_that_is_there_and_the_link_to_it(mesh, dialed):
    j, _ = dialed
    with peer(mesh, j):
        found = of_device(mesh)
        there = about(found, j)
        assert there.grade is Grade.FINE
        assert "is who it should be" in there.text
        (way,) = [f for f in found if f.subject == f"link to vertex {j}"]
        assert way.grade is Grade.FINE
        assert "round trip" in way.text
        assert "a payload of " in way.text
        assert "a round waits 60 s at most" in way.text
        unmeasured = of_device(mesh, rates=False)
        assert about(unmeasured, j).grade is Grade.FINE
        assert not [f for f in unmeasured if f.subject.startswith("link")]


def test_a_compressed_payload_takes_what_is_sent_of_it(mesh):
    settings = PeerSettings.load(toml_of(mesh))
    arrays, _ = read_start(settings.start)
    plain = _payload_bytes(settings, arrays)
    assert plain == sum(array.nbytes for array in arrays.values())
    settings = replace(settings, compression=Compression.parse("bf16"))
    assert plain / 5 < _payload_bytes(settings, arrays) <= plain / 2
    settings = replace(settings, compression=Compression.parse("lowrank:64"))
    assert _payload_bytes(settings, arrays) == plain  # the app's finding says no
    assert _payload_bytes(settings, {}) == 0


def test_a_link_of_which_the_rate_is_known(mesh, dialed):
    """100 kbit/s: the rate is found, in a few seconds."""
    j, address = dialed
    links = ShapedLinks(Shape(bytes_s=12500.0))
    replace_in(toml_of(mesh), f'"{address}"', f'"{links.before(address)}"')
    settings = PeerSettings.load(toml_of(mesh))
    tls = settings.tls
    options = [("grpc.ssl_target_name_override", tls.server_name(j))]
    try:
        with (
            peer(mesh, j),
            grpc.secure_channel(settings.dial[j], tls.channel_credentials(), options) as channel,
        ):
            begin = time.monotonic()
            way = measure(channel, 0, 10.0)
            took = time.monotonic() - begin
    finally:
        links.close()
    assert took < 8.0
    for rate in (way.there, way.back):
        # What TLS and HTTP/2 add, and what the proxy's buffers hide, is below a quarter.
        assert rate.bytes_per_s == pytest.approx(12500.0, rel=0.25)
        assert not rate.at_least


def test_what_a_payload_takes_is_held_against_the_ceiling():
    way = Way(0.5, Rate(1e6, at_least=True), Rate(1e5, at_least=False))
    found = _rated("link", way, 10**6, 12.0)
    assert found.grade is Grade.FINE
    assert "round trip 500.0 ms, at least 1 MB/s there, 100 kB/s back" in found.text
    assert "takes 1.5 s there and 10 s back" in found.text
    late = _rated("link", way, 10**6, 10.0)
    assert late.grade is Grade.WRONG
    assert "timing.ceiling-s" in late.remedy
    assert _rated("link", way, 0, 1.0).grade is Grade.FINE


def test_a_neighbor_may_measure_so_much_and_a_stranger_nothing(mesh, dialed):
    j, address = dialed
    settings = PeerSettings.load(toml_of(mesh))
    with peer(mesh, j) as transport:
        found = [link(settings, j, 0, 5.0) for _ in range(6)]
        measured = [f.grade is Grade.FINE for f in found]
        assert measured == sorted(measured, reverse=True)  # first some, then none
        assert 3 <= sum(measured) < 6
        assert "too often" in found[-1].text
        assert transport.monitor.total("turned-away.busy") >= 1
        stranger = Authority.load(mesh / "authority").issue(17, 5)
        shown = grpc.ssl_channel_credentials(settings.tls.authority.read_bytes(), *stranger)
        options = [("grpc.ssl_target_name_override", settings.tls.server_name(j))]
        with (
            grpc.secure_channel(address, shown, options) as channel,
            pytest.raises(grpc.RpcError) as refused,
        ):
            measure(channel, 0, 5.0)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_one_answer_is_bounded():
    allowance = new_allowance()
    assert len(answer(pb.MeasureRequest(answer_bytes=LIMIT_BYTES), allowance).data) == LIMIT_BYTES
    assert answer(pb.MeasureRequest(answer_bytes=LIMIT_BYTES + 1), allowance) is None
    assert answer(pb.MeasureRequest(data=b"x", answer_bytes=LIMIT_BYTES), allowance) is None
    calls = 0
    while answer(pb.MeasureRequest(), allowance) is not None:  # not even of nothing is there more
        calls += 1
        assert calls < 10_000
    assert calls > 1000


def test_a_neighbor_whose_link_cannot_be_measured(mesh, dialed, tmp_path):
    j, address = dialed
    with server(address, as_device(mesh, j, tmp_path)):
        found = of_device(mesh)
    assert about(found, j).grade is Grade.FINE
    (way,) = [f for f in found if f.subject == f"link to vertex {j}"]
    assert way.grade is Grade.NOTE
    assert "cannot be measured" in way.text


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("another vertex", "another device answers there"),
        ("another mesh", "not of this mesh's authority"),
        ("expired", "has expired"),
        ("not yet valid", "not valid yet"),
        ("who does not believe us", "does not believe this device"),
        ("no TLS", "speaks no TLS"),
        ("silent", "says nothing"),
        ("hangs up", "hangs up"),
    ],
)
def test_neighbors_that_are_not_what_they_should_be(mesh, dialed, tmp_path, who, words):
    j, address = dialed
    stranger = Authority.create("ffff0000")
    make = {
        "another vertex": lambda: as_device(mesh, j + 7, tmp_path),
        "another mesh": lambda: as_device(mesh, j, tmp_path, authority=stranger),
        "expired": lambda: as_device(mesh, j, tmp_path, days=1, start=utc_now() - 3 * DAY),
        "not yet valid": lambda: as_device(mesh, j, tmp_path, start=utc_now() + 3 * DAY),
        "who does not believe us": lambda: as_device(mesh, j, tmp_path, believes=stranger),
        "no TLS": lambda: lambda caller: caller.sendall(b"SSH-2.0-somebody\r\n" * 4),
        "silent": lambda: lambda caller: caller.recv(10**6) and time.sleep(1.0),
        "hangs up": lambda: lambda caller: caller.close(),
    }
    with server(address, make[who]()):
        found = about(of_device(mesh), j)
    assert found.grade is Grade.WRONG
    assert words in found.text


def test_a_neighbor_whose_name_nobody_knows(mesh, dialed, monkeypatch):
    j, address = dialed
    replace_in(toml_of(mesh), f'"{address}"', '"robot-9.invalid:9440"')
    known = socket.getaddrinfo

    def asked(host, *words, **options):
        if host == "robot-9.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(host, *words, **options)

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    found = about(of_device(mesh), j)
    assert "its name is not known" in found.text
    assert "DNS" in found.remedy


def test_a_neighbor_that_is_this_device(mesh, dialed):
    j, address = dialed
    listen, _ = addresses(mesh)
    replace_in(toml_of(mesh), f'"{address}"', f'"{listen}"')
    assert "this device's own address" in about(of_device(mesh), j).text


def test_a_device_that_only_its_own_machine_sees(tmp_path):
    hosts = [Host(0, "127.0.0.1:19441"), Host(1, "192.0.2.7:19442"), Host(2, "192.0.2.8:19443")]
    plan = MeshPlan(
        app=APP, out=tmp_path / "m", hosts=hosts, overrides={"topology": "ring:3", "rounds": 3}
    )
    create_mesh(plan)
    for v in range(3):
        path = tmp_path / "m" / f"vertex-{v}" / "peer.toml"
        found = [
            f
            for f in device(path, 0.01, app=False)
            if f.grade is Grade.WRONG and "this machine alone" in f.text
        ]
        text = path.read_text()
        sees = 'listen = "127.0.0.1' in text
        dials = text.count("address =")
        assert bool(found) == (sees and 0 < dials < 2), (v, found)


# --- the command ---------------------------------------------------------------------------


def test_the_command_says_what_to_mend_in_80_columns(mesh, capsys):
    assert main(["doctor", str(toml_of(mesh)), "--timeout", "0.5"]) == 1
    out = capsys.readouterr().out
    assert "wrong vertex" in out
    assert "Start the peer there" in out
    assert "to mend" in out.splitlines()[-1]
    # A path without a place to fold at may be longer.
    assert all(len(line) <= 80 for line in out.splitlines() if "/" not in line)


def test_the_command_as_json_and_on_a_machine_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"grade", "subject", "text", "remedy"} == set(found[0])
    assert main(["doctor"]) == 0
    assert "Nothing is wrong" in capsys.readouterr().out.splitlines()[-1]
