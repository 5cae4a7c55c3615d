import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from sinkstudy.errors import StudyError
from sinkstudy.prompts import Prompt
from sinkstudy.store import (
    CaptureWriter,
    PromptRecord,
    open_capture,
    read_captures,
    read_maps,
    read_provenance,
    read_tokens,
)
from sinkstudy.store.seal import seal

CLASSES = ("first", "second", "self")
ATTRIBUTES = {"model": "tiny", "source": "models/tiny", "dtype": "float32"}
LAYERS = (1, 3)
HEADS = 2


def maps_of(rng: np.random.Generator, n: int, full_rows: bool = True) -> np.ndarray:
    """Causal attention (layer, head, query, key) of no model."""
    attention = np.tril(rng.random((len(LAYERS), HEADS, n, n)) + 0.01)
    attention /= attention.sum(-1, keepdims=True)
    return attention if full_rows else 0.5 * attention


def record_of(attention: np.ndarray, full_rows: bool = True) -> PromptRecord:
    second = attention[..., 1] if attention.shape[-1] > 1 else np.zeros(attention.shape[:-1])
    return PromptRecord(
        layers=list(LAYERS),
        key_mass=np.stack([attention[..., 0], second, np.diagonal(attention, axis1=2, axis2=3)], -1),
        output_norm=attention.mean((2, 3)),
        row_error=1e-7,
        row_sum=None if full_rows else attention.sum(-1),
    )


def small_record(n: int, heads: int = HEADS, value: float = 0.5) -> PromptRecord:
    """One layer, the same mass everywhere."""
    return PromptRecord([0], np.full((1, heads, n, len(CLASSES)), value), np.ones((1, heads)), 0.0)


def write(path: Path, prompts: dict[str, int], maps: bool = True, full_rows: bool = True) -> dict[str, np.ndarray]:
    """Write prompts of so many tokens, and give back their attention (layer, head, query, key)."""
    rng = np.random.default_rng(0)
    written = {name: maps_of(rng, n, full_rows) for name, n in prompts.items()}
    with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
        for name, attention in written.items():
            n = attention.shape[-1]
            writer.begin(Prompt(name, "short", "text"), list(range(100, 100 + n)), [f"t{i}" for i in range(n)])
            for layer in attention if maps else ():
                writer.add_map(name, layer)
            writer.finish(name, record_of(attention, full_rows))
    return written


def read_everything(path: Path) -> None:
    """Every reader of a capture file, on every prompt."""
    read_provenance(path)
    for capture in read_captures([path]):
        read_tokens(path, capture.prompt)
        for row in range(len(capture.layers)):
            read_maps(path, capture.prompt, row)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captures" / "00000.h5"


@pytest.mark.parametrize("full_rows", [True, False])
def test_readers_give_back_what_was_written(path, full_rows):
    written = write(path, {"one": 1, "hello": 6}, full_rows=full_rows)
    captures = {capture.prompt: capture for capture in read_captures([path])}
    assert captures.keys() == {"one", "hello"}
    for name, attention in written.items():
        capture, record = captures[name], record_of(attention, full_rows)
        assert capture.set == "short"
        assert capture.n_tokens == len(capture.token_ids)
        assert capture.token_ids.tolist() == list(range(100, 100 + capture.n_tokens))
        assert capture.layers.tolist() == list(LAYERS)
        np.testing.assert_array_equal(capture.key_mass, record.key_mass.astype(np.float32))
        np.testing.assert_array_equal(capture.sink_mass, attention[..., 0].astype(np.float32))
        np.testing.assert_array_equal(capture.output_norm, record.output_norm.astype(np.float32))
        if full_rows:
            assert capture.row_sum is None
        else:
            np.testing.assert_allclose(capture.row_sum, 0.5, rtol=2**-24)
        assert read_tokens(path, name) == [f"t{i}" for i in range(capture.n_tokens)]
        for row, layer in enumerate(attention):
            np.testing.assert_allclose(read_maps(path, name, row), layer, rtol=0, atol=2**-12)


def test_the_same_capture_is_the_same_bytes(path, tmp_path):
    write(path, {"p": 4, "q": 3})
    time.sleep(1.1)  # HDF5 would note the second at which an object was made
    write(tmp_path / "again.h5", {"p": 4, "q": 3})
    assert path.read_bytes() == (tmp_path / "again.h5").read_bytes()


