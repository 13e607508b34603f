"""JSON, Markdown and the page say the same, masked; and all three are made again from the run's folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from tests.evaluation.test_page import KEY, compared, write_run
from tests.told_reports import RIGHT, WRONG, card, report

from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.content import Content, masked
from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.evaluation.proof import read_proof
from fine_tune_runner.evaluation.report import paths, rewrite_report, write_report
from fine_tune_runner.registry import edits
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.types import EvalReport, Evaluation, RegistryEntry

AT = datetime(2026, 11, 22, 10, tzinfo=UTC)


def written(folder: Path) -> Path:
    run, whole = write_run(folder), compared()
    write_report(run, whole, decide(whole, 0.05))
    return run


def registered(client_dir: Path) -> None:
    """v2 by anna, then v3, evaluated against it, by ben."""
    registry = Registry(client_dir, lambda: AT)
    evaluation = Evaluation(
        method="recall",
        recall=0.75,
        similarity=0.8,
        questions=4,
        answers=5,
        fingerprint="f",
        verdict=decide(compared(), 0.05),
        at=AT,
    )
    for version, who, why in ((2, "anna", "trained"), (3, "ben", "asked for by ann.example@example.com")):
        entry = RegistryEntry(
            version=version,
            track="B",
            model_id=f"hre-client:v{version}",
            eval_score=0.75 if version == 3 else None,
            active=False,
            created_at=AT,
            status="eval",
            evaluation=evaluation if version == 3 else None,
        )
        registry.change(
            "register", lambda e, n=entry: edits.registered(e, n), who=who, why=why, key=entry.key
        )


def test_all_forms_have_every_question_with_both_answers_and_causes(tmp_path: Path) -> None:
    to = paths(written(tmp_path))
    data = msgspec.json.decode(to.json.read_bytes(), type=Content)
    assert [(row.id, row.change) for row in data.questions] == [
        ("q1", "gained"),
        ("q3", "gained"),
        ("q4", "gained"),
        ("q2", "same"),
    ]
    old, new = data.questions[0].sides
    assert (old.label, old.cause, new.label, new.cause) == ("v2 (B)", WRONG, "v3 (B)", RIGHT)
    assert next(text for text, only in new.pieces if only).startswith("new words")
    text = to.markdown.read_text(encoding="utf-8")
    assert "~~old words \\<script\\>alert(1)\\</script\\>~~" in text
    assert "**new words" in text
    for part in ("### q1 (gained)", "cause committed to: **consent\\_update\\_missing**", "| 4 | 1.000 |"):
        assert part in text
    html = to.html.read_text(encoding="utf-8")
    assert data.headline in html.replace("&#39;", "'")
    assert data.headline.split(":")[0] in text


def test_no_form_shows_a_secret_or_an_address(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    registered(tmp_path / "hre")
    whole = msgspec.structs.replace(
        compared(), warnings=(f"a key {KEY} stands in row 3",), left_out=("ann.example@example.com",)
    )
    write_report(run, whole, decide(whole, 0.05))
    to = paths(run)
    for path in (to.json, to.markdown, to.html):
        text = path.read_text(encoding="utf-8")
        assert KEY not in text, path
        assert "ann.example@" not in text, path
        assert "email" in text, path


def test_a_report_is_made_again_from_its_folder_and_stays_the_same(tmp_path: Path) -> None:
    run = written(tmp_path)
    before = [path.read_bytes() for path in sorted(run.glob("report.*"))]
    for path in run.glob("report.[mh]*"):
        path.unlink()
    rewrite_report(run)
    assert [path.read_bytes() for path in sorted(run.glob("report.*"))] == before


def test_a_question_whose_id_is_masked_is_found_again(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    name = "ann.example@example.com"
    for path in [tmp_path / "hre" / "v3_eval.jsonl", *run.glob("answers/*.jsonl")]:
        path.write_bytes(path.read_bytes().replace(b'"q1"', f'"{name}"'.encode()))
    cards = [
        msgspec.structs.replace(one, per_question={name: 1.0 - i, "q2": 0.0, "q3": 0.0, "q4": 0.0})
        for i, one in enumerate((compared().new, compared().previous))
        if one
    ]
    whole = msgspec.structs.replace(compared(), new=cards[0], previous=cards[1])
    first = write_report(run, whole, decide(whole, 0.05))
    again = rewrite_report(run)
    assert again.questions == first.questions
    assert len(first.questions) == 4
    assert first.questions[0].sides[1].cause == RIGHT


def test_a_version_without_a_report_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json is missing.*fine-tune eval"):
        rewrite_report(tmp_path)
    (tmp_path / "report.json").write_bytes(b"{")
    with pytest.raises(DataError, match="fine-tune eval makes it anew"):
        rewrite_report(tmp_path)


def test_the_history_and_the_record_come_from_the_registry(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    registered(tmp_path / "hre")
    whole = compared()
    found = write_report(run, whole, decide(whole, 0.05))
    assert [(p.name, p.status, p.score, p.change, p.here) for p in found.history] == [
        ("v3 (B)", "eval", 0.75, "+75 against v2 (B)", True),
        ("v2 (B)", "eval", None, "", False),
    ]
    assert [(act.who, act.action) for act in found.record] == [("ben", "register")]
    html = paths(run).html.read_text(encoding="utf-8")
    assert "The client&#39;s versions" in html or "The client's versions" in html
    assert "On record about this version" in html


def test_a_damaged_registry_leaves_the_rest_of_the_report(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (tmp_path / "hre" / "model_registry.json").write_text("[{")
    (tmp_path / "hre" / "model_registry.json.audit").write_text("nothing\n{}\n")
    proof = read_proof(run, compared())
    assert (proof.history, proof.record, len(proof.questions)) == ((), (), 4)


def test_a_hosted_curve_comes_from_the_provider_s_table(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    seen = b'\n{"event":"job status","data":{"status":"running","step":2,"loss":9.0}}\n'
    (run / "events.jsonl").write_bytes(seen)
    assert read_proof(run, compared()).losses == ((2, 9.0),)
    (run / "attempt-1").mkdir()
    table = "step,train_loss,valid_loss\n1,3.5,\n2,2.5,\n2,,1.0\n"
    (run / "attempt-1" / "metrics.csv").write_text(table)
    assert read_proof(run, compared()).losses == ((1, 3.5), (2, 2.5))


def test_scores_of_shared_questions_stand_above_those_of_all(tmp_path: Path) -> None:
    many = {f"q{n}": 1.0 for n in range(1, 7)}
    whole = report(card({**many, "q7": 0.0, "q8": 0.0}), card(many | {"q6": 0.0}), shared=tuple(many))
    found = write_report(tmp_path, whole, decide(whole, 0.05))
    assert found.scores[0] == ("On the 6 questions that both have", ("83%", "100%"))
    assert found.scores[1] == ("Problem recall", ("83%", "75%"))


def test_masking_keeps_the_shape_of_a_value() -> None:
    whole = report(compared().new, None, left_out=("call +49 170 1234567",))
    found = masked(whole, EvalReport)
    assert found.left_out == ("call +49\u2026[phone]",)
    assert msgspec.structs.replace(found, left_out=whole.left_out) == whole
