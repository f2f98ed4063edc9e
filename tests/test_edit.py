"""Real images edited from the command line: every verb, every kind of image, every bad input."""

import os

import numpy as np
import pytest
import torch
from faults import NETWORK
from PIL import Image
from test_folder import fill

import data
import edit
import train
from data.pictures import SIDES, named_mask
from sample import load
from utils import images
from utils.images import normalize

pytest_plugins = "trained"
pytestmark = pytest.mark.usefixtures("few_drawn")
FAST = {
    "vary": ["--num", "2"],
    "reconstruct": ["--steps", "6"],
    "interpolate": ["--num", "3", "--steps", "6"],
    "inpaint": ["--mask", "left", "--num", "2", "--steps", "6", "--resample", "2"],
    "denoise": ["--sigma", "0.5"],
    "classify": [],
}


@pytest.fixture
def run(trained, tmp_path):
    """Edit with these words; the arrays of the npz, and the folder it lies in."""

    def edited(verb, *words, version=0):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        ckpt = ["--ckpt", str(trained / f"checkpoints/version_{version}"), "--device", "cpu"]
        flags = [*ckpt, "--out", str(out), "--save", "grid,npz", *FAST[verb]]
        assert edit.main([verb, *flags, *words]) == 0
        with np.load(out / "images.npz", allow_pickle=False) as arrays:
            return dict(arrays), out

    return edited


@pytest.fixture(scope="module")
def test_images():
    """Of the run, uint8 (N, 28, 28, 1), and their labels."""
    with pytest.MonkeyPatch.context() as patch:
        from trained import open_few_digits

        patch.setitem(data.datasets.DATASETS, "digits", open_few_digits)
        _, own = data.load_splits(data.DataOptions("digits"))
    return own.images.permute(0, 2, 3, 1).numpy(), own.labels.tolist()


@pytest.mark.parametrize("verb", FAST)
def test_every_verb_and_every_kind_of_file(trained, tmp_path, capsys, verb):
    image = ["test:3", "test:4"] if verb == "interpolate" else ["test:3"]
    formats = "grid,npz" if verb == "classify" else "grid,png,gif,npz"
    flags = ["--run-root", str(trained), "--ckpt", "version_0", "--device", "cpu"]
    words = [verb, *image, *flags, "--save", formats, "--out", str(tmp_path), *FAST[verb]]
    assert edit.main(words) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith(f"step 12; {verb}, {', '.join(image)}")
    count = {"interpolate": 3, "vary": 2, "inpaint": 2}.get(verb, 1)
    numbered = [] if verb == "classify" else [f"{i:05d}.png" for i in range(count)]
    others = ["grid.png", "images.npz"] + ([] if verb == "classify" else ["process.gif"])
    assert sorted(os.listdir(tmp_path)) == sorted([*numbered, *others])
    assert any("network evaluations" in line for line in lines)
    assert all(any(str(tmp_path / name) in line for line in lines) for name in others)
    with np.load(tmp_path / "images.npz") as arrays:
        assert arrays["arr_0"].shape == (count, 28, 28, 1)
        if numbered:
            single = np.asarray(Image.open(tmp_path / numbered[-1]))
            assert np.array_equal(arrays["arr_0"][-1, :, :, 0], single)
    if verb != "classify":
        assert Image.open(tmp_path / "process.gif").n_frames > 3
    before = (tmp_path / "grid.png").read_bytes()
    assert edit.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "grid.png").read_bytes() == before
    assert edit.main([*words, "--overwrite"]) == 0


def test_inpainting_keeps_what_is_known_to_the_byte(run, test_images):
    pixels, _ = test_images
    arrays, _ = run("inpaint", "test:3-5", "--mask", "left")
    expected = pixels[3:6].repeat(2, axis=0)
    assert np.array_equal(arrays["arr_0"][:, :, 14:], expected[:, :, 14:])
    assert not np.array_equal(arrays["arr_0"][:, :, :14], expected[:, :, :14])
    assert not np.array_equal(arrays["arr_0"][0], arrays["arr_0"][1])


