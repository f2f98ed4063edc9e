"""A checkpoint is whole and as it was written, or it is refused with its name and the reason."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from faults import result

import sample
import train
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.pytree import digest

FORMAT_1 = "270f1b57f6a962a9bef086822c24430d2843376921ec28b6761c25e5a8ef3970"


def state(step: int = 3) -> dict:
    torch.manual_seed(step)
    return {
        "config": {"train": {"lr": 1e-3, "betas": (0.9, 0.99), "none": None, "on": True}},
        "step": step,
        "epoch": 0,
        "model": {"w": torch.randn(40, 100), "half": torch.randn(3).bfloat16()},
        "ema": {"n_averaged": torch.tensor(7), "empty": torch.zeros(0)},
        "optimizer": [{0: {"momentum": torch.randn(4, 4).T}}],
        "scheduler": {"total_steps": 10},
        "best": None,
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / checkpoint.filename(3)
    checkpoint.save(path, state())
    return path


def test_what_was_saved_is_what_is_loaded(path):
    loaded = checkpoint.load(path)
    assert digest({k: loaded[k] for k in state()}) == digest(state())
    assert digest(state(3)) != digest(state(4))  # control
    assert list(path.parent.iterdir()) == [path]


def test_what_does_not_belong_is_refused_when_saving(tmp_path):
    with pytest.raises(TypeError, match="PosixPath"):
        checkpoint.save(tmp_path / "a.pt", {**state(), "config": {"p": tmp_path}})
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_programs_are_refused_by_name(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(CheckpointError, match="weights is not a checkpoint of this program"):
        checkpoint.load(tmp_path / "weights")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        checkpoint.load(tmp_path)


def test_a_newer_format_is_refused_with_its_version(path):
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format_version": 99}, path)
    with pytest.raises(CheckpointError, match="99"):
        checkpoint.load(path)


def test_a_failed_save_leaves_the_earlier_file(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoint.save(path, state(4))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_names_find_the_newest(tmp_path):
    folder = tmp_path / "checkpoints" / "version_0"
    folder.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="train one first"):
        checkpoint.find("latest", tmp_path)
    for step in (9, 10, 100):
        checkpoint.save(folder / checkpoint.filename(step), state(step))
    (folder / "notes.pt").write_text("")
    expected = folder / checkpoint.filename(100)
    assert checkpoint.find("latest", tmp_path) == expected
    assert checkpoint.find(str(folder), tmp_path) == expected
    assert checkpoint.find(str(expected), tmp_path) == expected


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_pruning_keeps_the_newest_and_the_best(tmp_path, keep):
    for step in range(1, 9):
        (tmp_path / checkpoint.filename(step)).write_text("")
    checkpoint.prune(tmp_path, best=(2,), keep=keep)
    assert list(checkpoint.steps(tmp_path)) == [2, *range(9 - keep, 9)]


def test_a_file_of_the_first_format_stays_loadable():
    """As it was written once, to the bit. A newer format adds a file, and leaves this one."""
    loaded = checkpoint.load(Path(__file__).with_name("format_1.pt"))
    assert digest(loaded) == FORMAT_1
    assert loaded["format_version"] == 1
    assert (loaded["step"], loaded["best"]["loss"]) == (7, 0.125)
    loaded["model"]["half"][0] += 1
    assert digest(loaded) != FORMAT_1  # control


@pytest.mark.parametrize(
    ("name", "written_by"),
    [("format_1_run.pt", "2.14.1+cu130"), ("torch_2_11_run.pt", "2.11.0+cu130")],
)
def test_a_run_of_an_earlier_release_resumes_and_samples(few_digits, capsys, name, written_by):
    """Step 7 of 9, within an epoch of 4: by commit 777e570, and by the oldest PyTorch allowed."""
    path = few_digits / "old.pt"
    shutil.copy(Path(__file__).with_name(name), path)
    assert train.main(["--resume", str(path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Resuming after step 7" in out
    changed = f"torch: {written_by} -> {torch.__version__}"
    assert (changed in out) == (written_by != torch.__version__)
    resumed = checkpoint.load(checkpoint.find("latest", few_digits / "Logs_Checkpoints"))
    assert resumed["step"] == resumed["scheduler"]["total_steps"] == 9
    assert resumed["epoch"] == 2  # its epochs are those it began with, of one pass
    first = result(few_digits)
    assert train.main(["--resume", str(path), "--device", "cpu"]) == 0
    assert result(few_digits) == first
    assert sample.main(["--ckpt", str(path), "--num", "2", "--device", "cpu"]) == 0
    assert (few_digits / capsys.readouterr().out.split()[-1]).is_file()
