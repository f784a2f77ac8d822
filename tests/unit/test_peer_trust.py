"""Whom a device believes: chains, revoked certificates, authorities that change, and proofs."""

import base64
import dataclasses
import datetime

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from flower_dhb import ConfigError
from flower_dhb.peer.device import validity
from flower_dhb.peer.device.validity import Validity
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire.bulletin import AUTHORITY, REVOCATIONS, Bulletin, fingerprint
from flower_dhb.peer.wire.identity import OPERATOR, Identity, ValidityError, issuer_of, utc_now
from flower_dhb.peer.wire.proof import (
    NotBelievedError,
    as_metadata,
    believe,
    new_challenge,
    proof_of,
    prove,
)
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.trust import Trust, check_authority, check_revocations, serial_text
from tests.support.board import Device
from tests.support.events import Events
from tests.support.peers import Mesh
from tests.support.waiting import wait_for

DAY = datetime.timedelta(days=1)


@pytest.fixture(autouse=True)
def log():
    with Events() as heard:
        yield heard


@pytest.fixture(scope="module")
def old():
    return Authority.create("m1", 400)


@pytest.fixture(scope="module")
def changing(old):
    """The old authority while a new one takes its place."""
    both = Authority("m1", old._key, old.certificate)
    both.following = old.successor(7300)
    return both


def chain(pem):
    return x509.load_pem_x509_certificates(pem)


def revoking(*serials, number=1, **more):
    entries = [{"serial": s, "since": "2031-05-04", "reason": "stolen"} | more for s in serials]
    return Bulletin(REVOCATIONS, "m1", number, {"certificates": entries})


def believing(*authorities, retired=(), number=1):
    pems = [a.certificate.public_bytes(Encoding.PEM).decode() for a in authorities]
    return Bulletin(AUTHORITY, "m1", number, {"authorities": pems, "retired": list(retired)})


# --- chains and lists -----------------------------------------------------------------------


def test_a_new_authority_is_believed_by_whoever_knows_only_the_old_one(old, changing):
    new = changing.following
    assert new.certificate.subject.rfc4514_string() == "CN=m1 authority 2"
    assert new.successor().certificate.subject.rfc4514_string() == "CN=m1 authority 3"
    own = chain(old.issue(3, 5)[1])
    after = chain(changing.issue(3, 5)[1])
    assert (len(own), len(after)) == (1, 2)
    assert issuer_of(own, [old.certificate]) == old.certificate
    assert issuer_of(own, [new.certificate]) is None
    assert issuer_of(after, [old.certificate]) == after[1]
    assert fingerprint(after[1]) == fingerprint(new.certificate)
    assert after[1].not_valid_after_utc <= old.certificate.not_valid_after_utc + DAY
    for roots in ([new.certificate], [old.certificate, new.certificate]):
        assert issuer_of(after, roots) == new.certificate
    assert issuer_of(after[:1], [old.certificate]) is None
    # A device's certificate makes nobody an authority, whatever its key signs.
    key, certificate = old.issue(3, 5)
    (device,) = chain(certificate)
    forged = chain(Authority("m1", load_pem_private_key(key, None), device).issue(0, 2)[1])
    forged[0].verify_directly_issued_by(device)
    assert issuer_of([forged[0], device], [old.certificate]) is None


def test_authorities_of_file_and_bulletin_are_believed_less_the_retired(old, changing):
    trust, new = Trust(), changing.following
    assert trust.roots([old.certificate]) == (old.certificate,)
    trust.take_authority(believing(old, new))
    assert trust.roots([old.certificate]) == (old.certificate, new.certificate)
    trust.take_authority(believing(new, retired=[fingerprint(old.certificate)]))
    assert trust.roots([old.certificate]) == trust.roots([]) == (new.certificate,)
    assert trust.version == 2
    own = chain(old.issue(3, 5)[1])
    why = trust.why_not(own, trust.roots([old.certificate]), utc_now())
    assert why.endswith("of vertex 3 is of an authority that is not believed")
    # Neither by the one that it made known: the old one's signature counts for nothing now.
    assert trust.why_not(chain(changing.issue(3, 5)[1]), trust.roots([]), utc_now()) is None
    assert trust.why_not(chain(changing.issue(3, 5)[1]), [], utc_now()) is not None


