"""The mistakes of `python -m tests.mutation.protocol` fit the core as it is now."""

from collections import Counter
from pathlib import Path

import pytest
from mutation.protocol import CORE, EQUIVALENT, MISTAKES, TESTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", sorted({mistake.file for mistake in MISTAKES}))
@pytest.mark.thorough
def test_each_mistake_changes_one_place_and_is_python(file):
    source = (ROOT / CORE / file).read_text(encoding="utf-8")
    for mistake in (mistake for mistake in MISTAKES if mistake.file == file):
        assert source.count(mistake.old) == 1, mistake.rule
        assert mistake.old != mistake.new, mistake.rule
        compile(source.replace(mistake.old, mistake.new), mistake.rule, "exec")


def test_each_rule_has_its_mistake():
    rules = Counter(mistake.rule for mistake in MISTAKES)
    assert set(rules.values()) == {1}
    assert len(rules) >= 200
    assert set(EQUIVALENT) <= set(rules)
    assert all(len(why) > 40 for why in EQUIVALENT.values())
    assert {m.file for m in MISTAKES} == {
        "agent.py", "edge.py", "edition.py", "neighborhood.py", "patience.py", "rounds.py",
    }  # fmt: skip


def test_all_tests_of_the_core_are_run():
    found = {f"tests/unit/{path.name}" for path in ROOT.glob("tests/unit/test_protocol_*.py")}
    assert found - {"tests/unit/test_protocol_rules.py"} == set(TESTS)
