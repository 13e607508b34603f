"""How often does the gate err? Simulated through its public functions, beside three other gates.

    nice python benchmarks/gate.py [--repetitions 6000] [--seed 0] [--json gate.json]

The simulation of facts/evaluation.md: a question's difficulty is logit-normal with sd 1.8, a fine-tune shifts
each question by a logit of sd 1.2, levels are calibrated to a previous exact match of .75 and the stated true
change, answers are independent Bernoulli, both models answer the same questions. Nothing was tuned on it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fine_tune_runner.evaluation.gate import SCHEDULE, Scores, judge, passes, schedule, undecided

QUESTIONS = (10, 30, 100)
CHANGES = (0.0, -0.05, -0.10, -0.20)
PREVIOUS, SD_DIFFICULTY, SD_SHIFT, TOLERANCE = 0.75, 1.8, 1.2, 0.05
# 97.5 % quantile of Student's t with n - 1 degrees of freedom (any table of it).
T_975 = {10: 2.2622, 30: 2.0452, 100: 1.9842}

Outcome = bool | None  # promoted, aborted, or undecided
Answers = NDArray[np.bool_]  # [questions, answers]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One gate at one number of questions and one true change; shares of the repetitions."""

    gate: str
    questions: int
    change: float
    promoted: float
    aborted: float
    decided: float
    answers: float  # mean a question and model
    strong: float | None = None
    strong_and_wrong: float | None = None  # strong promotes beyond the tolerance, or strong refusals within


def level(mean: float, sd: float) -> float:
    """The logit around which a logit-normal with this sd has this mean, by bisection."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    low, high = -20.0, 20.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        expected = float(weights @ (1 / (1 + np.exp(-(middle + sd * nodes))))) / math.sqrt(2 * math.pi)
        low, high = (middle, high) if expected < mean else (low, middle)
    return low


def simulate(
    questions: int, change: float, repetitions: int, rng: np.random.Generator
) -> tuple[Answers, Answers]:
    """Answers of the new and the previous model, right or wrong: [repetitions, questions, most answers]."""
    shape = (repetitions, questions, 1)
    difficulty = SD_DIFFICULTY * rng.standard_normal(shape)
    shift = SD_SHIFT * rng.standard_normal(shape)
    before = level(PREVIOUS, SD_DIFFICULTY) + difficulty
    after = level(PREVIOUS + change, math.hypot(SD_DIFFICULTY, SD_SHIFT)) + difficulty + shift
    draws = (repetitions, questions, SCHEDULE[-1])
    new, previous = (rng.random(draws) < 1 / (1 + np.exp(-logit)) for logit in (after, before))
    return new, previous


def scores(answers: Answers, k: int) -> Scores:
    """The first `k` answers a question as the gate takes them."""
    return {str(q): row for q, row in enumerate(answers[:, :k].astype(float).tolist())}


def ours(new: Answers, previous: Answers, stages: Sequence[int]) -> tuple[Outcome, int, bool]:
    """The gate as the harness runs it: outcome, answers a question, strong or not."""
    for k in stages:
        sides = scores(new, k), scores(previous, k)
        if not undecided(*sides, TOLERANCE):
            break
    verdict = judge(*sides, TOLERANCE)
    return {"promote": True, "refuse": False, "hold": None}[verdict.decision], k, verdict.strength == "strong"


def plain(new: Answers, previous: Answers) -> Outcome:
    """spec.md's rule on one answer a question."""
    return passes(float(new[:, 0].mean() - previous[:, 0].mean()), TOLERANCE)


def mcnemar(new: Answers, previous: Answers) -> Outcome:
    """Abort where the exact test on one answer a question, one-sided, finds a loss at .05."""
    lost = int((previous[:, 0] & ~new[:, 0]).sum())
    gained = int((new[:, 0] & ~previous[:, 0]).sum())
    return _sign_test(lost, gained) > 0.05


@lru_cache
def _sign_test(lost: int, gained: int) -> float:
    """P(at least `lost` of all changed questions), were losing and gaining as likely."""
    n = lost + gained
    return sum(math.comb(n, i) for i in range(gained + 1)) / 2**n


