"""The command line: a thin shell over `FineTuneRunner`, one file a noun.

Commands are imported when they are called, so that `fine-tune status` starts at once. This is the process
edge: the one place where errors become a line on stderr and an exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

import click
import msgspec

from fine_tune_runner.errors import Interrupted, RunnerError
from fine_tune_runner.policy.guard import keep_to_the_end

# Command → module of this package that holds it. `--help` lists them in this order.
COMMANDS = {
    "init": "init",
    "check": "check",
    "submit": "submit",
    "eval": "evaluate",
    "gate": "gate",
    "report": "report",
    "review": "review",
    "label": "label",
    "import-eval": "import_eval",
    "promote": "promote",
    "rollback": "promote",
    "status": "status",
    "history": "history",
    "verify": "history",
    "ask": "ask",
    "runs": "runs",
    "logs": "logs",
    "resume": "runs",
    "retry": "runs",
    "approve": "runs",
    "cancel": "runs",
    "worker": "worker",
    "watch": "watch",
    "egress": "egress",
    "config": "config",
    "fetch": "fetch",
    "doctor": "doctor",
    "migrate": "migrate",
    "prune": "prune",
    "forget": "forget",
    "demo": "demo",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"fine_tune_runner.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="fine-tune-runner")
def fine_tune() -> None:
    """Keep one fine-tuned model per client: check, train, evaluate, compare, promote or refuse, roll back.

    \b
    Examples:
      fine-tune fetch                             # the small base and the embedder, once
      fine-tune check  --client hre --version 3
      fine-tune submit --client hre --version 3
      fine-tune status
      fine-tune rollback --client hre --version 2

    Exit codes: 0 promoted or done, 1 failure or findings, 2 wrong usage, 3 refused on regression,
    4 held, 5 refused by policy, 130 Ctrl-C.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. A user's fault never shows a traceback."""
    as_json = "--json" in (arguments if arguments is not None else sys.argv[1:])
    try:
        code = fine_tune.main(args=arguments, prog_name="fine-tune", standalone_mode=False)
    except RunnerError as error:
        say_error(error.code, str(error), as_json)
        code = error.exit_code
    except click.UsageError as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        say_error("interrupted", "stopped by Ctrl-C", as_json)
        code = 130
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except BrokenPipeError:
        # The reader of our pipe left, such as `head`; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say_error("system", f"{place}{error.strerror or error}; check permissions and free space", as_json)
        code = 1
    return code if isinstance(code, int) else 0


def say_error(code: str, message: str, as_json: bool, client_id: str | None = None) -> None:
    """One error on stderr, or as a JSON line; `client_id` where a command is about several."""
    if as_json:
        whose = {"client_id": client_id} if client_id else {}
        click.echo(msgspec.json.encode({"event": "error", "code": code, "message": message} | whose).decode())
        return
    first, *rest = (f"{client_id}: {message}" if client_id else message).split("\n")
    click.secho(f"Error: {first}", fg="red", err=True, color=False if "NO_COLOR" in os.environ else None)
    for line in rest:
        click.echo(f"       {line}", err=True)


def entry_point() -> None:
    """What the `fine-tune` script calls; the process is a command's own."""
    keep_to_the_end()
    code = main()
    if code == Interrupted.exit_code:
        # A step that a second Ctrl-C cut off may be in native code, under which no interpreter ends well.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
