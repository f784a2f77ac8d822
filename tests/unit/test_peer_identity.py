"""Certificates: what is in them, when they hold, and which files a device is refused with."""

import datetime
import os
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from flower_dhb import ConfigError
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire.identity import (
    OPERATOR,
    Identity,
    check_own,
    host_name,
    identity_of,
    identity_uri,
    private_bytes,
)
from flower_dhb.peer.wire.tls import TlsFiles, peer_identity
from tests.support.events import Events

DAY, SKEW = datetime.timedelta(days=1), datetime.timedelta(minutes=5)


def now():
    return datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def authority():
    return Authority.create("m1")


def read(pem):
    return x509.load_pem_x509_certificate(pem)


# --- identities ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vertex", "uri", "name", "text"),
    [
        (0, "flower-dhb://m1/vertex/0", "vertex-0.m1.flower-dhb", "vertex 0"),
        (17, "flower-dhb://m1/vertex/17", "vertex-17.m1.flower-dhb", "vertex 17"),
        (OPERATOR, "flower-dhb://m1/operator", "operator.m1.flower-dhb", "the operator"),
    ],
)
def test_an_identity_and_its_spellings(vertex, uri, name, text):
    identity = Identity("m1", vertex)
    assert (identity_uri(identity), host_name(identity), str(identity)) == (uri, name, text)
    assert identity_of(uri) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "flower-dhb://m1",
        "flower-dhb://m1/",
        "flower-dhb://m1/vertex",
        "flower-dhb://m1/vertex/",
        "flower-dhb://m1/vertex/00",
        "flower-dhb://m1/vertex/+1",
        "flower-dhb://m1/vertex/²",
        "flower-dhb://m1/vertex/1/x",
        "flower-dhb://m1/operator/1",
        "flower-dhb://m1/vertices/1",
        "flower-dhbx://m1/vertex/1",
        "xflower-dhb://m1/vertex/1",
    ],
)
def test_anything_else_is_nobody(uri):
    assert identity_of(uri) is None


def test_the_identity_is_the_first_name_that_is_one():
    key = "x509_subject_alternative_name"
    mine, other = b"flower-dhb://m1/vertex/3", b"flower-dhb://m2/vertex/3"
    assert peer_identity({key: [b"vertex-4.m1.flower-dhb", mine]}, "m1") == Identity("m1", 3)
    assert peer_identity({key: ["flower-dhb://m1/vertex/3"]}, "m1") == Identity("m1", 3)
    assert peer_identity({key: [other, mine]}, "m1") is None
    assert peer_identity({key: [b"\xff\xfe"]}, "m1") is None
    assert peer_identity({"x509_common_name": [mine]}, "m1") is None


# --- what is in a certificate -------------------------------------------------------------


def test_an_authority_signs_certificates_and_nothing_else():
    before = now().replace(microsecond=0)
    certificate = Authority.create("m1", 9999).certificate
    assert before - SKEW <= certificate.not_valid_before_utc <= now() - SKEW
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == 9999 * DAY + SKEW
    assert certificate.subject == certificate.issuer
    assert certificate.subject.rfc4514_string() == "CN=m1 authority"
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 1)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign) == (True, True)
    assert usage.value.digital_signature is False
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.parametrize("vertex", [3, OPERATOR])
def test_a_device_certificate_is_of_one_vertex_and_signs_nothing(authority, vertex):
    start = datetime.datetime(2031, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    key, pem = authority.issue(vertex, 5, start)
    certificate, identity = read(pem), Identity("m1", vertex)
    assert certificate.not_valid_before_utc == start - SKEW
    assert certificate.not_valid_after_utc == start + 5 * DAY
    assert certificate.issuer == authority.certificate.subject
    assert certificate.subject.rfc4514_string() == f"CN={host_name(identity)}"
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert found.critical is False  # there is a subject beside it
    names = found.value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity_uri(identity)]
    assert names.get_values_for_type(x509.DNSName) == [host_name(identity)]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature) == (True, True)
    others = ("key_cert_sign", "crl_sign", "content_commitment", "key_encipherment",
              "data_encipherment", "key_agreement")  # fmt: skip
    assert not any(getattr(usage.value, name) for name in others)
    extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    secret = serialization.load_pem_private_key(key, password=None)
    assert secret.public_key() == certificate.public_key()
    assert certificate.public_key() != authority.certificate.public_key()


def test_no_two_certificates_have_the_same_key_or_number(authority):
    made = [read(authority.issue(3, 5)[1]) for _ in range(2)]
    assert made[0].serial_number != made[1].serial_number
    assert made[0].public_key() != made[1].public_key()


def test_an_authority_is_what_was_saved(authority, tmp_path):
    authority.save(tmp_path)
    assert stat.S_IMODE((tmp_path / "authority-key.pem").stat().st_mode) == 0o600
    again = Authority.load(tmp_path)
    assert (again.mesh, again.pem) == ("m1", authority.pem)
    key, certificate = again.issue(3, 5)
    check_own(key, certificate, authority.pem, Identity("m1", 3))


def test_what_is_no_authority(authority, tmp_path):
    with pytest.raises(ConfigError, match=r"not a mesh authority: .*No such file"):
        Authority.load(tmp_path)
    authority.save(tmp_path)
    (tmp_path / "authority.pem").write_bytes(b"x")
    with pytest.raises(ConfigError, match="not a mesh authority"):
        Authority.load(tmp_path)
    authority.save(tmp_path)
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(tmp_path / "authority-key.pem", pem)
    with pytest.raises(ConfigError, match="no elliptic-curve key"):
        Authority.load(tmp_path)
    authority.save(tmp_path)
    (tmp_path / "authority-key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644"):
        Authority.load(tmp_path)


