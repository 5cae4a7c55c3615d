"""Capture files: what is written comes back, what is not whole or not expected is refused by name."""

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from made_up_captures import capture_of

from sinkstudy.errors import DamagedFileError
from sinkstudy.measures.captured import Capture
from sinkstudy.prompts import Prompt, digest
from sinkstudy.store import open_capture, read_captures, write_capture
from sinkstudy.workflow.expected import Expected

CLASSES = ("first", "second", "self")
ATTRIBUTES = {"model": "tiny", "source": "models/tiny", "revision": "sha256:0", "dtype": "float32", "bos": "auto"}
LAYERS = (1, 3)
HEADS = 2
PROMPT = Prompt("p", "s", "x")
HELPERS = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}  # Programs of their own find the helpers by it.
HALF_STEP = 2.0**-12  # of float16 below 1: half the distance of neighbours


def maps_of(rng: np.random.Generator, n: int, full_rows: bool = True) -> np.ndarray:
    """Causal attention (layer, head, query, key) of no model."""
    attention = np.tril(rng.random((len(LAYERS), HEADS, n, n)) + 0.01)
    attention /= attention.sum(-1, keepdims=True)
    return attention if full_rows else 0.5 * attention


def arrays_of(attention: np.ndarray, full_rows: bool = True) -> dict[str, np.ndarray | None]:
    second = attention[..., 1] if attention.shape[-1] > 1 else np.zeros(attention.shape[:-1])
    return dict(
        key_mass=np.stack([attention[..., 0], second, np.diagonal(attention, axis1=2, axis2=3)], -1),
        output_norm=attention.mean((2, 3)),
        row_sum=None if full_rows else attention.sum(-1),
        activation=attention.mean((1, 2, 3)),
        activation_channel=np.tile([7, 3], (len(attention), 1)),
        channel_value=attention[:, 0, -1:, :1].repeat(2, -1)[:, 0],
        value_drain=np.full(attention.shape[:2], np.nan),  # as where an architecture does not show it
        position_mass=np.where(np.arange(attention.shape[-1]) + 1 < attention.shape[-1], attention.mean(2), np.nan),
    )


MEASURED = ("output_norm", "activation", "activation_channel", "channel_value", "value_drain", "position_mass")


def small(prompt: Prompt, n: int, value: float = 0.5, **rest: object) -> Capture:
    """One layer, the same mass everywhere."""
    return capture_of(prompt, np.full((1, HEADS, n, len(CLASSES)), value), **rest)


def prompts_of(lengths: dict[str, int]) -> list[Prompt]:
    return [Prompt(name, "short", f"{n} tokens") for name, n in lengths.items()]


def write(
    path: Path, lengths: dict[str, int], maps: bool = True, full_rows: bool = True, **attributes: str
) -> dict[str, np.ndarray]:
    """Write prompts of so many tokens, and give back their attention (layer, head, query, key)."""
    rng = np.random.default_rng(0)
    written = {name: maps_of(rng, n, full_rows) for name, n in lengths.items()}
    with write_capture(path, ATTRIBUTES | attributes, CLASSES, prompts_of(lengths)) as writer:
        for prompt in prompts_of(lengths):
            attention = written[prompt.id]
            for layer in attention if maps else ():
                writer.add_map(prompt.id, layer)
            words = [f"t{i}" for i in range(attention.shape[-1])]
            about = {"token_ids": np.arange(len(words)) + 100, "tokens": words, "row_sum_error": 1e-7}
            writer.add(capture_of(prompt, **arrays_of(attention, full_rows), layers=LAYERS, **about))
    return written


def provenance_of(path: Path) -> dict[str, str]:
    with open_capture(path) as file:
        return file.attributes


def everything(path: Path) -> list:
    """What every reader gives, of every prompt."""
    with open_capture(path) as file:
        read: list = [file.attributes, file.layers.tolist()]
        for prompt, of_text in file.prompts.items():
            arrays = vars(file.capture(prompt)).values()
            read.append([of_text, *(a.tobytes() if isinstance(a, np.ndarray) else a for a in arrays)])
            shapes = file.shapes(prompt)
            layers = range(shapes["attention"][0] if "attention" in shapes else 0)
            read.append([shapes, *(file.maps(prompt, row).tobytes() for row in layers)])
    return read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captures" / "00000.h5"


