"""Certificates for years: new ones for devices, and a new authority while devices go on."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flower_dhb.errors import ConfigError
from flower_dhb.peer.mesh.certificates import NEXT_CERTIFICATE, NEXT_KEY, Authority
from flower_dhb.peer.mesh.devices import device_files, folder_of
from flower_dhb.peer.mesh.fleet import Fleet, call
from flower_dhb.peer.mesh.folder import Change, changing
from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.mesh.publish import (
    Published,
    hand_out,
    keep,
    load_authority,
    newest,
    publish,
    sign_again,
)
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import (
    AUTHORITY,
    EDITION,
    REVOCATIONS,
    Bulletin,
    fingerprint,
)
from flower_dhb.peer.wire.identity import OPERATOR, issuer_of, named_in, utc_now
from flower_dhb.peer.wire.operations import RENEW
from flower_dhb.peer.wire.proof import NotBelievedError, as_metadata, believe, new_challenge
from flower_dhb.peer.wire.trust import authorities_of, serial_text

__all__ = [
    "AuthorityStep",
    "Renewed",
    "change_authority",
    "renew",
    "renew_online",
    "revocations_with",
    "revoke",
    "revoke_serials",
    "serials_of",
]

_FOLDER, _ISSUED = "authority", "authority/issued.pem"
_SLACK = datetime.timedelta(days=1)  # between the clocks of two machines of an operator
_FORGET = datetime.timedelta(days=30)  # after its end a revoked certificate needs no entry


@dataclass(frozen=True)
class Renewed:
    """A new certificate. folder: where it lies, with its key, to be carried to the device."""

    vertex: int
    folder: Path
    serial: str
    begins: datetime.datetime
    ends: datetime.datetime


def renew(directory: Path, vertices: Iterable[int] | None, days: int) -> list[Renewed]:
    """New keys and certificates for vertices (OPERATOR among them), or for all and the operator.

    All of them or none. Raises ConfigError if no device would be let in with them.
    """
    overview = read_overview(directory)
    if vertices is None:
        vertices = [*sorted(host["vertex"] for host in overview["hosts"]), OPERATOR]
    with changing(directory) as change:
        authority = load_authority(directory)
        _check_time(directory, authority)
        renewed = [_renew(directory, change, authority, vertex, days) for vertex in vertices]
        _remember(directory, change, [r.vertex for r in renewed])
        change.commit()
    return renewed


def renew_online(
    directory: Path, vertices: Iterable[int] | None, days: int, *, timeout_s: float = 10.0
) -> tuple[list[Renewed], dict[int, str]]:
    """Have devices make new keys by themselves, and give them certificates for these.

    vertices: all, if not given. Nothing is carried, and no private key travels. A device must
    prove first that it has the key of a certificate which is believed, so that a thief with a
    revoked one gets nothing. Returns what was done, and why it was not, by vertex. Raises
    ConfigError, as `renew` does.
    """
    fleet = Fleet(directory)
    with changing(directory) as change, closing(fleet):
        authority = load_authority(directory)
        _check_time(directory, authority)
        tls = fleet.tls
        revoked = newest(directory, REVOCATIONS)
        if revoked is not None:
            tls.trust.take_revocations(revoked)
        wanted = sorted(fleet.hosts) if vertices is None else list(vertices)
        for vertex in wanted:
            if vertex not in fleet.hosts:
                raise ConfigError(f"{directory}: has no {_name(vertex)}")
        challenges = {vertex: new_challenge() for vertex in wanted}
        made, failures = _ask_each(
            fleet, {v: pb.RenewRequest(challenge=c) for v, c in challenges.items()}, timeout_s
        )
        issued: dict[int, bytes] = {}
        for vertex, reply in made.items():
            try:
                shown = as_metadata(reply.certificate, reply.proof)
                believe(tls, shown, challenges[vertex], vertex)
                issued[vertex] = authority.certify(vertex, _key_in(reply.request), days)
            except NotBelievedError as error:
                failures[vertex] = str(error)
        own = {v: x509.load_pem_x509_certificate(pem) for v, pem in issued.items()}
        _remember(directory, change, issued=list(own.values()))
        change.commit()  # before a device has one that nobody could revoke
        done, failed = _ask_each(
            fleet, {v: pb.RenewRequest(certificate=pem) for v, pem in issued.items()}, timeout_s
        )
    failures |= failed | {v: reply.refused for v, reply in done.items() if reply.refused}
    renewed = [
        Renewed(
            v,
            directory / _name(v),
            serial_text(own[v]),
            own[v].not_valid_before_utc,
            own[v].not_valid_after_utc,
        )
        for v in sorted(done.keys() - failures.keys())
    ]
    return renewed, dict(sorted(failures.items()))


def _ask_each(
    fleet: Fleet, requests: Mapping[int, pb.RenewRequest], timeout_s: float
) -> tuple[dict[int, pb.RenewReply], dict[int, str]]:
    """Ask each device something of its own, all at the same time."""

    def one(vertex: int) -> tuple[dict[int, pb.RenewReply], dict[int, str]]:
        return fleet.ask_all(
            lambda channel: call(channel, RENEW, requests[vertex], pb.RenewReply, timeout_s),
            {vertex},
        )

    replies: dict[int, pb.RenewReply] = {}
    failures: dict[int, str] = {}
    with ThreadPoolExecutor(max(1, min(32, len(requests)))) as pool:
        for found, failed in pool.map(one, requests):
            replies |= found
            failures |= failed
    return replies, failures


def _key_in(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key for which a certificate is asked, by whoever has it. Raises NotBelievedError."""
    try:
        found = x509.load_pem_x509_csr(request)
        key, has_it = found.public_key(), found.is_signature_valid
    except Exception as error:  # the library has more kinds of them than it says
        raise NotBelievedError(f"it asks for no certificate: {error}") from None
    if not has_it or not isinstance(key, ec.EllipticCurvePublicKey):
        raise NotBelievedError("it asks for a certificate of a key that it does not have")
    return key


