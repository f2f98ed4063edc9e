"""Run folders: one number for both trees, never shared."""

import json
import os
import shutil
import subprocess

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


@pytest.fixture
def repository(tmp_path):
    """With one commit."""
    if not shutil.which("git"):
        pytest.skip("needs git")
    own = ["-c", "user.name=a", "-c", "user.email=a", "-c", "commit.gpgsign=false"]
    (tmp_path / "file").write_text("")
    for command in (["init", "-q"], ["add", "."], [*own, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_the_revision_is_that_of_this_repository(repository, monkeypatch):
    """And not of one that surrounds it, or that a variable names."""
    (repository / "inner").mkdir()
    assert runs.git_revision(repository / "inner") == "unknown"
    revision = runs.git_revision(repository)
    assert len(revision) == 12  # control
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(repository))
    assert runs.git_revision(repository / "inner", 4.0) == "unknown"
    monkeypatch.undo()
    (repository / "file").write_text("changed")
    runs.git_revision.cache_clear()
    assert runs.git_revision(repository) == f"{revision}-dirty"


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
