"""The HTML report: whole, closed to the outside, masked and escaped; and the parts it is made of."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from tests.small_client import plain_row, write_rows
from tests.told_reports import (
    RIGHT,
    WRONG,
    answer,
    card,
    report,
    write_findings,
    write_losses,
    write_step,
)

from fine_tune_runner.evaluation.answers import write_answers
from fine_tune_runner.evaluation.differ import LONGEST, pieces, spans
from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.evaluation.pictures import change_axis, curve, interval, score_axis
from fine_tune_runner.evaluation.proof import read_proof
from fine_tune_runner.evaluation.report import paths, write_report
from fine_tune_runner.types import EvalReport, Finding, Model, TrainingSummary

KEY = "sk-" + "a1B2c3D4e5F6g7H8i9J0"
VOID = {"meta", "link", "br", "line", "circle", "polyline", "rect"}
SCORES = {"q1": 1.0, "q2": 0.0, "q3": 1.0, "q4": 1.0}


class Outline(HTMLParser):
    """Tags that are open, every attribute, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def write_run(folder: Path) -> Path:
    """A run as it lies in a client's folder, with a secret and an address in the texts."""
    run = folder / "hre" / "runs" / "hre-v3-b-12345678-1"
    run.mkdir(parents=True)
    asked = "Why is <b>{}</b> off? Ask ann.example@example.com"
    told = f"Root cause: {RIGHT}\nReference of {{}}."
    rows = [plain_row(asked.format(q), told.format(q), id=q) for q in SCORES]
    write_rows(folder / "hre" / "v3_eval.jsonl", rows)
    new = [
        answer(q, RIGHT if s else WRONG, f"Root cause: x\nThe new words {KEY} here.")
        for q, s in SCORES.items()
    ]
    old = [answer(q, WRONG, "Root cause: x\nThe old words <script>alert(1)</script> here.") for q in SCORES]
    write_answers(run / "answers" / "3-B.jsonl", [*new, answer("q1", WRONG, "Root cause: y", 1)])
    write_answers(run / "answers" / "2-B.jsonl", old)
    finding = Finding(
        check="coverage", level="warn", message="a cause is rare", path="/data/hre/v3.jsonl", line=7
    )
    write_findings(run, finding)
    write_losses(run, "train step", {s: 4.0 / s for s in (1, 2, 4)}, torn=b'{"event":"train step","da')
    training = TrainingSummary(
        steps=4, epochs=1.0, tokens=5000, loss_tokens=900, seconds=61.0, first_loss=4.0, final_loss=1.0
    )
    model = Model(
        model_id="m", track="B", provider="p", base_model="smollm2", dataset_sha256="d", training=training
    )
    write_step(run, 4, "train", model, seconds=62.5)
    return run


def compared() -> EvalReport:
    new = card(SCORES, label="3-B")
    return report(new, card(dict.fromkeys(SCORES, 0.0), label="2-B"), warnings=("v2 was asked late",))


@pytest.fixture
def html(tmp_path: Path) -> str:
    whole = compared()
    return page_of(write_run(tmp_path), whole)


def page_of(run: Path, whole: EvalReport) -> str:
    write_report(run, whole, decide(whole, 0.05))
    return paths(run).html.read_text(encoding="utf-8")


def test_every_tag_is_closed_and_every_section_is_there(html: str) -> None:
    outline = Outline(html)
    assert outline.stack == []
    for part in (
        "PROMOTE",
        "hre v3 may replace v2",
        "Scores",
        "Questions",
        "Data findings",
        "Training curve",
    ):
        assert part in outline.text
    for part in (
        "5,000 in 4 steps",
        "Step train",
        "62.5 s",
        "smollm2",
        "v3.jsonl line 7",
        "v2 was asked late",
    ):
        assert part in outline.text


def test_nothing_outside_the_file_is_asked_for(html: str) -> None:
    outline = Outline(html)
    links = [value for _, name, value in outline.attributes if name in ("src", "href", "srcset", "action")]
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert not re.search(r"url\(|@import|<script|https?:", html)
    assert "default-src 'none'" in html


def test_secrets_and_personal_data_are_masked_everywhere(html: str) -> None:
    assert KEY not in html
    assert "[openai_key]" in html
    assert "ann.example@example.com" not in html
    assert "[email]" in html