def _renew(
    directory: Path, change: Change, authority: Authority, vertex: int, days: int
) -> Renewed:
    name = _name(vertex)
    if not (directory / name).is_dir():
        raise ConfigError(f"{directory}: has no {name}; is it what 'mesh create' wrote?")
    files = device_files(authority, vertex, days)
    for file, (data, private) in files.items():
        change.write(f"{name}/{file}", data, private=private)
    own = x509.load_pem_x509_certificate(files["certificate.pem"][0])
    return Renewed(
        vertex,
        directory / name,
        serial_text(own),
        own.not_valid_before_utc,
        own.not_valid_after_utc,
    )


def _check_time(directory: Path, authority: Authority) -> None:
    """Refuse to issue what nobody would believe."""
    now = utc_now()
    begins = authority.issuer.certificate.not_valid_before_utc
    ends = authority.issuer.certificate.not_valid_after_utc
    if now > ends:
        raise ConfigError(
            f"{directory / _FOLDER}: the authority ended on {ends:%Y-%m-%d}, so nobody believes "
            "what it signs. Make a new one with 'flower-dhb mesh renew --authority --force' and "
            "carry the new files to every device; or set this machine's clock, which says "
            f"{now:%Y-%m-%d %H:%M} UTC, if it is wrong"
        )
    last = max(
        [begins, *(c.not_valid_before_utc for c in _certificates(directory))], default=begins
    )
    if now < last - _SLACK:
        raise ConfigError(
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, but a certificate of this mesh "
            f"was issued on {last:%Y-%m-%d}: set the clock; a certificate by it would end too soon"
        )


def _name(vertex: int) -> str:
    return "operator" if vertex == OPERATOR else folder_of(vertex)


# --- certificates that were there before ----------------------------------------------------


def _certificates(directory: Path) -> list[x509.Certificate]:
    """All of the mesh's that lie in its folder, those that were replaced among them."""
    paths = [*sorted(directory.rglob("certificate.pem")), directory / _ISSUED]
    return list({c.serial_number: c for path in paths for c in _read(path)}.values())


def _read(path: Path) -> list[x509.Certificate]:
    """Certificates of devices and operator in a file, which need not be there."""
    try:
        pem = path.read_bytes()
        chain = x509.load_pem_x509_certificates(pem) if pem else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no readable certificates: {error}") from None
    return [c for c in chain if named_in(c) is not None]  # not what makes an authority known


def _remember(
    directory: Path,
    change: Change,
    vertices: Sequence[int] = (),
    issued: Sequence[x509.Certificate] = (),
) -> None:
    """Keep certificates that lie in no folder, for whoever has to revoke them.

    vertices: whose certificates are about to be replaced. issued: for keys of devices' own.
    """
    now = utc_now()
    paths = [directory / _name(vertex) / "certificate.pem" for vertex in vertices]
    before = [c for path in [directory / _ISSUED, *paths] for c in _read(path)]
    kept = {c.serial_number: c for c in [*before, *issued]}
    left = [c for c in kept.values() if c.not_valid_after_utc > now - _FORGET]
    change.write(_ISSUED, b"".join(c.public_bytes(_PEM) for c in left))


# --- revocation -----------------------------------------------------------------------------


