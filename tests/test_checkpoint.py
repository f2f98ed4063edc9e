"""A checkpoint is whole and as it was written, or it is refused with its name and the reason."""

import contextlib
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from utils import checkpoint
from utils.checkpoint import CheckpointError

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
    path = tmp_path / checkpoint.name(3)
    checkpoint.save(path, state())
    return path


def test_what_was_saved_is_what_is_loaded(path):
    loaded = checkpoint.load(path)
    assert checkpoint.digest({k: loaded[k] for k in state()}) == checkpoint.digest(state())
    assert checkpoint.digest(state(3)) != checkpoint.digest(state(4))  # control
    assert list(path.parent.iterdir()) == [path]


def test_every_part_of_the_content_counts():
    base = checkpoint.digest({"a": 1, "b": (1, 2), "c": torch.zeros(2, 3)})
    others = [
        {"a": 1.0, "b": (1, 2), "c": torch.zeros(2, 3)},
        {"a": True, "b": (1, 2), "c": torch.zeros(2, 3)},
        {"a": 1, "b": [1, 2], "c": torch.zeros(2, 3)},
        {"a": 1, "b": (1, 2), "c": torch.zeros(3, 2)},
        {"a": 1, "b": (1, 2), "c": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": 1, "b": (12,), "c": torch.zeros(2, 3)},
        {"x": 1, "b": (1, 2), "c": torch.zeros(2, 3)},
    ]
    assert base not in [checkpoint.digest(o) for o in others]


def test_what_does_not_belong_is_refused_when_saving(tmp_path):
    with pytest.raises(TypeError, match="PosixPath"):
        checkpoint.save(tmp_path / "a.pt", {**state(), "config": {"p": tmp_path}})
    assert list(tmp_path.iterdir()) == []


def test_flipped_bits_are_noticed(path):
    original, silent_for_torch = path.read_bytes(), 0
    reference = checkpoint.digest(checkpoint.load(path))
    draw = random.Random(0)
    for _ in range(300):
        position = draw.randrange(len(original) * 8)
        damaged = bytearray(original)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            assert checkpoint.digest(checkpoint.load(path)) == reference  # zip padding only
            continue
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=True)
            silent_for_torch += 1
    assert silent_for_torch > 150  # control: torch.load alone lets most of them through


def test_truncated_files_are_refused(path):
    original = path.read_bytes()
    for length in range(0, len(original), 64):
        path.write_bytes(original[:length])
        with pytest.raises(CheckpointError, match=path.name):
            checkpoint.load(path)


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    torch.save({"format": "ddpm-checkpoint", "x": Evil(canary)}, path)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Evil(canary)))
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Evil(canary)))
    assert canary.exists()  # control: the pickle does bite


def test_tensors_larger_than_their_storage_and_bombs_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    giant = torch.zeros(1).as_strided((10**12,), (0,))
    torch.save({"format": "ddpm-checkpoint", "format_version": 1, "x": giant}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"0" * 10**7)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_other_files_are_refused_by_name(tmp_path):
    cases = {"empty": b"", "text": b"hello", "png": b"\x89PNG\r\n"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load(tmp_path / name)
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        checkpoint.load(tmp_path / "weights")
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.load(tmp_path / "missing")
    with pytest.raises(CheckpointError):
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
        checkpoint.save(folder / checkpoint.name(step), state(step))
    (folder / "notes.pt").write_text("")
    expected = folder / checkpoint.name(100)
    assert checkpoint.find("latest", tmp_path) == expected
    assert checkpoint.find(str(folder), tmp_path) == expected
    assert checkpoint.find(str(expected), tmp_path) == expected


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_pruning_keeps_the_newest_and_the_best(tmp_path, keep):
    for step in range(1, 9):
        (tmp_path / checkpoint.name(step)).write_text("")
    checkpoint.prune(tmp_path, best_step=2, keep=keep)
    assert list(checkpoint.steps(tmp_path)) == [2, *range(9 - keep, 9)]


def test_a_file_of_the_first_format_stays_loadable():
    """As it was written once, to the bit. A newer format adds a file, and leaves this one."""
    loaded = checkpoint.load(Path(__file__).with_name("format_1.pt"))
    assert checkpoint.digest(loaded) == FORMAT_1
    assert loaded["format_version"] == 1
    assert (loaded["step"], loaded["best"]["loss"]) == (7, 0.125)
    loaded["model"]["half"][0] += 1
    assert checkpoint.digest(loaded) != FORMAT_1  # control
