"""`fine-tune review` of a version that was really trained: from gibberish to a person's verdict."""

from __future__ import annotations

import json

from tests.small_client import Workplace


def test_decisions_through_a_pipe_become_the_score_without_a_model(place: Workplace) -> None:
    """A random base answers nonsense that no rule reads; somebody says that two of the answers are right."""
    assert place.submit().code == 0
    evaluated = place.run("eval", "--client", "small", "--version", "1")
    assert "decide them: fine-tune review --client small --version 1" in evaluated.out
    listed = place.run("review", "--client", "small", "--version", "1", "--json")
    assert listed.code == 0, listed.err
    items = listed.events
    assert len(items) > 2
    assert {item["reason"] for item in items} == {"unresolved"}
    for adapter in place.client.glob("runs/*/attempt-1/adapter.gguf"):
        adapter.unlink()
    said = place.folder / "said.jsonl"
    said.write_text("".join(json.dumps({**item, "right": n < 2}) + "\n" for n, item in enumerate(items)))
    result = place.run("review", "--client", "small", "--version", "1", "--decisions", str(said))
    assert result.code == 0, result.err
    assert f"{len(items)} decisions kept" in result.out
    assert "no model was asked" in result.out
    (entry,) = place.registry()
    assert entry["eval_score"] == 2 / 12
    assert "fingerprint" in entry["evaluation"]
    again = place.run("review", "--client", "small", "--version", "1")
    assert "0 answers wait" in again.out
