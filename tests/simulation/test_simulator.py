"""The simulator itself: it repeats to the letter, says how to replay, and counts exactly."""

import io
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from .app import State
from .campaign import Report, run_one, run_seeds
from .field import PRIME, digest, inverse
from .plan import Plan, profile_of
from .planted import PLANTED, planted
from .profiles import PROFILES
from .trace import Trace

ROOT = Path(__file__).parents[2]


def _story(seed: int, profile: str) -> str:
    out = io.StringIO()
    run_one(seed, profile, trace=Trace(out, quiet=False))
    return out.getvalue()


@pytest.mark.parametrize("seed", [3, 10, 25])
def test_the_same_seed_tells_the_same_story(seed: int) -> None:
    profile = profile_of(seed)
    assert _story(seed, profile) == _story(seed, profile)
    assert _story(seed, profile) != _story(seed + len(PROFILES) * 100, profile)


def test_the_story_does_not_depend_on_the_process_or_its_hash_seed() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--profile", "crashes", "--seed", "1"]
    command.append("--trace")
    stories = []
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        stories.append([line for line in done.stdout.splitlines() if "virtual time" not in line])
    assert stories[0] == stories[1]
    assert any("CRASH" in line for line in stories[0])
    assert any("-> SendPayload" in line for line in stories[0])


def test_a_broken_promise_comes_with_the_line_that_replays_it() -> None:
    mistake = next(m for m in PLANTED if m.breaks == "offers")
    with planted(mistake):
        text = run_seeds(range(1), mistake.profile).text()
    line = f"python -m tests.simulation --seed 0 --profile {mistake.profile} --trace  # offers"
    assert line in text
    assert "violations 1" in text


def test_transitions_that_were_not_seen_are_named() -> None:
    calm = run_seeds(range(2), "calm")
    assert calm.transitions["voted, count"] > 0
    assert "transition never seen: voted, forgotten" in calm.text()
    assert "transition never seen: voted, count" not in calm.text()
    assert Report().text().count("never seen") > 5


def test_a_calm_mesh_uses_every_payload_in_every_round() -> None:
    seed = next(s for s in range(100) if not any(Plan(s, "calm").starts))
    world, violation = run_one(seed, "calm")
    assert violation is None
    for host in world.hosts:
        for r in range(1, world.plan.rounds + 1):
            assert set(host.verdicts[r][1]) == set(host.neighbors)
    assert not world.watch.open
    assert world.counts["differences"] == 0
    steps = sum(host.state.steps for host in world.hosts)
    start = len(world.hosts) * world.start_x
    assert (sum(host.state.x for host in world.hosts) - start - steps) % PRIME == 0


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_plans_are_of_their_profile(profile: str) -> None:
    odds = PROFILES[profile]
    for seed in range(20):
        plan = Plan(seed, profile)
        assert 0 <= plan.origin <= odds.origin
        assert odds.rounds[0] <= plan.meshes[0].rounds - plan.origin <= odds.rounds[1]
        assert plan.size >= 2
        for mesh in plan.meshes:
            border = [min(mesh.members)]
            reached = set(border)
            while border:
                border = [j for i in border for j in mesh.row(i).neighbors if j not in reached]
                reached.update(border)
            assert reached == mesh.members
        assert all(i in plan.neighbors[j] for i in range(plan.size) for j in plan.neighbors[i])
        assert (plan.liar is not None) <= (odds.liar > 0)
        assert odds.cuts > 0 or not any(fault.kind == "cut" for fault in plan.faults)
    if profile == "dense":
        assert any(len(n) == 30 for s in range(20) for n in Plan(s, profile).neighbors)


def test_two_apps_that_use_each_other_keep_their_sum() -> None:
    rng = Random(5)  # noqa: S311
    a, b = (State(7).trained(rng, 0, early=False, tracks=True) for _ in range(2))
    w = 12345
    a_next, moved_a = a.combined(1, {1: w}, {1: b.payload()}, early=False)
    b_next, moved_b = b.combined(1, {0: w}, {0: a.payload()}, early=False)
    assert (moved_a[1][0] + moved_b[0][0]) % PRIME == 0
    assert (a_next.x + b_next.x - a.x - b.x - a_next.steps - b_next.steps) % PRIME == 0
    assert (a_next.y + b_next.y - a_next.g - b_next.g) % PRIME == 0
    alone, moved = a.combined(1, {1: w}, {}, early=False)
    assert moved == {}
    assert alone.x == a.value[0]
    assert (a_next.mixed, alone.mixed) == (1, 0)


def test_an_early_payload_is_the_state_before_training() -> None:
    rng = Random(6)  # noqa: S311
    shown = State(9).shown()
    assert shown.payload().handle == (9, 0)
    trained = shown.trained(rng, 0, early=True, tracks=False)
    assert trained.payload() == shown.payload()
    combined, _ = trained.combined(1, {}, {}, early=True)
    assert combined.x == (9 + trained.step) % PRIME


def test_the_mean_of_neighbors_is_exact() -> None:
    payloads = {1: (4, State(10).shown().payload()), 2: (4, State(20).shown().payload())}
    new = State(3).rejoined(4, payloads, epoch=0)
    assert new.x == 15
    assert new.jumps == 12
    assert inverse(3) * 3 % PRIME == 1
    assert digest((1, 2)) != digest((2, 1)) != 0
