"""Sampling from a checkpoint alone: every kind of file, every sampler, always the same images."""

import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import sample

pytest_plugins = "trained"


@pytest.fixture
def draw(trained, tmp_path):
    """Draw with these flags; the pixels and the labels."""

    def run(*argv, version=0):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        folder = trained / f"checkpoints/version_{version}"
        flags = ["--ckpt", str(folder), "--save", "npz", "--out", str(out), "--device", "cpu"]
        assert sample.main([*flags, *argv]) == 0
        with np.load(out / "samples.npz", allow_pickle=False) as arrays:
            return arrays["arr_0"], arrays.get("arr_1")

    return run


def test_the_checkpoint_is_all_it_needs(trained, tmp_path, monkeypatch, capsys):
    """From another folder, from a copy of the file, on the CPU."""
    source = next((trained / "checkpoints/version_0").iterdir())
    (tmp_path / "a/b/c").mkdir(parents=True)
    moved = shutil.copy(source, tmp_path / "a/b/c/moved.pt")
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--ckpt", str(moved), "--num", "4", "--device", "cpu"]) == 0
    line, path = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{moved}: step 12; ddpm, 5 steps, 8 network evaluations, guidance 1.2 for t / T in"
    )
    assert Image.open(path).format == "PNG"


def test_every_kind_of_file(trained, tmp_path, capsys):
    flags = ["--run-root", str(trained), "--ckpt", "latest", "--num", "3", "--out", str(tmp_path)]
    assert sample.main([*flags, "--save", "grid,png,gif,npz"]) == 0
    names = ["grid.png", "00000.png", "00001.png", "00002.png"]
    names += ["reverse_process.gif", "samples.npz"]
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("; 3 images, seed 0")
    shown = ["grid.png", "reverse_process.gif", "samples.npz", "00000.png ... 00002.png (3 files)"]
    assert lines == [str(tmp_path / name) for name in shown]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert Image.open(tmp_path / "00001.png").size == (28, 28)
    assert Image.open(tmp_path / "reverse_process.gif").n_frames == 6  # x_T and 5 steps
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 28, 28, 1)
        assert arrays["arr_0"].dtype == np.uint8
        single = np.asarray(Image.open(tmp_path / "00001.png"))
        assert np.array_equal(arrays["arr_0"][1, :, :, 0], single)


@pytest.mark.parametrize(("ckpt", "steps"), [("latest", "[5]"), ("none", "[the checkpoint's]")])
def test_help_shows_the_settings_of_the_checkpoint_where_there_is_one(trained, capsys, ckpt, steps):
    with pytest.raises(SystemExit):
        sample.main(["--run-root", str(trained), "--ckpt", ckpt, "--help"])
    assert f"of heun twice as many {steps}" in " ".join(capsys.readouterr().out.split())


def test_files_are_not_overwritten_unless_asked(trained, tmp_path, capsys):
    flags = ["--ckpt", str(trained / "checkpoints/version_0"), "--num", "2", "--out", str(tmp_path)]
    assert sample.main(flags) == 0
    before = (tmp_path / "grid.png").read_bytes()
    assert sample.main([*flags, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "grid.png").read_bytes() == before
    assert sample.main([*flags, "--seed", "1", "--overwrite"]) == 0
    assert (tmp_path / "grid.png").read_bytes() != before


UNIPC = ["--sampler", "unipc", "--order", "3", "--spacing", "log-snr"]


@pytest.mark.parametrize(
    ("sampler", "version"),
    [
        (["--sampler", "ddpm"], 0),
        pytest.param(["--sampler", "ddpm", "--variance", "beta"], 1, marks=pytest.mark.slow),
        pytest.param(["--sampler", "ddim"], 0, marks=pytest.mark.slow),
        (["--sampler", "ddim", "--eta", "0.7"], 1),
        pytest.param(["--sampler", "dpmpp"], 0, marks=pytest.mark.slow),
        (["--sampler", "dpmpp", "--eta", "1"], 1),
        (["--sampler", "heun", "--churn", "9", "--spacing", "karras"], 0),
        pytest.param(
            ["--sampler", "unipc", "--order", "3", "--spacing", "log-snr"],
            1,
            marks=pytest.mark.slow,
        ),
        (["--restart", "2", "--restart-interval", "0.2", "0.8"], 0),
    ],
)
def test_an_image_depends_on_its_seed_and_number_only(draw, sampler, version):
    together, labels = draw(*sampler, "--num", "7", version=version)
    assert (labels is None) == (version == 1)
    for flags in (["--batch-size", "1"], ["--batch-size", "3"]):
        apart, _ = draw(*sampler, "--num", "7", *flags, version=version)
        assert np.abs(together.astype(int) - apart).max() <= 1
    fewer, _ = draw(*sampler, "--num", "4", version=version)
    assert np.abs(together[:4].astype(int) - fewer).max() <= 1
    again, _ = draw(*sampler, "--num", "7", version=version)
    assert np.array_equal(together, again)
    other, _ = draw(*sampler, "--num", "7", "--seed", "1", version=version)
    assert np.abs(together.astype(int) - other).max() > 50  # control


def test_classes_and_guidance(draw):
    _, labels = draw("--num", "5", "--classes", "7")
    assert labels.tolist() == [7] * 5
    _, labels = draw("--num", "5", "--classes", "3,1,4")
    assert labels.tolist() == [3, 1, 4, 3, 1]
    plain, labels = draw("--num", "12")
    assert labels.tolist() == [*range(10), 0, 1]
    guided, _ = draw("--num", "12", "--guidance", "4")
    assert not np.array_equal(plain, guided)
    within, _ = draw("--num", "12", "--guidance", "4", "--guidance-interval", "0.2", "0.5")
    assert not np.array_equal(plain, within)
    assert not np.array_equal(guided, within)


@pytest.mark.parametrize(
    "argv",
    [
        ["--num", "0"],
        ["--steps", "51"],
        ["--save", "grid,jpg"],
        ["--classes", "3-1"],
        ["--sampler", "ddpm", "--eta", "0.5"],
        ["--sampler", "heun", "--churn", "1e-9"],
        ["--restart", "1", "--restart-interval", "0.5", "0.51"],
        ["--ckpt", "nowhere"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_on_disk(trained, tmp_path, capsys, argv):
    flags = ["--ckpt", str(trained / "checkpoints/version_0"), "--out", str(tmp_path / "a/b/c")]
    try:
        code = sample.main([*flags, *argv])
    except SystemExit as e:
        code = e.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("sample.py: error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_that_need_classes_are_refused_without(trained, capsys):
    for flags in (["--classes", "1"], ["--guidance", "2"]):
        assert sample.main(["--ckpt", str(trained / "checkpoints/version_1"), *flags]) == 2
        assert "without classes" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    flags = ["--ckpt", str(trained / "checkpoints/version_0"), "--num", "1"]
    assert sample.main([*flags, "--out", str(tmp_path / "file" / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_while_sampling_leaves_nothing(trained, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal did not come")

    monkeypatch.setattr(sample, "generate", interrupted)
    flags = ["--ckpt", str(trained / "checkpoints/version_0"), "--out", str(tmp_path / "a/b/c")]
    assert sample.main(flags) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