def revoke(
    directory: Path,
    vertex: int,
    reason: str = "",
    *,
    keep: Iterable[str] = (),
    timeout_s: float = 10.0,
) -> Published:
    """Revoke all certificates of a vertex that are valid, but those whose serials are kept.

    Raises ConfigError if there is none.
    """
    kept = set(keep)
    found = [serial for serial in serials_of(directory, vertex) if serial not in kept]
    if not found:
        raise ConfigError(
            f"{directory}: there is no valid certificate of {_name(vertex)} to revoke; one that "
            "lies elsewhere is revoked by its --serial"
        )
    return revoke_serials(directory, found, reason, timeout_s=timeout_s)


def serials_of(directory: Path, vertex: int) -> list[str]:
    """Serial numbers of all certificates of a vertex that are valid."""
    now = utc_now()
    mesh = load_authority(directory).mesh
    return [
        serial_text(certificate)
        for certificate in _certificates(directory)
        if (who := named_in(certificate)) is not None
        and (who.mesh, who.vertex) == (mesh, vertex)
        and certificate.not_valid_after_utc > now
    ]


def revoke_serials(
    directory: Path, serials: Iterable[str], reason: str = "", *, timeout_s: float = 10.0
) -> Published:
    """Publish the list of revoked certificates with these among them, by serial number."""
    body = revocations_with(directory, serials, reason)
    return publish(directory, REVOCATIONS, body, timeout_s=timeout_s)


def revocations_with(
    directory: Path, serials: Iterable[str], reason: str = ""
) -> dict[str, list[Mapping[str, str]]]:
    """The next list of revoked certificates, with these among them. Raises ConfigError."""
    now = utc_now()
    load_authority(directory)
    known = {c.serial_number: c for c in _certificates(directory)}
    before = newest(directory, REVOCATIONS)
    entries: dict[int, Mapping[str, str]] = {}
    for entry in before.body["certificates"] if before is not None else ():
        ends = entry.get("ends", "")
        if not ends or datetime.datetime.fromisoformat(ends) > now - _FORGET:
            entries[int(entry["serial"], 16)] = entry
    for text in serials:
        try:
            serial = int(text.replace(":", ""), 16)
        except ValueError:
            raise ConfigError(
                f"serial number '{text}': expected hexadecimal digits, as 'openssl x509 -serial' "
                "and the log print them"
            ) from None
        certificate = known.get(serial)
        entry = {"serial": f"{serial:040x}", "since": f"{now:%Y-%m-%d %H:%M} UTC", "reason": reason}
        if certificate is not None:
            entry["who"] = str(named_in(certificate))
            entry["ends"] = certificate.not_valid_after_utc.isoformat()
        entries.setdefault(serial, entry)
    return {"certificates": [entries[serial] for serial in sorted(entries)]}


# --- another authority ----------------------------------------------------------------------


@dataclass(frozen=True)
class AuthorityStep:
    """What has been done of a change of authority. step: `begun`, `finished`, or `replaced`.

    ends: of the new authority. published: who believes it now. cut_off: vertices of which it is
    not known that they can do without the old one, with the reason.
    """

    step: str
    ends: datetime.datetime
    published: Published | None = None
    cut_off: Mapping[int, str] = field(default_factory=dict)


def change_authority(
    directory: Path, days: int, *, force: bool = False, timeout_s: float = 10.0
) -> AuthorityStep:
    """The next step from one authority to another, while devices go on.

    First the new one is made, and devices learn to believe both. Then the operator renews all
    certificates (`renew`). Then the old one is retired: that is refused as long as a device is
    not known to have a certificate by the new one and to believe it, unless `force`.

    force at the first step, or an authority that has expired: the new one takes its place at
    once, and every device needs new files, brought by hand. Raises ConfigError.
    """
    authority = load_authority(directory)
    now = utc_now()
    has_ended = now > authority.certificate.not_valid_after_utc
    if now < authority.certificate.not_valid_before_utc - _SLACK:
        _check_time(directory, authority)
    if authority.following is None:
        if has_ended and not force:
            _check_time(directory, authority)
        if has_ended or force:
            return _replace(directory, authority, days)
        with changing(directory) as change:
            authority.following = authority.successor(days)
            change.write(f"{_FOLDER}/{NEXT_KEY}", authority.following.key_pem, private=True)
            change.write(f"{_FOLDER}/{NEXT_CERTIFICATE}", authority.following.pem)
            _write_roots(directory, change, authority.pem)
            change.commit()
    following = authority.issuer
    told = newest(directory, AUTHORITY)
    new = fingerprint(following.certificate)
    if told is None or new not in map(fingerprint, authorities_of(told)[0]):
        body = _authorities(authority, told)
        published = publish(directory, AUTHORITY, body, timeout_s=timeout_s)
        _sign_all_again(directory, timeout_s)
        return AuthorityStep("begun", following.certificate.not_valid_after_utc, published)
    return _finish(directory, authority, force, timeout_s)


