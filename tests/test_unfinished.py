"""Sampling in constant memory: what is streamed has the bytes of one piece, whatever stops it."""

import gc
import io
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from faults import FORK, child_prelude, count

import sample
import training.unfinished
from training.unfinished import RECORD, Rows
from utils import images
from utils.npz import write_npz

pytest_plugins = "trained"
NUM, BATCH = 11, 2  # six batches, the last of one image
EVERY = ("grid", "png", "gif", "npz")


@pytest.fixture
def flags(trained) -> list[str]:
    """Of a sampling run in six batches, but for --out."""
    ckpt = ["--ckpt", str(trained / "checkpoints/version_0"), "--device", "cpu", "--steps", "3"]
    return [*ckpt, "--num", str(NUM), "--batch-size", str(BATCH), "--save", ",".join(EVERY)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(flags, tmp_path) -> dict[str, bytes]:
    """What a run without interruption leaves."""
    assert sample.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    return contents(tmp_path / "whole")


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """The numbers of the images that are drawn from now on."""
    numbers: list[int] = []
    original = sample.generate

    def counted(model, sampler, indices, *arguments, **options):
        numbers.extend(map(int, indices))
        return original(model, sampler, indices, *arguments, **options)

    monkeypatch.setattr(sample, "generate", counted)
    return numbers


def stop_at(monkeypatch, first: int, number: int = signal.SIGINT) -> None:
    """A signal while the batch that begins with this image is drawn."""
    original = sample.generate

    def stopped(model, sampler, indices, *arguments, **options):
        if first in indices:
            os.kill(os.getpid(), number)
            time.sleep(5)
        return original(model, sampler, indices, *arguments, **options)

    monkeypatch.setattr(sample, "generate", stopped)


@pytest.mark.parametrize("shape", [(5, 4, 6, 1), (5, 4, 6, 3)])
def test_a_streamed_npz_has_the_bytes_of_numpy(shape):
    pixels = torch.randint(256, shape, dtype=torch.uint8).numpy()
    labels, raw = np.arange(5), pixels.tobytes()
    for more in ({}, {"arr_1": labels}):
        streamed, expected = io.BytesIO(), io.BytesIO()
        chunks = (raw[i : i + 50] for i in range(0, len(raw), 50))
        write_npz(streamed, shape, chunks, more)
        np.savez_compressed(expected, arr_0=pixels, **more)
        assert streamed.getvalue() == expected.getvalue()


def test_files_are_those_of_all_images_at_once(whole, model):
    """As sample.py wrote them when it held all images in memory."""
    x_0 = model.sample(NUM, batch_size=BATCH, steps=3)
    titles = [str(i % 10) for i in range(NUM)]
    npz = io.BytesIO()
    pixels = images.to_uint8(x_0).permute(0, 2, 3, 1).numpy()
    np.savez_compressed(npz, arr_0=pixels, arr_1=np.arange(NUM) % 10)
    assert whole["grid.png"] == images.png(images.grid(x_0, titles=titles))
    assert whole["samples.npz"] == npz.getvalue()
    for i, x in enumerate(images.to_uint8(x_0)):
        assert whole[f"{i:05d}.png"] == images.png(x)
    assert len(whole) == NUM + 3  # nothing else


@pytest.mark.parametrize(
    ("batch", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM), (5, signal.SIGINT)]
)
def test_an_interrupted_run_goes_on_with_the_same_bytes(
    flags, whole, drawn, tmp_path, monkeypatch, capsys, batch, number
):
    out, done = tmp_path / "out", batch * BATCH
    command = [*flags, "--out", str(out)]
    with monkeypatch.context() as patch:
        stop_at(patch, done, number)
        assert sample.main(command) == 128 + number
    line = capsys.readouterr().err.splitlines()[-1]
    if batch == 0:
        assert line == "sample.py: interrupted"
        assert not out.exists()
    else:
        there = f"{done} of {NUM} images are there"
        assert line == f"sample.py: interrupted: {there}; the same command goes on"
        left = {RECORD, "samples.partial", "frames.partial"}
        assert contents(out).keys() == left | {f"{i:05d}.png" for i in range(done)}
    drawn.clear()
    assert sample.main(command) == 0
    assert drawn == [*range(done, NUM)]
    assert contents(out) == whole
    assert batch == 0 or f"{there}, from an interrupted run" in capsys.readouterr().out
    assert sample.main(command) == 2  # control: what is finished is not drawn again
    assert "exists" in capsys.readouterr().err


def killed_child(argv: list[str], hit: int) -> None:
    """sample.py, killed at its hit-th flush of a file."""
    child_prelude()
    original, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == hit:
            os.kill(os.getpid(), signal.SIGKILL)
        original(handle)

    os.fsync = fsync
    os._exit(sample.main(argv))


HITS = [1, 8, 20, 33, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 54, 3))]


@pytest.mark.parametrize("hit", HITS)
def test_after_kill_9_only_what_is_missing_is_drawn(flags, whole, drawn, tmp_path, hit):
    """Within a picture, a raw array, the record, or the files that are made at the end."""
    out = tmp_path / "out"
    command = [*flags, "--out", str(out)]
    process = FORK.Process(target=killed_child, args=(command, hit))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not {"samples.npz", "reverse_process.gif"} & contents(out).keys() or hit > 50
    done = json.loads((out / RECORD).read_text())["done"] if (out / RECORD).exists() else 0
    drawn.clear()
    assert sample.main(command) == 0
    assert drawn == [*range(done, NUM)]
    assert contents(out) == whole
    count("SIGKILL while samples are written", 1, 1, "only what is missing is drawn, equal bytes")


