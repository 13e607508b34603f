"""Runs named steps once each and remembers what they gave. Knows neither runner nor tracks."""
