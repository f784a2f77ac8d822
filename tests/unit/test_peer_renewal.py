"""`mesh renew` and `mesh revoke`: what they write and refuse, and that no device is lost."""

import base64
import dataclasses
import datetime
import shutil
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from flower_dhb import ConfigError, cli
from flower_dhb.cli import values as command
from flower_dhb.peer.mesh import certificates as made
from flower_dhb.peer.mesh import renewal
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.mesh.create import Host, local_hosts
from flower_dhb.peer.mesh.publish import newest, publish
from flower_dhb.peer.mesh.renewal import (
    change_authority,
    renew,
    renew_online,
    revoke,
    revoke_serials,
)
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import AUTHORITY, EDITION, REVOCATIONS, fingerprint, signers
from flower_dhb.peer.wire.identity import OPERATOR, Identity, check_own, utc_now
from flower_dhb.peer.wire.proof import NotBelievedError
from flower_dhb.peer.wire.trust import serial_text
from tests.support.board import Device
from tests.support.events import Events
from tests.support.peers import Mesh
from tests.support.waiting import wait_for

DAY = datetime.timedelta(days=1)


@pytest.fixture(autouse=True)
def log():
    with Events() as heard:
        yield heard


@pytest.fixture
def mesh(tmp_path):
    """0 - 1 - 2, of which 2 has no address; no process is started."""
    return Mesh(tmp_path / "m", n=3, hosts=[*local_hosts(2), Host(2)], topology="path:3",
                rounds=3, size=4)  # fmt: skip


def files(mesh, name):
    return [
        (mesh.out / name / f"{n}.pem").read_bytes() for n in ("key", "certificate", "authority")
    ]


def certificate(mesh, name):
    return x509.load_pem_x509_certificate(files(mesh, name)[1])


def names():
    return ["vertex-0", "vertex-1", "vertex-2", "operator"]


@pytest.fixture
def at(monkeypatch):
    """Sets the clock of this machine."""

    def set_to(moment):
        for module in (made, renewal):
            monkeypatch.setattr(module, "utc_now", lambda: moment)

    return set_to


def test_what_is_written_is_of_the_same_vertex_and_another_key(mesh):
    identity = mesh.settings(0).mesh
    root = certificate_of_authority(mesh)
    assert round((root.not_valid_after_utc - utc_now()) / DAY) == 7300
    before = {name: files(mesh, name) for name in names()}
    (one,) = renew(mesh.out, [1], 30)
    assert (one.vertex, one.folder) == (1, mesh.out / "vertex-1")
    everything = renew(mesh.out, None, 825)
    assert [r.vertex for r in everything] == [0, 1, 2, OPERATOR]
    for name, new in zip(names(), everything, strict=True):
        key, pem, authority = files(mesh, name)
        assert key != before[name][0]
        check_own(key, pem, authority, Identity(identity, new.vertex))
        assert new.serial == serial_text(certificate(mesh, name))
        assert (new.ends - new.begins).days == 825
    kept = x509.load_pem_x509_certificates((mesh.out / "authority/issued.pem").read_bytes())
    assert len({c.serial_number for c in kept}) == 5


def certificate_of_authority(mesh):
    return Authority.load(mesh.out / "authority").certificate


def test_what_cannot_work_is_refused_with_the_remedy_and_changes_nothing(mesh, at, tmp_path):
    before = {path: path.read_bytes() for path in mesh.out.rglob("*.pem")}
    ends = certificate_of_authority(mesh).not_valid_after_utc
    now = utc_now()
    for moment, call, why in [
        (now, lambda: renew(mesh.out, [7], 5), "has no vertex-7; is it what 'mesh create'"),
        (now, lambda: renew(mesh.out, None, 7400), r"beyond .*choose --days 7300 or fewer, or cha"),
        (ends - 9 * DAY, lambda: renew(mesh.out, [0], 30), "choose --days 9 or fewer, or change"),
        (ends + DAY, lambda: renew(mesh.out, [0], 30), "ended on .* --authority --force"),
        (ends + DAY, lambda: change_authority(mesh.out, 7300), "ended on .* --authority --force"),
        (now - 2 * DAY, lambda: renew(mesh.out, [0], 30), "clock says .* set the clock"),
        (now - 2 * DAY, lambda: change_authority(mesh.out, 9), "clock says .* set the clock"),
        (now, lambda: revoke_serials(mesh.out, ["xyz"]), "'xyz': expected hexadecimal digits"),
        (now, lambda: revoke(mesh.out, 9), "no valid certificate of vertex-9 to revoke"),
    ]:
        at(moment)
        with pytest.raises(ConfigError, match=why):
            call()
    assert {path: path.read_bytes() for path in mesh.out.rglob("*.pem")} == before
    # What was issued in between says that this clock has been set back.
    at(now + 300 * DAY)
    renew(mesh.out, [0], 30)
    at(now + 298 * DAY)
    with pytest.raises(ConfigError, match="a certificate of this mesh was issued on"):
        renew(mesh.out, [1], 30)
    plain = Mesh(tmp_path / "p", n=2, plaintext=True, topology="path:2", rounds=3, size=4)
    for call in (lambda: renew(plain.out, [0], 5), lambda: revoke(plain.out, 0)):
        with pytest.raises(ConfigError, match="plaintext has no authority"):
            call()