def test_client_text_is_escaped(html: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&lt;b&gt;q1&lt;/b&gt;" in html


def test_both_answers_stand_side_by_side_with_their_differences(html: str) -> None:
    assert "The <del>old words" in html
    assert "The <ins>new words" in html
    assert html.index("<del>old") < html.index("<ins>new")


def test_each_question_says_what_it_committed_to_and_why_it_counted(html: str) -> None:
    text = " ".join(Outline(html).text.split())
    assert f"1 of 2 right; cause committed to: {RIGHT} (its own line \u201cRoot cause:\u201d decides)" in text
    assert f"All answers: {RIGHT} \u00d7 1, {WRONG} \u00d7 1" in text


def test_a_sample_is_said_to_be_one(tmp_path: Path) -> None:
    new = card(SCORES, label="3-B", similarity_questions=2)
    run = write_run(tmp_path)
    html = page_of(run, report(new, card(SCORES, label="2-B", similarity_questions=2)))
    said = "Answers to 2 of the 4 questions, the same for all models, were held against their references."
    assert said in html
    assert said in paths(run).markdown.read_text(encoding="utf-8")
    assert "held against" not in page_of(run, compared())


def test_changed_questions_come_first(html: str) -> None:
    order = re.findall(r"<summary><strong>(\w+)</strong> <span class=\"badge (\w+)\"", html)
    assert order == [("q1", "gained"), ("q3", "gained"), ("q4", "gained"), ("q2", "same")]


def test_it_reads_on_a_phone_in_the_dark_and_on_paper(html: str) -> None:
    assert 'content="width=device-width, initial-scale=1"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    # No width in the style sheet that 400 px could not hold: minimum widths are capped by 100 %.
    assert re.findall(r"min-width: *\d+", html) == []
    assert "min(100%, 21rem)" in html


def colours(html: str) -> list[dict[str, str]]:
    """Light, dark and print."""
    blocks = re.findall(r":root \{(.*?)\}", html, re.S)
    assert len(blocks) == 3
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_all_text_has_the_contrast_of_wcag_aa(html: str) -> None:
    pairs = [
        (ink, paper) for ink in ("ink", "quiet", "good", "bad", "so", "mark") for paper in ("paper", "soft")
    ]
    pairs += [(ink, paper) for paper in ("good-soft", "bad-soft", "so-soft") for ink in ("ink", paper[:-5])]
    for theme in colours(html):
        for ink, paper in pairs:
            low, high = sorted((luminance(theme[ink]), luminance(theme[paper])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


def test_a_run_of_which_nothing_is_left_still_has_its_verdict(tmp_path: Path) -> None:
    whole = compared()
    text = Outline(page_of(tmp_path / "hre" / "runs" / "r", whole)).text
    assert "hre v3 may replace v2" in text
    assert "Not on record for this run" in text
    assert "Training curve" not in text


def test_a_first_version_and_a_hold_have_pages_too(tmp_path: Path) -> None:
    first = report(card(SCORES), None, base=card(dict.fromkeys(SCORES, 0.0)))
    held = msgspec.structs.replace(compared(), previous=None, not_comparable="v2 cannot be called")
    for whole, word in ((first, "PROMOTE"), (held, "HOLD")):
        text = Outline(page_of(tmp_path / "a" / "b" / "c", whole)).text
        assert word in text
        assert "interval of the change" not in text


def test_what_a_run_left_is_read_and_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    proof = read_proof(write_run(tmp_path), compared())
    assert proof.losses == ((1, 4.0), (2, 2.0), (4, 1.0))
    assert [(t.step, t.seconds) for t in proof.timings] == [("train", 62.5)]
    assert proof.model is not None
    assert [q.id for q in proof.questions] == list(SCORES)
    assert sorted(proof.answers) == ["2-B", "3-B"]


def test_answers_of_a_model_that_was_not_asked_this_time_are_left_out(tmp_path: Path) -> None:
    """An earlier evaluation of the same run compared with another version."""
    run = write_run(tmp_path)
    write_answers(run / "answers" / "1-B.jsonl", [answer("q1", WRONG, "Root cause: x")])
    assert sorted(read_proof(run, compared()).answers) == ["2-B", "3-B"]
    assert sorted(read_proof(run, msgspec.structs.replace(compared(), previous=None)).answers) == ["3-B"]


def marked(left: str, right: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    only = spans(left, right)
    return pieces(left, only[0]), pieces(right, only[1])


def test_words_only_one_side_has_are_marked() -> None:
    assert marked("the old tag fires", "the tag fires twice") == (
        [("the", False), (" old", True), (" tag fires", False)],
        [("the tag fires", False), (" twice", True)],
    )


def test_a_single_word_that_both_have_between_two_changes_is_no_island() -> None:
    assert marked("set the tag now please", "let the pixel now please") == (
        [("set the tag", True), (" now please", False)],
        [("let the pixel", True), (" now please", False)],
    )


def test_very_long_answers_are_not_compared_word_by_word() -> None:
    assert spans("word " * LONGEST, "other") == ((), ())


def test_the_picture_of_the_scores_has_each_with_its_interval() -> None:
    found = score_axis([("v2", 0.5, None), ("v3", 0.75, (0.6, 1.4))], percent=True)
    # 16 to 344 is 0 to 1: 0.5 is 180, 0.75 is 262, 0.6 is 212.8; 1.4 is cut at 344.
    assert [(d.x, d.low, d.high, d.text) for d in found.dots] == [
        (180.0, None, None, "50%"),
        (262.0, 212.8, 344.0, "75%"),
    ]


def test_an_interval_of_a_score_lies_around_it_and_narrows_with_more_questions() -> None:
    few, many = interval([1.0, 0.0] * 5), interval([1.0, 0.0] * 50)
    assert few is not None
    assert many is not None
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    # n = 12 with the two pseudo-questions: sd of the mean is 0.5 / sqrt(13), z(.90) = 1.2816.
    assert few[1] - few[0] == pytest.approx(2 * 1.2816 * 0.5 / 13**0.5, rel=0.1)
    assert interval([]) is None
    assert interval([float("nan")]) is None


def test_the_picture_of_the_change_has_the_tolerance_on_it() -> None:
    verdict = msgspec.structs.replace(decide(compared(), 0.05), delta=0.1, low=-0.1, high=0.3)
    found = change_axis(verdict)
    assert found is not None
    # From -50 to +50 points: 0 is 180, 0.1 is 212.8, -0.1 is 147.2, 0.3 is 278.4, -0.05 is 163.6.
    assert [(d.x, d.low, d.high, d.text) for d in found.dots] == [(212.8, 147.2, 278.4, "+10 points")]
    assert (found.limit, found.ticks[0], found.ticks[2]) == (163.6, (16.0, "\u221250"), (180.0, "0"))
    assert change_axis(msgspec.structs.replace(verdict, delta=None)) is None


def test_the_curve_goes_from_corner_to_corner() -> None:
    found = curve([(1, 4.0), (2, float("nan")), (3, 2.0)])
    assert found is not None
    assert found.points == "16.0,14.0 344.0,116.0"
    assert curve([(1, 4.0)]) is None