def test_provenance_comes_back_as_text(path):
    write(path, {"p": 2})
    provenance = read_provenance(path)
    assert provenance.items() >= ATTRIBUTES.items()
    assert provenance["complete"] == "True"


def test_prompts_come_back_in_the_order_written_and_files_in_the_order_given(tmp_path):
    first, second = tmp_path / "b.h5", tmp_path / "a.h5"
    write(first, {"z": 2, "a": 2, "m": 2})
    write(second, {"k": 2, "b": 2})
    assert [capture.prompt for capture in read_captures([first, second])] == ["z", "a", "m", "k", "b"]


@pytest.mark.parametrize("name", ["key_classes", "layers", "attention", "0", "a.b", "a-b_c", "all."])
def test_any_prompt_id_makes_a_group_of_its_own(path, name):
    write(path, {name: 2, "other": 2})
    assert [capture.prompt for capture in read_captures([path])] == [name, "other"]


@pytest.mark.parametrize("token", ["", "é", "🙂", "\n", "\t", "\ufffd", "\u05e9\u05dc\u05d5\u05dd", "\u200f"])
def test_tokens_of_any_script_come_back(path, token):
    with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
        writer.begin(Prompt("p", "s", "x"), [1, 2], [token, "end"])
        writer.finish("p", small_record(2))
    assert read_tokens(path, "p") == [token, "end"]


def test_layers_of_several_prompts_may_come_in_turn(path):
    rng = np.random.default_rng(1)
    attention = {"a": maps_of(rng, 3), "b": maps_of(rng, 5)}
    with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
        for name, maps in attention.items():
            writer.begin(Prompt(name, f"set of {name}", "x"), [0] * maps.shape[-1], ["t"] * maps.shape[-1])
        for row in range(len(LAYERS)):
            for name, maps in attention.items():
                writer.add_map(name, maps[row])
        for name in ("b", "a"):
            writer.finish(name, record_of(attention[name]))
    captures = list(read_captures([path]))
    assert [(capture.prompt, capture.set) for capture in captures] == [("a", "set of a"), ("b", "set of b")]
    for capture in captures:
        record = record_of(attention[capture.prompt])
        np.testing.assert_array_equal(capture.key_mass, record.key_mass.astype(np.float32))
        np.testing.assert_array_equal(capture.output_norm, record.output_norm.astype(np.float32))
        for row, maps in enumerate(attention[capture.prompt]):
            np.testing.assert_allclose(read_maps(path, capture.prompt, row), maps, rtol=0, atol=2**-12)


def test_maps_and_masses_of_more_than_one_chunk_come_back(path):
    heads, n = 3, 520
    attention = np.zeros((heads, n, n))
    attention[:, np.arange(n), np.arange(n)] = np.linspace(0.1, 1, heads * n).reshape(heads, n)
    key_mass = np.linspace(0, 1, 2 * heads * n * 200).reshape(2, heads, n, 200)
    with CaptureWriter(path, ATTRIBUTES, tuple(map(str, range(200)))) as writer:
        writer.begin(Prompt("long", "s", "x"), [0] * n, ["t"] * n)
        for _ in range(2):
            writer.add_map("long", attention)
        writer.finish("long", PromptRecord([0, 1], key_mass, np.ones((2, heads)), 0.0))
    (capture,) = read_captures([path])
    np.testing.assert_array_equal(capture.key_mass, key_mass.astype(np.float32))
    np.testing.assert_allclose(read_maps(path, "long", 1), attention, rtol=0, atol=2**-12)
    with h5py.File(path) as file:
        assert file["long/attention"].chunks[1] < heads
        assert file["long/key_mass"].chunks[0] < 2


def test_only_the_parts_asked_for_are_read_and_the_first_key_class_is_the_mass_on_the_first_token(path):
    write(path, {"p": 4, "q": 2}, full_rows=False)
    for whole, sinks, keys in zip(
        read_captures([path]),
        read_captures([path], parts=["sink_mass"]),
        read_captures([path], parts=["key_mass", "output_norm"]),
        strict=True,
    ):
        assert (sinks.token_ids, sinks.key_mass, sinks.output_norm, keys.token_ids) == (None, None, None, None)
        np.testing.assert_array_equal(keys.key_mass, whole.key_mass)
        np.testing.assert_array_equal(keys.output_norm, whole.output_norm)
        for part in (sinks, keys):
            np.testing.assert_array_equal(part.sink_mass, whole.sink_mass)
            np.testing.assert_array_equal(part.row_sum, whole.row_sum)


