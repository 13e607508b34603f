"""Which track a run takes, by the first rule that applies (spec.md, "Choosing the track")."""

from __future__ import annotations

from fine_tune_runner.errors import PolicyError
from fine_tune_runner.settings import Client
from fine_tune_runner.types import Purpose, Track, TrackChoice

MANY_EXAMPLES = 500
FEW_EXAMPLES = 200


def choose_track(client: Client, named: Track | None, purpose: Purpose | None, examples: int) -> TrackChoice:
    """Choose a track and say why.

    Raises PolicyError where Track A is named for a sensitive client; no flag overrides that.
    """
    config = client.config
    if config.is_sensitive:
        cause = '"sensitive": true' if config.sensitive else '"track_preference": "b"'
        if named == "A":
            raise PolicyError(
                f"{client.id} is sensitive ({cause} in config.json): its data may not leave the network, so "
                'Track A is refused and nothing was sent; use --track b, or set "sensitive": false there'
            )
        return TrackChoice(track="B", reason=f"the client is sensitive ({cause})")
    rules: tuple[tuple[bool, Track | None, str], ...] = (
        (named is not None, named, "named by the command"),
        (config.preferred_track is not None, config.preferred_track, "track_preference of the client"),
        (purpose == "iteration", "A", "--purpose iteration"),
        (purpose == "production", "B", "--purpose production"),
        (examples >= MANY_EXAMPLES, "B", f"{examples} examples, {MANY_EXAMPLES} or more"),
        (examples < FEW_EXAMPLES, "A", f"{examples} examples, fewer than {FEW_EXAMPLES}"),
    )
    for applies, track, reason in rules:
        if applies and track is not None:
            return TrackChoice(track=track, reason=reason)
    return TrackChoice(track="A", reason=f"{examples} examples, {FEW_EXAMPLES} to {MANY_EXAMPLES - 1}")
