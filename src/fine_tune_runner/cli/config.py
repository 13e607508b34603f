"""`fine-tune config`: every value, and where it comes from."""

from __future__ import annotations

import click
import msgspec

from fine_tune_runner.cli.common import client_option, echo_json, json_option, settings, table
from fine_tune_runner.settings import FIELDS, load_client


@click.command("config")
@client_option
@json_option
def config_command(client_id: str, as_json: bool) -> int:
    """Show every value that a run of this client would use, and which source won.

    \b
    Examples:
      fine-tune config --client hre
    """
    machine = settings()
    client = load_client(machine, client_id)
    file = client.dir / "config.json"
    given = msgspec.json.decode(file.read_bytes())
    rows = [
        (variable, str(getattr(machine, field)), machine.sources[field]) for field, variable, _, _ in FIELDS
    ]
    for field in msgspec.structs.fields(type(client.config)):
        value = getattr(client.config, field.name)
        if isinstance(value, msgspec.Struct):
            inner = given.get(field.name, {})
            rows += [
                (f"{field.name}.{k}", str(v), str(file) if k in inner else "default")
                for k, v in msgspec.structs.asdict(value).items()
            ]
        else:
            rows.append((field.name, str(value), str(file) if field.name in given else "default"))
    sensitive = "from config.json" if client.config.sensitive is not None else "derived from track_preference"
    rows.append(("sensitive (in force)", str(client.config.is_sensitive), sensitive))
    ignored = sorted(set(given) - {f.name for f in msgspec.structs.fields(type(client.config))})
    if as_json:
        echo_json(
            {
                "client_id": client_id,
                "values": [dict(zip(("name", "value", "source"), r, strict=True)) for r in rows],
                "ignored": ignored,
            }
        )
        return 0
    table(("name", "value", "source"), rows)
    if ignored:
        table(("kept for other phases",), [(name,) for name in ignored])
    return 0
