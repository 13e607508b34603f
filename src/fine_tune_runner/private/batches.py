"""Tokenised rows become a trie, and the rows of an optimizer step become trees of it, each token once.

The shared-prefix layout of facts/training.md for any number of prefixes and turns. Knows tokens, not text or
models.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fine_tune_runner.errors import TrainingError

MIN_SHARED = (
    16  # tokens; an edge of the trie that is shorter is repeated in each row: its own call costs more
)
# Rows that share this much beyond the prompt come together within so many batches; others stay mixed.
MIN_GROUPED, GROUP_WINDOW = 64, 8
TREE_TOKENS = 16_384  # a step with more is cut into several trees, each with what its rows share
# On a CPU so many go through at once: more makes products no faster, and all that a token keeps for the way
# back is kept for as many.
CPU_TOKENS = 512
HEAD_ROWS = 384  # positions whose logits exist at once
TRUNK_BYTES = 2 << 30  # memory for the hidden states that leave the frozen layers, a client


@dataclass(frozen=True)
class Row:
    """One chat as tokens; `loss_mask[i]` says that token i is to be predicted."""

    tokens: Sequence[int]
    loss_mask: Sequence[bool]


@dataclass(frozen=True)
class Segment:
    """An edge of the trie: tokens that its rows share, at positions `start`.. of each of them.

    `path` are the segments before it, outermost first.
    """

    tokens: tuple[int, ...]
    start: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Chat:
    """A row with loss: its segments, and which of its positions predicts which token; `size` in tokens."""

    path: tuple[int, ...]
    predicts: tuple[int, ...]
    targets: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Corpus:
    """A client's training rows; segments in depth-first order, so that parents come before children."""

    segments: tuple[Segment, ...]
    chats: tuple[Chat, ...]

    @property
    def prefix(self) -> int:
        """Tokens with which every row begins."""
        first = self.segments[0]
        return len(first.tokens) if all(chat.path[0] == 0 for chat in self.chats) else 0


@dataclass(frozen=True)
class Span:
    """A segment at flat positions `start` to `end` of a tree; `path` are the spans that it continues."""

    segment: int
    start: int
    end: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Tree:
    """Rows that go through the model at once, flat, shared tokens once and no padding.

    `keep` are the flat positions that predict anything, ascending; `keep[source[j]]` predicts `targets[j]`,
    and one position predicts several where rows part behind it.
    """

    spans: tuple[Span, ...]
    keep: tuple[int, ...]
    source: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def size(self) -> int:
        """Flat tokens."""
        return self.spans[-1].end

    @property
    def reaches(self) -> list[tuple[int, tuple[int, ...]]]:
        """Length and path of each span, as `llama.tree_attention` takes them."""
        return [(span.end - span.start, span.path) for span in self.spans]


@dataclass(frozen=True)
class Part:
    """Spans of a tree that go through the model at once, as a tree, and the parts that continue its one span.

    A path counts the held spans that the part continues first, outermost first, then the part's own.
    """

    tree: Tree
    then: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step, by their index in `Corpus.chats`, as one tree or several.

    `tokens` counts data-set tokens: whole rows, what they share counted in each.
    """

    chats: tuple[int, ...]
    trees: tuple[Tree, ...]
    loss_tokens: int
    tokens: int


def lay_out(rows: Iterable[Row]) -> Corpus:
    """Build the trie of all rows up to their last target; rows without loss drop out, as they move no weight.

    Raises TrainingError where no row has loss.
    """
    targets = [(row, [i for i, target in enumerate(row.loss_mask) if target and i]) for row in rows]
    used = [(row, at) for row, at in targets if at]  # the first token has nothing before it: never a target
    if not used:
        raise TrainingError("no row has an assistant token with loss; set weight 1 on an assistant message")
    segments, paths = _trie([tuple(row.tokens[: at[-1]]) for row, at in used])
    chats = (
        Chat(
            path=path,
            predicts=tuple(i - 1 for i in at),
            targets=tuple(row.tokens[i] for i in at),
            size=len(row.tokens),
        )
        for (row, at), path in zip(used, paths, strict=True)
    )
    return Corpus(segments=tuple(segments), chats=tuple(chats))


def _trie(rows: list[tuple[int, ...]]) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """Segments in depth-first order, and the path of each row. A stack in place of recursion: rows nest."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    segments: list[Segment] = []
    paths: list[tuple[int, ...]] = [()] * len(rows)
    waiting: list[tuple[list[int], int, tuple[int, ...]]] = [(order, 0, ())]
    while waiting:
        group, start, path = waiting.pop()
        low, high = rows[group[0]], rows[group[-1]]  # in lexical order all others share what these two share
        end = _parting(low, high, start)
        last = end == len(high)  # nothing but repetitions of one row
        if end > start and (last or end - start >= MIN_SHARED):
            segments.append(Segment(tokens=low[start:end], start=start, path=path))
            start, path = end, (*path, len(segments) - 1)
        if last:
            for row in group:
                paths[row] = path
            continue
        parts = [list(part) for _, part in groupby(group, key=lambda row: rows[row][end : end + 1])]
        waiting += [(part, start, path) for part in reversed(parts)]
    return segments, paths


def _parting(low: tuple[int, ...], high: tuple[int, ...], start: int) -> int:
    """The first position from `start` on at which two rows differ or one of them ends."""
    pairs = zip(low[start:], high[start:], strict=False)
    shorter = min(len(low), len(high))
    return next((i for i, (a, b) in enumerate(pairs, start) if a != b), shorter)


