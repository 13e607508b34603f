"""Made-up clients for the demo, the tests and `make learn`: seeded, and labelled as sample data everywhere.

Knows the formats of a client's files and nothing of training, serving or evaluation.
"""

from fine_tune_runner.sample.generate import questions, write_clients, write_questions, write_worse_version

__all__ = ["questions", "write_clients", "write_questions", "write_worse_version"]