@pytest.fixture
def half(flags, tmp_path, monkeypatch, capsys) -> list[str]:
    """The command of a run that was interrupted when six images were there."""
    command = [*flags, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        assert sample.main(command) == 130
    capsys.readouterr()
    return command


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["--seed", "1"], "seed 0"),
        (["--num", "12"], "num 11"),
        (["--steps", "4"], "steps 3"),
        (["--classes", "7"], "classes None"),
        (["--batch-size", "3"], "batch_size 2"),
        (["--save", "npz"], "save grid,png,gif,npz"),
        (["--ckpt", "version_1"], "checkpoint "),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_images_of_another_run_are_refused_or_drawn_anew(
    half, trained, drawn, tmp_path, capsys, other, named
):
    if other[0] == "--ckpt":
        other = ["--ckpt", str(trained / "checkpoints" / other[1])]
    before = contents(tmp_path / "out")
    assert sample.main([*half, *other]) == 2
    error = capsys.readouterr().err
    assert f"interrupted run with {named}" in error
    assert error.count("\n") == 1
    assert contents(tmp_path / "out") == before
    assert drawn == []
    assert sample.main([*half, *other, "--overwrite"]) == 0
    assert drawn[0] == 0
    assert RECORD not in contents(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"done": 6, "of": 1}', "\0"])
def test_a_record_that_says_nothing_is_refused(half, tmp_path, capsys, text):
    (tmp_path / "out" / RECORD).write_text(text)
    assert sample.main(half) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_overwrite_goes_on_as_well(half, whole, drawn, tmp_path):
    """It may be a part of the command that was interrupted."""
    assert sample.main([*half, "--overwrite"]) == 0
    assert drawn == [*range(6, NUM)]
    assert contents(tmp_path / "out") == whole


def test_two_ranks_go_on_with_the_same_batches(half, whole, tmp_path):
    assert ranks.script(2, sample.main, half) == [0, 0]
    assert contents(tmp_path / "out") == whole


def test_what_was_deleted_meanwhile_is_drawn_again(half, whole, drawn, tmp_path):
    (tmp_path / "out/00003.png").unlink()
    (tmp_path / "out/.00007.png.1.partial").write_bytes(b"of a killed process")
    assert sample.main(half) == 0
    assert drawn == [*range(2, NUM)]  # its whole batch
    assert contents(tmp_path / "out") == whole


def test_a_full_disk_keeps_what_is_there(flags, whole, drawn, tmp_path, monkeypatch, capsys):
    command = [*flags, "--out", str(tmp_path / "out")]
    original = Rows.append

    def full(rows, pixels, first):
        if first == 4:
            raise OSError(28, "No space left on device")
        original(rows, pixels, first)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "append", full)
        assert sample.main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device; 4 of 11 images are there, the same command goes on" in error
    drawn.clear()
    assert sample.main(command) == 0
    assert drawn == [*range(4, NUM)]
    assert contents(tmp_path / "out") == whole


def most_image_bytes(argv: list[str], held: list | None = None) -> int:
    """Bytes of all images in memory at most, looked at before every batch and every file.

    held: where a fault keeps what is drawn.
    """
    most = []

    def watch(patch, owner, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments, **options):
            found = [x for x in gc.get_objects() if type(x) in (torch.Tensor, np.ndarray)]
            most.append(sum(x.nbytes for x in found if tuple(x.shape[-2:]) == (28, 28)))
            result = original(*arguments, **options)
            if held is not None and name == "generate":
                held.extend(result)
            return result

        patch.setattr(owner, name, watched)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((sample, "generate"), (sample, "write_npz")):
            watch(patch, owner, name)
        assert sample.main(argv) == 0
    return max(most)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(flags, tmp_path):
    def most(num: int, held: list | None = None) -> int:
        out = tmp_path / f"{num}-{held is None}"
        own = ["--save", "npz,png", "--num", str(num), "--batch-size", "4", "--out", str(out)]
        return most_image_bytes([*flags, *own], held)

    assert most(8) == most(20) > 0
    assert most(8, []) < most(20, [])  # control


def test_a_grid_shows_the_first_images(flags, tmp_path, monkeypatch, capsys):
    grids = []
    for shown, num, save in ((5, 11, "npz,grid,gif"), (1000, 5, "grid,gif")):
        for owner in (sample, training.unfinished):
            monkeypatch.setattr(owner, "SHOWN", shown)
        out = tmp_path / str(num)
        argv = [*flags, "--num", str(num), "--save", save, "--out", str(out)]
        assert sample.main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert ("grid and gif: of the first 5 images" in lines) == (num > shown)
        grids.append([contents(out)[name] for name in ("grid.png", "reverse_process.gif")])
    assert grids[0] == grids[1]


def test_a_grid_alone_of_too_many_images_is_refused(flags, tmp_path, capsys):
    argv = [*flags, "--num", "1001", "--save", "grid,gif", "--out", str(tmp_path / "out")]
    assert sample.main(argv) == 2
    assert "add png or npz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
