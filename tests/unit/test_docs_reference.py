"""docs/reference.md: it is what the code says, and holds each key that is read."""

from dataclasses import fields

from flower_dhb.algorithms import ALGORITHMS, settings_of
from flower_dhb.flower.store import STATE_DIR
from flower_dhb.peer.device.settings import KEYS, TIMES
from flower_dhb.peer.mesh.devices import Host
from flower_dhb.peer.wire.transport import Limits
from flower_dhb.runs.config import known_keys
from tests.reference import PAGE, page, sections


def keys(title):
    (section,) = (s for s in sections() if s.title == title)
    assert len({key.name for key in section.keys}) == len(section.keys)
    return {key.name for key in section.keys}


def dashed(names):
    return {name.replace("_", "-") for name in names}


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "make reference"


def test_each_key_is_there_and_no_other():
    """A field without a text below it is missing here: say what it means, then `make reference`."""
    assert keys("`peer.toml`") == set(KEYS)
    assert keys("`hosts.toml`") == dashed(f.name for f in fields(Host))
    assert keys("`[limits]` of `peer.toml`") == dashed(f.name for f in fields(Limits))
    assert keys("`[timing]` of `peer.toml`") == dashed(TIMES)
    assert keys("`[tls]` of `peer.toml`") == {"key", "certificate", "authority"}
    ours = [k for k, rule in ALGORITHMS.items() if rule.__module__.startswith("flower_dhb.")]
    of_others = dashed(s for k in ALGORITHMS.keys() - ours for s in settings_of(k))
    of_ours = dashed(s for k in ours for s in settings_of(k))
    assert keys("Run config") == known_keys() - (of_others - of_ours)
    assert STATE_DIR in keys("Node config")


def test_each_key_has_a_meaning_and_seconds_and_rates_have_a_unit():
    for section in sections():
        for key in section.keys:
            assert key.meaning.endswith("."), (section.title, key)
            assert key.default, (section.title, key)
            assert key.unit or not key.name.endswith(("-s", "-bytes")), (section.title, key)
            assert "|" not in f"{key.meaning}{key.allowed}{key.default}", (section.title, key)