def test_all_certificates_of_a_vertex_are_revoked_but_the_kept_ones(mesh):
    first = serial_text(certificate(mesh, "vertex-1"))
    (new,) = renew(mesh.out, [1], 30)
    other = serial_text(certificate(mesh, "vertex-2"))
    with Device(mesh.settings(0)) as zero:
        found = revoke(mesh.out, 1, "stolen", keep=[new.serial], timeout_s=2.0)
        assert found.took == (0,)
        assert "no address" in found.failures[2]
        (entry,) = found.bulletin.body["certificates"]
        assert (entry["serial"], entry["who"], entry["reason"]) == (first, "vertex 1", "stolen")
        found = revoke_serials(mesh.out, [":".join((other[:2], other[2:]))], timeout_s=2.0)
        assert [e["serial"] for e in found.bulletin.body["certificates"]] == sorted([first, other])
        assert zero.number(REVOCATIONS) == 2
        assert zero.tls.trust.why_revoked(certificate(mesh, "vertex-2"))
        assert not zero.tls.trust.why_revoked(certificate(mesh, "vertex-1"))
    revoke(mesh.out, 1, timeout_s=0.1)
    assert len(newest(mesh.out, REVOCATIONS).body["certificates"]) == 3


def test_the_list_forgets_what_has_ended_by_itself(mesh, at):
    revoke(mesh.out, 1, timeout_s=0.1)
    at(utc_now() + 900 * DAY)
    revoke_serials(mesh.out, ["abc"], timeout_s=0.1)
    (entry,) = newest(mesh.out, REVOCATIONS).body["certificates"]
    assert entry["serial"] == f"{0xABC:040x}"
    renew(mesh.out, [1], 30)
    assert (mesh.out / "authority" / "issued.pem").read_bytes() == b""


@pytest.mark.thorough
def test_another_authority_in_three_steps_and_no_device_lost(mesh):
    old = Authority.load(mesh.out / "authority")
    publish(mesh.out, EDITION, {"x": 1}, timeout_s=0.1)
    path = mesh.out / "bulletins" / "edition.bulletin"
    with Device(mesh.settings(0)) as zero, Device(mesh.settings(1)) as one:
        wait_for(lambda: 1 in zero.up() and one.up(), "the connection")
        step = change_authority(mesh.out, 7300, timeout_s=2.0)
        assert (step.step, step.published.took) == ("begun", (0, 1))
        both = Authority.load(mesh.out / "authority")
        new = both.following
        assert new.certificate.subject.rfc4514_string().endswith("authority 2")
        assert both.roots == (old.certificate, new.certificate)
        assert len(signers(path.read_bytes(), both.roots)) == 2
        assert {files(mesh, name)[2] for name in names()} == {both.pem}
        assert zero.tls.roots() == both.roots

        # Again, before anything was renewed: refused by name.
        with pytest.raises(ConfigError, match="cannot be retired yet") as found:
            change_authority(mesh.out, 7300, timeout_s=2.0)
        assert "vertex-0: its certificate is by the old authority" in str(found.value)
        assert "vertex-2: it cannot be asked (it has no address" in str(found.value)
        assert "operator: the operator's certificate is by the old" in str(found.value)

        renew(mesh.out, None, 30)
        # The new certificates are believed by one that knows the old authority only.
        alone = old.pem
        check_own(*files(mesh, "vertex-0")[:2], alone, Identity(old.mesh, 0))
        with pytest.raises(ConfigError, match="retired yet: vertex-2: it cannot be asked"):
            change_authority(mesh.out, 7300, timeout_s=2.0)
        step = change_authority(mesh.out, 7300, force=True, timeout_s=2.0)
        assert (step.step, step.published.took, list(step.cut_off)) == ("finished", (0, 1), [2])
        assert zero.tls.roots() == one.tls.roots() == (new.certificate,)
        now = Authority.load(mesh.out / "authority")
        assert (now.roots, now.following) == ((new.certificate,), None)
        assert {files(mesh, name)[2] for name in names()} == {new.pem}
        for name in names()[:3]:
            vertex = int(name[-1])
            check_own(*files(mesh, name), Identity(old.mesh, vertex))
        assert newest(mesh.out, EDITION).body == {"x": 1}  # by the new one alone
        # The connections of before were judged again: they show old certificates.
        wait_for(lambda: zero.up() == (1,) and one.up() == (0,), "connections with new ones")
        retired = mesh.out / "authority" / f"retired-{fingerprint(old.certificate)[:8]}"
        assert sorted(p.name for p in retired.iterdir()) == ["authority-key.pem", "authority.pem"]
        # And once more, with what devices know of the first change.
        change_authority(mesh.out, 7300, timeout_s=2.0)
        renew(mesh.out, None, 30)
        assert change_authority(mesh.out, 9000, force=True, timeout_s=2.0).step == "finished"
        assert len(zero.board.newest(AUTHORITY).body["retired"]) == 2


