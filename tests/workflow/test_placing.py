"""Where training is placed: on the host with the fewest waiting, which is asked of the database only then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from fine_tune_runner.workflow.database import APP_VERSION, Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path, None)
    made.prepare()
    yield made
    made.close()


def wait(database: Database, queue: str, number: int) -> None:
    """Put that many workflows on a queue."""
    for one in range(number):
        name = f"{queue}-{one}"
        words = {"workflow_name": "leg", "queue_name": queue, "workflow_id": name, "app_version": APP_VERSION}
        database.client.enqueue(words)  # type: ignore[arg-type]


def test_training_goes_to_the_host_with_the_fewest_waiting(database: Database) -> None:
    wait(database, "train@a", 2)
    wait(database, "train@b", 1)
    wait(database, "registry", 1)
    assert database.shortest(["train@a", "train@b"]) == "train@b"
    assert database.shortest(["train@a", "train@b", "train@c"]) == "train@c"


def test_the_only_host_that_trains_is_chosen_without_a_look_at_what_waits(database: Database) -> None:
    asked: list[str] = []

    def hear(_c: object, _cursor: object, statement: str, *_more: object) -> None:
        asked.append(statement)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", hear)
    try:
        chosen = database.shortest(["train@a:private"])
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", hear)
    assert (chosen, asked) == ("train@a:private", [])
