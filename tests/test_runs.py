"""Run folders: one number for both trees, never shared."""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from faults import AGAIN, Process, count, newest

from utils import runs
from utils.errors import StoppedError


def test_versions_count_up_in_both_trees(tmp_path):
    first, second = runs.new_run(tmp_path), runs.new_run(tmp_path)
    assert first.logs == tmp_path / "Inference" / "version_0"
    assert first.checkpoints == tmp_path / "checkpoints" / "version_0"
    assert second.logs.name == second.checkpoints.name == "version_1"


def test_foreign_names_are_ignored_and_a_number_taken_in_one_tree_is_taken(tmp_path):
    for name in ("Inference/version_x", "Inference/.DS_Store", "checkpoints/version_4", "notes"):
        (tmp_path / name).mkdir(parents=True)
    assert runs.new_run(tmp_path).logs.name == "version_5"


def test_the_run_of_a_checkpoint_is_found_from_its_path(tmp_path):
    run = runs.new_run(tmp_path)
    assert runs.run_of(run.checkpoints / "step_00000001.pt") == run


def checkpoint_in(root) -> Path:
    """The path of a checkpoint in a run of its own; the file is there."""
    path = runs.new_run(root).checkpoints / "step_00000001.pt"
    path.write_text("")
    return path


def moved(path, elsewhere) -> None:
    """It lies elsewhere, and a link is in its place."""
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


LINKED = {  # parts of the run root that lie elsewhere, and where
    "nothing": {},
    "the tree": {"checkpoints": "ck"},
    "the tree, by its name": {"checkpoints": "other/checkpoints"},
    "the version": {"checkpoints/version_0": "version_0"},
    "both": {"checkpoints/version_0": "v", "checkpoints": "ck"},
    "all": {"checkpoints": "ck", "Inference": "logs", ".": "root"},
}
SHORT = {  # links to the checkpoint, from outside of the root
    "to the file": lambda path: [path],
    "to a link": lambda path: [path, "a"],
    "relative": lambda path: [Path("root") / path.relative_to(path.parents[2])],
    "to the folder": lambda path: [path.parent],
    "to the tree": lambda path: [path.parent.parent],
    "to the root": lambda path: [path.parent.parent.parent],
}


def linked_to(targets, folder) -> Path:
    """Links in the folder, each to the next target; the last."""
    for name, target in zip("ab", targets, strict=False):
        (folder / name).symlink_to(target)
    return folder / "ab"[len(targets) - 1]


@pytest.mark.parametrize("short", SHORT)
@pytest.mark.parametrize("parts", LINKED)
def test_the_run_of_a_checkpoint_is_found_through_any_links(tmp_path, parts, short):
    path = checkpoint_in(tmp_path / "root")
    run = runs.run_of(path)
    assert run == runs.run_at(tmp_path / "root", 0)
    for part, elsewhere in LINKED[parts].items():
        moved(tmp_path / "root" / part, tmp_path / "disk" / elsewhere)
    targets = SHORT[short](path)
    link = linked_to(targets, tmp_path)
    typed = link / path.relative_to(targets[0]) if targets[0] in path.parents else link
    assert typed.samefile(path)
    assert runs.is_in_run(typed)
    found = runs.run_of(typed)
    assert found.logs.samefile(run.logs)
    assert found.checkpoints.samefile(run.checkpoints)
    if parts in ("the tree", "the tree, by its name") and short != "to the root":
        assert found == run
        real = runs.in_version(typed.resolve()) and runs.run_of(typed.resolve())
        assert not real or not real.logs.exists()  # control: all links followed lead elsewhere


@pytest.mark.parametrize(
    "dots", ["version_0/../version_0", "../checkpoints/version_0", "./x/../version_0"]
)
def test_dots_in_the_path_of_a_checkpoint_change_nothing(tmp_path, monkeypatch, dots):
    path = checkpoint_in(tmp_path)
    (tmp_path / "checkpoints/x").mkdir()
    typed = f"{tmp_path}/checkpoints/{dots}/{path.name}"
    assert runs.run_of(Path(typed)) == runs.run_of(path)
    monkeypatch.chdir(path.parent)
    assert runs.run_of(Path("..") / path.parent.name / path.name) == runs.run_of(path)
    assert runs.is_in_run(Path(path.name))


def test_dots_behind_a_link_lead_where_the_system_says(tmp_path):
    """And not where the words do."""
    path = checkpoint_in(tmp_path / "root")
    (tmp_path / "here").symlink_to(path.parent.parent / "version_0")
    typed = tmp_path / "here" / ".." / "version_0" / path.name
    assert typed.samefile(path)
    assert runs.run_of(typed) == runs.run_of(path)


def test_links_in_a_circle_are_no_run(tmp_path):
    for name, target in (("a.pt", "b.pt"), ("b.pt", "a.pt")):
        (tmp_path / name).symlink_to(tmp_path / target)
    assert not runs.is_in_run(tmp_path / "a.pt")


def test_a_root_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(runs.RunError, match="cannot make a run folder"):
        runs.new_run(tmp_path / "root")


