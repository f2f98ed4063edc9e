"""Every option with every kind of nonsense: done, or one line and exit code 2, no traceback."""

import contextlib
import io
import os
import resource

import pytest
from faults import (
    AGAIN,
    FORK,
    child_prelude,
    count,
    folder,
    run,
    store_classifier,
    two_at_a_time,
)

import edit
import evaluate
import sample
import train
from config import PRESETS

VALUES = [
    *("", "abc", "-1", "0", "1", "nan", "inf", "-inf", "1e309", "9" * 30, "1" * 5000, "0.5"),
    *("1000000", "ü", "a b", "/dev/null", "/nowhere/at/all", "x" * 300, "@/nowhere", "--", None),
]
OPTIONS = {
    train: [
        *(f"--{n.replace('_', '-')}" for s in vars(PRESETS["mnist"]).values() for n in vars(s)),
        *("--preset", "--resume", "--run-root", "--device", "--replay", "--name", "--unknown"),
    ],
    sample: [
        *("--ckpt", "--run-root", "--num", "--classes", "--seed", "--batch-size", "--device"),
        *("--out", "--save", "--sampler", "--steps", "--variance", "--eta", "--guidance"),
        *("--guidance-interval", "--clip", "--overwrite", "--unknown"),
    ],
    edit: [
        *("--ckpt", "--run-root", "--num", "--classes", "--seed", "--batch-size", "--device"),
        *("--out", "--save", "--sampler", "--steps", "--eta", "--guidance", "--clip", "--mask"),
        *("--jump", "--resample", "--data-root", "--overwrite", "--unknown"),
    ],
    evaluate: [
        *("--ckpt", "--run-root", "--num", "--seed", "--batch-size", "--device", "--data-root"),
        *(
            "--out",
            "--samplers",
            "--only",
            "--all-terms",
            "--sampler",
            "--steps",
            "--variance",
            "--eta",
        ),
        *("--guidance", "--guidance-interval", "--clip", "--report", "--compare"),
        "--unknown",
    ],
}
WISHES = {("--num", "1000000"), ("--batch-size", "1000000")}  # of minutes and hours: no nonsense


def cases(script, ckpt: str, every: int) -> list[list[str]]:
    """An option and a value each; every n-th of all of them."""
    smoke = ["--preset", "smoke", "--device", "cpu", "--dry-run"]
    draw = ["--ckpt", ckpt, "--device", "cpu", "--num", "2"]
    bases = {
        train: smoke,
        sample: [*draw, "--out", "out"],
        evaluate: [*draw, "--only", "scores,held-out"],
        edit: ["inpaint", "test:0", *draw, "--mask", "left", "--out", "out", "--resample", "2"],
    }
    found = []
    for option in OPTIONS[script]:
        for value in VALUES:
            if (option, value) in WISHES:
                continue
            base = bases[script]
            if option == "--resume":
                base = base[2:]
            found.append([*base, option, *([] if value is None else [value])])
    return found[::every]


def attempt(script, argv: list[str]) -> str | None:
    """What is wrong with how the script answers; None where nothing is."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = script.main(argv)
        except SystemExit as e:
            code = e.code
        except BaseException as e:
            return f"raised {e!r}"
    lines = err.getvalue().splitlines()
    there = set(os.listdir()) - ({argv[-1]} if argv[-2] == "--out" else set())
    if code == 2 and (len(lines) != 1 or there):
        return f"said {lines} and left {there}"
    if code not in (0, 2) or (code == 0 and script not in (sample, edit) and there):
        return f"exit code {code}, {lines}, left {there}"
    return None


def fuzz(name: str, ckpt: str, every: int, half: int, report: str, tried) -> None:
    """In a process of its own, with a limit on memory, so that a bad value can harm nobody."""
    child_prelude()
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    script = {"train": train, "sample": sample, "evaluate": evaluate, "edit": edit}[name]
    with open(report, "w") as file:
        for argv in cases(script, ckpt, every)[half::2]:
            with folder() as where:
                os.chdir(where)
                problem = attempt(script, argv)
                os.chdir("/")
            tried[half] += 1
            if problem:
                print(f"{' '.join(argv)[-100:]}: {problem[:300]}", file=file, flush=True)


@pytest.mark.parametrize("every", [97, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "edit"])
def test_nonsense_is_answered_in_one_line(name, every, tmp_path):
    with folder() as where:
        assert run(where, AGAIN).code == 0
        ckpt = str(where / "Logs_Checkpoints/checkpoints/version_0")
        store_classifier(where / "Logs_Checkpoints")

        def half(i: int):
            report, tried = tmp_path / str(i), FORK.RawArray("l", 2)
            process = FORK.Process(target=fuzz, args=(name, ckpt, every, i, str(report), tried))
            process.start()
            process.join()
            assert process.exitcode == 0
            return report.read_text(), tried[i]

        problems, tried = zip(*two_at_a_time(half, 2), strict=True)
    assert "".join(problems) == ""
    end = "done, or one line and exit code 2, nothing on disk"
    count(f"nonsense for an option of {name}.py", sum(tried), sum(tried), end)
