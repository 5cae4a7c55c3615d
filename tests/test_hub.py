"""Models from the Hub: fetched once, at one commit, by whoever has the network and the token; read offline after."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub import LocalHub, served
from study import ROOT, SMALL, planned, snakemake, write_study

from sinkstudy.models.sources import file_patterns
from sinkstudy.models.spec import ModelSpec, pinned, stated_revision
from sinkstudy.store import open_capture

NAME, OLD, NEW = "lab/small-sinks", "0" * 39 + "1", "0" * 39 + "2"
TOKEN = "hf_" + "q7zKv" * 6
ONE_SHARD = SMALL | {"capture": {"tokens_per_job": 1000}}
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody answers


@pytest.fixture
def commits(tmp_path) -> dict[str, Path]:
    """Two commits of the reference model that differ in a file."""
    folders = {commit: shutil.copytree(ROOT / "models/reference", tmp_path / commit) for commit in (OLD, NEW)}
    config = (folders[NEW] / "config.json").read_text()
    (folders[NEW] / "config.json").write_text(config.replace("{", '{"note": "newer",', 1))
    return folders


def python(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` in a process of its own: the Hub's client reads its environment when it is imported."""
    everything = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0"} | environment
    return subprocess.run([sys.executable, "-c", code], env=everything, capture_output=True, text=True, check=False)


FETCH = """import json
from sinkstudy.models.sources import fetch
print(json.dumps(fetch({name!r}, {revision!r}, {patterns})))
"""
SAFE = {"gguf": None, "random_weights": None, "trust_remote_code": False, "allow_pickle": False}
WEIGHTS, NO_WEIGHTS = file_patterns(SAFE), file_patterns(SAFE | {"random_weights": 0})


def fetch(home: Path, address: str, revision: str | None = None, patterns: list[str] = WEIGHTS) -> dict:
    code = FETCH.format(name=NAME, revision=revision, patterns=patterns)
    done = python(code, home, HF_ENDPOINT=address, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-1500:]
    return yaml.safe_load(done.stdout)


def resolve(home: Path, revision: str, patterns: list[str] = WEIGHTS) -> subprocess.CompletedProcess:
    call = f"resolve_source({NAME!r}, {revision!r}, {patterns})"
    code = f"from sinkstudy.models.sources import resolve_source; print({call})"
    return python(code, home, HF_ENDPOINT=NOWHERE)


def test_a_branch_is_fetched_at_the_commit_it_points_to_and_read_offline_at_it_when_it_has_moved(tmp_path, commits):
    with served(LocalHub(NAME, commits, main=OLD, token=TOKEN)) as hub:
        record = fetch(tmp_path / "home", hub.address)
        hub.main = NEW
        assert fetch(tmp_path / "home", hub.address)["commit"] == NEW
    assert record["commit"] == OLD
    assert record["files"]["model.safetensors"] == (commits[OLD] / "model.safetensors").stat().st_size
    for commit in (OLD, NEW):
        folder = Path(resolve(tmp_path / "home", commit).stdout.strip())
        assert (folder / "config.json").read_bytes() == (commits[commit] / "config.json").read_bytes()


def test_a_model_of_random_weights_is_fetched_without_weights_and_is_no_stand_in_for_one_with_them(tmp_path, commits):
    with served(LocalHub(NAME, commits, main=OLD)) as hub:
        record = fetch(tmp_path / "home", hub.address, revision=OLD, patterns=NO_WEIGHTS)
        assert not any("safetensors" in path for path in hub.asked)
    assert set(record["files"]) == {p.name for p in commits[OLD].glob("*.json")}
    assert resolve(tmp_path / "home", OLD, NO_WEIGHTS).returncode == 0
    assert "not all of it, in the cache" in resolve(tmp_path / "home", OLD).stderr


def test_code_and_pickles_are_fetched_only_where_the_configuration_allows_them(tmp_path, commits):
    for name in ("modeling_own.py", "pytorch_model.bin"):
        (commits[OLD] / name).write_text("something")
    with served(LocalHub(NAME, commits, main=OLD)) as hub:
        assert not {"modeling_own.py", "pytorch_model.bin"} & fetch(tmp_path / "a", hub.address)["files"].keys()
        assert not any(path.endswith((".py", ".bin")) for path in hub.asked)
        trusted = file_patterns(SAFE | {"trust_remote_code": True, "allow_pickle": True})
        record = fetch(tmp_path / "b", hub.address, patterns=trusted)
    assert {"modeling_own.py", "pytorch_model.bin", "model.safetensors"} <= record["files"].keys()


def test_jobs_use_the_recorded_commit_and_leave_local_models_alone(tmp_path):
    record = tmp_path / "hub.json"
    record.write_text(f'{{"source": "{NAME}", "commit": "{OLD}", "files": {{}}}}')
    settings = {"source": NAME, "revision": "main", "bos": "auto"}
    assert pinned(settings, [str(record)], tmp_path) == ModelSpec(**settings | {"revision": OLD})
    (tmp_path / "local").mkdir()
    settings = {"source": str(tmp_path / "local"), "revision": None}
    assert pinned(settings, [str(tmp_path / "local/config.json")], tmp_path) == ModelSpec(**settings)


def test_a_commit_states_the_weights_of_a_hub_model_and_not_of_a_local_one(tmp_path):
    settings = {"source": NAME, "revision": OLD, "random_weights": None, "sha256": None}
    assert stated_revision(settings, tmp_path) == OLD
    assert stated_revision(settings | {"revision": "main"}, tmp_path) is None
    (tmp_path / "local").mkdir()
    assert stated_revision(settings | {"source": str(tmp_path / "local")}, tmp_path) is None


def texts_with(secret: str, *folders: Path) -> list[Path]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_gated_model_goes_through_the_workflow_offline_and_leaves_no_token_behind(tmp_path, commits):
    home = tmp_path / "home"
    models = {"hub": {"source": NAME, "revision": "main"}, "control": {"source": NAME, "random_weights": 0}}
    study = write_study(tmp_path / "study", ONE_SHARD | {"models": models})
    environment = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    records = ["results/models/hub.json", "results/models/control.json"]
    with served(LocalHub(NAME, commits, main=OLD, token=TOKEN)) as hub:
        environment["HF_ENDPOINT"] = hub.address
        refused = snakemake(study, *records, environment=environment | {"HF_TOKEN": "hf_no"})
        assert refused.returncode != 0
        assert "set HF_TOKEN if the model is gated" in refused.stderr
        fetched = snakemake(study, *records, "--verbose", environment=environment)
        assert fetched.returncode == 0, fetched.stderr[-2000:]
        hub.main = NEW
        asked = len(hub.asked)
        tables = ["results/verification/hub.csv", "results/scores/control.csv"]
        # The token, too, is gone: whatever a job asked the Hub for would be refused, and is counted.
        offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "HF_ENDPOINT": hub.address}
        done = snakemake(study, *tables, environment=offline)
        assert done.returncode == 0, done.stderr[-2000:]
        assert hub.asked[asked:] == []
    with open_capture(study / "results/captures/hub/00000.h5") as capture:
        assert (capture.attributes["source"], capture.attributes["revision"]) == (NAME, OLD)
    assert planned(study, *tables) == {}
    assert texts_with(TOKEN, study) == []
    assert TOKEN not in fetched.stdout + fetched.stderr
    assert texts_with(OLD, study / "results/models")  # the search finds what is there
