from __future__ import annotations

from pathlib import Path

import msgspec
from tests.told_reports import card, report

from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.evaluation.report import paths, write_report
from fine_tune_runner.evaluation.sentence import headline
from fine_tune_runner.types import Decoding, EvalReport, Verdict, VersionKey

BETTER = card({"q1": 1.0, "q2": 0.0, "q3": 1.0, "q4": 1.0})
WORSE = card({"q1": 0.0, "q2": 1.0, "q3": 0.0, "q4": 0.0})


def said(whole: EvalReport) -> str:
    return headline(whole, decide(whole, 0.05))


def test_an_improvement_is_said_with_both_scores() -> None:
    assert said(report(BETTER, WORSE)) == (
        "hre v3 may replace v2: it names the right cause in 75% of the answers, v2 scores 25% on the same "
        "4 questions (+50 points)."
    )


def test_the_scores_are_those_of_the_questions_that_were_compared() -> None:
    many = {f"q{n}": 1.0 for n in range(1, 7)}
    shared = tuple(many)
    whole = report(card({**many, "q7": 0.0, "q8": 0.0}), card(many | {"q6": 0.0}), shared=shared)
    assert said(whole).endswith(
        "it names the right cause in 100% of the answers, v2 scores 83% on the same 6 questions by its "
        "stored answers (+17 points)."
    )


def test_a_refusal_says_who_stays() -> None:
    text = said(report(WORSE, BETTER))
    assert text.startswith("hre v3 is refused and v2 stays in service")
    assert text.endswith("(−50 points, −5 allowed).")


def test_a_first_version_is_shown_beside_the_base() -> None:
    text = said(report(BETTER, None, base=WORSE))
    assert "as the first version" in text
    assert "base model scores 25%" in text


def test_a_hold_gives_its_reason() -> None:
    key = VersionKey(version=2, track="B")
    text = said(report(BETTER, None, previous_key=key, not_comparable="v2 cannot be called"))
    assert text == "hre v3 was held back, and v2 stays in service: v2 cannot be called."


def test_the_markdown_names_lost_and_gained_questions_methods_and_hashes(tmp_path: Path) -> None:
    whole = report(BETTER, WORSE, left_out=("q9",))
    write_report(tmp_path, whole, decide(whole, 0.05))
    text = paths(tmp_path).markdown.read_text(encoding="utf-8")
    for part in ("- Lost: 1: q2", "- Gained: 3: q1, q3, q4", "line 4", "hhhhhhhh", "q9", "0.87", "0.31"):
        assert part in text


def test_the_provenance_says_how_answers_were_drawn_and_how_strict_it_was(tmp_path: Path) -> None:
    drawn = Decoding(temperature=0.3, max_tokens=128, seed=7)
    whole = msgspec.structs.replace(
        report(BETTER, WORSE), decoding=drawn, answers_per_question=3, judge="reader (abc)"
    )
    write_report(tmp_path, whole, decide(whole, 0.05, strict=True))
    text = paths(tmp_path).markdown.read_text(encoding="utf-8")
    for part in (
        "- answers drawn: `temperature 0.3, at most 128 tokens, seed 7, 3 a question`",
        "- strict: `weak evidence holds`",
        "- judge: `reader (abc)`",
    ):
        assert part in text


def test_a_report_of_an_earlier_release_says_nothing_of_how_answers_were_drawn(tmp_path: Path) -> None:
    whole = report(BETTER, WORSE)
    write_report(tmp_path, whole, decide(whole, 0.05))
    text = paths(tmp_path).markdown.read_text(encoding="utf-8")
    assert "scorer fingerprint" in text
    assert "answers drawn" not in text
    assert "strict" not in text


def test_the_files_hold_report_and_verdict(tmp_path: Path) -> None:
    whole = report(BETTER, WORSE)
    verdict = decide(whole, 0.05)
    write_report(tmp_path, whole, verdict)
    data = msgspec.json.decode(paths(tmp_path).json.read_bytes())
    assert msgspec.convert(data["report"], EvalReport) == whole
    assert msgspec.convert(data["verdict"], Verdict) == verdict
