"""A sealed payload is opened by those it is for, as its sender made it, and in no other case."""

import os
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.meshes import revoke, write_key, write_keys

from flower_dhb import ConfigError, PayloadError
from flower_dhb.agent import envelope as envelope_module
from flower_dhb.agent.codec import encode
from flower_dhb.agent.envelope import Envelope, read_envelope
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.site.keys import MeshKeys, sealing_key
from flower_dhb.site.sealing import Sealer

RUN, ROUND, N = "r1", 3, 4
FRAME = encode({"parameters": np.arange(300.0)}, run=RUN, round=ROUND, vertex=0)


@dataclass
class Mesh:
    """Four nodes, all neighbors of each other, in one run."""

    authority: Authority
    homes: list
    keys: list
    secrets: list
    announced: dict

    def sealer(self, vertex, *, run=RUN, secret=None, **changes):
        """changes: announcements in another's place, as `of_2="…"`."""
        others = {j: text for j, text in self.announced.items() if j != vertex}
        others |= {int(name[3:]): text for name, text in changes.items()}
        return Sealer(self.keys[vertex], run, secret or self.secrets[vertex], others)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    authority = Authority.create("m1", 30)
    homes = write_keys(authority, tmp_path_factory.mktemp("mesh"), N)
    keys = [MeshKeys.load(home, vertex) for vertex, home in enumerate(homes)]
    drawn = [bytes([vertex]) * 32 for vertex in range(N)]
    announced = {v: Sealer(keys[v], RUN, drawn[v], {}).announcement() for v in range(N)}
    return Mesh(authority, homes, keys, drawn, announced)


@pytest.fixture(scope="module")
def sealed(mesh):
    return mesh.sealer(0).seal(FRAME, ROUND, pytest.fail)


def test_every_neighbor_opens_what_is_sealed_once(mesh, sealed):
    for vertex in range(1, N):
        assert mesh.sealer(vertex).open(sealed, 0, ROUND) == FRAME
    envelope, *_ = read_envelope(sealed, "it")
    assert (envelope.run, envelope.round, envelope.vertex) == (RUN, ROUND, 0)
    assert (envelope.size, sorted(envelope.receivers)) == (len(FRAME), [1, 2, 3])
    assert len(sealed) - len(FRAME) < 700, "three receivers"
    assert not any(FRAME[at : at + 16] in sealed for at in range(0, len(FRAME) - 16, 8))