@pytest.mark.parametrize("name", SIDES)
def test_the_named_masks(name):
    mask = named_mask(name, (8, 12))
    assert mask.sum() == (24 if name == "centre" else 48)
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    expected = {
        "left": (0, 7, 0, 5),
        "right": (0, 7, 6, 11),
        "top": (0, 3, 0, 11),
        "bottom": (4, 7, 0, 11),
        "centre": (2, 5, 3, 8),
    }
    assert (*rows[[0, -1]].tolist(), *columns[[0, -1]].tolist()) == expected[name]


def test_a_mask_is_white_where_it_is_filled_in(run, test_images, tmp_path):
    pixels, _ = test_images
    mask = np.zeros((56, 56), dtype=np.uint8)
    mask[:28, 28:] = 255  # fitted like the images: to half the size
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arrays, _ = run("inpaint", "test:3", "--mask", str(tmp_path / "mask.png"))
    same = arrays["arr_0"][0, :, :, 0] == pixels[3, :, :, 0]
    assert same[14:].all()
    assert same[:, :14].all()
    assert not same[:13, 15:].all()


def test_images_are_those_of_the_test_set_a_file_a_folder_and_arrays(run, test_images, tmp_path):
    """The same pixels, however they are named, give the same result."""
    pixels, labels = test_images
    (tmp_path / "pictures/more").mkdir(parents=True)
    Image.fromarray(pixels[3, :, :, 0]).save(tmp_path / "pictures/2.png")
    Image.fromarray(pixels[4, :, :, 0]).save(tmp_path / "pictures/more/10.png")
    (tmp_path / "pictures/notes.txt").write_text("no picture")
    np.savez(tmp_path / "own.npz", arr_0=pixels[3:5], arr_1=np.array(labels[3:5]))
    classes = ["--classes", f"{labels[3]},{labels[4]}"]
    found = {}
    for word in ("test:3-4", "pictures", "own.npz"):
        path = word if word.startswith("test:") else str(tmp_path / word)
        known = [] if word != "pictures" else classes
        found[word], _ = run("reconstruct", path, *known)
    for arrays in found.values():
        assert np.array_equal(arrays["arr_0"], found["test:3-4"]["arr_0"])
    alone, _ = run("reconstruct", str(tmp_path / "pictures/2.png"), "--classes", str(labels[3]))
    assert np.abs(alone["arr_0"][0].astype(int) - found["pictures"]["arr_0"][0]).max() <= 1
    unconditional, _ = run("reconstruct", str(tmp_path / "pictures"))  # control
    assert not np.array_equal(unconditional["x_T"], found["pictures"]["x_T"])


@pytest.mark.parametrize("verb", ["vary", "inpaint", "denoise"])
def test_an_image_depends_on_its_seed_and_number_only(run, verb):
    together, _ = run(verb, "test:0-2", "--steps", "4")
    apart, _ = run(verb, "test:0-2", "--steps", "4", "--batch-size", "2")
    assert np.abs(together["arr_0"].astype(int) - apart["arr_0"]).max() <= 1
    fewer, _ = run(verb, "test:0-1", "--steps", "4")
    first = together["arr_0"][: len(fewer["arr_0"])]
    assert np.abs(first.astype(int) - fewer["arr_0"]).max() <= 1
    other, _ = run(verb, "test:0-2", "--steps", "4", "--seed", "1")
    assert np.abs(together["arr_0"].astype(int) - other["arr_0"]).max() > 20  # control


def test_a_smaller_strength_changes_less(run, test_images):
    pixels, _ = test_images
    changed = []
    for strength in ("0.05", "0.3", "1"):
        arrays, _ = run("vary", "test:0-3", "--strength", strength)
        difference = arrays["arr_0"].astype(int) - pixels[:4].repeat(2, axis=0)
        changed.append(np.abs(difference).mean())
    assert changed == sorted(changed)
    assert changed[-1] > 2 * changed[0]


def test_reconstruction_finds_the_image_again(run, test_images, capsys):
    pixels, _ = test_images
    errors = []
    for steps in ("10", "50"):
        arrays, _ = run("reconstruct", "test:0-1", "--steps", steps)
        difference = arrays["arr_0"].astype(int) - pixels[:2]
        errors.append(np.sqrt((difference / 127.5) ** 2).mean())
        assert "RMSE 0." in capsys.readouterr().out
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.02


