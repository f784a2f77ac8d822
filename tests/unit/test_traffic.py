"""What a round costs on a link, and what would halve it."""

from __future__ import annotations

import pytest

from flower_dhb import ConfigError, Topology
from flower_dhb.cli import main
from flower_dhb.engine.traffic import advice, costs
from flower_dhb.topology.turns import Turns


def test_costs_are_those_of_the_busiest_agent() -> None:
    now = costs(Topology.star(5), 1_000_000, 1.0)[0]
    assert (now.schedule, now.compression) == ("as it is", "none")
    assert now.n_bytes == 4 * 4e6
    assert now.seconds == pytest.approx(128.0)
    assert now.rounds == pytest.approx(halving(Topology.star(5)))


def halving(topology: Topology) -> float:
    import math

    return math.log(0.5) / math.log(topology.second_eigenvalue)


def test_what_is_advised_takes_half_as_long_or_less() -> None:
    found = costs(Topology.torus(4, 4), 10_000, 0.1)
    advised = advice(found)
    now, *better = advised
    assert better
    assert all(c.seconds_to_halve <= now.seconds_to_halve / 2 for c in better)
    assert min(found, key=lambda c: c.seconds_to_halve) in advised
    assert {"bf16", "int8", "int4"} <= {c.compression for c in better}


def test_one_payload_a_round_and_a_quarter_of_its_bytes() -> None:
    found = {(c.schedule, c.compression): c for c in costs(Topology.ring(16), 256_000, 1.0)}
    one = found["one-peer:16", "none"]
    assert one.n_bytes == 4 * 256_000
    assert one.rounds == 4  # of a period, which leaves no disagreement
    assert found["one-peer:16", "int8"].n_bytes == 256_000 + 4 * 1000
    assert ("one-peer:16", "int4") not in found, "neighbors in turn do not hold the last payload"
    assert found["share-every 4", "int4"].n_bytes == pytest.approx(2 * 136_000 / 4)
    alone = {c.schedule for c in costs(Turns.one_peer(16), 1000, 1.0)}
    assert alone == {"as it is"}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_link_has_a_rate(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"must be above 0 Mbit/s"):
        costs(Topology.ring(4), 10, rate)


@pytest.mark.thorough
def test_topology_show_says_it_in_80_columns(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["topology", "show", "erdos-renyi:20:0.3:1", "--link", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    begin = lines.index("costs")
    assert lines[begin + 2].split()[:4] == ["as", "it", "is", "none"]
    assert any(line.startswith("matchings of it") for line in lines)