def test_the_same_payload_sealed_again_has_nothing_in_common_with_the_first(mesh, sealed):
    again = mesh.sealer(0).seal(FRAME, ROUND, pytest.fail)  # as after a restart
    body, other = (read_envelope(data, "it")[3].tobytes() for data in (sealed, again))
    assert len({body[at : at + 16] for at in range(0, len(body), 16)}) == -(-len(body) // 16)
    assert not any(body[at : at + 16] in other for at in range(0, len(body) - 16, 16))


@pytest.mark.parametrize("size", [0, 1, 64, 65, 128, 200])
def test_a_long_payload_is_sealed_in_pieces_that_cannot_change_places(mesh, size, monkeypatch):
    monkeypatch.setattr(envelope_module, "PIECE_BYTES", 64)
    frame = os.urandom(size)
    data = mesh.sealer(0).seal(frame, ROUND, pytest.fail)
    assert mesh.sealer(1).open(data, 0, ROUND) == frame
    if size == 128:  # two pieces of 64 bytes, with their tags
        head, one, two = data[:-160], data[-160:-80], data[-80:]
        with pytest.raises(PayloadError, match="not as vertex 0 has signed it"):
            mesh.sealer(1).open(head + two + one, 0, ROUND)


# --- what a relay may try -----------------------------------------------------------------


def test_any_byte_that_is_changed_is_noticed(mesh, sealed):
    receiver = mesh.sealer(1)
    head = len(sealed) - len(FRAME) - 16
    for at in [*range(head), *range(head, len(sealed), 97), len(sealed) - 1]:
        damaged = bytearray(sealed)
        damaged[at] ^= 0x10
        with pytest.raises(PayloadError):
            receiver.open(bytes(damaged), 0, ROUND)
    for cut in (sealed[:-1], sealed + b"x", sealed[:30], b"", FRAME):
        with pytest.raises(PayloadError, match="round 3, neighbor 0"):
            receiver.open(cut, 0, ROUND)


def test_a_payload_of_another_round_run_or_sender_is_refused(mesh, sealed):
    with pytest.raises(PayloadError, match="of round 3, expected 4"):
        mesh.sealer(1).open(sealed, 0, ROUND + 1)
    with pytest.raises(PayloadError, match="of vertex 0, expected 2"):
        mesh.sealer(1).open(sealed, 2, ROUND)
    with pytest.raises(PayloadError, match="of run 'r1', expected 'r2'"):
        mesh.sealer(1, run="r2").open(sealed, 0, ROUND)


def test_a_header_that_is_written_anew_does_not_carry_the_signature_along(mesh, sealed):
    envelope, header, signature, body = read_envelope(sealed, "it")
    for changed in (
        {"round": ROUND + 1},
        {"run": "r2"},
        {"receivers": {1: envelope.receivers[1]}},  # others left out
        {"receivers": {**envelope.receivers, 1: envelope.receivers[2]}},  # swapped
        {"receivers": {**envelope.receivers, 1: envelope.receivers[2], 2: envelope.receivers[1]}},
    ):
        other = Envelope(**{**vars(envelope), **changed})
        head = other.to_bytes(other.header(), bytes(signature))
        with pytest.raises(PayloadError, match=r"not as vertex 0 has signed it|has not signed"):
            mesh.sealer(1, run=other.run).open(head + bytes(body), 0, other.round)
    assert bytes(header) == envelope.header()


def test_a_wrapped_key_is_of_no_use_to_another_receiver_even_if_the_sender_signs_it(mesh, sealed):
    """A sender that lies hands the key for 2 to 1: the wrapping says for whom it is."""
    envelope, *_, body = read_envelope(sealed, "it")
    swapped = {**envelope.receivers, 1: envelope.receivers[2], 2: envelope.receivers[1]}
    other = Envelope(RUN, ROUND, 0, envelope.size, swapped)
    sender = mesh.sealer(0)
    digest = sender._digest_of(other.header())
    digest.update(body)
    data = other.to_bytes(other.header(), mesh.keys[0].sign(digest)) + bytes(body)
    with pytest.raises(PayloadError, match="sealed with a key that vertex 1 does not have"):
        mesh.sealer(1).open(data, 0, ROUND)


def test_a_neighbor_cannot_pass_its_own_payload_for_another_ones(mesh):
    """It has the content key of what 0 sent, and a certificate of its own."""
    forged = mesh.sealer(2)
    about = Envelope(RUN, ROUND, 0, len(FRAME), {1: b"x" * 80})
    digest = forged._digest_of(about.header())
    digest.update(b"y" * about.n_bytes)
    data = about.to_bytes(about.header(), mesh.keys[2].sign(digest)) + b"y" * about.n_bytes
    with pytest.raises(PayloadError, match="not as vertex 0 has signed it"):
        mesh.sealer(1).open(data, 0, ROUND)


def test_payloads_of_an_earlier_run_of_the_same_name_are_refused(mesh, sealed):
    """A relay may give a run any name. The receiver's secret is new in every run."""
    with pytest.raises(PayloadError, match="has lost its state since, and announces a new key"):
        mesh.sealer(1, secret=os.urandom(32)).open(sealed, 0, ROUND)


def test_nothing_is_sealed_for_a_key_that_the_relay_has_put_in_anothers_place(mesh, tmp_path):
    foreign = MeshKeys.load(write_key(Authority.create("m1", 30), tmp_path, 2), 2)
    stranger = Authority.create("m2", 30)
    of_m2 = MeshKeys.load(write_key(stranger, tmp_path / "m2", 2), 2)
    own = sealing_key(b"s" * 32, mesh.keys[2].identity, RUN).public_key()
    good = mesh.announced[2]
    resigned = mesh.keys[3].announce(RUN, own).replace('"vertex":3', '"vertex":2')
    mixed = good.replace(_value(good, "key"), _value(mesh.announced[3], "key"))
    for text, why in {
        foreign.announce(RUN, own): "an authority that is not believed",
        of_m2.announce(RUN, own): "shows the certificate of vertex 2 of mesh m2",
        mesh.announced[3]: "shows the certificate of vertex 3",
        resigned: "shows the certificate of vertex 3",
        mixed: "has not signed what is said to be its announcement",
        mesh.keys[2].announce("r0", own): "in run r0, expected vertex 2 of mesh m1 in run r1",
        "": "has announced no key",
        "{": "cannot be read",
        "x" * 20_000: "cannot be read",
        '{"certificates": []}': "cannot be read",
    }.items():
        told = []
        data = mesh.sealer(0, of_2=text).seal(FRAME, ROUND, told.append)
        assert sorted(read_envelope(data, "it")[0].receivers) == [1, 3], why
        (refused,) = told
        assert why in refused
        assert "vertex 2" in refused
        sender = mesh.sealer(2).seal(FRAME, ROUND, pytest.fail)
        with pytest.raises(PayloadError, match="round 3, neighbor 2: vertex 2"):
            mesh.sealer(0, of_2=text).open(sender, 2, ROUND)


def _value(announcement, name):
    return announcement.partition(f'"{name}":"')[2].partition('"')[0]


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400), text=st.text(max_size=300))
def test_whatever_arrives_is_refused_as_a_payload_and_nothing_else(mesh, data, text):
    receiver = mesh.sealer(1, of_0=text)
    for found in (data, b"DHBE" + data, b"DHBE\x01\x00\x00\x00" + data):
        with pytest.raises(PayloadError):
            receiver.open(found, 0, ROUND)
    told = []
    receiver.seal(FRAME, ROUND, told.append)
    assert [why for why in told if "vertex 0" in why]


