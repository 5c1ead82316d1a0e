"""Events are an API: their names and keys are those of events.py, in the code, in --json and in docs/json.md."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import clips
from tests.conftest import ROOT
from vdeblur import events


def keys_of(event: str) -> set[str] | None:
    """The keys an event may have; None if they are free."""
    found = events.EVENTS[event]
    return None if found is dict else set(found.__annotations__)


def literal_keys(node: ast.expr, facts: dict[str, set[str]]) -> set[str]:
    """Keys that a dict display writes out, or that it takes from other displays of the same function."""
    if isinstance(node, ast.Name):
        return facts.get(node.id, set())
    if isinstance(node, ast.BinOp):
        return literal_keys(node.left, facts) | literal_keys(node.right, facts)
    found: set[str] = set()
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                found |= literal_keys(value, facts)
            elif isinstance(key, ast.Constant):
                found.add(key.value)
    return found


def displays(function: ast.AST) -> dict[str, set[str]]:
    """Names that hold dict displays in a function, with the keys of all that is assigned to them."""
    facts: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    facts.setdefault(target.id, set()).update(literal_keys(node.value, facts))
    return facts


def calls(path: Path) -> Iterator[tuple[str, set[str]]]:
    """Every call of a notify with a literal name: the event, and the keys that can be read off the code."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        facts = displays(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and len(node.args) == 2 and "notify" in ast.unparse(node.func):
                name, payload = node.args
                ends = (name.body, name.orelse) if isinstance(name, ast.IfExp) else (name,)  # "a" if ... else "b"
                names = [end.value for end in ends if isinstance(end, ast.Constant) and isinstance(end.value, str)]
                for event in names:
                    yield event, literal_keys(payload, facts)


def test_the_code_sends_known_events_with_known_keys() -> None:
    sent: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for event, keys in calls(path):
            assert event in events.EVENTS, f"{path}: {event}"
            known = keys_of(event)
            assert known is None or keys <= known, f"{path}: {event} with {sorted(keys - known)}"
            sent.add(event)
    assert sent == events.EVENTS.keys()


def test_the_keys_are_found_where_they_are_written() -> None:
    code = 'def f(notify, more):\n  a = {"x": 1}\n  a |= {"y": 2}\n  notify("one" if more else "two", {**a, "z": 3})\n'
    function = ast.parse(code).body[0]
    call = function.body[-1].value  # type: ignore[attr-defined]
    assert literal_keys(call.args[1], displays(function)) == {"x", "y", "z"}


def test_the_page_on_json_names_every_event_and_key() -> None:
    text = (ROOT / "docs" / "json.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|.*\|$", text, re.MULTILINE))
    for event in events.EVENTS:
        if event == "measuring":  # never in --json
            continue
        assert event in rows, event
        named = set(re.findall(r"`(\w+)`", rows[event]))
        known = keys_of(event)
        if known is None:
            continue
        if event == "batch":
            known = known | set(events.BatchRow.__annotations__)
        if event == "validation":  # "the same, and"
            named |= set(re.findall(r"`(\w+)`", rows["train_progress"]))
        assert named >= known - {"loss"}, f"{event}: {sorted(known - named)}"


@pytest.mark.parametrize("options", [(), ("--compare", "wipe", "--profile"), ("--sample",), ("--dry-run",)])
def test_events_of_a_run_have_all_their_keys(vdeblur, tmp_path: Path, options: tuple[str, ...]) -> None:
    clips.make(tmp_path / "in.mp4", frames=5)
    result = vdeblur("run", tmp_path / "in.mp4", tmp_path / "out.mp4", "-m", "identity", "--json", *options)
    for line in result.stdout.splitlines():
        facts = json.loads(line)
        found = events.EVENTS[facts["event"]]
        keys = facts.keys() - {"v", "event"}
        assert found.__required_keys__ <= keys <= set(found.__annotations__), facts["event"]  # type: ignore[attr-defined]
