"""The rules of spec.md, "Choosing the track", each with a case where it decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from fine_tune_runner.errors import PolicyError
from fine_tune_runner.policy.track import choose_track
from fine_tune_runner.settings import Client, ClientConfig
from fine_tune_runner.types import Purpose, Track


def client(preference: str | None = None, sensitive: bool | None = None) -> Client:
    config = ClientConfig(client_id="hre", track_preference=preference, sensitive=sensitive)  # type: ignore[arg-type]
    return Client(id="hre", dir=Path("hre"), config=config)


@pytest.mark.parametrize(
    ("preference", "sensitive", "named", "purpose", "examples", "track", "reason"),
    [
        (None, True, None, None, 10, "B", "sensitive"),
        ("b", None, None, "iteration", 10, "B", 'sensitive ("track_preference": "b")'),
        ("a", True, None, None, 10, "B", "sensitive"),
        ("b", False, "A", None, 10, "A", "named by the command"),
        ("a", None, "B", None, 10, "B", "named by the command"),
        ("a", None, None, "production", 900, "A", "track_preference"),
        ("b", False, None, "iteration", 10, "B", "track_preference"),
        (None, None, None, "iteration", 900, "A", "--purpose iteration"),
        (None, None, None, "production", 10, "B", "--purpose production"),
        (None, None, None, None, 500, "B", "500 examples"),
        (None, None, None, None, 199, "A", "fewer than 200"),
        (None, None, None, None, 200, "A", "200 to 499"),
        (None, None, None, None, 499, "A", "200 to 499"),
    ],
)
def test_the_first_rule_that_applies_decides(
    preference: str | None,
    sensitive: bool | None,
    named: Track | None,
    purpose: Purpose | None,
    examples: int,
    track: Track,
    reason: str,
) -> None:
    choice = choose_track(client(preference, sensitive), named, purpose, examples)
    assert choice.track == track
    assert reason in choice.reason


@pytest.mark.parametrize(("preference", "sensitive"), [(None, True), ("a", True), ("b", None), ("b", True)])
def test_a_sensitive_client_is_never_sent_to_track_a(preference: str | None, sensitive: bool | None) -> None:
    with pytest.raises(PolicyError, match="nothing was sent") as caught:
        choose_track(client(preference, sensitive), "A", None, 10)
    assert caught.value.exit_code == 5
