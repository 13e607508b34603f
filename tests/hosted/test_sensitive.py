"""A client that became sensitive after it was hosted: it can be cleaned up after, and only ids are sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from fine_tune_runner import doctor, status
from fine_tune_runner.cli import fine_tune
from fine_tune_runner.erasure import forget
from fine_tune_runner.errors import PolicyError
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.types import Decoding, Message
from tests.contract.openai_server.server import KEY, ContractServer
from tests.hosted.test_checkup import House, put_into_service
from tests.hosted.world import make_settings, write_client


class Turned(House):
    """The client `hre`, hosted once, and sensitive from `turn` on."""

    def runner(self) -> FineTuneRunner:
        return FineTuneRunner(make_settings(self.data_dir, self.server.url, KEY), who="anna")

    def turn(self) -> None:
        config = {"client_id": "hre", "sensitive": True}
        (self.data_dir / "hre" / "config.json").write_bytes(msgspec.json.encode(config))
        self.server.seen.clear()

    def sent_text(self) -> list[str]:
        """Requests that could have carried more than ids."""
        return [s for s in self.server.seen if s.startswith("POST") and not s.endswith("/cancel")]


@pytest.fixture
def house(tmp_path: Path, server: ContractServer) -> Turned:
    write_client(tmp_path)
    return Turned(tmp_path, server)


def chat(hosted: Hosted) -> None:
    with hosted.connect("ids") as wire:
        wire.chat("m", (Message(role="user", content="a secret"),), Decoding())


def upload(hosted: Hosted) -> None:
    with hosted.connect("ids") as wire:
        wire.upload("v3.jsonl", Path(__file__))


def create(hosted: Hosted) -> None:
    with hosted.connect("ids") as wire:
        wire.create_job({"model": "m", "training_file": "file-1"})


@pytest.mark.parametrize("call", [chat, upload, create])
def test_a_connection_for_ids_lets_nothing_else_through(
    house: Turned, call: Callable[[Hosted], None]
) -> None:
    with pytest.raises(PolicyError, match="this connection carries ids only"):
        call(house.run().track)
    assert house.server.seen == []


def test_no_other_connection_is_opened_for_a_sensitive_client(house: Turned) -> None:
    house.turn()
    hosted = house.run().track
    for errand in ("train", "answer"):
        with pytest.raises(PolicyError, match="sensitive"):
            hosted.connect(errand)  # type: ignore[arg-type]


def test_its_job_can_be_cancelled(house: Turned) -> None:
    run_id = house.cut_off().run().run_id
    house.turn()
    said = house.runner().cancel(run_id)
    assert "no longer runs" in said
    assert "--track b --again" in said
    assert [job.public["status"] for job in house.server.account.jobs.values()] == ["cancelled"]
    assert (house.server.training_files, house.sent_text()) == ([], [])


def test_it_can_be_forgotten(house: Turned) -> None:
    model = house.run().start()
    house.turn()
    assert forget(house.runner(), "hre").elsewhere == (model.model_id,)
    assert house.sent_text() == []
    assert model.model_id not in [listed["id"] for listed in house.server.account.models()]


def test_doctor_offers_what_it_left_and_deletes_it(house: Turned) -> None:
    model = house.run().start()
    lost = house.server.account.add_file("hre-v3-a-1a2b3c4d-9.jsonl", "fine-tune", b"{}")
    house.turn()
    strays = {stray.found.kind: stray for stray in house.look().strays}
    assert (strays["file"].found.id, strays["model"].found.id) == (lost.id, model.model_id)
    for stray in strays.values():
        doctor.delete(house.runner(), stray)
    assert house.server.account.files == {}
    assert model.model_id not in [listed["id"] for listed in house.server.account.models()]
    (entry,) = house.runner().registry("hre").entries()
    assert (entry.version, entry.model_id) == (3, None)
    assert (house.look().strays, house.look().warnings, house.sent_text()) == ([], [], [])


def test_a_job_of_it_is_watched_by_nobody_and_can_only_be_deleted(house: Turned) -> None:
    run = house.cut_off()
    house.turn()
    (stray,) = house.look().strays
    assert (stray.found.kind, stray.found.adopt) == ("job", None)
    assert any(f"fine-tune cancel {run.run().run_id}" in text for text in house.look().warnings)
    doctor.delete(house.runner(), stray)
    assert [job.public["status"] for job in house.server.account.jobs.values()] == ["cancelled"]


def test_doctor_and_status_warn_while_its_hosted_version_is_in_service(house: Turned) -> None:
    run = house.run()
    run.start()
    put_into_service(run)
    house.turn()
    checkup = house.look()
    assert [one.exposed for one in checkup.serving] == [True]
    assert checkup.strays == []  # what answers is not deleted
    (text,) = checkup.warnings
    assert (
        "v3 (track A) is in service at a hosted provider; move it: fine-tune migrate --client hre --to b"
        in text
    )
    house.server.seen.clear()
    (row,) = status.rows(house.runner(), None, lambda text: None)
    assert (row.active, row.warning) == (True, text)
    assert house.server.seen == []


def test_the_commands_say_it_and_doctor_exits_1(house: Turned) -> None:
    run = house.run()
    run.start()
    put_into_service(run)
    house.turn()
    env = {"CLIENT_DATA_DIR": str(house.data_dir), "OPENAI_BASE_URL": "", "OPENAI_API_KEY": ""}
    for command, code in (("doctor", 1), ("status", 0)):
        done = CliRunner().invoke(fine_tune, [command], env=env, standalone_mode=False)
        assert (done.return_value, "is sensitive, but v3 (track A)" in done.stderr) == (code, True), (
            done.output
        )