def test_a_file_of_more_sets_than_an_ordinary_attribute_holds_comes_back(path):
    with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
        for i in range(4200):
            writer.begin(Prompt(f"p{i}", f"set{i % 7}", "x"), [0], ["t"])
            writer.finish(f"p{i}", small_record(1, heads=1))
    sets = [capture.set for capture in read_captures([path], parts=["sink_mass"])]
    assert sets == [f"set{i % 7}" for i in range(4200)]


def test_a_prompt_without_maps_has_none(path):
    write(path, {"p": 3}, maps=False)
    assert read_maps(path, "p", 0) is None
    assert [capture.prompt for capture in read_captures([path])] == ["p"]


def test_datasets_have_the_documented_types_axes_and_filters(path):
    write(path, {"p": 4}, full_rows=False)
    axes = {
        "token_ids": ("query",),
        "sink_mass": ("layer", "head", "query"),
        "row_sum": ("layer", "head", "query"),
        "key_mass": ("layer", "head", "query", "key_class"),
        "attention": ("layer", "head", "query", "key"),
    }
    types = {"token_ids": "int32", "attention": "float16"}
    types |= dict.fromkeys(("sink_mass", "row_sum", "key_mass"), "float32")
    with h5py.File(path) as file:
        group = file["p"]
        assert group.keys() == set(types)
        for name, expected in types.items():
            assert group[name].dtype == expected, name
        for name, labels in axes.items():
            dataset = group[name]
            assert tuple(axis.label for axis in dataset.dims) == labels, name
        assert (group["attention"].compression, group["attention"].shuffle) == ("gzip", True)
        assert list(file.attrs["key_classes"]) == list(CLASSES)
        assert file.attrs["layers"].tolist() == list(LAYERS)
        assert group["sink_mass"].shape == (len(LAYERS), HEADS, 4)
        assert group["attention"].shape == (len(LAYERS), HEADS, 4, 4)
        assert file.attrs["sets"].tolist() == ["short"]
        assert file.attrs["row_sum_errors"].tolist() == [1e-7]
        assert file.attrs["output_norm"].shape == (1, len(LAYERS), HEADS)
        assert file.attrs["output_norm"].dtype == np.float32
        assert file.attrs["vocabulary_ids"].tolist() == [100, 101, 102, 103]
        assert file.attrs["vocabulary"].tolist() == [b"t0", b"t1", b"t2", b"t3"]
        assert file.attrs.get_id("vocabulary").get_type().get_cset() == h5py.h5t.CSET_UTF8


def test_small_arrays_lie_side_by_side_where_the_file_says_and_large_ones_are_packed_and_checked(path):
    rng, names = np.random.default_rng(0), ["token_ids", "sink_mass", "key_mass", "row_sum"]
    key_mass = {"small": rng.random((1, 1, 4, 3)), "long": rng.random((1, 1, 20000, 3))}
    with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
        for name, masses in key_mass.items():
            n = masses.shape[2]
            writer.begin(Prompt(name, "s", "x"), list(range(n)), ["t"] * n)
            writer.finish(name, PromptRecord([0], masses, np.ones((1, 1)), 0.0, row_sum=masses.sum(-1)))
    with h5py.File(path) as file:
        assert list(file.attrs["arrays"]) == names
        assert file.attrs["n_tokens"].tolist() == [4, 20000]
        for name, offset in zip(names, file.attrs["offsets"][0].tolist(), strict=True):
            dataset = file["small"][name]
            assert offset == dataset.id.get_offset() > 0, name
            assert path.read_bytes()[offset : offset + dataset.nbytes] == dataset[()].tobytes(), name
        for name, offset in zip(names, file.attrs["offsets"][1].tolist(), strict=True):
            dataset = file["long"][name]
            assert offset == 0, name
            assert (dataset.compression, dataset.shuffle, dataset.fletcher32) == ("gzip", True, True), name
        for name, masses in key_mass.items():
            assert file[name]["token_ids"][()].tolist() == list(range(masses.shape[2]))
            np.testing.assert_array_equal(file[name]["sink_mass"], masses[..., 0].astype(np.float32))
            np.testing.assert_array_equal(file[name]["key_mass"], masses.astype(np.float32))
            np.testing.assert_array_equal(file[name]["row_sum"], masses.sum(-1).astype(np.float32))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind_and_an_earlier_file_as_it_was(path, error):
    def interrupted() -> None:
        with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
            writer.begin(Prompt("p", "s", "x"), [1, 2], ["a", "b"])
            writer.finish("p", small_record(2))
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


