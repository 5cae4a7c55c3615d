"""Files that should be YAML and folders that should take results, before the configuration itself is read."""

import pytest

from sinkstudy.workflow.files import check_folders, check_yaml

BAD = {
    "": ["keys and values"],
    "- a\n- b\n": ["keys and values"],
    "models: {a: b\nprompts: [\n": ["line 2"],
    "models:\n\ta: 1\n": ["line 2"],
    "prompts: a\nmodels: {}\nprompts: b\n": ["line 3", "'prompts'", "second"],
    "models:\n  a: {source: x}\n  a: {source: y}\n": ["line 3", "'a'", "second"],
    "prompts: a\0b\n": [],
    "models: &a\n  b: *a\n": ["line 1", "holds itself"],
    "sinks:\n  thresholds: &a [[*a]]\n": ["line 2", "holds itself"],
    "a: &x {b: &y {c: *x}}\n": ["line 1", "holds itself"],
}


@pytest.mark.parametrize("content", BAD)
def test_a_file_that_is_no_mapping_of_keys_that_are_there_once_is_refused(tmp_path, refuses, content):
    (tmp_path / "config.yaml").write_text(content)
    with refuses(str(tmp_path / "config.yaml"), *BAD[content]):
        check_yaml([tmp_path / "config.yaml"])


def test_a_file_that_is_not_utf8_is_refused(tmp_path, refuses):
    (tmp_path / "config.yaml").write_bytes(b"prompts: caf\xe9\n")
    with refuses("config.yaml", "UTF-8"):
        check_yaml([tmp_path / "config.yaml"])


def test_the_first_file_may_be_missing_where_others_are_given(tmp_path, refuses):
    with refuses("config.yaml", "no such file"):
        check_yaml([tmp_path / "config.yaml"])
    (tmp_path / "other.yaml").write_text("prompts: &same a\nbenchmark: {text: *same, lengths: &n [1], batches: *n}\n")
    check_yaml([tmp_path / "config.yaml", tmp_path / "other.yaml"])
    (tmp_path / "other.yaml").write_text("a: 1\na: 2\n")
    with refuses("other.yaml", "line 2"):
        check_yaml([tmp_path / "config.yaml", tmp_path / "other.yaml"])


def test_folders_for_results_may_be_missing_or_links_but_not_files_or_links_to_nothing(tmp_path, refuses):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    check_folders([tmp_path / "there", tmp_path / "link", tmp_path / "missing"])
    (tmp_path / "file").touch()
    with refuses(str(tmp_path / "file"), "not a directory"):
        check_folders([tmp_path / "file"])
    (tmp_path / "dangling").symlink_to("nowhere")
    with refuses(str(tmp_path / "dangling"), "nowhere"):
        check_folders([tmp_path / "dangling"])