@pytest.mark.parametrize("full_rows", [True, False])
def test_readers_give_back_what_was_written(path, full_rows):
    written = write(path, {"one": 1, "hello": 6}, full_rows=full_rows)
    captures = {capture.prompt: capture for capture in read_captures([path])}
    assert list(captures) == ["one", "hello"]
    with open_capture(path) as file:
        for name, attention in written.items():
            capture, arrays = captures[name], arrays_of(attention, full_rows)
            assert capture.set == "short"
            assert capture.token_ids.tolist() == list(range(100, 100 + capture.n_tokens))
            assert capture.layers.tolist() == file.layers.tolist() == list(LAYERS)
            np.testing.assert_array_equal(capture.key_mass, arrays["key_mass"].astype(np.float32))
            np.testing.assert_array_equal(capture.sink_mass, attention[..., 0].astype(np.float32))
            for measured in MEASURED:
                expected = arrays[measured].astype(np.float32)
                np.testing.assert_array_equal(getattr(capture, measured), expected, measured)
            if full_rows:
                assert capture.row_sum is None
            else:
                np.testing.assert_array_equal(capture.row_sum, arrays["row_sum"].astype(np.float32))
            assert capture.tokens == [f"t{i}" for i in range(capture.n_tokens)]
            for row, layer in enumerate(attention):
                np.testing.assert_allclose(file.maps(name, row), layer, rtol=0, atol=HALF_STEP)


def test_the_same_capture_is_the_same_bytes(path, tmp_path):
    write(path, {"p": 4, "q": 3})
    time.sleep(1.1)  # HDF5 would note the second at which an object was made
    write(tmp_path / "again.h5", {"p": 4, "q": 3})
    assert path.read_bytes() == (tmp_path / "again.h5").read_bytes()


@pytest.mark.parametrize(("starts", "first"), [([5, 5], 5), ([5, 6], -1)])
def test_provenance_comes_back_as_text_with_the_token_that_all_prompts_begin_with(path, starts, first):
    prompts = [Prompt(name, "s", "x") for name in "pq"]
    with write_capture(path, ATTRIBUTES, CLASSES, prompts) as writer:
        for prompt, start in zip(prompts, starts, strict=True):
            writer.add(small(prompt, 1, token_ids=np.array([start])))
    provenance = provenance_of(path)
    assert provenance.items() >= ATTRIBUTES.items()
    assert (provenance["complete"], provenance["first_token_id"]) == ("True", str(first))


def test_prompts_come_back_in_the_order_written_and_files_in_the_order_given(tmp_path):
    first, second = tmp_path / "b.h5", tmp_path / "a.h5"
    write(first, {"z": 2, "a": 2, "m": 2})
    write(second, {f"k{i}": 1 for i in range(20)} | {"b": 2})
    read = [capture.prompt for capture in read_captures([first, second])]
    assert read == ["z", "a", "m", *(f"k{i}" for i in range(20)), "b"]


@pytest.mark.parametrize("name", ["key_classes", "layers", "attention", "0", "a.b", "a-b_c", "all."])
def test_any_prompt_id_makes_a_group_of_its_own(path, name):
    write(path, {name: 2, "other": 2})
    assert [capture.prompt for capture in read_captures([path])] == [name, "other"]


@pytest.mark.parametrize("token", ["", "é", "🙂", "\n", "\t", "\ufffd", "\u05e9\u05dc\u05d5\u05dd", "\u200f"])
def test_tokens_of_any_script_come_back(path, token):
    with write_capture(path, ATTRIBUTES, CLASSES, [PROMPT]) as writer:
        writer.add(small(PROMPT, 2, tokens=[token, "end"]))
    (capture,) = read_captures([path])
    assert capture.tokens == [token, "end"]


def test_layers_of_several_prompts_may_come_in_turn_and_prompts_be_added_in_any_order(path):
    rng = np.random.default_rng(1)
    attention = {"a": maps_of(rng, 3), "b": maps_of(rng, 5)}
    prompts = [Prompt(name, f"set of {name}", "x") for name in attention]
    with write_capture(path, ATTRIBUTES, CLASSES, prompts) as writer:
        for row in range(len(LAYERS)):
            for name, maps in attention.items():
                writer.add_map(name, maps[row])
        for prompt in reversed(prompts):
            writer.add(capture_of(prompt, **arrays_of(attention[prompt.id]), layers=LAYERS))
    captures = list(read_captures([path]))
    assert [(capture.prompt, capture.set) for capture in captures] == [("a", "set of a"), ("b", "set of b")]
    with open_capture(path) as file:
        for capture in captures:
            maps = attention[capture.prompt]
            np.testing.assert_array_equal(capture.key_mass, arrays_of(maps)["key_mass"].astype(np.float32))
            for row, layer in enumerate(maps):
                np.testing.assert_allclose(file.maps(capture.prompt, row), layer, rtol=0, atol=HALF_STEP)