def test_the_final_name_appears_only_when_the_file_is_complete(path):
    with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
        writer.begin(Prompt("p", "s", "x"), [1], ["a"])
        writer.finish("p", small_record(1))
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path]


def test_a_prompt_that_was_never_finished_is_an_error_and_leaves_nothing_behind(path):
    with pytest.raises(RuntimeError, match="unfinished_one"), CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
        writer.begin(Prompt("unfinished_one", "s", "x"), [1], ["a"])
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_with_the_name_of_the_file_and_no_crash_when_hdf5_closes(path, monkeypatch):
    """HDF5 itself ends the process by a segmentation fault here."""
    path.parent.mkdir()
    full = path.with_name(".full.tmp")
    full.symlink_to("/dev/full")
    monkeypatch.setattr("sinkstudy.store.writing.temporary_for", lambda _: full)
    with pytest.raises(OSError, match=r"No space left on device.*\.tmp"):
        write(path, {"p": 2, "q": 2})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_masses_that_are_not_finite_are_an_error_and_leave_nothing_behind(path, value):
    def broken() -> None:
        with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
            writer.begin(Prompt("broken", "s", "x"), [1, 2], ["a", "b"])
            record = small_record(2)
            record.key_mass[0, 1, 1, 0] = value
            writer.finish("broken", record)

    with pytest.raises(RuntimeError, match="'broken' has masses that are not finite"):
        broken()
    assert list(path.parent.iterdir()) == []


def test_masses_that_do_not_fit_the_tokens_are_an_error_and_leave_nothing_behind(path):
    def misfit() -> None:
        with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
            writer.begin(Prompt("odd", "s", "x"), [1, 2, 3], ["a", "b", "c"])
            writer.finish("odd", small_record(2))

    with pytest.raises(RuntimeError, match="'odd' has 3 tokens"):
        misfit()
    assert list(path.parent.iterdir()) == []


def text_file(path: Path) -> None:
    path.write_text("not HDF5", encoding="utf-8")


def foreign_file(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.ones(3)


def incomplete_file(path: Path) -> None:
    write(path, {"p": 3})
    with h5py.File(path, "a") as file:
        file.attrs["complete"] = False


def later_schema(path: Path) -> None:
    write(path, {"p": 3})
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = 99


def without_masses(path: Path) -> None:
    write(path, {"p": 3})
    with h5py.File(path, "a") as file:
        del file["p/sink_mass"]


def nan_inside(path: Path) -> None:
    write(path, {"p": 3})
    with h5py.File(path, "a") as file:
        file["p/sink_mass"][0, 0, 0] = np.nan


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.touch(),
        lambda path: path.mkdir(),
        text_file,
        foreign_file,
        incomplete_file,
        later_schema,
        without_masses,
        nan_inside,
    ],
    ids=["missing", "empty", "folder", "text", "foreign", "incomplete", "schema", "no masses", "nan"],
)
def test_a_file_that_is_no_complete_capture_is_refused_by_name(path, refuses, make: Callable[[Path], None]):
    path.parent.mkdir()
    make(path)
    with refuses(str(path)):
        list(read_captures([path]))


def shorter(file: h5py.File) -> None:
    del file["p/token_ids"]


def renamed(file: h5py.File) -> None:
    file.move("p", "r")


def other_masses(file: h5py.File) -> None:
    file["p/sink_mass"][...] = 0.25


def other_sets(file: h5py.File) -> None:
    file.attrs["sets"] = ["long", "short"]


@pytest.mark.parametrize("change", [shorter, renamed, other_masses, other_sets])
def test_a_capture_changed_by_another_program_is_refused_by_name(path, refuses, change):
    write(path, {"p": 3, "q": 2})
    with h5py.File(path, "a") as file:
        change(file)
    for read in (lambda: list(read_captures([path])), lambda: read_tokens(path, "q"), lambda: read_provenance(path)):
        with refuses(str(path), "changed"):
            read()


def not_finite(file: h5py.File) -> None:
    file["p/sink_mass"][0, 0, 0] = np.nan


def one_set(file: h5py.File) -> None:
    file.attrs["sets"] = ["short"]


def one_token_more(file: h5py.File) -> None:
    file.attrs["n_tokens"] = np.array([4, 70000])


