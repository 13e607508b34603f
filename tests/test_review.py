"""Reviewing an evaluation: what waits, what a decision changes, and that no model is asked for it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.dataset.labels import Label, add_labels, labels_path
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import DataError, RunnerError
from fine_tune_runner.evaluation.answers import read_answers, write_answers
from fine_tune_runner.evaluation.decisions import Decided, append_decision, decisions_path
from fine_tune_runner.evaluation.holdout import load_holdout
from fine_tune_runner.evaluation.report import rewrite_report
from fine_tune_runner.evaluation.review import Asked, Item, last_asked, read_words, waiting
from fine_tune_runner.line import run_dir_of
from fine_tune_runner.rescore import rescore
from fine_tune_runner.settings import load_client
from tests.small_client import CAUSES, holdout_rows, write_rows
from tests.test_runner import Desk, right, wrong


def vague(question_id: str) -> str:
    return f"Something about {question_id} is odd, hard to say what."


def right_but_vague_at(*ids: int) -> Any:
    return lambda question_id: (vague if int(question_id[-3:]) in ids else right)(question_id)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """v1 right but for one vague answer; v2 gives two other vague ones, and is refused for it."""
    desk = Desk(tmp_path, track_preference="b")
    desk.track.script = {0: wrong, 1: right_but_vague_at(5), 2: right_but_vague_at(2, 7)}
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    return desk


def asked(desk: Desk, version: int = 2) -> Asked:
    runner = desk.runner()
    client, entry = load_client(desk.settings, "small"), runner.entry("small", version, None)
    return last_asked(client, entry, run_dir_of(client, entry))


def decide(desk: Desk, item: Item, right: bool) -> None:
    runner = desk.runner()
    decided = Decided(
        question=item.question, answer=item.answer, right=right, who=runner.who, at=runner.clock()
    )
    append_decision(decisions_path(desk.client), decided)


def test_unresolved_answers_of_both_versions_wait_and_then_changed_questions(desk: Desk) -> None:
    items = waiting(asked(desk))
    assert [(i.id, i.reason, i.by, i.counted_right) for i in items] == [
        ("small-002", "unresolved", ("v2 (B)",), False),
        ("small-005", "unresolved", ("v1 (B)",), False),
        ("small-007", "unresolved", ("v2 (B)",), False),
        ("small-002", "lost", ("v1 (B)",), True),
        ("small-007", "lost", ("v1 (B)",), True),
        ("small-005", "gained", ("v2 (B)",), True),
    ]
    assert items[0].said == vague("small-002")
    assert items[0].why == "no rule could read a cause; counted as not recalled"


def test_decisions_change_the_verdict_without_asking_a_model(desk: Desk) -> None:
    assert desk.statuses() == {1: "active", 2: "refused"}
    for item in waiting(asked(desk)):
        if item.reason == "unresolved":
            decide(desk, item, right=True)
    assert asked(desk).stale
    desk.track.script = {}  # nothing can be asked any more
    report, verdict = rescore(desk.runner(), "small", 2)
    assert (report.new.recall, verdict.previous, verdict.decision) == (1.0, 1.0, "promote")
    assert report.new.methods["review"] > 0
    assert not asked(desk).stale
    assert desk.statuses() == {1: "active", 2: "eval"}
    desk.track.script = {1: right, 2: right}
    assert desk.runner().promote("small", 2)[0].active


def test_a_decided_answer_does_not_wait_again_unless_asked_for(desk: Desk) -> None:
    first = waiting(asked(desk))[0]
    decide(desk, first, right=False)
    assert first.answer not in {item.answer for item in waiting(asked(desk))}
    (again,) = [item for item in waiting(asked(desk), again=True) if item.answer == first.answer]
    assert again.decided is not None
    assert again.decided.right is False


def test_the_report_says_who_decided(desk: Desk) -> None:
    decide(desk, waiting(asked(desk))[0], right=True)
    rescore(desk.runner(), "small", 2)
    (folder,) = desk.client.glob("runs/small-v2-*")
    assert "decided by anna" in (folder / "report.md").read_text()
    assert "decided by anna" in (folder / "report.html").read_text()


def test_scores_with_and_without_a_decision_have_two_fingerprints(desk: Desk) -> None:
    before = desk.runner().entry("small", 2, None).evaluation
    decide(desk, waiting(asked(desk))[0], right=True)
    rescore(desk.runner(), "small", 2)
    after = desk.runner().entry("small", 2, None).evaluation
    assert before is not None
    assert after is not None
    assert after.fingerprint.startswith(f"{before.fingerprint}+")


def test_a_first_version_is_scored_again_beside_the_base(desk: Desk) -> None:
    (item,) = waiting(asked(desk, 1))
    decide(desk, item, right=True)
    report, verdict = rescore(desk.runner(), "small", 1)
    assert report.base is not None
    assert (report.new.recall, report.base.recall, verdict.decision) == (1.0, 0.0, "promote")
    assert desk.statuses()[1] == "active"


def test_stored_answers_that_stood_in_do_so_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, track_preference="b")
    desk.track.script = {0: wrong, 1: right}
    desk.runner().submit("small", 1)
    desk.track.script = {2: right_but_vague_at(2)}
    desk.runner().submit("small", 2)
    assert desk.statuses()[2] == "refused"
    decide(desk, waiting(asked(desk))[0], right=True)
    report, verdict = rescore(desk.runner(), "small", 2)
    assert (len(report.shared), verdict.decision) == (12, "promote")
    assert "by its stored answers" in verdict.reason


def test_answers_that_were_asked_in_another_way_are_not_scored_again(desk: Desk) -> None:
    decide(desk, waiting(asked(desk))[0], right=True)
    desk.write_config(track_preference="b", eval={"temperature": 0.7})
    with pytest.raises(DataError, match="fine-tune eval --client small --version 2"):
        rescore(desk.runner(), "small", 2)


def test_a_version_that_was_never_evaluated_is_told_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path, track_preference="b")
    desk.runner().register("small", 1, "m1", "B")
    with pytest.raises(DataError, match="never evaluated; first: fine-tune eval"):
        asked(desk, 1)


def test_a_holdout_without_causes_has_nothing_to_decide(desk: Desk) -> None:
    rows = holdout_rows()
    for row in rows:
        del row["eval"]
        row["messages"][-1]["content"] = "Look into it."
    write_rows(desk.client / "v2_eval.jsonl", rows)
    with pytest.raises(DataError, match="fine-tune label --client small --version 2"):
        asked(desk)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"nonsense", "line 2: JSON is malformed"),
        (b'{"question":"a","answer":"b"}', "missing required field `right`"),
        (b'{"question":"a","answer":"b","right":true}', "line 2: no such answer"),
        (b'{"question":"\xff"}', "line 2: "),
    ],
)
def test_a_broken_decision_is_named_and_none_is_taken(desk: Desk, line: bytes, says: str) -> None:
    items = waiting(asked(desk))
    good = json.dumps({"question": items[0].question, "answer": items[0].answer, "right": True}).encode()
    with pytest.raises(DataError) as error:
        read_words([good, line], items, "said.jsonl")
    assert says in str(error.value)
    assert len(read_words([good, b"", good], items, "said.jsonl")) == 2


def review(desk: Desk, *more: str, stdin: str | None = None) -> Result:
    words = ["review", "--client", "small", "--version", "2", *more]
    return CliRunner().invoke(
        fine_tune, words, env={"CLIENT_DATA_DIR": str(desk.settings.data_dir)}, input=stdin
    )


def test_through_a_pipe_what_waits_is_listed_and_nothing_changes(desk: Desk) -> None:
    result = review(desk)
    assert result.exit_code == 0
    assert "small-002 · unresolved · v2 (B)" in result.stdout
    assert "6 answers wait" in result.stdout
    items = [json.loads(line) for line in review(desk, "--json").stdout.splitlines()]
    assert [item["id"] for item in items][:2] == ["small-002", "small-005"]
    assert not decisions_path(desk.client).exists()


def test_what_json_lists_can_be_given_back_with_a_word(desk: Desk) -> None:
    items = [json.loads(line) for line in review(desk, "--json").stdout.splitlines()]
    said = "".join(json.dumps({**item, "right": True}) + "\n" for item in items[:2])
    result = review(desk, "--decisions", "-", stdin=said)
    kept = [json.loads(line) for line in decisions_path(desk.client).read_text().splitlines()]
    assert [(d["question"], d["right"]) for d in kept] == [(i["question"], True) for i in items[:2]]
    # The command's own embedder is another one than that of this test's evaluation, or not fetched.
    assert isinstance(result.exception, RunnerError)
    assert "2 decisions kept" in result.stdout


def on_a_terminal(desk: Desk, typed: bytes) -> tuple[int, str]:
    """Exit code and screen of `fine-tune review` of v2, at a real pseudo-terminal."""
    terminal, there = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "fine_tune_runner", "review", "--client", "small", "--version", "2"],
        env=os.environ | {"CLIENT_DATA_DIR": str(desk.settings.data_dir), "NO_COLOR": "1", "TERM": "xterm"},
        stdin=there,
        stdout=there,
        stderr=subprocess.DEVNULL,
    )
    os.close(there)
    os.write(terminal, typed)
    seen = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(terminal)
    return child.wait(), seen.decode(errors="replace")


def test_a_person_on_a_terminal_is_asked_about_each_until_quit(desk: Desk) -> None:
    _, text = on_a_terminal(desk, b"r\ns\nmaybe\nw\nq\n")
    assert "[1/6] small-002 · unresolved · v2 (B)" in text
    assert "'maybe' is not one of" in text
    assert ("[4/6]" in text, "[5/6]" in text, "2 decisions kept" in text) == (True, False, True)
    kept = [json.loads(line)["right"] for line in decisions_path(desk.client).read_text().splitlines()]
    assert kept == [True, False]


def suggest(desk: Desk, cause: str) -> Path:
    """An embedding found this cause beside v2's unresolved answers; returns the folder of the run."""
    (folder,) = desk.client.glob("runs/small-v2-*")
    path = folder / "answers" / "2-B.jsonl"
    write_answers(path, [
        msgspec.structs.replace(a, nearest=cause) if a.method == "unresolved" else a
        for a in read_answers(path)
    ])  # fmt: skip
    return folder