# --- a device's own files -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "days", "good"),
    [
        (datetime.timedelta(0), 1, True),
        (datetime.timedelta(minutes=4), 1, True),  # clocks differ a little
        (datetime.timedelta(minutes=6), 1, False),  # not valid yet
        (datetime.timedelta(days=30), 1, False),
        (datetime.timedelta(minutes=1) - DAY, 1, True),
        (datetime.timedelta(minutes=-1) - DAY, 1, False),  # expired
    ],
)
def test_a_certificate_holds_from_its_beginning_to_its_end(authority, start, days, good):
    key, certificate = authority.issue(3, days, now() + start)
    identity = Identity("m1", 3)
    if good:
        check_own(key, certificate, authority.pem, identity)
        return
    first, last = (
        f"{moment:%Y-%m-%d %H:%M}"
        for moment in (
            read(certificate).not_valid_before_utc,
            read(certificate).not_valid_after_utc,
        )
    )
    with pytest.raises(ConfigError, match=f"of vertex 3 is valid from {first} to {last} UTC, and "):
        check_own(key, certificate, authority.pem, identity)


@pytest.mark.parametrize("which", ["key", "certificate", "authority"])
def test_a_file_that_is_none(authority, which):
    key, certificate = authority.issue(3, 5)
    files = {"key": key, "certificate": certificate, "authority": authority.pem, which: b"x"}
    with pytest.raises(ConfigError, match="key or certificate of vertex 3 is unreadable"):
        check_own(*files.values(), Identity("m1", 3))


def test_another_authority_of_the_same_name_is_another(authority):
    key, certificate = Authority.create("m1", 10).issue(3, 5)
    remedy = "issue new files with 'flower-dhb mesh renew --vertex 3'"
    with pytest.raises(ConfigError, match=f"not signed by the authority of mesh m1; {remedy}"):
        check_own(key, certificate, authority.pem, Identity("m1", 3))


@pytest.mark.parametrize(("mesh", "vertex"), [("m1", 4), ("m2", 3), ("m1", OPERATOR)])
def test_a_certificate_of_somebody_else(authority, mesh, vertex):
    key, certificate = authority.issue(3, 5)
    want = identity_uri(Identity(mesh, vertex))
    with pytest.raises(ConfigError, match=f"is of .*m1/vertex/3.*, expected {want}; issue new"):
        check_own(key, certificate, authority.pem, Identity(mesh, vertex))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_that_only_its_owner_can_touch(tmp_path, mode):
    path = tmp_path / "key.pem"
    path.write_bytes(b"secret")
    path.chmod(mode)
    assert private_bytes(path) == b"secret"


@pytest.mark.parametrize("bit", range(6))
def test_a_key_that_others_can_touch_in_any_way(tmp_path, bit):
    path = tmp_path / "key.pem"
    path.write_bytes(b"secret")
    path.chmod(0o600 | 1 << bit)
    with pytest.raises(ConfigError, match=f"mode {0o600 | 1 << bit:04o} lets others at"):
        private_bytes(path)


def test_a_key_is_written_for_its_owner_only_whatever_lay_there(tmp_path):
    path = tmp_path / "key.pem"
    path.write_bytes(b"old")
    path.chmod(0o644)
    before = os.umask(0)
    try:
        write_private(path, b"new")
    finally:
        os.umask(before)
    assert private_bytes(path) == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key.pem"]


# --- files that are followed --------------------------------------------------------------


@pytest.fixture
def files(authority, tmp_path):
    key, certificate = authority.issue(3, 5)
    write_private(tmp_path / "key.pem", key)
    (tmp_path / "certificate.pem").write_bytes(certificate)
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    names = (tmp_path / f"{name}.pem" for name in ("key", "certificate", "authority"))
    return TlsFiles(Identity("m1", 3), *names)


def touch(*paths):
    """Give files another time of change than any that they had."""
    for path in paths:
        at = path.stat().st_mtime_ns + 10**9
        os.utime(path, ns=(at, at))


def test_files_are_read_and_checked(files, authority):
    key, certificate, root = files.read()
    assert key == files.key.read_bytes()
    assert certificate == files.certificate.read_bytes()
    assert root == authority.pem
    assert files.server_name(5) == "vertex-5.m1.flower-dhb"
    files.certificate.write_bytes(authority.issue(3, 5)[1])
    with pytest.raises(ConfigError, match="does not belong to its key"):
        files.read()
    with pytest.raises(ConfigError, match="does not belong to its key"):
        files.channel_credentials()
    with pytest.raises(ConfigError, match="does not belong to its key"):
        files.server_credentials(Monitor(3))


@pytest.mark.parametrize("name", ["key", "certificate", "authority"])
def test_a_file_that_is_not_there_is_named(files, name):
    path = getattr(files, name)
    path.unlink()
    with pytest.raises(ConfigError, match=f"vertex 3: cannot read {path}: No such file"):
        files.read()


def test_renewed_files_are_used_once_they_fit_together(files, authority):
    with Events() as events:
        fetch = files._fetcher(Monitor(3))
        assert fetch() is None
        assert events.all == []
        key, certificate = authority.issue(3, 5)
        files.certificate.write_bytes(certificate)
        touch(files.certificate)
        for _ in range(2):  # the key is not there yet: the old files serve
            assert fetch() is None
        (told, _) = events.named("certificate-not-renewed")
        assert "does not belong to its key" in told["why"]
        write_private(files.key, key)
        touch(files.key)
        assert fetch() is not None
        assert events.named("certificate-renewed") == [{"vertex": 3}]
        assert fetch() is None
        touch(files.authority)
        assert fetch() is not None
        files.authority.unlink()
        assert fetch() is None
        assert "cannot read" in events.named("certificate-not-renewed")[-1]["why"]