def test_devices_make_their_keys_themselves(mesh, log):
    settings = [mesh.settings(v) for v in (0, 1)]
    before = {name: files(mesh, name) for name in names()}
    with Device(settings[0]) as zero, Device(settings[1]) as one:
        wait_for(lambda: 1 in zero.up() and one.up(), "the connection")
        renewed, failures = renew_online(mesh.out, None, 500, timeout_s=2.0)
        assert [r.vertex for r in renewed] == [0, 1]
        assert list(failures) == [2]
        assert "no address" in failures[2]
        for device, new in ((zero, renewed[0]), (one, renewed[1])):
            key, pem, _ = device.tls.read()
            path = device.tls.renewed
            assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (0o600, key + pem)
            assert device.tls.standing().serial == new.serial
            assert device.tls.standing().certificate_days == pytest.approx(500, abs=0.1)
        assert {name: files(mesh, name) for name in names()} == before  # no key has travelled
        assert {e["serial"] for e in log.named("certificate-installed")} == {
            r.serial for r in renewed
        }
        # The ones before are revoked, and the devices go on with the new ones.
        revoke(mesh.out, 1, keep=[renewed[1].serial], timeout_s=2.0)
        wait_for(lambda: zero.monitor.total("cut-off.certificate") == 1, "the end of the old one")
        wait_for(lambda: 1 in zero.up() and one.up(), "the connection by the new one")
        # A certificate for another key, or without having been asked for one.
        key, certificate = Authority.load(mesh.out / "authority").issue(1, 5)
        for ask, why in [
            (pb.RenewRequest(certificate=certificate), "no new key waits for a certificate"),
            (pb.RenewRequest(challenge="ab" * 16), ""),
            (pb.RenewRequest(certificate=certificate), "does not belong to its key"),
            (pb.RenewRequest(certificate=b"x"), "unreadable"),
        ]:
            assert why in one.transport.operations.renew(ask).refused
        # Newer files that somebody has brought count, and older ones do not.
        before = zero.tls.standing()
        later = utc_now() + datetime.timedelta(minutes=3)
        key, certificate = Authority.load(mesh.out / "authority").issue(0, 5, later)
        write_private(zero.tls.key, key)
        assert zero.tls.standing().serial == before.serial  # they do not fit yet
        zero.tls.certificate.write_bytes(certificate)
        assert zero.tls.standing().certificate_days < 6
        zero.tls.certificate.write_bytes(b"x")
        assert zero.tls.standing().serial == before.serial


def test_a_thief_with_a_revoked_key_gets_no_new_one(mesh, tmp_path):
    """He sits at the address of vertex 0 and knows nothing of the list."""
    thief = dataclasses.replace(mesh.settings(0), state_dir=tmp_path / "thief")
    stolen = {}
    for name in ("key", "certificate", "authority"):
        stolen[name] = tmp_path / name
        shutil.copy(getattr(thief.tls, name), stolen[name])
    revoke(mesh.out, 0, "stolen", timeout_s=0.1)
    with Device(thief, **stolen) as there:
        renewed, failures = renew_online(mesh.out, [0], 500, timeout_s=2.0)
        assert renewed == []
        assert ": stolen" in failures[0]
        assert not there.tls.renewed.exists()
    with pytest.raises(ConfigError, match="has no vertex-9"):
        renew_online(mesh.out, [9], 500)


