"""Which questions are the same, or nearly: exact after folding, near by Jaccard of character 5-grams.

Near means at least .80 after numbers, ids and URLs are masked (facts/evaluation.md). Texts in, positions
out; nothing here opens a file or knows what a duplicate means for a training set.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEAR = 0.80
GRAM = 5
ALL_PAIRS_BELOW = 1000  # questions up to which every pair is looked at
COMPARED_CHARS = 4000  # longer questions are compared by their beginning, which bounds the memory
BANDS, BAND_ROWS = 21, 6  # a pair at .80 becomes a candidate with p = 1 - (1 - .8**6)**21 = .998
NEIGHBOURS = 8  # pairs a row enters with rows before it, a band: bounds a file made from one pattern
MAX_PAIRS = 300_000  # candidates verified
ROWS_HELD = 20_000  # texts in memory at once while verifying
_SKETCHED_AT_ONCE = 512

_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.)\S+")
_ID = re.compile(r"(?<![\w-])(?=[\w-]*\d)[\w-]{6,}(?![\w-])")  # GTM-ABC123, order and pixel ids
_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,:]\d+)*(?!\w)")

# (position, question) in order, as often as it is called.
Questions = Callable[[], Iterable[tuple[int, str]]]


def fold(text: str) -> str:
    """NFKC, lower case, white space folded: what "exact" means for duplicates."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def masked(folded: str) -> str:
    """A folded text with URLs, ids and numbers masked, cut at COMPARED_CHARS; one of nothing else stays."""
    text = _NUMBER.sub("#", _ID.sub("#", _URL.sub("#", folded[: 2 * COMPARED_CHARS])))
    return (text if any(map(str.isalpha, text)) else folded)[:COMPARED_CHARS]


def key(text: str) -> int:
    """64 bits of BLAKE2b: stands for a text in memory (a clash among 10^6 texts: p = 3e-8)."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def grams(text: str) -> set[str]:
    """The character 5-grams of a masked text; a shorter text is its own only gram."""
    return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """|a and b| / |a or b|."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


class QuestionIndex:
    """The questions of a holdout, to be looked up one training question at a time; exact at any size."""

    def __init__(self, questions: Sequence[str]) -> None:
        folded = [fold(question) for question in questions]
        self._exact: defaultdict[int, list[int]] = defaultdict(list)
        self._rows_with: defaultdict[str, list[int]] = defaultdict(list)
        self._sizes: list[int] = []
        for position, text in enumerate(folded):
            self._exact[key(text)].append(position)
            own = grams(masked(text))
            self._sizes.append(len(own))
            for gram in own:
                self._rows_with[gram].append(position)

    def match(self, folded: str, near: str) -> Iterator[tuple[int, bool]]:
        """(position, whether exact) of each question that is, or is near to, the one given.

        `folded` is `fold(question)`, `near` is `masked(folded)`.
        """
        exact = self._exact.get(key(folded), [])
        yield from ((position, True) for position in exact)
        own = grams(near)
        known = own & self._rows_with.keys()
        if len(known) < NEAR * len(own):
            return  # not even all questions together share enough
        shared = Counter(position for gram in known for position in self._rows_with[gram])
        for position, count in shared.items():
            if count >= NEAR * (len(own) + self._sizes[position] - count) and position not in exact:
                yield position, False


def near_pairs(questions: Questions, count: int) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of masked questions with a Jaccard index of at least .80.

    `count` is how many there are. Under 1,000 all pairs are looked at; from there on candidates come from
    MinHash bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, section 3.4) and are verified,
    so what is returned is near, and a near pair is missed with p < .002, or where a pattern is so frequent
    that its row has nearer neighbours.
    """
    if count < ALL_PAIRS_BELOW:
        return sorted(_all_pairs({row: grams(text) for row, text in questions()}))
    return [pair for block in _blocks(_candidates(questions)) for pair in _verified(block, questions)]


def _all_pairs(rows: Mapping[int, set[str]]) -> Iterator[tuple[int, int]]:
    by_size = sorted(rows.items(), key=lambda item: len(item[1]))
    for i, (row, own) in enumerate(by_size):
        for other, theirs in by_size[i + 1 :]:
            if len(own) < NEAR * len(theirs):
                break  # sizes alone keep the index under .80
            if jaccard(own, theirs) >= NEAR:
                yield min(row, other), max(row, other)


def _candidates(questions: Questions) -> NDArray[np.int64]:
    """Pairs that share a band, [n, 2], each once, earlier row first, in order of the earlier row."""
    import numpy as np

    rows, bands = _bands(questions)
    pairs = np.empty(0, dtype=np.int64)  # earlier row in the upper half, later row in the lower
    for band in bands.T:
        order = np.argsort(band, kind="stable")  # stable: equal bands stay in file order
        for step in range(1, NEIGHBOURS + 1):
            same = band[order[step:]] == band[order[:-step]]
            found = rows[order[:-step][same]] << 32 | rows[order[step:][same]]
            pairs = np.concatenate([pairs, found])
        pairs = np.unique(pairs)
    pairs = pairs[:MAX_PAIRS]
    return np.stack([pairs >> 32, pairs & 0xFFFFFFFF], axis=1)


def _bands(questions: Questions) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """(positions [n], one hash for each band [n, BANDS])."""
    import numpy as np
    from rensa import RMinHash  # sketches only: its own index takes four times the memory of these bands

    weights = np.random.default_rng(0).integers(1, 2**63, BAND_ROWS, dtype=np.uint64) | np.uint64(1)
    rows: list[int] = []
    hashed: list[NDArray[np.uint64]] = []
    for chunk in chunks(questions(), _SKETCHED_AT_ONCE):
        rows += [row for row, _ in chunk]
        sketches = RMinHash.digests_from_token_sets([grams(text) for _, text in chunk], BANDS * BAND_ROWS, 0)
        values = np.array(sketches, dtype=np.uint64).reshape(len(chunk), BANDS, BAND_ROWS)
        hashed.append((values * weights).sum(axis=2, dtype=np.uint64))
    return np.array(rows, dtype=np.int64), np.concatenate(hashed)


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _blocks(pairs: NDArray[np.int64]) -> Iterator[list[tuple[int, int]]]:
    """Runs of pairs that touch at most ROWS_HELD rows each."""
    block: list[tuple[int, int]] = []
    held: set[int] = set()
    for first, second in pairs.tolist():
        if len(held) >= ROWS_HELD - 1:
            yield block
            block, held = [], set()
        block.append((first, second))
        held.update((first, second))
    if block:
        yield block


def _verified(pairs: list[tuple[int, int]], questions: Questions) -> Iterator[tuple[int, int]]:
    wanted = {row for pair in pairs for row in pair}
    texts = {row: text for row, text in questions() if row in wanted}
    current, own = -1, set[str]()
    for first, second in pairs:
        if first != current:
            current, own = first, grams(texts[first])
        if jaccard(own, grams(texts[second])) >= NEAR:
            yield first, second