# --- who a node is ------------------------------------------------------------------------


def test_an_announcement_is_the_same_each_time_and_another_one_in_another_run(mesh):
    assert mesh.sealer(1).announcement() == mesh.announced[1]
    assert mesh.sealer(1, run="r2").announcement() != mesh.announced[1]
    assert len(mesh.announced[1]) < 1200


def test_a_directory_of_another_vertex_or_of_nobody_is_refused(mesh, tmp_path):
    with pytest.raises(
        ConfigError, match=r"this node is vertex 2, but the certificate in .* is of"
    ):
        MeshKeys.load(mesh.homes[1], 2)
    with pytest.raises(ConfigError, match=r"cannot read .*certificate.pem"):
        MeshKeys.load(tmp_path / "nowhere", 2)
    (tmp_path / "certificate.pem").write_text("text")
    with pytest.raises(ConfigError, match="is no certificate"):
        MeshKeys.load(tmp_path, 2)
    home = write_key(mesh.authority, tmp_path / "open", 2)
    (home / "key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="lets others at a private key"):
        MeshKeys.load(home, 2)


def test_a_revoked_node_is_believed_by_nobody_and_says_so_itself(mesh, tmp_path):
    homes = write_keys(mesh.authority, tmp_path, 2)
    stolen = MeshKeys.load(homes[1], 1)
    announced = Sealer(stolen, RUN, b"1" * 32, {}).announcement()
    assert MeshKeys.load(homes[0], 0).believe(announced, 1, RUN).vertex == 1
    revoke(mesh.authority, homes[1], homes)
    with pytest.raises(PayloadError, match=r"vertex 1: .* was revoked on 2031-05-07: stolen"):
        MeshKeys.load(homes[0], 0).believe(announced, 1, RUN)
    with pytest.raises(ConfigError, match="was revoked on 2031-05-07: stolen"):
        MeshKeys.load(homes[1], 1)
