"""Secrets and personal data are found by form, and shown by four characters at most."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fine_tune_runner.dataset.secrets import find, mask

X = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"  # filler that belongs to nobody

SECRETS = {
    "meta_token": "EAA" + "B" + X,
    "openai_key": "sk" + "-proj-" + X,
    "stripe_key": "sk" + "_live_" + X,
    "google_key": "AI" + "za" + X[:35],
    "google_oauth": "ya29" + "." + X,
    "aws_key": "AK" + "IA" + "ABCDEFGH12345678",
    "github_token": "gh" + "p_" + X,
    "slack_token": "xox" + "b-" + "1234567890-abcdef",
    "private_key": "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIE" + X + "\n-----END RSA PRIVATE KEY-----",
    "jwt": "ey" + "J" + X + ".ey" + "J" + X + "." + X,
    "bearer": "Bear" + "er " + X,
    "url_credentials": "https://user:" + "hunter2" + "@shop.test/x",
}
PERSONAL = {
    "email": "jane.doe+shop@acme-mail.co.uk",
    "phone": "+49 (0)170 1234567",
    "ipv4": "203.0.113.77",
    "iban": "DE89 3704 0044 0532 0130 00",
    "click_id": "gclid=Cj0KCQ-abc123DEF456",
}
MORE = [
    ("url_credentials", "https://graph.test/v1?x=1&access_token=" + X),
    ("url_credentials", "https://mp.test/collect?api_secret=" + X + "&measurement_id=G-1"),
    ("openai_key", "sk" + "-" + X),
    ("openai_key", "sk" + "-" + "abcdefgh" * 4),
    ("bearer", "Authorization: bear" + "er " + "abcdefgh" * 4),
    ("click_id", '"gclid": "' + X),
    ("private_key", "-----BEGIN " + "PRIVATE KEY-----"),
    ("phone", "(0170) 1234567"),
    ("phone", "0800 123 4567"),
    ("iban", "GB29NWBK60161331926819"),
    ("click_id", "fb.1.1700000000000.AbCdEf123"),
    ("click_id", "EAIaIQobChMI" + X),
]


@pytest.mark.parametrize(("kind", "text"), [*SECRETS.items(), *PERSONAL.items(), *MORE])
def test_each_kind_is_found_and_masked(kind: str, text: str) -> None:
    hits = [hit for hit in find(f"before {text} after") if hit.kind == kind]
    assert [hit.sort for hit in hits] == ["personal" if kind in PERSONAL else "secret"]
    assert len(hits[0].masked) <= 5
    shown = mask(f"before {text} after")
    assert text[4:] not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert f"…[{kind}]" in shown


@pytest.mark.parametrize(
    "harmless",
    [
        "GTM-ABC1234 | ws_4 | 31 tags, 18 triggers, 22 variables",
        "Google Ads: 123-456-7890 and 5,123.50 EUR on 2026-11-22 at 10:15:00",
        "Stape: cnt_abc123, CAPI match ~68%, pixel 123456789012345",
        "https://shop.test/checkout?utm_source=x&token_type=bearer",
        "risk-assessment-of-the-checkout2 and task-sk-short",
        "GA4 version 1.2.3 and items[].price * quantity",
        "send the bearer authentication header",
        "DE00370400440532013000",
        "gclid is lost, fbclid= is empty",
        "user@localhost",
    ],
)
def test_harmless_text_is_left_alone(harmless: str) -> None:
    assert list(find(harmless)) == []
    assert mask(harmless) == harmless


@settings(deadline=None)
@given(st.sampled_from(sorted({**SECRETS, **PERSONAL}.values())), st.text(max_size=20), st.text(max_size=20))
def test_a_masked_text_never_holds_what_was_found_in_it(secret: str, before: str, after: str) -> None:
    text = f"{before} {secret} {after}"
    shown = mask(text)
    for hit in find(text):
        found = text[hit.start : hit.end]
        assert found not in shown
        assert len(hit.masked) <= 5
        assert found[5:] not in shown


def test_overlapping_hits_leave_nothing_between_them() -> None:
    token = "EAA" + "B" + X
    shown = mask("https://graph.test/?access_token=" + token)
    assert X not in shown
