"""Holdout, answers, scores, and the gate that compares two versions. Loads no model itself."""
