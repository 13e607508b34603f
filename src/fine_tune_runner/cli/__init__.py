"""The command line: a thin shell over `FineTuneRunner`, one file a noun."""
