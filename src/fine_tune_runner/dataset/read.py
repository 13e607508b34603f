"""A client's JSONL files as checked examples, one line at a time, so that memory does not grow with the file.

Shape faults are `Finding`s of check "shape" that name file, line and remedy; what the rows mean is the
business of validate.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.fingerprint import Fingerprint
from fine_tune_runner.dataset.labels import labelled, labels_path, read_labels
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import ConfigError, DataError, TooFewExamples, UsageError
from fine_tune_runner.settings import Client, load_account_state
from fine_tune_runner.types import Dataset, EvalLabels, Example, Finding, Message

GATE_ROWS = 50  # below this a client is queued (spec.md, "The two tracks")
PRINTED_FAULTS = 20
MAX_LINE_BYTES = 16 * 2**20  # a longer line is no chat example, and would not fit the memory promised
_BOM_UTF8 = b"\xef\xbb\xbf"
_BOM_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ALLOWED = {".role": "system, user or assistant", ".weight": "0 or 1"}
_AT = re.compile(r"(.*?)(?: - at `(?:\$|key in \$)(.*)`)?", re.S)


class _Row(msgspec.Struct, frozen=True):
    messages: tuple[Message, ...]
    eval: EvalLabels | None = None


_DECODER = msgspec.json.Decoder(threadsafe(_Row))


def train_path(client_dir: Path, version: int) -> Path:
    """`v{N}.jsonl`; UsageError below version 1."""
    if version < 1:
        raise UsageError(f"version {version}: versions count from 1; name one such as --version 1")
    return client_dir / f"v{version}.jsonl"


def holdout_path(client_dir: Path, version: int) -> Path:
    """`v{N}_eval.jsonl`; UsageError below version 1."""
    return train_path(client_dir, version).with_name(f"v{version}_eval.jsonl")


def versions(client_dir: Path) -> tuple[int, ...]:
    """Which `v{N}.jsonl` exist, ascending."""
    names = (re.fullmatch(r"v([1-9][0-9]*)\.jsonl", path.name) for path in client_dir.glob("v*.jsonl"))
    return tuple(sorted(int(name[1]) for name in names if name))


def latest(client_dir: Path) -> int:
    """The highest version that has both files; DataError where none has."""
    whole = [number for number in versions(client_dir) if holdout_path(client_dir, number).is_file()]
    if not whole:
        raise DataError(f"{client_dir}: no version has both v{{N}}.jsonl and v{{N}}_eval.jsonl; publish them")
    return whole[-1]


def count_rows(path: Path) -> int:
    """Lines that are not blank, without reading what they say; 0 where there is no such file."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(not line.isspace() for line in file)


def load(client: Client, version: int) -> Dataset:
    """Read a version, its holdout and the account state, and fingerprint both files.

    Raises DataError with all shape faults at once, one a line (beyond 20: their number), TooFewExamples
    where a training file without faults has under 50 rows, UsageError below version 1.
    """
    train, holdout = train_path(client.dir, version), holdout_path(client.dir, version)
    faults: list[str] = []
    rows, sha256 = _digest(train, faults, Fingerprint())
    if not faults and rows < GATE_ROWS:
        raise TooFewExamples(f"awaiting {GATE_ROWS} examples (has {rows})")
    holdout_rows, holdout_sha256 = _digest(holdout, faults, Fingerprint(holdout=True))
    state = None
    try:
        state = load_account_state(client)
    except ConfigError as error:
        faults.append(str(error))
    if faults or state is None:
        raise DataError(_capped(faults))
    return Dataset(
        client_id=client.id,
        version=version,
        train_path=str(train),
        holdout_path=str(holdout),
        sha256=sha256,
        holdout_sha256=holdout_sha256,
        examples=rows,
        holdout_examples=holdout_rows,
        account_state_version=state.version,
        system_prompt=state.system_prompt,
    )


def _digest(path: Path, faults: list[str], fingerprint: Fingerprint) -> tuple[int, str]:
    rows = 0
    for item in scan(path):
        if isinstance(item, Finding):
            # Only counted beyond what is printed: a broken file of 200 MB must not fill the memory.
            faults.append(fault_line(item) if len(faults) < PRINTED_FAULTS else "")
        else:
            rows += 1
            fingerprint.add(item)
    return rows, fingerprint.hexdigest()


def _capped(faults: list[str]) -> str:
    rest = len(faults) - PRINTED_FAULTS
    more = [f"... and {rest} more; fine-tune check lists them all"] if rest > 0 else []
    return "\n".join(faults[:PRINTED_FAULTS] + more)


def fault_line(finding: Finding) -> str:
    """A finding as one line: where, what, and what to do."""
    where = finding.path if finding.line is None else f"{finding.path} line {finding.line}"
    return f"{where}: {finding.message}" + (f"; {finding.remedy}" if finding.remedy else "")


def examples(path: Path) -> Iterator[Example]:
    """The rows of a file in order; DataError at the first shape fault."""
    for item in scan(path):
        if isinstance(item, Finding):
            raise DataError(fault_line(item))
        yield item


def scan(path: Path) -> Iterator[Example | Finding]:
    """Every row as an Example or, where its shape is wrong, as Findings; raises for nothing in the file.

    Rows of a holdout come with the labels that were confirmed for them (labels.py).
    """
    labels = {}
    if path.stem.endswith("_eval"):
        try:
            labels = read_labels(labels_path(path))
        except DataError as error:
            message = str(error).removeprefix(f"{labels_path(path)} ")
            yield _fault(str(labels_path(path)), None, message, "")
    for item in _scan(path):
        yield item if isinstance(item, Finding) else labelled(item, labels)


