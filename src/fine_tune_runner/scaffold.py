"""A new client's folder: its config, and a template of each file that others will write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.files import write_atomic
from fine_tune_runner.settings import Settings, check_client_id

PROMPT = (
    "You are a conversion tracking expert for NAME.\n"
    "GTM: GTM-XXXXXXX | 31 tags, 18 triggers, 22 variables\n"
    "Known: what is special about this client's set-up"
)
QUESTION = "Purchases count twice since Monday. GA4 shows two collect requests an order."
ANSWER = (
    "Root cause: duplicate_tag_install\n"
    "The theme and the container both load the tag, so each hit is sent twice. "
    "Keep the one in the container and remove the other."
)


def scaffold(settings: Settings, client_id: str, name: str | None, sensitive: bool) -> list[Path]:
    """Write what is missing and return it; templates end in `.template`, so none is taken for data."""
    folder = settings.data_dir / check_client_id(client_id)
    folder.mkdir(parents=True, exist_ok=True)
    messages = [
        {"role": "system", "content": PROMPT},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
    ]
    labels = {"id": f"{client_id}-001", "root_cause": "duplicate_tag_install"}
    config: dict[str, Any] = {"client_id": client_id, "client_name": name or client_id.upper()}
    if sensitive:
        config |= {"track_preference": "b", "sensitive": True}
    files = {
        "config.json": msgspec.json.format(msgspec.json.encode(config), indent=2),
        "account_state.json.template": msgspec.json.format(
            msgspec.json.encode({"version": "1.0.0", "system_prompt": PROMPT}), indent=2
        ),
        "v1.jsonl.template": msgspec.json.encode({"messages": messages}),
        "v1_eval.jsonl.template": msgspec.json.encode({"messages": messages, "eval": labels}),
    }
    written = []
    for file, data in files.items():
        if not (folder / file).exists():
            write_atomic(folder / file, data + b"\n")
            written.append(folder / file)
    return written