def test_interpolation_begins_and_ends_at_the_images(run, test_images):
    pixels, _ = test_images
    arrays, _ = run("interpolate", "test:0", "test:1", "--steps", "50")
    for i, expected in ((0, pixels[0]), (-1, pixels[1])):
        assert np.abs(arrays["arr_0"][i].astype(int) - expected).mean() < 3
    assert np.abs(arrays["arr_0"][1].astype(int) - pixels[0]).mean() > 3  # control


def test_random_ends_are_the_images_that_sample_draws(run, trained):
    arrays, _ = run("interpolate", "random", "random", "--classes", "3,7", "--seed", "5")
    model = load(trained / "checkpoints/version_0", device="cpu")
    options = {"sampler": "ddim", "steps": 6, "guidance": 1.0, "seed": 5}
    expected = images.to_uint8(model.sample(classes=[3, 7], **options)).permute(0, 2, 3, 1)
    for i in (0, -1):
        assert np.abs(arrays["arr_0"][i].astype(int) - expected[i].numpy()).max() <= 1
    assert np.abs(arrays["arr_0"][0].astype(int) - expected[1].numpy()).max() > 20  # control


def test_denoising_says_what_is_left(run, capsys):
    arrays, _ = run("denoise", "test:0-7", "--sigma", "1", "--add-noise")
    lines = capsys.readouterr().out.splitlines()
    left = {line.split(":")[0]: float(line.split("RMSE ")[1].split()[0]) for line in lines[2:5]}
    assert left["noisy"] == pytest.approx(1, rel=0.05)
    assert left["one step"] < 0.95 * left["noisy"]
    assert arrays["one_step"].shape == (8, 1, 28, 28)


def test_classes_and_their_bounds(run, test_images, capsys):
    _, labels = test_images
    arrays, _ = run("classify", "test:0-2")
    out = capsys.readouterr().out
    right = sum(np.array(labels[:3]) == arrays["arr_1"])
    assert f"right: {right} of 3" in out
    assert "test:0: " in out
    assert arrays["bounds"].shape == (3, 10)
    assert np.array_equal(arrays["bounds"].argmin(1), arrays["arr_1"])


def test_the_methods_do_what_the_script_does(run, trained, test_images):
    pixels, labels = test_images
    arrays, _ = run("vary", "test:3-4", "--strength", "0.5", "--seed", "2")
    model = load(trained / "checkpoints/version_0", device="cpu")
    x_0 = normalize(torch.from_numpy(pixels[3:5]).permute(0, 3, 1, 2))
    classes = [label for label in labels[3:5] for _ in range(2)]
    found = model.vary(x_0, 0.5, classes, num=2, seed=2)
    assert np.array_equal(images.to_uint8(found).permute(0, 2, 3, 1).numpy(), arrays["arr_0"])


def test_an_unconditional_network_edits_too(run):
    for verb in ("vary", "reconstruct", "inpaint", "denoise"):
        run(verb, "test:3", version=1)
    run("interpolate", "test:3", "random", version=1)


