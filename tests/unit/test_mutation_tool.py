"""The mutants of `python -m tests.mutation`: each differs in one place, chosen by the seed."""

import ast

from mutation.mutants import mutants, sample

SOURCE = '''\
"""Words."""

import math

LIMIT = 4


def clip(value: float, low: float = 0.0) -> float:
    """At least `low`."""
    if value < low and not math.isnan(low):
        raise ValueError(f"{value} is below {low}")
    total = 0
    for i in range(LIMIT):
        if i == 2:
            continue
        total += min(i, value)
    return total - low
'''


def changed_lines(mutant):
    return {line.strip("+ ") for line in mutant.diff(SOURCE).splitlines() if line.startswith("+")}


def test_every_mutant_parses_and_differs() -> None:
    unchanged = ast.dump(ast.parse(SOURCE))
    for mutant in sample(SOURCE, 10_000, 1):
        assert ast.dump(ast.parse(mutant.source)) != unchanged
        assert len(changed_lines(mutant)) == 1


def test_each_kind_of_change_is_made() -> None:
    made = set().union(*(changed_lines(mutant) for mutant in mutants(SOURCE)))
    assert made >= {
        "LIMIT = 5",
        "LIMIT = 0",
        "def clip(value: float, low: float = 1.0) -> float:",
        "if (value <= low) and not math.isnan(low):",
        "if (value > low) and not math.isnan(low):",
        "if (value < low or not math.isnan(low)):",
        "if (not math.isnan(low)):",
        "if (value < low):",
        "if value < low and math.isnan(low):",
        "if False:",
        "pass",
        "if (i != 2):",
        "if i == 3:",
        "break",
        "total -= min(i, value)",
        "total += max(i, value)",
        "total += min(value, i)",
        "return (total + low)",
        "return (low - total)",
    }


def test_docstrings_and_imports_stay() -> None:
    for mutant in mutants(SOURCE):
        assert '"""At least `low`."""' in mutant.source
        assert "import math" in mutant.source


def test_a_function_is_known_by_its_qualified_name() -> None:
    source = "class A:\n    x = 1\n    def f(self, k=2):\n        return [lambda: 3]\n"
    scopes = {mutant.line: mutant.scope for mutant in mutants(source)}
    assert scopes == {2: "A.", 3: "A.f", 4: "A.f"}


def test_the_same_seed_samples_the_same_mutants_and_another_does_not() -> None:
    def lines(seed):
        return [mutant.diff(SOURCE) for mutant in sample(SOURCE, 8, seed)]

    assert lines(1) == lines(1)
    assert lines(1) != lines(2)


def test_no_line_is_taken_twice_before_each_had_its_turn() -> None:
    places = [mutant.line for mutant in sample(SOURCE, 9, 3)]
    assert len(places) == 9
    assert len(set(places)) == len({mutant.line for mutant in mutants(SOURCE)}) == 9
