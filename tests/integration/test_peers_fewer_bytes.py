"""A mesh of real processes whose payloads are compressed, one of them killed in mid-run."""

import pytest

from tests.support.peers import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

N, SIZE, ROUNDS = 4, 100_000, 24  # 400 kB: a payload that travels in chunks


@pytest.mark.parametrize("text", ["int8", "topk:0.01"])
def test_a_device_that_is_killed_goes_on_and_its_neighbors_get_changes_again(text, tmp_path):
    with Mesh(
        tmp_path / "m",
        n=N,
        topology=f"ring:{N}",
        rounds=ROUNDS,
        size=SIZE,
        dtype="float32",
        algorithm="dsgd",
        compression=text,
        step_s=0.02,
        evaluate_every=0,
        peer={
            "timing": {"least-s": 5.0, "reconnect-s": 5.0},
            "linger-s": 20.0,
            "record": "payloads",
        },
    ) as mesh:
        mesh.start()
        mesh.wait_round(1, 8, 40)
        mesh.kill(1)
        mesh.start(1)
        resumed = mesh.wait_event(1, "resumed")["round"]
        mesh.finish(60)
        assert resumed >= 7
        whole = [  # which payloads could not be used as they came
            (e["round"], e["why"]) for v in range(N) for e in mesh.named(v, "refused")
        ]
        assert len(whole) <= 4, whole
        assert {why.rpartition(": ")[2] for _, why in whole} <= {
            "payload is a change of one that this agent does not hold"
        }
        replay = mesh.replay()
        assert replay.rounds_computed >= N * ROUNDS - 4
        # Bytes of a round, in one direction of two edges.
        lines = [line for line in mesh.history(3) if line["round"] > 2]
        usual = sorted(line["bytes"] for line in lines)[len(lines) // 2]
        plain = 2 * 4 * SIZE
        assert usual < plain / (3.8 if text == "int8" else 60.0)
        assert sum(line["bytes"] >= plain / 2 for line in lines) <= 2
        assert mesh.settings(0).compression.on


def test_devices_with_other_compressions_refuse_each_other_by_name(tmp_path):
    with Mesh(tmp_path / "m", n=2, topology="path:2", rounds=3, compression="int8") as mesh:
        path = mesh.paths[1]
        path.write_text(path.read_text().replace('"int8"', '"bf16"', 1))
        mesh.start()
        why = mesh.wait_event(0, "refused", reason="agreement")["why"]
        assert "another compression of payloads" in why
        assert "'bf16' there and 'int8' here" in why