def interval(k: int) -> Callable[[Answers, Answers], Outcome]:
    """NeMo Evaluator's rule on `k` answers a question: pass if the upper 95 % bound of the damage is within
    the tolerance, breach if the lower bound is beyond it, else undecided; a paired t interval."""

    def rule(new: Answers, previous: Answers) -> Outcome:
        damage = previous[:, :k].mean(axis=1) - new[:, :k].mean(axis=1)
        half = T_975[len(damage)] * float(damage.std(ddof=1)) / math.sqrt(len(damage))
        middle = float(damage.mean())
        if passes(-(middle + half), TOLERANCE):
            return True
        return None if passes(-(middle - half), TOLERANCE) else False

    return rule


OTHERS: Sequence[tuple[str, int, Callable[[Answers, Answers], Outcome]]] = (
    ("plain rule, 1 answer", 1, plain),
    ("McNemar at .05, 1 answer", 1, mcnemar),
    ("95 % interval, 1 answer", 1, interval(1)),
    ("95 % interval, 10 answers", 10, interval(10)),
)


def rows(questions: int, change: float, repetitions: int, seed: int) -> list[Row]:
    """Every gate on the same simulated answers."""
    rng = np.random.default_rng([seed, questions, round(-100 * change)])
    new, previous = simulate(questions, change, repetitions, rng)
    pairs = list(zip(new, previous, strict=True))
    table = [_staged("this gate", change, pairs, schedule(questions))]
    if schedule(questions) != SCHEDULE:
        table.append(_staged("this gate, begun with 1", change, pairs, SCHEDULE))
    for name, k, gate in OTHERS:
        row = _row(name, questions, change, [gate(n, p) for n, p in pairs])
        table.append(msgspec.structs.replace(row, answers=k))
    return table


def _staged(gate: str, change: float, pairs: Sequence[tuple[Answers, Answers]], stages: Sequence[int]) -> Row:
    found = [ours(new, previous, stages) for new, previous in pairs]
    strong = [promoted for promoted, _, sure in found if sure]
    fine = passes(change, TOLERANCE)
    return msgspec.structs.replace(
        _row(gate, len(pairs[0][0]), change, [outcome for outcome, _, _ in found]),
        answers=sum(k for _, k, _ in found) / len(found),
        strong=len(strong) / len(found),
        strong_and_wrong=sum(promoted != fine for promoted in strong) / len(found),
    )


def _row(gate: str, questions: int, change: float, outcomes: Sequence[Outcome]) -> Row:
    promoted, aborted = (sum(o is side for o in outcomes) / len(outcomes) for side in (True, False))
    return Row(
        gate=gate,
        questions=questions,
        change=change,
        promoted=promoted,
        aborted=aborted,
        decided=promoted + aborted,
        answers=1,
    )


def show(table: Sequence[Row]) -> None:
    """One block a number of questions, one line a gate."""
    changes = [f"{100 * c:+.0f}" for c in CHANGES[1:]]
    for questions in QUESTIONS:
        print(f"\n{questions} questions".ljust(30) + "aborted  promoted at" + " " * 13 + "decided  answers")
        print(" " * 29 + "at +0    " + "".join(c.ljust(11) for c in changes) + "(0 / -20)")
        for gate in dict.fromkeys(row.gate for row in table):
            of = {row.change: row for row in table if (row.gate, row.questions) == (gate, questions)}
            if not of:
                continue
            cells = "".join(f"{of[c].promoted:.1%}".ljust(11) for c in CHANGES[1:])
            decided = f"{of[0.0].decided:.0%} / {of[-0.2].decided:.0%}"
            mean = sum(row.answers for row in of.values()) / len(of)
            print(f"{gate:<28} {of[0.0].aborted:<8.1%} {cells}{decided:<14}{mean:.1f}")
        mine = [row for row in table if (row.gate, row.questions) == ("this gate", questions)]
        said = ", ".join(
            f"{100 * r.change:+.0f}: {r.strong:.0%} strong, {r.strong_and_wrong:.1%} strong and wrong"
            for r in mine
            if r.change != -TOLERANCE
        )
        print(f"  {said}")


def main() -> None:
    """Simulate, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    print(f"{words.repetitions} repetitions, seed {words.seed}, previous {PREVIOUS}, tolerance {TOLERANCE}")
    errors = ", ".join(
        f"{p:.0%} ±{math.sqrt(p * (1 - p) / words.repetitions):.2%}" for p in (0.04, 0.22, 0.5)
    )
    print(f"standard error of a share: {errors}")
    table = [row for n in QUESTIONS for c in CHANGES for row in rows(n, c, words.repetitions, words.seed)]
    show(table)
    if words.json:
        words.json.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2))


if __name__ == "__main__":
    main()