def _authorities(authority: Authority, told: Bulletin | None, *retired: str) -> dict[str, Any]:
    """What is said of authorities. told: the same, before."""
    before = () if told is None else told.body["retired"]
    return {
        "authorities": [root.public_bytes(_PEM).decode() for root in authority.roots],
        "retired": sorted({*before, *retired}),
    }


def _sign_all_again(directory: Path, timeout_s: float) -> None:
    for kind in (EDITION, REVOCATIONS):
        sign_again(directory, kind, timeout_s=timeout_s)


def _finish(directory: Path, authority: Authority, force: bool, timeout_s: float) -> AuthorityStep:
    following, old = authority.issuer, fingerprint(authority.certificate)
    new = fingerprint(following.certificate)
    cut_off = _cut_off(directory, following, new, timeout_s)
    if cut_off and not force:
        why = "; ".join(f"{_name(v)}: {text}" for v, text in sorted(cut_off.items()))
        raise ConfigError(
            f"the old authority cannot be retired yet: {why}. Carry the files to these devices "
            "and call this again, or use --force, which cuts them off until somebody does"
        )
    told = newest(directory, AUTHORITY)
    if told is not None and old in authorities_of(told)[1]:
        published = hand_out(directory, AUTHORITY, timeout_s=timeout_s)
    else:
        _sign_all_again(directory, timeout_s)  # what only the old one has signed ends with it
        body = _authorities(following, told, old)
        published = publish(directory, AUTHORITY, body, timeout_s=timeout_s)
    aside = f"{_FOLDER}/retired-{old[:8]}"
    with changing(directory) as change:
        for name, ready in (
            ("authority-key.pem", NEXT_KEY),
            ("authority.pem", NEXT_CERTIFICATE),
        ):
            change.put_aside(f"{_FOLDER}/{name}", f"{aside}/{name}")
            change.put_aside(f"{_FOLDER}/{ready}", f"{_FOLDER}/{name}")
        _write_roots(directory, change, following.pem)
        change.commit()
    return AuthorityStep("finished", following.certificate.not_valid_after_utc, published, cut_off)


def _cut_off(directory: Path, following: Authority, new: str, timeout_s: float) -> dict[int, str]:
    """Of whom it is not known that they can do without the old authority."""
    fleet = Fleet(directory)
    try:
        found = fleet.status(timeout_s, sketch=0)
    finally:
        fleet.close()
    cut_off: dict[int, str] = {}
    for vertex in fleet.hosts:
        reply = found.replies.get(vertex)
        if reply is None:
            cut_off[vertex] = f"it cannot be asked ({found.failures.get(vertex, 'no answer')})"
        elif new not in reply.trusts:
            cut_off[vertex] = "it does not believe the new authority yet"
        elif reply.issuer != new:
            cut_off[vertex] = "its certificate is by the old authority ('mesh renew --all')"
    own = x509.load_pem_x509_certificates((directory / "operator" / "certificate.pem").read_bytes())
    if issuer_of(own[:1], [following.certificate]) is None:
        cut_off[OPERATOR] = "the operator's certificate is by the old one ('mesh renew --operator')"
    return cut_off


def _replace(directory: Path, authority: Authority, days: int) -> AuthorityStep:
    """A new authority in the place of the old one, at once; files are brought by hand."""
    following, old = authority.successor(days), fingerprint(authority.certificate)
    told = newest(directory, AUTHORITY)
    said = [b for kind in (EDITION, REVOCATIONS) if (b := newest(directory, kind)) is not None]
    number = 1 if told is None else told.number + 1
    body = _authorities(following, told, old)
    said.append(Bulletin(AUTHORITY, authority.mesh, number, body))
    aside = f"{_FOLDER}/retired-{old[:8]}"
    with changing(directory) as change:
        for name, data, private in (
            ("authority-key.pem", following.key_pem, True),
            ("authority.pem", following.pem, False),
        ):
            change.put_aside(f"{_FOLDER}/{name}", f"{aside}/{name}")
            change.write(f"{_FOLDER}/{name}", data, private=private)
        _write_roots(directory, change, following.pem)
        change.commit()
    for bulletin in said:
        keep(directory, following, bulletin)
    return AuthorityStep("replaced", following.certificate.not_valid_after_utc)


def _write_roots(directory: Path, change: Change, pem: bytes) -> None:
    for home in [*sorted(directory.glob("vertex-*")), directory / "operator"]:
        if home.is_dir():
            change.write(f"{home.name}/authority.pem", pem)


_PEM = serialization.Encoding.PEM