def test_why_a_certificate_is_not_believed_is_said_in_words(old):
    trust, own = Trust(), chain(old.issue(3, 5)[1])
    roots = [old.certificate]
    assert trust.why_not(own, roots, utc_now()) is None
    why = trust.why_not(own, roots, utc_now() + 6 * DAY)
    assert f"the certificate {serial_text(own[0])} of vertex 3 is valid from" in why
    trust.take_revocations(revoking(serial_text(own[0])))
    assert trust.why_not(own, roots, utc_now()).endswith(
        "of vertex 3 was revoked on 2031-05-04: stolen"
    )
    trust.take_revocations(revoking(number=2))  # the newest list says all there is to say
    assert trust.why_not(own, roots, utc_now()) is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (AUTHORITY, {}), (AUTHORITY, {"authorities": ["x"], "retired": []}),
        (AUTHORITY, {"authorities": [], "retired": []}), (AUTHORITY, {"authorities": 5}),
        (REVOCATIONS, {}), (REVOCATIONS, {"certificates": [{"serial": "x", "since": ""}]}),
        (REVOCATIONS, {"certificates": [{"serial": "1"}]}), (REVOCATIONS, {"certificates": [7]}),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_meant_are_refused(kind, body):
    check = check_authority if kind == AUTHORITY else check_revocations
    with pytest.raises(ConfigError):
        check(Bulletin(kind, "m1", 1, body))


def test_the_last_authority_is_not_retired(old):
    retired = [fingerprint(old.certificate)]
    with pytest.raises(ConfigError, match="no authority would be left"):
        check_authority(believing(old, retired=retired))


# --- proofs -----------------------------------------------------------------------------------


@pytest.fixture
def files(old, tmp_path):
    def of(vertex, authority=old):
        home = tmp_path / str(vertex)
        home.mkdir(exist_ok=True)
        key, certificate = authority.issue(vertex, 5)
        write_private(home / "key.pem", key)
        (home / "certificate.pem").write_bytes(certificate)
        (home / "authority.pem").write_bytes(old.pem)
        names = (home / f"{name}.pem" for name in ("key", "certificate", "authority"))
        return TlsFiles(Identity("m1", vertex), *names)

    return of


def test_the_accepting_end_proves_whose_certificate_it_shows(files, changing):
    dialing = files(0)
    for authority in (None, changing):
        accepting = files(1) if authority is None else files(1, authority)
        challenge = new_challenge()
        found = believe(dialing, prove(accepting, challenge, 0), challenge, 1)
        assert list(found) == chain(accepting.certificate.read_bytes())


def test_what_is_no_proof(files, old):
    dialing, accepting, other = files(0), files(1), files(2)
    challenge = new_challenge()

    def refused(why, metadata, at=challenge):
        with pytest.raises(NotBelievedError, match=why):
            believe(dialing, metadata, at, 1)

    good = prove(accepting, challenge, 0)
    refused("does not prove whose certificate", ())
    refused("does not prove whose certificate", good[:1])
    refused("does not prove", (("certificate-bin", bytes(20_000)), good[1]))
    refused("shows no certificate", (("certificate-bin", b"x"), good[1]))
    refused("vertex 1 shows the certificate of vertex 2", prove(other, challenge, 0))
    for metadata, at in [
        (good, new_challenge()),  # made for another connection
        (prove(accepting, challenge, 5), challenge),  # made for another neighbor
        ((good[0], prove(files(1), challenge, 0)[1]), challenge),  # made with another key
        ((good[0], ("proof-bin", b"x")), challenge),
    ]:
        refused("whose key it does not have", metadata, at)
    assert prove(accepting, "not drawn by anybody", 0) == ()
    accepting.key.unlink()
    assert prove(accepting, challenge, 0) == ()
    # An honest one, whose certificate is believed no more.
    own = chain(good[0][1])[0]
    dialing.trust.take_revocations(revoking(serial_text(own)))
    refused("was revoked on", good)
    dialing.trust.take_revocations(revoking(number=2))
    late = dataclasses.replace(dialing, clock=lambda: utc_now() + 6 * DAY)
    with pytest.raises(NotBelievedError, match="is valid from"):
        believe(late, good, challenge, 1)