@pytest.mark.parametrize(("heads", "n"), [(3, 520), (2, 190)], ids=["a chunk within a layer", "layers share chunks"])
def test_maps_and_masses_of_more_than_one_chunk_come_back(path, heads, n):
    layers = 8
    steps = np.arange(layers * heads * n * n).reshape(layers, heads, n, n) % 1024 / 1024  # float16 holds these
    key_mass = np.linspace(0, 1, layers * heads * n * 120).reshape(layers, heads, n, 120)
    with write_capture(path, ATTRIBUTES, tuple(map(str, range(120))), [PROMPT]) as writer:
        for layer in steps:
            writer.add_map("p", layer)
        writer.add(capture_of(PROMPT, key_mass))
    (capture,) = read_captures([path])
    np.testing.assert_array_equal(capture.key_mass, key_mass.astype(np.float32))
    with open_capture(path) as file:
        for row, layer in enumerate(steps):
            np.testing.assert_array_equal(file.maps("p", row), layer)
    with h5py.File(path) as file:
        for name in ("attention", "key_mass"):
            dataset = file["p"][name]
            assert dataset.size > np.prod(dataset.chunks), name
            assert np.prod(dataset.chunks) * dataset.dtype.itemsize <= 1 << 20, name


def test_datasets_have_the_documented_types_axes_filters_and_no_text_of_variable_length(path):
    write(path, {"p": 4}, full_rows=False)
    axes = {
        "token_ids": ("int32", ["query"]),
        "tokens": ("S2", ["query"]),
        "sink_mass": ("float32", ["layer", "head", "query"]),
        "row_sum": ("float32", ["layer", "head", "query"]),
        "key_mass": ("float32", ["layer", "head", "query", "key_class"]),
        "output_norm": ("float32", ["layer", "head"]),
        "activation": ("float32", ["layer"]),
        "activation_channel": ("int32", ["layer", "channel"]),
        "channel_value": ("float32", ["layer", "channel"]),
        "value_drain": ("float32", ["layer", "head"]),
        "position_mass": ("float32", ["layer", "head", "key"]),
        "attention": ("float16", ["layer", "head", "query", "key"]),
    }
    with h5py.File(path) as file:
        group = file["p"]
        assert group.keys() == set(axes)
        for name, (kind, labels) in axes.items():
            assert group[name].dtype == kind, name
            assert [axis.label for axis in group[name].dims] == labels, name
            assert group[name].fletcher32, name
        assert (group["attention"].compression, group["attention"].shuffle) == ("gzip", True)
        assert group["attention"].shape == (len(LAYERS), HEADS, 4, 4)
        assert file.attrs["layers"].tolist() == list(LAYERS)
        assert [name.decode() for name in file.attrs["key_classes"]] == list(CLASSES)
        assert group.attrs["row_sum_error"] == 1e-7
        for item in (file, group):
            for name in item.attrs:
                kind = item.attrs.get_id(name).get_type()
                assert not (isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()), name
        assert group["tokens"].id.get_type().get_cset() == h5py.h5t.CSET_UTF8


# Writing


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind_and_an_earlier_file_as_it_was(path, error):
    def interrupted() -> None:
        with write_capture(path, ATTRIBUTES, CLASSES, [PROMPT]) as writer:
            writer.add(small(PROMPT, 2))
            raise error("stop")

    with pytest.raises(error, match="stop"):
        interrupted()
    assert list(path.parent.iterdir()) == []
    write(path, {"earlier": 2})
    before = path.read_bytes()
    with pytest.raises(error, match="stop"):
        interrupted()
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "capture",
    [None, small(PROMPT, 2, token_ids=np.arange(3)), small(PROMPT, 2, np.nan), small(PROMPT, 2, np.inf)],
    ids=["unfinished", "misfit", "not a number", "infinite"],
)
def test_a_capture_that_could_not_be_read_gets_no_name(path, capture):
    with pytest.raises(DamagedFileError), write_capture(path, ATTRIBUTES, CLASSES, [PROMPT]) as writer:  # noqa: PT012
        if capture is not None:
            writer.add(capture)
    assert list(path.parent.iterdir()) == []