def test_colour_images_of_a_folder(tmp_path, monkeypatch):
    """Of the run's own settings: size, channels, fit and background."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pets", "cat", "dog")
    network = [*NETWORK[NETWORK.index("--device") :], "--patch-size", "4", "--max-steps", "2"]
    own = ["--dataset", "folder", "--data-root", "pets", "--fit", "pad", "--background", "red"]
    assert train.main([*network, *own]) == 0
    _, height, width = load(device="cpu").image_shape
    wide = Image.new("RGBA", (4 * width, height), (0, 255, 0, 255))
    wide.putpixel((0, 0), (0, 0, 0, 0))
    wide.save("wide.png")
    flags = ["--ckpt", "latest", "--device", "cpu", "--save", "npz", "--steps", "3"]
    for word in ("wide.png", "test:0"):
        more = ["--mask", "top", "--num", "1", "--resample", "1", "--out", f"out-{word[:4]}"]
        assert edit.main(["inpaint", word, *flags, *more]) == 0
    pixels = np.load("out-wide/images.npz")["arr_0"]
    assert pixels.shape == (1, height, width, 3)
    assert pixels[0, -1, 0].tolist() == [255, 0, 0]  # padded with the background
    assert pixels[0, height // 2, width // 2, 1] > 200
    assert edit.main(["classify", "pets", *flags[:4], "--out", "named"]) == 0


BAD = {
    "no verb": [],
    "another verb": ["upscale", "test:3"],
    "verb behind": ["test:3", "vary"],
    "no image": ["vary"],
    "no such file": ["vary", "nowhere.png"],
    "no picture": ["vary", "notes.txt"],
    "damaged": ["vary", "damaged.png"],
    "empty folder": ["vary", "empty"],
    "no arrays": ["vary", "bad.npz"],
    "beyond the test set": ["vary", "test:300"],
    "backwards": ["vary", "test:4-3"],
    "not a number": ["vary", "test:x"],
    "strength": ["vary", "test:3", "--strength", "0"],
    "strength nan": ["vary", "test:3", "--strength", "nan"],
    "steps beyond the start": ["vary", "test:3", "--strength", "0.1", "--steps", "40"],
    "num": ["vary", "test:3", "--num", "0"],
    "class": ["vary", "test:3", "--classes", "11"],
    "classes": ["vary", "test:3", "--num", "1", "--classes", "0-9"],
    "format": ["vary", "test:3", "--save", "jpg"],
    "format of a verb": ["classify", "test:3", "--save", "gif"],
    "flag of another verb": ["vary", "test:3", "--sigma", "1"],
    "noise": ["reconstruct", "test:3", "--sampler", "ddpm"],
    "eta": ["reconstruct", "test:3", "--eta", "0.5"],
    "three ends": ["interpolate", "test:3", "test:4", "test:5"],
    "one end": ["interpolate", "test:3"],
    "an end of two": ["interpolate", "test:3-4", "test:5"],
    "interpolate num": ["interpolate", "test:3", "test:4", "--num", "1"],
    "no mask": ["inpaint", "test:3"],
    "no such mask": ["inpaint", "test:3", "--mask", "middle"],
    "black mask": ["inpaint", "test:3", "--mask", "black.png"],
    "white mask": ["inpaint", "test:3", "--mask", "white.png"],
    "jump": ["inpaint", "test:3", "--mask", "left", "--jump", "0"],
    "restart": ["inpaint", "test:3", "--mask", "left", "--restart", "2"],
    "sigma": ["denoise", "test:3", "--sigma", "-1"],
    "sigma too large": ["denoise", "test:3", "--sigma", "1e8"],
    "no sigma": ["denoise", "test:3"],
    "sampling flags": ["classify", "test:3", "--steps", "3"],
    "data root": ["vary", "black.png", "--data-root", "x"],
    "checkpoint": ["vary", "test:3", "--ckpt", "nowhere"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_on_disk(
    trained, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    np.savez(tmp_path / "bad.npz", weights=np.zeros(3))
    Image.new("L", (28, 28), 0).save("black.png")
    Image.new("L", (28, 28), 255).save("white.png")
    before = sorted(os.listdir(tmp_path))
    flags = ["--ckpt", str(trained / "checkpoints/version_0"), "--device", "cpu", "--out", "a/b"]
    argv = BAD[name]
    words = [*argv, *(flag for flag in flags if "--ckpt" not in argv or flag not in flags[:2])]
    try:
        code = edit.main(words if argv else [])
    except SystemExit as e:
        code = e.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("edit.py")
    assert ": error: " in captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert sorted(os.listdir(tmp_path)) == before


def test_what_needs_classes_is_refused_without(trained, tmp_path, capsys):
    ckpt = ["--ckpt", str(trained / "checkpoints/version_1"), "--out", str(tmp_path / "a")]
    for words in (["classify", "test:3"], ["vary", "test:3", "--classes", "1"]):
        assert edit.main([*words, *ckpt]) == 2
        assert "without classes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_is_one_process(trained, monkeypatch, capsys):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "29500"}
    for name, value in (variables | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, value)
    ckpt = ["--ckpt", str(trained / "checkpoints/version_0"), "--device", "cpu"]
    assert edit.main(["vary", "test:3", *ckpt]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_help_says_what_there_is(trained, capsys):
    for words in (
        ["--help"],
        ["vary", "--run-root", str(trained), "--ckpt", "version_0", "--help"],
    ):
        with pytest.raises(SystemExit) as ended:
            edit.main(words)
        assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "There is no upscaling" in out
    assert all(verb.about.split("(")[0] in out for verb in edit.VERBS.values())
    assert "two network evaluations" in out