def published_sha256(holdout: Path) -> str:
    """The hash of a holdout as upstream wrote it, without the labels that were confirmed here."""
    fingerprint = Fingerprint(holdout=True)
    for item in _scan(holdout):
        if isinstance(item, Example):
            fingerprint.add(item)
    return fingerprint.hexdigest()


def _scan(path: Path) -> Iterator[Example | Finding]:
    if not path.is_file():
        yield _missing(path)
        return
    empty = True
    try:
        for number, raw in _lines(path):
            empty = False
            yield from _decode(raw, str(path), number)
            if number == 1 and raw.startswith(_BOM_UTF16):
                return  # every further line would be broken too
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        yield _fault(str(path), None, message, "check its permissions and the disk")
        return
    if empty:
        yield _fault(str(path), None, "is empty", "publish the version again")


def _missing(path: Path) -> Finding:
    if path.exists():
        return _fault(str(path), None, "is no file", "put the JSONL file there")
    if path.stem.endswith("_eval"):
        return _fault(
            str(path), None, "is missing", "publish the holdout, about 10 questions in the same shape"
        )
    there = ", ".join(f"v{n}" for n in versions(path.parent)) or "none yet"
    return _fault(str(path), None, "is missing", f"publish it, or name a version that is there ({there})")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, its bytes without the line feed), never holding more than MAX_LINE_BYTES + 1."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            yield number, raw.removesuffix(b"\n")
            while not raw.endswith(b"\n") and (raw := file.readline(MAX_LINE_BYTES)):
                pass  # the rest of an overlong line


def _fault(path: str, line: int | None, message: str, remedy: str) -> Finding:
    return Finding(check="shape", level="fail", message=message, path=path, line=line, remedy=remedy)


def _decode(raw: bytes, path: str, line: int) -> Iterator[Example | Finding]:
    if raw.startswith(_BOM_UTF16) and line == 1:
        yield _fault(path, line, "is UTF-16", "save the file as UTF-8 without BOM")
        return
    if raw.startswith(_BOM_UTF8) and line == 1:
        yield _fault(path, line, "begins with a byte order mark", "save the file as UTF-8 without BOM")
        raw = raw.removeprefix(_BOM_UTF8)
    if len(raw) > MAX_LINE_BYTES:
        yield _fault(path, line, f"is longer than {MAX_LINE_BYTES >> 20} MB", "split or drop the line")
        return
    if not raw or raw.isspace():
        yield _fault(path, line, "is blank", "drop the line")
        return
    try:
        raw.decode()  # msgspec does not look into keys that it skips
        row = _DECODER.decode(raw)
    except UnicodeDecodeError as error:
        yield _fault(path, line, f"not valid UTF-8 (byte {error.start + 1})", "save the file as UTF-8")
    except (msgspec.DecodeError, RecursionError):
        for message in _type_faults(raw):
            yield _fault(path, line, message, "correct or drop the line")
    else:
        faults = list(_turn_faults(row.messages))
        yield from (_fault(path, line, message, remedy) for message, remedy in faults)
        if not faults:
            yield Example(line=line, messages=row.messages, eval=row.eval)


def _type_faults(raw: bytes) -> Iterator[str]:
    """Broken JSON, or every wrong type of a row by the key it stands at."""
    try:
        row = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        yield f"not valid JSON ({error})"
        return
    if not isinstance(row, dict):
        yield "is JSON, but not an object with messages"
        return
    messages = row.get("messages")
    if not isinstance(messages, list):
        yield "messages: is missing or not a list"
        messages = []
    parts = [(f"messages[{i}]", message, Message) for i, message in enumerate(messages)]
    for name, value, kind in (*parts, ("eval", row.get("eval"), EvalLabels | None)):
        try:
            msgspec.convert(value, threadsafe(kind))
        except msgspec.ValidationError as error:
            match = _AT.fullmatch(str(error))
            what, key = (match[1], match[2] or "") if match else (str(error), "")
            # The value itself stays out of the message: it may be anything, a key included.
            allowed = _ALLOWED.get(key) if what.startswith("Invalid") else None
            yield f"{name}{key}: " + (f"give {allowed}" if allowed else what)


def _turn_faults(messages: tuple[Message, ...]) -> Iterator[tuple[str, str]]:
    """(fault, remedy) for turns that are not system? (user assistant)+ with content in each."""
    if not messages:
        yield "messages is empty", "add the turns or drop the line"
        return
    start = 1 if messages[0].role == "system" else 0
    for i, message in enumerate(messages):
        due = "system" if i < start else ("user", "assistant")[(i - start) % 2]
        if message.role != due:
            yield f'messages[{i}] is from "{message.role}" where "{due}" is due', "correct or drop the line"
            break
    if messages[-1].role != "assistant":
        said = f'last message is from "{messages[-1].role}"'
        yield said, "add the assistant's answer or drop the line"
    for i, message in enumerate(messages):
        if not message.content.strip():
            yield f"messages[{i}].content ({message.role}) is empty", "add the text or drop the line"
        if message.weight is not None and message.role != "assistant":
            yield f"messages[{i}].weight: only assistant messages carry one", "drop the weight"
    if all(m.weight == 0 for m in messages if m.role == "assistant") and messages[-1].role == "assistant":
        yield "every assistant message has weight 0", "give one weight 1 or drop the line"
