"""Every event of a peer's log has its sentence, and every sentence an event that says it."""

import ast
from functools import cache
from pathlib import Path

import pytest

import flower_dhb
from flower_dhb.peer.sentences import SAID_BY_WHY, SENTENCES, fields_of, in_words, sentence

ROOT = Path(flower_dhb.__file__).parent


def events_of(tree):
    """Names of events that a module writes, with the fields that each call gives, if it shows."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function, first = node.func, node.args[0]
        if isinstance(function, ast.Name) and function.id == "Note":
            fields = None
            if len(node.args) > 1 and isinstance(node.args[1], ast.Dict):
                fields = {key.value for key in node.args[1].keys}
        elif isinstance(function, ast.Attribute) and function.attr in ("event", "warning"):
            owner = ast.unparse(function.value)
            if not owner.endswith("monitor"):
                continue
            names = [keyword.arg for keyword in node.keywords]
            fields = None if None in names else set(names)
        else:
            continue
        yield first.value if isinstance(first, ast.Constant) else ast.unparse(first), fields


@cache
def found():
    """Module, name and fields of all events that the package writes."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
    return [
        (str(path.relative_to(ROOT)), name, fields)
        for path, text in texts.items()
        if "Note" in text or "monitor" in text  # the others write none, and need no parsing
        for name, fields in events_of(ast.parse(text))
    ]


def test_each_event_has_a_sentence_and_each_sentence_an_event():
    names = {name for _, name, _ in found()}
    assert len(names) > 30
    assert names - SENTENCES.keys() == set(), "add a sentence to flower_dhb/peer/sentences.py"
    assert SENTENCES.keys() - names == set(), "nothing writes these any more"


def test_a_sentence_says_all_that_its_event_knows_and_needs_no_more():
    for path, name, fields in found():
        if fields is None:
            continue
        template = SENTENCES[name]
        said = fields_of(template) | (SAID_BY_WHY if "why" in fields else set())
        assert fields <= said, (path, name, "is not in the sentence")
        needed = fields_of("".join(part.rpartition("]")[2] for part in template.split("[")))
        assert needed <= fields, (path, name, "is in the sentence, but not given")


def test_sentences_are_sentences():
    for name, template in SENTENCES.items():
        assert template.count("[") == template.count("]"), name
        assert "\n" not in template, name
        assert not template.endswith("."), name


@pytest.mark.parametrize(
    ("event", "fields", "text"),
    [
        ("connected", {"neighbor": 1, "round": 5},
         "connected to vertex 1 (arm), which is in round 5"),
        (
            "connected",
            {"neighbor": 2, "round": 5, "after_s": 12000},
            "connected to vertex 2, which is in round 5, after 3 h 20 min without it",
        ),
        (
            "starting-without",
            {"neighbors": [0, 1, 2]},
            "begins without vertices 0, 1 (arm) and 2: not connected within the time to start",
        ),
        (
            "cut-off",
            {"neighbor": 1, "why": "silent"},
            "cut vertex 1 (arm) off: it said nothing for longer than 'limits.dead-after-s'",
        ),
        (
            "round",
            {"round": 3, "seconds": 61.2, "train_s": 0.0312, "wait_s": 12.4, "missing": [1],
             "metrics": {"loss": 0.123456}},
            "round 3 is over in 1 min 1 s: trained 0.0312 s, waited 12 s; without vertex 1 (arm); "
            "loss 0.1235",
        ),
        (
            "goodbye",
            {"neighbor": 2, "done": True, "why": "finished"},
            'vertex 2 says goodbye (its last round is over): "finished"',
        ),
        ("unreachable", {"neighbor": 2}, "cannot reach vertex 2: ?"),
        ("made-up", {}, None),
    ],
)  # fmt: skip
def test_what_a_line_says(event, fields, text):
    assert sentence(event, fields, {1: "arm"}) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"), (0.0314, "0.0314 s"), (9.96, "10 s"), (59.4, "59 s"), (60, "1 min"),
        (75, "1 min 15 s"), (3600, "1 h"), (12000, "3 h 20 min"),
        (86400, "1 d"),
        (90061, "1 d 1 h"),
        (86400 * 3 + 59, "3 d"),
    ],
)  # fmt: skip
def test_times_in_words(seconds, text):
    assert in_words(seconds) == text
