"""Which clients' files change, as the file system tells it; knows no version and no run.

Events are hints: a watch looks at every folder now and then all the same. Links are not followed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from fine_tune_runner.settings import CLIENT_ID

READ = re.compile(r"v[1-9][0-9]*(_eval|_labels)?\.jsonl|config\.json|account_state\.json")
TICK_S = 0.5


class Told(Protocol):
    """A `threading.Event`: whether to stop."""

    def is_set(self) -> bool:
        """True from then on."""
        ...


def client_folders(data_dir: Path) -> list[Path]:
    """The client folders there are, by name; links and hidden folders are none. Empty where it is gone."""
    try:
        with os.scandir(data_dir) as found:
            names = [one.name for one in found if one.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [data_dir / name for name in sorted(names) if CLIENT_ID.fullmatch(name)]


def changes(
    data_dir: Path, stop: Told, notice: Callable[[str], None], tick_s: float = TICK_S
) -> Iterator[frozenset[str] | None]:
    """The clients whose files changed, empty on each tick; None: any may have, for watching began anew.

    One watcher over the data folder and the client folders, not what is below them: runs write thousands of
    files there. It begins anew with each new client folder.
    """
    from watchfiles import watch
    from watchfiles._rust_notify import WatchfilesRustInternalError

    data_dir = data_dir.resolve()
    while not stop.is_set():
        folders = client_folders(data_dir)
        began = False
        try:
            for found in watch(
                data_dir,
                *folders,
                watch_filter=lambda _change, path: _matters(data_dir, Path(path)),
                stop_event=stop,
                rust_timeout=int(tick_s * 1000),
                yield_on_timeout=True,
                recursive=False,
            ):
                paths = [Path(path) for _change, path in found]
                yield (
                    frozenset(path.parent.name for path in paths if path.parent != data_dir)
                    if began
                    else None
                )
                began = True
                if any(path.parent == data_dir for path in paths) and client_folders(data_dir) != folders:
                    break
        except FileNotFoundError:
            time.sleep(tick_s)  # a folder went in this very moment
            yield None
        except (OSError, WatchfilesRustInternalError) as error:
            notice(f"no file events ({error}); every folder is looked at once a minute instead")
            while not stop.is_set():
                time.sleep(tick_s)
                yield frozenset()


def _matters(data_dir: Path, path: Path) -> bool:
    if path.parent == data_dir:
        return CLIENT_ID.fullmatch(path.name) is not None
    return READ.fullmatch(path.name) is not None
