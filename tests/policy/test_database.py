"""Where the database of FINE_TUNE_DATABASE_URL may be, for a client whose data stay inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from fine_tune_runner.errors import DatabaseAway, PolicyError
from fine_tune_runner.policy.egress import EgressPolicy, check_database, database_hosts, policy_of
from fine_tune_runner.settings import Client, ClientConfig, Settings, load_settings
from tests.test_runner import Desk

INSIDE = (
    "localhost/db",
    "anna:secret@127.0.0.1:5433/db",
    "[fd00::1]:5432/db",
    "10.1.2.3,192.168.0.7:5433/db",
    "/db",
    "/db?host=/var/run/postgresql",
    "anna@%2Fvar%2Frun%2Fpostgresql/db",
    "db.inside/db",
)
OUTSIDE = (
    "192.0.2.1/db",
    "anna:secret@192.0.2.1:5433/db",
    "[2001:db8::1]:5432/db",
    "10.1.2.3,192.0.2.1/db",
    "/db?host=192.0.2.1",
    "/db?host=10.1.2.3:5432&host=192.0.2.1:5432",
    "db.inside/db?hostaddr=192.0.2.1",
    "db.outside/db",
    "db.both/db",
)
ADDRESSES = {
    "db.inside": ["10.1.2.3"],
    "db.outside": ["192.0.2.1"],
    "db.both": ["10.1.2.3", "2001:db8::1"],
}


def lookup(host: str, _port: int) -> Sequence[str]:
    if host not in ADDRESSES:
        raise OSError(-2, "Name or service not known")
    return ADDRESSES[host]


def settings(address: str) -> Settings:
    return load_settings({"FINE_TUNE_DATABASE_URL": f"postgresql://{address}"}, Path("/nowhere"))


def policy(found: Settings, tmp_path: Path, *, sensitive: bool = True) -> EgressPolicy:
    (tmp_path / "hosts").write_text("")
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.0.1\n")
    client = Client(id="c", dir=tmp_path, config=ClientConfig(client_id="c", sensitive=sensitive))
    return msgspec.structs.replace(
        policy_of(found, client),
        hosts_file=str(tmp_path / "hosts"),
        resolv_conf=str(tmp_path / "resolv.conf"),
    )


@pytest.mark.parametrize("address", INSIDE)
def test_a_database_inside_is_used_for_a_sensitive_client(tmp_path: Path, address: str) -> None:
    found = settings(address)
    check_database(found, policy(found, tmp_path), lookup)
    assert found.database is not None


@pytest.mark.parametrize("address", OUTSIDE)
def test_one_that_may_be_outside_is_refused(tmp_path: Path, address: str) -> None:
    found = settings(address)
    with pytest.raises(PolicyError, match=r"^FINE_TUNE_DATABASE_URL: .*192\.0\.2\.1|2001:db8::1") as refused:
        check_database(found, policy(found, tmp_path), lookup)
    assert "secret" not in str(refused.value)


def test_other_clients_may_be_known_anywhere(tmp_path: Path) -> None:
    found = settings("192.0.2.1/db")
    check_database(found, policy(found, tmp_path, sensitive=False), lookup)
    assert database_hosts(found) == ("192.0.2.1",)


def test_a_name_that_has_no_address_now_is_a_database_that_is_away(tmp_path: Path) -> None:
    found = settings("db.gone/db")
    with pytest.raises(DatabaseAway, match=r"db\.gone: Name or service not known"):
        check_database(found, policy(found, tmp_path), lookup)


def test_the_host_of_the_environment_counts_where_the_address_names_none() -> None:
    assert database_hosts(settings("/db"), {"PGHOST": "192.0.2.1"}) == ("192.0.2.1",)
    assert database_hosts(settings("localhost/db"), {"PGHOST": "192.0.2.1"}) == ("localhost",)


def test_a_sensitive_run_is_refused_before_its_first_step(tmp_path: Path) -> None:
    desk = Desk(tmp_path, sensitive=True)
    desk.settings = msgspec.structs.replace(desk.settings, database_url=settings("192.0.2.1/db").database_url)
    with pytest.raises(PolicyError, match="FINE_TUNE_DATABASE_URL"):
        desk.runner().submit("small", 1)
    assert not list(desk.client.glob("runs/*/steps/*"))