def test_whatever_a_hostile_end_shows_is_no_accident(files):
    """It changes bytes of its certificate, which nobody has vouched for when they are read."""
    dialing, accepting = files(0), files(1)
    challenge, rng = new_challenge(), np.random.default_rng(7)
    pem, proof = proof_of(accepting, challenge, 0)
    good = chain(pem)[0].public_bytes(Encoding.DER)
    for n in range(600):
        der = bytearray(good)
        for _ in range(1 + n % 3):
            at = int(rng.integers(len(der)))
            if rng.random() < 0.7:
                der[at] ^= int(rng.integers(1, 256))
            else:
                del der[at : at + int(rng.integers(1, 9))]
        begin, end = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"
        shown = begin + base64.encodebytes(der) + end
        with pytest.raises(NotBelievedError):
            believe(dialing, as_metadata(shown, proof), challenge, 1)


def test_a_device_knows_that_its_own_certificate_is_revoked(files):
    own = files(3)
    own.trust.take_revocations(revoking(own.standing().serial))
    with pytest.raises(ValidityError, match="was revoked on 2031-05-04: stolen"):
        own.read()
    assert files(3).read()


# --- connections --------------------------------------------------------------------------------


@pytest.fixture
def mesh(tmp_path):
    """0 - 1 - 2; no process is started."""
    return Mesh(tmp_path / "m", n=3, topology="path:3", rounds=3, size=4)


def test_open_connections_end_when_a_list_comes_and_none_is_made_with_a_revoked_key(mesh, log):
    """Whichever end shows the revoked certificate, and whoever dials."""
    authority = Authority.load(mesh.out / "authority")
    for thief in (0, 1):
        other = 1 - thief
        devices = {v: Device(mesh.settings(v)) for v in (0, 1)}
        number = thief + 1
        with devices[0], devices[1]:
            wait_for(lambda d=devices: d[0].up() == (1,) and d[1].up() == (0,), "the connection")
            serial = devices[thief].tls.standing().serial
            bulletin = dataclasses.replace(revoking(serial, number=number), mesh=authority.mesh)
            before = devices[other].monitor.total("turned-away.certificate")
            # The thief keeps the list from itself.
            devices[thief].board._take = lambda raw, source: None
            devices[other].board.take(authority.sign(bulletin), "a file")
            wait_for(lambda d=devices, o=other: d[o].up() == (), "the end of the connection")
            wait_for(
                lambda d=devices, o=other, b=before: (
                    d[o].monitor.total("turned-away.certificate") > b
                ),
                "an attempt with the revoked certificate",
            )
            assert devices[other].up() == ()
            assert devices[other].monitor.counts()["cut-off.certificate", thief] == 1
        (told,) = [e for e in log.named("cut-off") if e["vertex"] == other]
        assert f"of vertex {thief} was revoked on 2031-05-04: stolen" in told["why"]
        log.all.clear()
        for path in mesh.out.glob("vertex-*/state/bulletin-*"):
            path.unlink()


def test_open_connections_end_when_their_certificate_does(mesh, log):
    clock = [utc_now()]
    with Device(mesh.settings(0)) as zero, Device(mesh.settings(1), clock=lambda: clock[0]) as one:
        wait_for(lambda: zero.up() and one.up(), "the connection")
        one.transport.judge()
        assert one.up() == (0,)
        clock[0] += 826 * DAY
        one.transport.judge()
        wait_for(lambda: one.up() == (), "the end of the connection")
    assert "is valid from" in log.named("cut-off")[0]["why"]