def test_prompts_of_other_layers_are_an_error(path):
    def written() -> None:
        prompts = [PROMPT, Prompt("q", "s", "x")]
        with write_capture(path, ATTRIBUTES, CLASSES, prompts) as writer:
            for prompt, layer in zip(prompts, (1, 7), strict=True):
                writer.add(small(prompt, 2, layers=(layer,)))

    with pytest.raises(RuntimeError, match="'q' has layers"):
        written()


@pytest.mark.parametrize("bytes_left", [0, 100, 3000, 50_000])
def test_a_full_disk_is_an_error_with_the_name_of_the_file_and_no_crash_of_hdf5(tmp_path, bytes_left):
    """A limit on the size of files stands in for the disk. If HDF5 knew of it, the process would end without a word."""
    program = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from made_up_captures import capture_of
        from sinkstudy.prompts import Prompt
        from sinkstudy.store import write_capture

        prompts = [Prompt(f"p{i}", "s", "x") for i in range(20)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
        try:
            with write_capture(Path(sys.argv[1]), {"model": "m"}, ("first",), prompts) as writer:
                for prompt in prompts:
                    writer.add(capture_of(prompt, np.ones((1, 2, 400, 1))))
        except OSError as error:
            print(error.filename, error.strerror)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "c.h5"), str(bytes_left)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=HELPERS)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{tmp_path / 'c.h5'} File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_large_capture_is_written_in_bounded_memory(tmp_path):
    program = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from made_up_captures import capture_of
        from sinkstudy.prompts import Prompt
        from sinkstudy.store import write_capture

        prompts, mass = [Prompt(f"p{i}", "s", "x") for i in range(50)], np.ones((2, 8, 4000, 15), np.float32)
        peaks = []
        with write_capture(Path(sys.argv[1]), {"model": "m"}, tuple("abcdefghijklmno"), prompts) as writer:
            for prompt in prompts:
                writer.add(capture_of(prompt, mass))
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(peaks[-1] - peaks[4])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "c.h5")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, env=HELPERS).stdout)
    assert (tmp_path / "c.h5").stat().st_size > 190e6
    assert grown < 20_000, "kB"


# Damage


def text_file(path: Path) -> None:
    path.write_text("not HDF5", encoding="utf-8")


def foreign_file(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.ones(3)


def changed(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write(path, {"p": 3, "q": 2})
        with h5py.File(path, "a") as file:
            change(file)

    return make


def set_item(item: str, name: str, value: object) -> Callable[[Path], None]:
    return changed(lambda file: file[item].attrs.__setitem__(name, value))


def removed(name: str) -> Callable[[Path], None]:
    return changed(lambda file: file.__delitem__(name))


def other_masses(file: h5py.File) -> None:
    file["p/sink_mass"][...] = 0.25


def nan_inside(file: h5py.File) -> None:
    file["p/key_mass"][0, 0, 0, 1] = np.nan


def more_than_all(file: h5py.File) -> None:
    file["p/key_mass"][0, 0, 0, 1] = 5


def no_tokens(file: h5py.File) -> None:
    for name, axis in {"token_ids": 0, "tokens": 0, "sink_mass": 2, "key_mass": 2}.items():
        values = file["p"][name][()].take([], axis)
        del file["p"][name]
        file["p"][name] = values


def one_token_more(file: h5py.File) -> None:
    del file["p/token_ids"]
    file["p/token_ids"] = np.zeros(4, np.int32)


def one_key_less(file: h5py.File) -> None:
    shorter = file["p/position_mass"][..., 1:]
    del file["p/position_mass"]
    file["p/position_mass"] = shorter


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.touch(), "delete it and run again"),
        (lambda path: path.mkdir(), "no regular file"),
        (os.mkfifo, "no regular file"),
        (text_file, "delete it and run again"),
        (foreign_file, "complete capture"),
        (set_item("/", "complete", False), "complete capture"),
        (set_item("/", "schema", 6), "complete capture of schema 7"),
        (set_item("/", "layers", [1]), "axes"),
        (set_item("/", "layers", [0] * len(LAYERS)), "axes"),
        (removed("q"), "1 of 2 prompts"),
        (removed("p/sink_mass"), "sink_mass"),
        (removed("p/output_norm"), "output_norm"),
        (changed(one_token_more), "axes"),
        (changed(one_key_less), "axes"),
        (changed(no_tokens), "axes"),
        (changed(nan_inside), "between 0 and 1"),
        (changed(more_than_all), "between 0 and 1"),
        (changed(other_masses), "contradict"),
    ],
)
def test_a_file_that_is_no_complete_and_consistent_capture_is_refused_by_name(path, refuses, make, said):
    path.parent.mkdir()
    make(path)
    with refuses(str(path), said):
        list(read_captures([path]))


