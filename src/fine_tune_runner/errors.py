"""Every error a user can meet, with its stable code and exit code.

    RunnerError                  1   somebody's work stopped; the message says what, where and what to do
    ├─ UsageError                2   the command's words are wrong
    ├─ ConfigError               1   a setting, a config.json or an account_state.json is wrong
    ├─ DataError                 1   a training file or holdout is wrong; nothing was sent or trained
    ├─ TooFewExamples            1   queued: waiting for more rows
    ├─ MissingModel              1   weights, tokenizer or embedder are not on this machine
    ├─ TrainingError             1   the trainer stopped; its checkpoint stays
    ├─ ServingError              1   a model could not be loaded or asked
    ├─ ParityError               1   what a server answers with is not the model that was trained
    ├─ ProviderError             1   a hosted provider or an Ollama host answered badly
    ├─ RegistryError             1   the registry cannot be read or changed as asked
    ├─ RunError                  1   a run is alive elsewhere, unknown, or cannot go on
    │  └─ DatabaseAway           1   PostgreSQL does not answer; a worker's runs go on when it does
    ├─ Refused                   3   the new version is worse than the one in service
    ├─ Held                      4   the versions cannot be compared
    ├─ PolicyError               5   egress, cost limit, closed provider, model at its end
    ├─ NeedsApproval             5   a run that costs money waits for a yes; nothing was sent
    └─ Interrupted             130   Ctrl-C; what was done is kept

The command line catches `RunnerError` once, at the process edge, and prints its message. Library users
catch the class. Anything else that surfaces is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class RunnerError(Exception):
    """Root of the tree; `code` is stable and machine-readable, `exit_code` is what the command returns."""

    code = "error"
    exit_code = 1


class UsageError(RunnerError):
    """The command line or a call's arguments are wrong; nothing was touched."""

    code = "usage"
    exit_code = 2


class ConfigError(RunnerError):
    """A wrong value in the environment, .env, config.json or account_state.json."""

    code = "config"


class DataError(RunnerError):
    """Faults in a data set, all of them at once, one a line."""

    code = "data"


class TooFewExamples(RunnerError):
    """Fewer rows than the gate asks for; the client shows as queued."""

    code = "too_few_examples"


class MissingModel(RunnerError):
    """Weights that this machine does not have; the message names the command that fetches them."""

    code = "missing_model"


class TrainingError(RunnerError):
    """The training process failed or cannot start; the message carries its last words."""

    code = "training"


class ServingError(RunnerError):
    """A model cannot be loaded or does not answer."""

    code = "serving"


class ParityError(RunnerError):
    """A served model differs from the trained one: the message names check, numbers and remedy."""

    code = "parity"


class ProviderError(RunnerError):
    """A hosted provider or an Ollama host refused or answered against its own protocol."""

    code = "provider"


class RegistryError(RunnerError):
    """The registry cannot be read, or the change asked for would break one of its rules."""

    code = "registry"


class RunError(RunnerError):
    """A run is alive in another process, is not known, or cannot go on."""

    code = "run"


class DatabaseAway(RunError):
    """What runs are recorded in cannot be reached now; a worker waits for it, a command says so."""

    code = "database"


class Refused(RunnerError):
    """The gate found a regression; the version in service stays."""

    code = "refused"
    exit_code = 3


class Held(RunnerError):
    """The versions cannot be compared, so nothing is promoted."""

    code = "held"
    exit_code = 4


class PolicyError(RunnerError):
    """Refused by policy: egress, cost limit, closed provider, a model at its end."""

    code = "policy"
    exit_code = 5


class NeedsApproval(RunnerError):
    """A run that costs money waits for somebody's yes; nothing was sent."""

    code = "needs_approval"
    exit_code = 5


class Interrupted(RunnerError):
    """Ctrl-C; the run can go on from where it was."""

    code = "interrupted"
    exit_code = 130