@pytest.mark.parametrize(("cause", "right"), [(CAUSES[2], True), (CAUSES[3], False)])
def test_one_key_takes_the_suggestion_as_what_the_answer_means(desk: Desk, cause: str, right: bool) -> None:
    suggest(desk, cause)  # the first answer that waits is to small-002
    _, text = on_a_terminal(desk, b"n\nq\n")
    assert f"{cause}, a suggestion; not counted" in text
    (kept,) = decisions_path(desk.client).read_text().splitlines()
    assert json.loads(kept)["right"] is right


def test_without_a_suggestion_that_key_is_none(desk: Desk) -> None:
    _, text = on_a_terminal(desk, b"n\nq\n")
    assert "'n' is not one of" in text
    assert not decisions_path(desk.client).exists()


def test_the_report_shows_the_suggestion_and_says_that_it_is_not_counted(desk: Desk) -> None:
    folder = suggest(desk, CAUSES[2])
    rewrite_report(folder)
    said = f"counted as not recalled; nearest: {CAUSES[2]}, not counted"
    assert said in (folder / "report.md").read_text().replace("\\", "")
    assert said in (folder / "report.html").read_text()


def test_labels_that_were_confirmed_since_turn_stored_answers_into_recall(tmp_path: Path) -> None:
    desk = Desk(tmp_path, track_preference="b")
    rows = holdout_rows()
    for row in rows:
        cause = row.pop("eval")["root_cause"]
        row["messages"][-1]["content"] = f"Look at what {cause[::-1]} means."
    write_rows(desk.client / "v1_eval.jsonl", rows)
    desk.track.script = {0: lambda _: wrong("small-000"), 1: lambda _: right("small-000")}
    desk.runner().submit("small", 1)
    before = desk.runner().entry("small", 1, None).evaluation
    assert before is not None
    assert (before.method, before.recall) == ("contrast", None)
    path = desk.client / "v1_eval.jsonl"
    labels = [
        Label(
            row=q.row_sha256,
            root_cause=CAUSES[n % 4],
            source="person",
            who="anna",
            at=desk.runner().clock(),
        )
        for n, q in enumerate(load_holdout(path, load_taxonomy(None)).questions)
    ]
    add_labels(labels_path(path), labels)
    assert asked(desk, 1).stale
    report, _ = rescore(desk.runner(), "small", 1)
    assert (report.measure, report.new.recall) == ("recall", 0.25)  # every fourth row has that cause
    assert not asked(desk, 1).stale


def test_a_holdout_that_upstream_changed_is_not_scored_again(desk: Desk) -> None:
    rows = holdout_rows()
    rows[0]["messages"][1]["content"] = "Why does something else look odd?"
    write_rows(desk.client / "v2_eval.jsonl", rows)
    with pytest.raises(DataError, match=r"holdout, system prompt, .* changed since v2 was evaluated"):
        rescore(desk.runner(), "small", 2)


def test_a_session_that_is_cut_off_keeps_what_was_decided(desk: Desk) -> None:
    code, _ = on_a_terminal(desk, b"r\n\x04")
    assert code == 130
    assert len(decisions_path(desk.client).read_text().splitlines()) == 1
    assert asked(desk).stale