def test_a_request_is_for_a_key_that_its_maker_has():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    raw = made.public_bytes(Encoding.PEM)
    assert renewal._key_in(raw) == key.public_key()
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    forms = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = made.public_bytes(Encoding.DER).replace(
        key.public_key().public_bytes(*forms), other.public_bytes(*forms)
    )
    forged = b"".join(
        (b"-----BEGIN CERTIFICATE REQUEST-----\n", base64.encodebytes(forged),
         b"-----END CERTIFICATE REQUEST-----\n")
    )  # fmt: skip
    for request, why in [(forged, "a key that it does not have"), (b"x", "asks for no certifi")]:
        with pytest.raises(NotBelievedError, match=why):
            renewal._key_in(request)


def test_an_authority_that_has_ended_is_replaced_at_once(mesh, at):
    old = Authority.load(mesh.out / "authority")
    publish(mesh.out, EDITION, {"x": 1}, timeout_s=0.1)
    at(old.certificate.not_valid_after_utc + DAY)
    step = change_authority(mesh.out, 7300, force=True)
    assert (step.step, step.published) == ("replaced", None)
    renewed = renew(mesh.out, None, 825)
    assert len(renewed) == 4
    new = Authority.load(mesh.out / "authority")
    for name in names()[:3]:
        check_own(*files(mesh, name), Identity(old.mesh, int(name[-1])), renewed[0].begins + DAY)
    assert newest(mesh.out, EDITION).body == {"x": 1}
    assert newest(mesh.out, AUTHORITY).body["retired"] == [fingerprint(old.certificate)]
    assert fingerprint(new.certificate) != fingerprint(old.certificate)


@pytest.mark.thorough
def test_the_commands_say_what_was_done_and_what_is_to_be_done(mesh, capsys):
    def call(*words):
        status = cli.main(["mesh", *map(str, words)])
        found = capsys.readouterr()
        return status, found.out + found.err

    assert (command.AUTHORITY_DAYS, command.DEVICE_DAYS) == (made.AUTHORITY_DAYS, made.DEVICE_DAYS)
    status, text = call("renew", mesh.out, "--vertex", 1, "--days", 30)
    ends = certificate(mesh, "vertex-1").not_valid_after_utc
    assert status == 0
    assert f"vertex 1: {mesh.out / 'vertex-1'}, valid until {ends:%Y-%m-%d} (30 days)" in text
    assert "copy key.pem, certificate.pem and authority.pem over the old ones" in text
    status, text = call("renew", mesh.out, "--all", "--revoke-old")
    assert status == 0
    assert "the operator: " in text
    assert "list of revoked certificates, number 4, is on the disk of: nobody yet" in text
    assert len(newest(mesh.out, REVOCATIONS).body["certificates"]) == 5
    status, text = call("renew", mesh.out, "--all", "--online")
    assert status == 1
    assert "! vertex 2 has not: it has no address that could be asked" in text
    assert "the operator: " in text
    status, text = call("revoke", mesh.out, 2, "--reason", "stolen")
    assert status == 0
    assert f"mesh renew {mesh.out} --vertex 2" in text
    assert "vertex 2 not yet: it has no address that could be asked" in text
    assert str(mesh.out / "bulletins" / "revocations.bulletin") in text
    assert call("revoke", mesh.out, "--serial", "ab:cd")[0] == 0
    assert call("revoke", mesh.out, "operator")[0] == 0
    status, text = call("renew", mesh.out, "--authority")
    assert status == 0
    assert "step 1 of 3: devices believe the new authority, valid until" in text
    assert f"step 3: flower-dhb mesh renew {mesh.out} --authority" in text
    assert call("renew", mesh.out, "--operator")[0] == 0
    status, text = call("renew", mesh.out, "--authority", "--force")
    assert status == 0
    assert "step 3 of 3" in text
    assert "! vertex 0 is cut off until new files are there: it cannot be asked" in text
    status, text = call("renew", mesh.out, "--authority", "--force")
    assert status == 0
    assert "every device needs its new files" in text
    for words, why in [
        (["revoke", mesh.out], "say whose certificates to revoke"),
        (["revoke", mesh.out, 1, "--serial", "1"], "say whose certificates to revoke"),
        (["revoke", mesh.out, "x"], "a vertex is a number, or 'operator'; got 'x'"),
        (["renew", mesh.out, "--operator", "--online"], "--online is for devices"),
        (["renew", mesh.out, "--all", "--force"], "--force is for --authority"),
        (["renew", mesh.out, "--authority", "--revoke-old"], "--revoke-old is for certificates"),
    ]:
        status, text = call(*words)
        assert status == 2
        assert why in text