@pytest.mark.parametrize(
    ("name", "change"),
    [("tokens", lambda a: a[1:]), ("attention", lambda a: a[..., 1:]), ("attention", lambda a: a * np.nan)],
)
def test_tokens_and_maps_that_are_not_those_of_the_prompt_are_refused(path, refuses, name, change):
    def cut(file: h5py.File) -> None:
        values = change(file["p"][name][()])
        del file["p"][name]
        file["p"][name] = values

    path.parent.mkdir()
    changed(cut)(path)
    with open_capture(path) as file, refuses(str(path), "'p'"):
        file.capture("p") if name == "tokens" else file.maps("p", 0)


def test_the_sentence_holds_the_command_that_mends_it(tmp_path, refuses):
    path = tmp_path / "a b" / "00000.h5"
    path.parent.mkdir()
    text_file(path)
    with refuses(f"rm '{path}' && snakemake --cores 4"):
        provenance_of(path)
    assert path.exists()


def test_a_capture_that_h5py_edited_and_that_is_whole_is_accepted(path):
    write(path, {"p": 3, "q": 2})
    before = everything(path)
    with h5py.File(path, "a") as file:
        file.attrs["device"] = "another"  # text of variable length, as h5py writes it
        file["p"].attrs["set"] = "long"
        file.attrs["note"] = "looked at twice"
    assert provenance_of(path)["device"] == "another"
    assert [capture.set for capture in read_captures([path])] == ["long", "short"]
    assert everything(path)[2:][1:] == before[2:][1:]


def test_a_capture_that_another_program_wrote_is_accepted(path, tmp_path):
    written = write(path, {"p": 3}, maps=False)
    other = tmp_path / "other.h5"
    with h5py.File(path) as file, h5py.File(other, "w") as copy:  # contiguous, no filters, old format
        for name, value in file.attrs.items():
            copy.attrs[name] = value.decode() if isinstance(value, bytes) else value
        group = copy.create_group("p")
        group.attrs.update({"set": "short", "digest": digest([])})
        for name in file["p"]:
            group[name] = file["p"][name][()]
    (capture,) = read_captures([other])
    np.testing.assert_array_equal(capture.sink_mass, written["p"][..., 0].astype(np.float32))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 1.0])