def epoch_batches(corpus: Corpus, *, batch_size: int, seed: int, epoch: int) -> list[Batch]:
    """All rows once, in an order that depends on (seed, epoch) alone: shuffled, near relatives together."""
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(corpus.chats)))
    draw.shuffle(order)
    window = batch_size * GROUP_WINDOW
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = [chat for part in parts for chat in sorted(part, key=lambda chat: _family(corpus, chat))]
    cuts = range(0, len(order), batch_size)
    batches = [make_batch(corpus, order[start : start + batch_size]) for start in cuts]
    draw.shuffle(batches)
    return batches


def _family(corpus: Corpus, chat: int) -> tuple[int, ...]:
    """The long segments that a row may share, its own last one excepted."""
    return tuple(s for s in corpus.chats[chat].path[:-1] if len(corpus.segments[s].tokens) >= MIN_GROUPED)


def make_batch(corpus: Corpus, chats: Sequence[int], tree_tokens: int = TREE_TOKENS) -> Batch:
    """The batch of these rows; trees of at most `tree_tokens`, a longer row excepted."""
    return Batch(
        chats=tuple(chats),
        trees=tuple(make_tree(corpus, part) for part in _pack(corpus, chats, tree_tokens)),
        loss_tokens=sum(len(corpus.chats[i].targets) for i in chats),
        tokens=sum(corpus.chats[i].size for i in chats),
    )


def _pack(corpus: Corpus, chats: Sequence[int], tree_tokens: int) -> list[list[int]]:
    """Neighbours of the trie fill a tree until it is full, so that what they share is paid seldom."""
    parts: list[list[int]] = []
    held: set[int] = set()
    room = 0
    for chat in sorted(chats, key=lambda chat: corpus.chats[chat].path):
        path = corpus.chats[chat].path
        new = sum(len(corpus.segments[s].tokens) for s in path if s not in held)
        if not parts or new > room:
            parts.append([])
            held, room = set(), tree_tokens
            new = sum(len(corpus.segments[s].tokens) for s in path)
        parts[-1].append(chat)
        held.update(path)
        room -= new
    return parts


def make_tree(corpus: Corpus, chats: Sequence[int]) -> Tree:
    """The part of the trie that these rows need, flat."""
    place: dict[int, int] = {}
    spans: list[Span] = []
    at = 0
    for segment in sorted({s for chat in chats for s in corpus.chats[chat].path}):
        edge = corpus.segments[segment]
        place[segment] = len(spans)
        path = tuple(place[s] for s in edge.path)
        spans.append(Span(segment=segment, start=at, end=at + len(edge.tokens), path=path))
        at += len(edge.tokens)
    flat = [position for chat in chats for position in _flat(corpus, corpus.chats[chat], place, spans)]
    keep = sorted(set(flat))
    index = {position: i for i, position in enumerate(keep)}
    return Tree(
        spans=tuple(spans),
        keep=tuple(keep),
        source=tuple(index[position] for position in flat),
        targets=tuple(target for chat in chats for target in corpus.chats[chat].targets),
    )


def _flat(corpus: Corpus, chat: Chat, place: dict[int, int], spans: list[Span]) -> Iterable[int]:
    """Where in the tree the predicting positions of a row lie."""
    moves = [(corpus.segments[s], spans[place[s]]) for s in chat.path]
    for position in chat.predicts:
        edge, span = next(move for move in reversed(moves) if position >= move[0].start)
        yield span.start + position - edge.start


def cut(tree: Tree, tokens: int) -> tuple[Part, ...]:
    """The tree in parts of at most so many tokens, a longer span excepted; every span is in one of them.

    What continues a span goes with it where that fits, else into parts of its own after it.
    """
    ends = list(range(1, len(tree.spans) + 1))  # behind the last span that continues each
    for place, span in enumerate(tree.spans):
        for above in span.path:
            ends[above] = place + 1

    def parts(first: int, end: int, held: tuple[int, ...]) -> tuple[Part, ...]:
        found: list[Part] = []
        waiting: list[int] = []
        room = tokens
        while first < end:
            size = tree.spans[ends[first] - 1].end - tree.spans[first].start
            if waiting and size > room:
                found.append(Part(_extract(tree, waiting, held)))
                waiting, room = [], tokens
            if size > tokens and ends[first] > first + 1:
                after = parts(first + 1, ends[first], (*held, first))
                found.append(Part(_extract(tree, [first], held), after))
            else:
                waiting += range(first, ends[first])
                room -= size
            first = ends[first]
        return (*found, Part(_extract(tree, waiting, held))) if waiting else tuple(found)

    return parts(0, len(tree.spans), ())


def _extract(tree: Tree, places: Sequence[int], held: tuple[int, ...]) -> Tree:
    """These spans as a tree of their own behind `held` ones, with what they predict."""
    number = {place: i for i, place in enumerate((*held, *places))}
    spans: list[Span] = []
    moved: dict[int, int] = {}  # kept flat positions: there, and here
    at = 0
    for place in places:
        span = tree.spans[place]
        kept = tree.keep[bisect_left(tree.keep, span.start) : bisect_left(tree.keep, span.end)]
        moved |= {position: position - span.start + at for position in kept}
        end = at + span.end - span.start
        spans.append(Span(span.segment, at, end, tuple(number[above] for above in span.path)))
        at = end
    index = {position: i for i, position in enumerate(moved)}
    predicted = [
        (index[position], target)
        for position, target in zip((tree.keep[i] for i in tree.source), tree.targets, strict=True)
        if position in index
    ]
    return Tree(
        spans=tuple(spans),
        keep=tuple(moved.values()),
        source=tuple(source for source, _ in predicted),
        targets=tuple(target for _, target in predicted),
    )
