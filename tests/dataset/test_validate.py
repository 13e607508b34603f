"""Every check of a version finds its fault, and a clean version has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fine_tune_runner.dataset.read import load
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.dataset.validate import check, leaked, question_id
from fine_tune_runner.errors import UsageError
from fine_tune_runner.settings import Client
from fine_tune_runner.types import EvalLabels, Example, Finding, Findings, Message

from .clients import CAUSES, PROMPT, Row, client, question, row, write


class Words:
    """Counts words; loss is on the last message."""

    name = "words"
    context = 100

    def count(self, rows: Sequence[tuple[Message, ...]]) -> list[tuple[int, int]]:
        return [(sum(len(m.content.split()) for m in r), len(r[-1].content.split())) for r in rows]


class Letters:
    """Embeds a text as its letter counts: an anagram means the same."""

    fingerprint = "letters"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], np.float32)
        unit: NDArray[np.float32] = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        return unit


def run(hre: Client, *, words: bool = True, letters: bool = False) -> Findings:
    tokenizer, embedder = Words() if words else None, Letters() if letters else None
    return check(hre, 3, tokenizer=tokenizer, embedder=embedder, taxonomy=load_taxonomy(hre.dir))


def found(findings: Findings, name: str) -> list[Finding]:
    return [item for item in findings.items if item.check == name]


def rows(n: int = 60) -> list[Any]:
    return [row(i) for i in range(n)]


def holdout(n: int = 12) -> list[Any]:
    return [row(i) for i in range(300, 300 + n)]


def changed(at: int, new: Row | bytes, n: int = 60) -> list[Any]:
    return [*rows(n)[:at], new, *rows(n)[at + 1 :]]


def prompted(prompt: str, r: Row) -> Row:
    return {"messages": [{"role": "system", "content": prompt}, *r["messages"][1:]]}


def says(text: str) -> str:
    return f"Root cause: {CAUSES[0]}\n{text}"


def test_a_clean_version_has_nothing_but_information(tmp_path: Path) -> None:
    hre = client(tmp_path)
    findings = run(hre)
    assert [item for item in findings.items if item.level != "info"] == []
    assert not findings.failed
    assert findings.dataset_sha256 == load(hre, 3).sha256
    assert found(findings, "cause_line")[0].message.startswith("60 of 60 answers (100%)")


def test_token_figures_by_hand(tmp_path: Path) -> None:
    tokens = run(client(tmp_path)).tokens
    assert tokens is not None
    # prompt 8, question 8, answer 5 words in every row
    assert (tokens.tokenizer, tokens.total, tokens.loss, tokens.longest, tokens.mean) == (
        "words",
        60 * 21,
        60 * 5,
        21,
        21.0,
    )


SECRET = "EAA" + "B" + "x1" * 20
JANE = "jane.doe@acme.test"

# name of the check, level, line, words of the message; then what is changed
ROWS_AT_FAULT: list[tuple[str, str, int | None, str, dict[str, Any]]] = [
    ("shape", "fail", 6, "not valid JSON", {"train": changed(5, b"{")}),
    ("shape", "fail", 2, 'last message is from "user"', {
        "holdout": [row(300), {"messages": row(301)["messages"][:2]}, *holdout()[2:]]}),
    ("rows", "fail", None, "awaiting 50 examples (has 49)", {"train": rows(49)}),
    ("rows", "fail", None, "awaiting 50 examples (has 9); hosted", {"train": rows(9)}),
    ("holdout_rows", "warn", None, "only 9 questions", {"holdout": holdout(9)}),
    ("holdout_ids", "fail", 2, "'a' stands on line 1 already", {
        "holdout": [row(300, eval={"id": "a"}), row(301, eval={"id": "a"}), *holdout()[2:]]}),
    ("exact_duplicate", "warn", 8, "same as line 2", {
        "train": changed(7, row(7, user=question(1).upper().replace(" ", "\n "), answer=says("x")))}),
    ("exact_duplicate", "warn", 12, "same as line 1", {"holdout": [*holdout()[:11], row(300)]}),
    ("near_duplicate", "warn", 8, "nearly the same as line 2", {
        "train": changed(7, row(1, user=question(1) + " ok"))}),
    ("exact_leak", "fail", 4, "asks the same as line 1 of", {
        "train": changed(3, row(3, user=" " + question(300).title()))}),
    ("near_leak", "fail", 4, "asks nearly the same as line 1 of", {
        "train": changed(3, row(3, user=question(300) + " ok"))}),
    ("contradiction", "fail", 8, f"names {CAUSES[1]} where line 1,", {
        "train": changed(7, row(7, user=question(0) + " 12"))}),
    ("contradiction", "warn", 8, "another root cause than line 1,", {
        "train": changed(7, row(7, user=question(0), answer="Root cause: solar wind\nWait."))}),
    ("contradiction", "fail", 4, "where line 1 of", {
        "train": changed(3, row(3, user=question(300), answer=f"Root cause: {CAUSES[2]}"))}),
    ("coverage", "warn", 1, "asks for sgtm_domain_dns, which no training", {
        "holdout": [row(300, answer="Root cause: DNS record missing"), *holdout()[1:]]}),
    ("coverage", "warn", 1, "asks for own_cause, which no training", {
        "holdout": [row(300, eval={"root_cause": "own_cause"}), *holdout()[1:]]}),
    ("coverage", "warn", None, "fewer than 3 rows: sgtm_domain_dns (1)", {
        "train": changed(3, row(3, answer="Root cause: sgtm_domain_dns"))}),
    ("coverage", "warn", None, f"{CAUSES[0]} is the cause of 33% of the rows", {
        "train": [row(i, answer=says("x") if i < 12 else None) for i in range(60)]}),
    ("prompt_drift", "warn", None, "line 5 is the first with another", {
        "train": changed(4, prompted("Other.", row(4)))}),
    ("prompt_drift", "warn", None, "1 rows have no system prompt, the first on line 5", {
        "train": changed(4, {"messages": row(4)["messages"][1:]})}),
    ("cause_line", "warn", None, "50 of 60 answers (83%) begin", {
        "train": [row(i, answer="No idea." if i < 10 else None) for i in range(60)]}),
    ("cause_line", "warn", 4, "1 answers name a root cause that the taxonomy lacks", {
        "train": changed(3, row(3, answer="Root cause: solar wind"))}),
    ("length", "warn", 4, "answer of 2", {"train": changed(3, row(3, answer=says("long " * 50)))}),
    ("length", "warn", 4, "question of 2 characters", {"train": changed(3, row(3, user="q?"))}),
    ("tokens", "fail", 4, "tokens, where words takes 100", {
        "train": changed(3, row(3, answer=says("x " * 99)))}),
    ("tokens", "fail", 1, "tokens, where words takes 100", {
        "holdout": [row(300, user="why " * 99), *holdout()[1:]]}),
    ("meta_token", "fail", 4, "holds a secret, EAAB…", {"train": changed(3, row(3, answer=says(SECRET)))}),
    ("meta_token", "fail", 1, "holds a secret, EAAB…", {
        "holdout": [row(300, answer=says(SECRET)), *holdout()[1:]]}),
    ("email", "warn", 4, "holds personal data, jane…", {"train": changed(3, row(3, answer=says(JANE)))}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "level", "line", "message", "data"), ROWS_AT_FAULT)
def test_each_check(
    tmp_path: Path, name: str, level: str, line: int | None, message: str, data: dict[str, Any]
) -> None:
    hre = client(tmp_path, **data)
    items = found(run(hre), name)
    where = [(item.level, item.line) for item in items if message in item.message]
    assert where == [(level, line)], items
    assert all(item.remedy for item in items if item.level != "info")
    assert all(item.path.startswith(str(hre.dir)) for item in items)


def test_failed_follows_from_a_fail_finding(tmp_path: Path) -> None:
    assert run(client(tmp_path, train=rows(49))).failed
    assert not run(client(tmp_path, holdout=holdout(9))).failed


def test_findings_come_worst_first_and_fit_into_json(tmp_path: Path) -> None:
    findings = run(client(tmp_path, train=rows(9), holdout=holdout(3)))
    order = [("fail", "warn", "info").index(item.level) for item in findings.items]
    assert order == sorted(order)
    assert msgspec.json.decode(msgspec.json.encode(findings), type=Findings) == findings


@pytest.mark.parametrize("name", ["v3.jsonl", "v3_eval.jsonl", "account_state.json"])
def test_a_missing_file_is_a_finding(tmp_path: Path, name: str) -> None:
    hre = client(tmp_path)
    (hre.dir / name).unlink()
    missing = [item for item in run(hre).items if "is missing" in item.message]
    assert [(item.level, item.path) for item in missing] == [("fail", str(hre.dir / name))]


def test_all_faults_of_a_version_come_at_once(tmp_path: Path) -> None:
    train = changed(3, row(3, answer=says(SECRET)))
    train[7], train[9] = b"nope", row(9, user=question(300))
    (tmp_path / "x").mkdir()
    names = {item.check for item in run(client(tmp_path, train=train, holdout=holdout(9))).items}
    assert names >= {"meta_token", "shape", "exact_leak", "holdout_rows", "contradiction"}


def test_a_prompt_other_than_the_account_states(tmp_path: Path) -> None:
    hre = client(tmp_path)
    state = {"version": "1.3.0", "system_prompt": PROMPT + " New tag."}
    (hre.dir / "account_state.json").write_bytes(msgspec.json.encode(state))
    drift = found(run(hre), "prompt_drift")
    assert [Path(item.path).name for item in drift] == ["v3.jsonl", "v3_eval.jsonl"]
    assert all("account_state.json 1.3.0" in item.message for item in drift)


def test_a_secret_is_allowed_with_a_reason(tmp_path: Path) -> None:
    allowed = {"meta_token": "expired test token"}
    hre = client(tmp_path, train=changed(3, row(3, answer=says(SECRET))), allow_secrets=allowed)
    (item,) = found(run(hre), "meta_token")
    assert (item.level, item.message) == ("info", "EAAB… is allowed: expired test token")


def test_an_allowance_for_no_kind_of_secret_is_told_the_kinds_there_are(tmp_path: Path) -> None:
    hre = client(tmp_path, allow_secrets={"meta_tokn": "expired", "email": "public", SECRET: "pasted"})
    items = found(run(hre), "allow_secrets")
    assert [item.level for item in items] == ["warn"] * 3
    assert '"meta_tokn" is no kind of secret' in items[0].message
    assert "meta_token" in items[0].remedy
    assert "email" not in items[0].remedy  # personal data only warn, so there is nothing to allow
    assert SECRET[4:] not in msgspec.json.encode(items).decode()


def test_no_finding_shows_a_secret_or_personal_data(tmp_path: Path) -> None:
    bad = row(300, answer=says(f"{SECRET} {JANE}"), eval={"id": JANE, "root_cause": CAUSES[0]})
    hre = client(tmp_path, train=changed(3, bad), holdout=[bad, bad, *holdout()[2:]])
    shown = msgspec.json.encode(run(hre)).decode()
    assert SECRET[4:] not in shown
    assert JANE not in shown


def test_a_secret_in_the_shared_prompt_is_said_once(tmp_path: Path) -> None:
    train = [prompted(SECRET, r) for r in rows()]
    assert [item.line for item in found(run(client(tmp_path, train=train)), "meta_token")] == [1]


def test_accepted_causes_do_not_contradict(tmp_path: Path) -> None:
    asked = row(300, eval={"root_cause": CAUSES[1], "accept": [CAUSES[2]]})
    train = changed(3, row(3, user=question(300), answer=f"Root cause: {CAUSES[2]}"))
    findings = run(client(tmp_path, train=train, holdout=[asked, *holdout()[1:]]))
    assert found(findings, "contradiction") == []
    assert found(findings, "exact_leak") != []


def test_a_question_that_means_the_same(tmp_path: Path) -> None:
    words = question(300).rstrip("?").split()
    turned = " ".join(word[::-1] for word in reversed(words))
    hre = client(tmp_path, train=changed(3, row(3, user=turned, answer=says("x"))))
    semantic = found(run(hre, letters=True), "semantic_leak")
    close = [item for item in semantic if item.line == 4 and "line 1 of" in item.message]
    assert [item.level for item in close] == ["warn"]
    assert "(cosine 1.00)" in close[0].message
    assert semantic[-1].message == "looked at 60 of 60 training and 12 of 12 holdout questions"


def test_what_is_not_checked_is_said(tmp_path: Path) -> None:
    findings = run(client(tmp_path), words=False)
    assert findings.tokens is None
    assert "no tokenizer" in found(findings, "tokens")[0].message
    assert "no embedder" in found(findings, "semantic_leak")[0].message


def test_another_versions_training_set_is_named_with_the_questions(tmp_path: Path) -> None:
    asked = [row(300, eval={"id": "hre-007"}), *holdout()[1:]]
    hre = client(tmp_path, version=2, train=[row(300), row(303, user=question(303) + " 7"), b"broken"])
    client(tmp_path, holdout=asked)
    (item,) = found(run(hre), "other_version")
    assert item.level == "warn"
    assert item.message.endswith("v2.jsonl or near to a row of it: hre-007, v3_eval:4")
    assert item.message.startswith("2 of 12 questions are in ")


def test_leaked_names_the_rows(tmp_path: Path) -> None:
    test = write(tmp_path / "v3_eval.jsonl", [row(300, eval={"id": "a"}), row(301), b"broken", row(302)])
    train = write(tmp_path / "v2.jsonl", [row(5), row(302, user=question(302) + " ok"), row(300)])
    assert leaked(test, train) == ("a", "v3_eval:4")
    assert leaked(test, tmp_path / "v1.jsonl") == ()


def test_question_id(tmp_path: Path) -> None:
    plain = Example(
        line=7, messages=(Message(role="user", content="q"), Message(role="assistant", content="a"))
    )
    path = tmp_path / "v3_eval.jsonl"
    assert question_id(plain, path) == "v3_eval:7"
    assert question_id(msgspec.structs.replace(plain, eval=EvalLabels(id="hre-007")), path) == "hre-007"
    assert question_id(msgspec.structs.replace(plain, eval=EvalLabels(id="")), path) == "v3_eval:7"


def test_version_zero_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        check(client(tmp_path), 0, tokenizer=None, embedder=None, taxonomy=load_taxonomy(None))


def test_a_thousand_findings_of_a_kind_and_the_number_of_the_rest(tmp_path: Path) -> None:
    items = found(run(client(tmp_path, train=[b"nope"] * 1500)), "shape")
    assert len(items) == 1001
    assert items[-1].message == "500 more findings of this kind"


def test_above_a_thousand_rows_near_duplicates_are_found_too(tmp_path: Path) -> None:
    train = [*rows(1100), row(40, user=question(40) + " ok")]
    near = found(
        run(client(tmp_path, train=train, holdout=[row(i) for i in range(5000, 5012)])), "near_duplicate"
    )
    assert [(item.line, item.message) for item in near] == [(1101, "asks nearly the same as line 41")]