@pytest.mark.parametrize(
    ("change", "said"), [(not_finite, "not finite"), (one_set, "one entry per prompt"), (one_token_more, "ends within")]
)
def test_a_sealed_file_that_contradicts_itself_is_refused_by_name(path, refuses, change, said):
    write(path, {"p": 3, "q": 2}, maps=False)
    with h5py.File(path, "a") as file:
        change(file)
    seal(path, [])
    with refuses(str(path), said):
        list(read_captures([path]))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 1.0])
def test_a_truncated_file_is_refused_by_name(path, refuses, share):
    write(path, {"p": 5, "q": 3})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content)) - 1])
    for read in (
        lambda: list(read_captures([path])),
        lambda: open_capture(path).__enter__(),
        lambda: read_provenance(path),
    ):
        with refuses(str(path)):
            read()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


ARRAYS = ("sink_mass", "key_mass", "row_sum", "token_ids")


@pytest.mark.parametrize(
    ("dataset", "n"), [*((name, n) for n in (5, 20000) for name in ARRAYS), ("attention", 5), ("attention", 40)]
)
def test_a_flipped_bit_in_a_dataset_is_refused_by_name_and_never_a_wrong_number(path, refuses, dataset, n):
    if n < 100:
        write(path, {"p": n}, maps=dataset == "attention", full_rows=False)
    else:
        key_mass = np.random.default_rng(0).random((1, 1, n, len(CLASSES)))
        with CaptureWriter(path, ATTRIBUTES, CLASSES) as writer:
            writer.begin(Prompt("p", "s", "x"), list(range(n)), ["t"] * n)
            writer.finish("p", PromptRecord([0], key_mass, np.ones((1, 1)), 0.0, row_sum=key_mass.sum(-1)))
    with h5py.File(path) as file:
        stored = file["p"][dataset]
        assert bool(stored.chunks) == (dataset == "attention" or n > 100)
        if stored.chunks:
            chunk = stored.id.get_chunk_info(0)
            offset = chunk.byte_offset + chunk.size // 2
        else:
            offset = path.read_bytes().index(stored[()].tobytes()) + stored.nbytes // 2
    flip(path, offset)
    with refuses(str(path)):
        read_everything(path)


@pytest.mark.parametrize("name", ["/", "p", "p/sink_mass", "p/attention", "p/token_ids"])
def test_a_flipped_bit_in_a_header_is_refused_by_name_and_never_a_lost_prompt(path, refuses, name):
    write(path, {"first": 2, "p": 5})
    with h5py.File(path) as file:
        header = h5py.h5o.get_info(file[name].id).addr
    flip(path, header + 12)
    with refuses(str(path)):
        read_everything(path)


def heaps_of(path: Path) -> list[tuple[int, int]]:
    """Offset and size of every global heap, where HDF5 keeps text and has no checksum."""
    content, heaps = path.read_bytes(), []
    at = content.find(b"GCOL")
    while at >= 0:
        heaps.append((at, int.from_bytes(content[at + 8 : at + 16], "little")))
        at = content.find(b"GCOL", at + 1)
    return heaps


def test_a_flipped_bit_in_text_is_refused_and_neither_renames_a_set_nor_hangs_the_reader(path, refuses):
    write(path, {f"p{i}": 1 for i in range(150)}, maps=False)
    whole, heaps = path.read_bytes(), heaps_of(path)
    assert len(heaps) > 1
    assert any(b"short" in whole[start : start + size] for start, size in heaps)
    for start, size in heaps:
        # Within the first object: its index, the count of its users, its length, its text. Then the last byte.
        for offset in (*range(start, start + 40), start + size - 1):
            path.write_bytes(whole)
            flip(path, offset)
            with refuses(str(path)):
                read_provenance(path)


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(path):
    def content() -> list:
        captures = [[str(part) for part in vars(capture).values()] for capture in read_captures([path])]
        tokens = [read_tokens(path, name) for name in ("first", "p")]
        maps = [read_maps(path, name, 1).tobytes() for name in ("first", "p")]
        return [read_provenance(path), captures, tokens, maps]

    write(path, {"first": 2, "p": 5}, full_rows=False)
    whole, before, refused = path.read_bytes(), content(), 0
    for offset in range(0, len(whole), 17):
        path.write_bytes(whole)
        flip(path, offset)
        try:
            assert content() == before, offset
        except StudyError:
            refused += 1
    assert refused > 0.2 * len(whole) / 17
