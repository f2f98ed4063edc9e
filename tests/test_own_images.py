"""Own images from the command line: trained on, resumed, drawn by the names of their classes."""

import hashlib
import shutil

import numpy as np
import pytest
from faults import NETWORK
from PIL import Image
from test_folder import fill, put

import evaluate
import sample
import train
from sample import load
from utils import checkpoint

RUN = [
    *NETWORK[NETWORK.index("--device") :],
    "--dataset",
    "folder",
    "--data-root",
    "pets",
    "--patch-size",
    "4",
]


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A folder to run in, with 40 images of three classes."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pets", "cat", "dog", "9", "10")
    return tmp_path


def steps(n: int) -> list[str]:
    return [*RUN, "--max-steps", str(n)]


def test_classes_are_known_by_their_names(pets, capsys):
    assert train.main(steps(2)) == 0
    out = capsys.readouterr().out
    assert "4 classes: 9 9, 10 9, cat 9, dog 9" in out
    ckpt = checkpoint.load(checkpoint.find("latest", pets / "Logs_Checkpoints"))
    assert ckpt["data"]["class_names"] == ["9", "10", "cat", "dog"]
    assert load(device="cpu").class_names == ("9", "10", "cat", "dog")
    draw = ["--ckpt", "latest", "--steps", "2", "--save", "npz", "--device", "cpu", "--num", "3"]
    assert sample.main([*draw, "--classes", "dog,10", "--out", "out"]) == 0
    with np.load("out/samples.npz") as arrays:
        assert arrays["arr_1"].tolist() == [3, 1, 3]
    assert sample.main([*draw, "--classes", "2", "--out", "other"]) == 2
    assert "no class '2'; the classes are 9, 10, cat, dog" in capsys.readouterr().err
    assert not (pets / "other").exists()
    drawn = load(device="cpu").sample(classes=["dog", 1], num=3, steps=2)
    assert np.array_equal(
        ((drawn + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(),
        np.load("out/samples.npz")["arr_0"],
    )


def test_classes_with_commas_or_signs_are_chosen_by_their_names(pets, capsys):
    fill(pets / "odd", "Smith, John", "-1", "0.5", "cat")
    odd = [*steps(1), "--data-root", "odd"]
    assert train.main([*odd, "--classes", "cat,Smith, John"]) == 0
    assert "2 classes: Smith, John 9, cat 9" in capsys.readouterr().out
    draw = ["--ckpt", "latest", "--steps", "2", "--save", "npz", "--device", "cpu", "--num", "3"]
    assert sample.main([*draw, "--classes", "Smith, John,cat", "--out", "out"]) == 0
    with np.load("out/samples.npz") as arrays:
        assert arrays["arr_1"].tolist() == [0, 1, 0]
    assert train.main(["--resume", "auto", "--max-steps", "2", "--device", "cpu"]) == 0
    assert load(device="cpu").class_names == ("Smith, John", "cat")
    assert train.main([*odd, "--classes=-1-0.5", "--dry-run"]) == 0
    assert "2 classes: -1 9, 0.5 9" in capsys.readouterr().out
    assert train.main([*odd, "--classes", "Smith", "--dry-run"]) == 2
    assert "no class 'Smith'" in capsys.readouterr().err


@pytest.mark.usefixtures("pets")
def test_chosen_classes_alone_are_trained_on_resumed_and_evaluated(capsys):
    assert train.main([*steps(2), "--classes", "dog,9"]) == 0
    assert "2 classes: 9 9, dog 9" in capsys.readouterr().out
    assert train.main(["--resume", "auto", "--max-steps", "3", "--device", "cpu"]) == 0
    assert load(device="cpu").class_names == ("9", "dog")
    evaluate_held_out = ["--ckpt", "latest", "--only", "held-out", "--device", "cpu"]
    assert evaluate.main(evaluate_held_out) == 0
    assert train.main(["--resume", "auto", "--classes", "cat", "--device", "cpu"]) == 2
    assert "--classes: ('dog', '9') -> ('cat',) does not fit" in capsys.readouterr().err


def test_the_run_shows_what_it_learns(pets):
    assert train.main(steps(1)) == 0
    logs = pets / "Logs_Checkpoints/Inference/version_0"
    assert (logs / "data.png").is_file()
    sheet = np.array(Image.open(logs / "data.png"))
    assert sheet.shape[2] == 3
    with Image.open(pets / "pets/cat/000.png") as image:
        tile = np.array(image)
    tiles = np.lib.stride_tricks.sliding_window_view(sheet, (16, 16, 3))[:, :, 0]
    assert (tiles == tile).all((-3, -2, -1)).any()  # each of the 36 images is in it, or held out


def test_dry_run_shows_it_too(pets, capsys):
    assert train.main([*steps(1), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "36 training and 4 held-out images" in out
    assert "images as the network gets them: Logs_Checkpoints/cache/data.png" in out
    assert not (pets / "Logs_Checkpoints/Inference").exists()


def test_a_resumed_run_refuses_changed_images(pets, capsys):
    assert train.main(steps(2)) == 0
    kept = (pets / "pets/cat/000.png").read_bytes()
    for n in range(40):
        put(pets / "pets" / ("cat", "dog", "9", "10")[n // 10] / f"{n % 10:03d}.png", 100 + n)
    again = ["--resume", "auto", "--max-steps", "3", "--device", "cpu"]
    assert train.main(again) == 2
    assert "not those this run was trained on" in capsys.readouterr().err
    assert evaluate.main(["--ckpt", "latest", "--only", "held-out", "--device", "cpu"]) == 2
    shutil.rmtree(pets / "pets")
    fill(pets / "pets", "cat", "dog", "9", "10")
    assert (pets / "pets/cat/000.png").read_bytes() == kept
    assert train.main(again) == 0  # control


def test_a_run_goes_on_without_images_that_are_gone(pets, capsys):
    """With the same held-out images; and again after they came back."""
    assert train.main(steps(2)) == 0
    first = checkpoint.load(checkpoint.find("latest", pets / "Logs_Checkpoints"))["data"]
    digests = {bytes(row) for row in first["digests"].tolist()}
    paths = sorted((pets / "pets").rglob("*.png"))
    trained = [p for p in paths if hashlib.sha256(p.read_bytes()).digest() in digests]
    assert len(trained) == 36
    kept = trained[0].read_bytes()
    trained[0].write_bytes(kept[:50])
    trained[1].unlink()
    again = ["--resume", "auto", "--device", "cpu", "--max-steps"]
    assert train.main([*again, "3"]) == 2
    assert "--skip-damaged" in capsys.readouterr().err
    assert train.main([*again, "3", "--skip-damaged"]) == 0
    out = capsys.readouterr().out
    assert "2 of 36 training images are gone since the start" in out
    assert "34 training and 4 held-out images" in out
    assert train.main([*again, "4"]) == 0  # the flag is stored
    trained[0].write_bytes(kept)
    assert train.main([*again, "5"]) == 0


def test_evaluation_says_what_it_reads_and_what_changed(pets, capsys):
    assert train.main(steps(2)) == 0
    known = checkpoint.load(checkpoint.find("latest", pets / "Logs_Checkpoints"))["data"]
    held_out = {bytes(row) for row in known["held_out"].tolist()}
    own = ["--ckpt", "latest", "--only", "held-out", "--device", "cpu"]
    capsys.readouterr()
    assert evaluate.main(own) == 0
    out = capsys.readouterr().out
    assert "sizes (height x width): 16x16" in out
    assert "since the start" not in out  # control
    put(pets / "pets/cat/new.png", 999)
    (pets / "pets/notes.txt").write_text("x")
    for path in sorted((pets / "pets").rglob("*.png")):
        if hashlib.sha256(path.read_bytes()).digest() in held_out:
            path.unlink()
            break
    assert evaluate.main([*own, "--skip-damaged"]) == 0
    out = capsys.readouterr().out
    for line in (
        "1 image is new since the start of the run: left out",
        "1 of 4 held-out images are gone or changed since the start",
        "left out: 1 not images",
    ):
        assert f"{line}\n" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-classes", "3"], "(all 4 of folder)"),
        (["--num-classes", "9"], "(all 4 of folder)"),
        (["--image-size", "18"], "multiple of 4"),
        (["--classes", "bird"], "no class 'bird'; the classes are 9, 10, cat, dog"),
        (["--background", "whitish"], "--background takes white"),
        (["--image-channels", "4", "--background", "red"], "no effect on --image-channels 4"),
        (["--data-root", "nowhere"], "there is no nowhere"),
        (["--data-root", "notes.csv"], "cannot read images from notes.csv"),
        (["--data-root", "bad"], "2 files cannot be read"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(pets, capsys, flags, words):
    (pets / "notes.csv").write_text("x")
    fill(pets / "bad", "", each=3)
    for n in range(2):
        (pets / f"bad/{n:03d}.png").write_bytes(b"bad")
    before = sorted(path.name for path in pets.iterdir())
    assert train.main([*steps(2), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in pets.iterdir()) == before


@pytest.mark.parametrize("flag", ["--image-size", "--image-channels"])
def test_sizes_and_channels_are_checked_as_typed(capsys, flag):
    with pytest.raises(SystemExit) as stop:
        train.main([*steps(1), flag, "2x"])
    assert stop.value.code == 2
    assert "takes" in capsys.readouterr().err