def test_json_is_complete_or_absent(tmp_path):
    path = tmp_path / "a.json"
    runs.write_json(path, {"lr": 1e-4})
    with pytest.raises(TypeError):
        runs.write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == {"lr": 1e-4}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_lacks_is_not_written_and_is_named(tmp_path, value):
    with pytest.raises(StoppedError, match=r"a\.json: scores\.0\.fid is not finite"):
        runs.write_json(tmp_path / "a.json", {"scores": [{"fid": value}]})
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_plain_values():
    values = runs.environment(torch.device("cpu"))
    assert {type(v) for v in values.values()} <= {str, int}
    json.dumps(values)


@pytest.fixture(params=["plain", "a:b"])
def repository(request, tmp_path):
    """With one commit; lists of paths are separated by colons."""
    if not shutil.which("git"):
        pytest.skip("needs git")
    own = ["-c", "user.name=a", "-c", "user.email=a", "-c", "commit.gpgsign=false"]
    root = tmp_path / request.param
    root.mkdir()
    (root / "file").write_text("")
    for command in (["init", "-q"], ["add", "."], [*own, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def test_the_revision_is_that_of_this_repository(repository):
    """And not of one that surrounds it."""
    (repository / "inner").mkdir()
    assert runs.git_revision(repository / "inner") == "unknown"
    revision = runs.git_revision(repository)
    assert len(revision) == 12  # control
    (repository / "file").write_text("changed")
    runs.git_revision.cache_clear()
    assert runs.git_revision(repository) == f"{revision}-dirty"


def test_a_second_working_tree_and_a_link_to_it_have_their_own_revision(repository, tmp_path):
    """There .git is a file."""
    tree, link = tmp_path / "tree", tmp_path / "link"
    subprocess.run(["git", "worktree", "add", "-q", str(tree)], cwd=repository, check=True)
    link.symlink_to(tree)
    revision = runs.git_revision(repository)
    assert runs.git_revision(tree) == runs.git_revision(link) == revision
    (tree / "file").write_text("changed")
    runs.git_revision.cache_clear()
    assert runs.git_revision(tree) == f"{revision}-dirty"
    assert runs.git_revision(repository) == revision


# As git sets them for its hooks.
STRAY = {
    "GIT_DIR": ".git",
    "GIT_WORK_TREE": ".",
    "GIT_INDEX_FILE": ".git/index",
    "GIT_OBJECT_DIRECTORY": ".git/objects",
    "GIT_COMMON_DIR": ".git",
    "GIT_CEILING_DIRECTORIES": "nowhere",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "1",
    "GIT_NAMESPACE": "other",
}
FEW = [("GIT_DIR", "GIT_WORK_TREE")]
MORE = [names for n in range(3) for names in itertools.combinations(list(STRAY)[1:5], n)]
MANY = [("GIT_DIR", *names) for names in (*MORE, list(STRAY)[1:])]


@pytest.mark.parametrize("chosen", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_the_revision_is_not_of_what_a_variable_names(
    repository, tmp_path_factory, monkeypatch, chosen
):
    elsewhere, misled = tmp_path_factory.mktemp("elsewhere"), 0
    revision = runs.git_revision(repository)
    for names in chosen:
        with monkeypatch.context() as patch:
            for name in names:
                patch.setenv(name, str(repository / STRAY[name]))
            runs.git_revision.cache_clear()
            assert runs.git_revision(elsewhere) == "unknown"
            assert runs.git_revision(repository) == revision
            git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=elsewhere, capture_output=True)
            misled += git.returncode == 0
    # Control: git itself believes them, but for a list of folders, in which a colon separates.
    assert misled >= len(chosen) - (":" in str(repository))
    end = "the revision is of this repository, or unknown"
    count("variables that name another repository to git", len(chosen), misled, end)


def fake_git(folder, script: str) -> dict[str, str]:
    """An environment in which this shell script is git."""
    path = folder / "bin" / "git"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{path.parent}:{os.environ['PATH']}"}


def test_what_is_recorded_is_the_revision_at_the_start(tmp_path):
    """Asked for once, although it changes with every call."""
    calls = tmp_path / "calls"
    environment = fake_git(tmp_path, f"echo >> {calls}; wc -l < {calls}")
    ended = Process(tmp_path, AGAIN, environment=environment).end()
    assert ended.code == 0
    assert newest(tmp_path)["environment"]["git"] == "1"
    assert calls.read_text() == "\n"


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_git_that_hangs_is_waited_for_once(tmp_path, monkeypatch, trials):
    calls = tmp_path / "calls"
    for name, value in fake_git(tmp_path, f"echo >> {calls}; exec sleep 60").items():
        monkeypatch.setenv(name, value)
    for trial in range(trials):
        timeout = 1.0 + trial / 100  # asked anew: what is known stays known
        assert [runs.git_revision(tmp_path, timeout) for _ in range(3)] == ["unknown"] * 3
    assert calls.read_text() == "\n" * trials
    count("git hangs", trials, trials, "waited for once, the revision is unknown")
