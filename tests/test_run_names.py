"""A name leads to one run, or it is refused in a line."""

import json
import shutil

import pytest
from run_folders import change, write_run

from training.setup import parse_args
from utils import checkpoint, runs
from utils.run_names import RunNameError, check_name, name_of, run_title, version_of

pytest_plugins = "trained"


@pytest.mark.parametrize("name", ["a", "my-first", "lr_0.1", "3a", "A" * 64, "version_x", "v3"])
def test_a_name_has_letters_digits_and_marks(name):
    assert check_name(name) == name


NO_NAMES = ["", "latest", "auto", "3", "007", "9" * 60, "version_3", "A" * 65, "a b", "a/b", "-a"]
NO_NAMES += [".a", "..", "ü", "a\n", "a\0", None, 3, ["a"]]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_or_means_something_else_is_refused(name):
    with pytest.raises(RunNameError, match="--name"):
        check_name(name)


@pytest.fixture
def root(tmp_path):
    """With two named runs, one of the same name as an earlier one, one without."""
    for number, name in enumerate(("first", "", "same", "same", "3")):
        logs = tmp_path / "Inference" / f"version_{number}"
        logs.mkdir(parents=True)
        (logs / "run.json").write_text(json.dumps({"name": name}))
        folder = tmp_path / "checkpoints" / logs.name
        folder.mkdir(parents=True)
        (folder / checkpoint.filename(number)).write_text("")
    return tmp_path


def test_a_word_means_a_version(root):
    words = {"first": 0, "0": 0, "version_1": 1, "3": 3}  # a number is no name, whoever has it
    for word, number in words.items():
        assert version_of(word, root) == f"version_{number}"
        expected = root / "checkpoints" / f"version_{number}" / checkpoint.filename(number)
        assert checkpoint.find(word, root) == expected
        assert runs.find_logs(word, root) == root / "Inference" / f"version_{number}"
    for word in ("second", "5", "version_5", "../first", "", "9" * 5000, "a" * 5000):
        assert version_of(word, root) is None
        with pytest.raises(checkpoint.CheckpointError, match="no checkpoint at"):
            checkpoint.find(word or "none", root)
        with pytest.raises(runs.RunError, match=r"there are first \(version_0\), version_1"):
            runs.find_logs(word or "none", root)
    assert version_of("first", root / "elsewhere") is None


def test_a_name_of_several_runs_is_refused_with_their_versions(root):
    for find in (version_of, checkpoint.find, runs.find_logs):
        with pytest.raises(RunNameError, match="same is the name of version_2, version_3"):
            find("same", root)
    change(root / "Inference/version_3/run.json", name="other")
    assert version_of("same", root) == "version_2"


def test_a_run_is_found_by_its_paths_too(root):
    logs = root / "Inference" / "version_0"
    folder = root / "checkpoints" / "version_0"
    for path in (logs, folder, folder / checkpoint.filename(0)):
        assert runs.find_logs(str(path), root / "elsewhere") == logs
    assert runs.find_logs("latest", root) == root / "Inference" / "version_4"


NAMELESS = ["", "{", "[]", '{"name": 3}', '{"names": "a"}', '{"name": "../a"}', "[" * 10_000]


@pytest.mark.parametrize("content", NAMELESS)
def test_a_run_without_a_name_is_called_by_its_version(tmp_path, content):
    logs = write_run(tmp_path, 7, "first")
    assert run_title(logs) == "first (version_7)"  # control
    (logs / "run.json").write_text(content)
    assert name_of(logs) == ""
    assert run_title(logs) == "version_7"


def test_a_resumed_run_keeps_its_name_until_another_is_typed(trained, tmp_path):
    content = checkpoint.load(checkpoint.find("version_0", trained))
    path = tmp_path / "a.pt"

    def name(stored, *typed: str) -> str:
        checkpoint.save(path, content | stored)
        return parse_args(["--resume", str(path), *typed], "").name

    assert name({}) == ""  # of an earlier release
    assert name({"name": ""}) == ""
    assert name({"name": "first"}) == "first"
    assert name({"name": "first"}, "--name", "second") == "second"
    for stored in ({"name": "../a"}, {"name": [1]}):
        with pytest.raises(RunNameError):
            name(stored)


def test_a_new_run_has_the_name_that_is_typed(few_digits):
    assert parse_args(["--name", "my-first"], "").name == "my-first"
    assert parse_args([], "").name == ""
    with pytest.raises(RunNameError):
        parse_args(["--name", "latest"], "")
    assert list(few_digits.iterdir()) == []


def test_weights_and_samples_are_found_by_name(trained, tmp_path):
    root = shutil.copytree(trained, tmp_path / "root")
    (root / "Inference/version_1/run.json").write_text(json.dumps({"name": "plain"}))
    for flag in ("--resume", "--init-from"):
        args = parse_args([flag, "plain", "--run-root", str(root)], "")
        found = (args.resumed or args.pretrained).path
        assert found.parent == root / "checkpoints" / "version_1"
