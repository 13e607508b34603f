"""`python -m fine_tune_runner` is the command `fine-tune`."""

from fine_tune_runner.cli import entry_point

entry_point()
