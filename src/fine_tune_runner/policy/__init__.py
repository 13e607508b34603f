"""Decisions that no flag overrides: which track, which addresses."""