def test_an_authority_changes_while_devices_run(mesh):
    """The new one is believed from the bulletin on, without files and without a restart."""
    authority = Authority.load(mesh.out / "authority")
    authority.following = authority.successor()
    with Device(mesh.settings(0)) as zero, Device(mesh.settings(1)) as one:
        wait_for(lambda: zero.up() and one.up(), "the connection")
        told = dataclasses.replace(believing(authority, authority.following), mesh=authority.mesh)
        one.board.take(authority.sign(told), "a file")
        wait_for(lambda: zero.number(AUTHORITY) == 1, "the news")
        assert len(zero.tls.roots()) == len(one.tls.roots()) == 2
    only_new = Authority(authority.mesh, authority.following._key, authority.following.certificate)
    for v in (0, 1):
        home = mesh.out / f"vertex-{v}"
        key, certificate = only_new.issue(v, 5)  # nothing in it leads to the old one
        write_private(home / "key.pem", key)
        (home / "certificate.pem").write_bytes(certificate)
    zero, one = Device(mesh.settings(0)), Device(mesh.settings(1))
    for device in (zero, one):  # their disks are not real ones
        device.board.take(authority.sign(told), "the disk")
    with zero, one:
        wait_for(lambda: zero.up() and one.up(), "the connection")


# --- the end, in advance ------------------------------------------------------------------------


def test_the_end_is_told_from_30_days_on_once_a_day(files, log):
    now = utc_now() - DAY / 1440  # a minute before the certificate was made
    clock, judged = [now], []
    own = dataclasses.replace(files(3), clock=lambda: clock[0])
    looks = Validity(own, Monitor(3), lambda: judged.append(1))
    looks.look(0.0)
    for hour in range(50):
        looks.look(3600.5 * hour)
    told = log.named("certificate-ends")
    assert len(told) == 3
    assert told[0]["days_left"] == 5
    assert told[0]["what"] == "certificate"
    assert "mesh renew MESH --vertex 3' and copy the files" in told[0]["what_now"]
    assert len(judged) == 51
    clock[0] = now + 6 * DAY
    looks.look(9e6)
    assert log.named("certificate-ends")[-1]["days_left"] == -1
    log.all.clear()
    clock[0] = now - 26 * DAY
    looks.look(9e7)
    assert log.all == []


def test_an_authority_that_ends_first_is_named(tmp_path, log):
    brief = Authority.create("m1", 6)
    key, certificate = brief.issue(OPERATOR, 6)
    write_private(tmp_path / "key.pem", key)
    (tmp_path / "certificate.pem").write_bytes(certificate)
    (tmp_path / "authority.pem").write_bytes(brief.pem)
    names = (tmp_path / f"{name}.pem" for name in ("key", "certificate", "authority"))
    own = TlsFiles(Identity("m1", OPERATOR), *names)
    standing = own.standing()
    assert 5.9 < standing.days_left <= standing.authority_days < 6.01
    assert standing.trusts == (standing.issuer,) == (fingerprint(brief.certificate),)
    (tmp_path / "authority.pem").write_bytes(Authority.create("m1", 6).pem)
    assert own.standing().authority_days == own.standing().days_left == 0.0
    Validity(own, Monitor(-1), lambda: None).look(0.0)
    (told,) = log.named("certificate-ends")
    assert (told["what"], told["days_left"]) == ("authority", 0)
    assert "--authority'" in told["what_now"]
    (tmp_path / "certificate.pem").unlink()
    assert own.standing() is None


def test_the_thread_looks_at_once_and_can_be_stopped(files, monkeypatch):
    monkeypatch.setattr(validity, "_JUDGE_S", 0.005)
    judged = []
    looks = Validity(files(3), Monitor(3), lambda: judged.append(1))
    looks.start()
    wait_for(lambda: len(judged) > 2)
    looks.stop()
    assert not looks._thread.is_alive()