def test_a_truncated_file_is_refused_by_name(path, refuses, share):
    write(path, {"p": 5, "q": 3})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content)) - 1])
    with refuses(str(path), "delete it and run again"):
        everything(path)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """A reader that hangs inside HDF5 ends the test run, which no exception could."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def places(path: Path) -> dict[str, list[int]]:
    """Offsets of bytes by what HDF5 keeps there; `anywhere` in the file."""
    content = path.read_bytes()
    kinds = {
        "object header": b"OHDR|OCHK",
        "heap": b"FRHP|FHDB|FHIB",
        "tree": b"BTHD|BTLF",
        "index": b"FAHD|FADB|EAHD|EAIB",
    }
    found = {"superblock": list(range(48)), "anywhere": list(range(len(content)))}
    for kind, marks in kinds.items():
        found[kind] = [at for hit in re.finditer(marks, content) for at in range(hit.start(), hit.start() + 60)]
    with h5py.File(path) as file:
        datasets = [file[name][one] for name in file for one in file[name]]
        chunks = [one.id.get_chunk_info(i) for one in datasets for i in range(one.id.get_num_chunks())]
    found["chunks"] = [at for one in chunks for at in range(one.byte_offset, one.byte_offset + one.size)]
    return found


def test_two_hundred_flipped_bits_are_each_found_and_named_or_change_nothing_that_is_read(path):
    long_source = "models/" + "x" * 200
    write(path, {f"p{i}": 2 + 3 * i for i in range(12)}, full_rows=False, source=long_source)
    whole, before, draw = path.read_bytes(), everything(path), random.Random(0)
    found = dict.fromkeys(places(path), 0)
    for kind, offsets in places(path).items():
        for _ in range(40):
            content, at = bytearray(whole), draw.choice(offsets)
            content[at] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            try:
                with time_limit(60):
                    assert everything(path) == before, at
            except DamagedFileError as error:
                found[kind] += str(path) in str(error)
    # Rests of blocks that are not full, and the labels of the axes, belong to nothing that is read.
    assert found.pop("anywhere") > 20
    assert set(found) == {"superblock", "object header", "heap", "tree", "index", "chunks"}
    assert min(found.values()) >= 10, found


# Errors that are not of the file


@pytest.mark.parametrize("error", [KeyError("lost"), RuntimeError("broken"), OSError("no number"), ValueError("odd")])
def test_what_the_block_of_the_caller_raises_passes_through_and_the_file_stays(path, error):
    write(path, {"p": 3, "q": 2})
    before = path.read_bytes()
    with pytest.raises(type(error)) as caught, open_capture(path) as file:  # noqa: PT012
        file.capture("p")
        raise error
    assert caught.value is error
    captures = read_captures([path])
    next(captures)
    with pytest.raises(type(error)) as caught:
        captures.throw(error)
    assert caught.value is error
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


def test_an_unknown_prompt_is_refused_by_name(path, refuses):
    write(path, {"p": 3})
    with open_capture(path) as file, refuses("no_such_prompt"):
        file.capture("no_such_prompt")


# What a reader expects


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Expected]:
    """Two shards of a model, one of another model, and what a reader of the first model is to find."""
    parts = [{"p": 3, "q": 2}, {"r": 3}]
    for i, part in enumerate(parts):
        write(tmp_path / f"ours/0000{i}.h5", part)
        write(tmp_path / f"theirs/0000{i}.h5", part, model="other", revision="sha256:1")
    shards = {f"0000{i}": digest(prompts_of(part)) for i, part in enumerate(parts)}
    return tmp_path, Expected({"model": "tiny", "revision": "sha256:0", "dtype": "float32"}, shards)


def shard_files(folder: Path) -> list[Path]:
    return sorted((folder / "ours").glob("*.h5"))


def test_what_is_expected_is_read(study):
    folder, expected = study
    assert [capture.prompt for capture in read_captures(expected.checked(shard_files(folder)))] == ["p", "q", "r"]


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("theirs/00001.h5", "ours/00001.h5", "its model is 'other', where the study has 'tiny'"),
        ("ours/00000.h5", "ours/00001.h5", "shard 00001"),
        ("ours/00001.h5", "ours/00000.h5", "shard 00000"),
    ],
    ids=["of another model", "first over second", "second over first"],
)
def test_a_file_in_the_place_of_another_is_refused_by_the_name_of_the_wrong_one(study, refuses, source, target, said):
    folder, expected = study
    (folder / target).write_bytes((folder / source).read_bytes())
    with refuses(str(folder / target), said):
        expected.checked(shard_files(folder))


@pytest.mark.parametrize("attribute", [{"revision": "sha256:1"}, {"dtype": "bfloat16"}])
def test_a_stale_capture_of_other_weights_or_settings_is_refused(study, refuses, attribute):
    folder, expected = study
    write(folder / "ours/00001.h5", {"r": 3}, **attribute)
    (name, value), *_ = attribute.items()
    with refuses("00001.h5", name, value):
        expected.checked(shard_files(folder))
    with refuses("00001.h5", "00000.h5", "same model, weights and settings"):
        list(read_captures(shard_files(folder)))


@pytest.mark.parametrize("prompt", [Prompt("r", "short", "another text"), Prompt("r", "long", "3 tokens")])
def test_a_capture_of_another_text_or_set_is_refused(study, refuses, prompt):
    folder, expected = study
    with write_capture(folder / "ours/00001.h5", ATTRIBUTES, CLASSES, [prompt]) as writer:
        writer.add(small(prompt, 3))
    with refuses("00001.h5", "shard 00001"):
        expected.checked(shard_files(folder))


def test_two_files_that_hold_the_same_prompt_are_refused_without_expectations_too(study, refuses):
    folder, _ = study
    (folder / "ours/00001.h5").write_bytes((folder / "ours/00000.h5").read_bytes())
    with refuses("'p'", "00000.h5", "00001.h5"):
        list(read_captures(shard_files(folder)))
