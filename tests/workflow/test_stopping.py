"""How a process that does runs ends: nothing is taken off a queue any more, and nothing is lost by it."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

from tests.workflow.engine_world import Steps, a_run, engine, ran, wait_until


def test_what_is_being_taken_off_a_queue_while_the_engine_stops_is_left_whole(tmp_path: Path) -> None:
    notices: list[str] = []
    durable = engine(tmp_path, Steps(tmp_path), notices=notices)
    runs = [a_run(f"client{number}") for number in range(60)]
    with durable.database() as database:
        for run in runs:
            durable.record.begin(run)
            database.enqueue_run(run.client_id, run.run_id, None, 10)
        # They are taken all at once and begun one by one, which lasts for longer than the first step of one.
        with durable.engine(database):
            wait_until(lambda: ran(tmp_path) != [])
        gc.collect()  # what was made and never awaited is an error here
        assert [text for text in notices if text.startswith("engine:")] == []
        assert [one.name for one in threading.enumerate() if one.name.startswith("queue-worker")] == []
        assert {one.status for one in database.live()} <= {"ENQUEUED", "PENDING"}
        assert {run.run_id for run in runs} >= {one.run_id for one in database.live()} != set()
