"""Captures read by HDF5's own command-line tool, which knows nothing of Python."""

import re
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from sinkstudy.capture.recording import record
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec
from sinkstudy.prompts import Prompt

pytestmark = pytest.mark.skipif(shutil.which("h5dump") is None, reason="no h5dump (Debian: apt-get install hdf5-tools)")


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("captures") / "00000.h5"
    prompts = [Prompt("hello", "short", "Hello world"), Prompt("day", "short", "Good day to you")]
    record(path, "reference", load_model(ModelSpec("models/reference", device="cpu")), prompts, maps_max_tokens=128)
    return path


def h5dump(*arguments: str | Path) -> str:
    done = subprocess.run(["h5dump", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("dataset", ["attention", "sink_mass", "key_mass", "token_ids"])
def test_h5dump_prints_the_values_that_h5py_reads(capture, dataset):
    with h5py.File(capture) as file:
        expected = file["hello"][dataset][()].astype(float)
    text = h5dump("-y", "-w", "0", "-m", "%.9g", "-d", f"/hello/{dataset}", capture)
    data = text[text.index("DATA {") + 6 : text.index("}", text.index("DATA {"))]
    found = np.array([float(number) for number in re.findall(r"[-+.\deE]+", data)])
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-8)


def test_h5dump_names_the_axes_of_the_maps_and_the_provenance(capture):
    header = h5dump("-A", "-d", "/hello/attention", capture)
    assert '"layer", "head", "query", "key"' in header
    attributes = h5dump("-A", capture)
    for name in ("schema", "model", "revision", "dtype", "bos", "device", "torch", "complete"):
        assert f'ATTRIBUTE "{name}"' in attributes
    assert re.search(r'ATTRIBUTE "complete".*?DATA \{\s*\(0\): TRUE', attributes, re.S)


def test_h5dump_reads_every_dataset_without_an_error(capture):
    listed = subprocess.run(["h5dump", "-n", capture], capture_output=True, text=True, check=True).stdout
    datasets = re.findall(r"dataset +(/\S+)", listed)
    assert {"/hello/attention", "/day/sink_mass"} <= set(datasets)
    for name in datasets:
        h5dump("-d", name, capture)
