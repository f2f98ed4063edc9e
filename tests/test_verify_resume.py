"""--prove-resume: it finds equal bits; and a resumed run names what differs from before."""

import pytest
import torch
from faults import AGAIN, NETWORK, ROOT, folder, newest, run

import train
from config import ConfigError
from training import resume, verify_resume
from training.setup import parse_args


@pytest.mark.parametrize("flag", ["--resume=auto", "--max-steps", "--run-root", "--save-minutes"])
def test_flags_that_it_sets_itself_are_refused(flag):
    value = [] if "=" in flag else ["1"]
    args = parse_args(["--prove-resume", flag, *value], "")
    with pytest.raises(ConfigError, match=rf"chooses {flag.split('=')[0]} itself"):
        verify_resume.verify_resume(args)


def test_other_surroundings_are_named():
    with folder() as where:
        assert run(where, [*AGAIN, "--max-steps", "1"]).code == 0
        ckpt = newest(where)
    cpu, here = torch.device("cpu"), ckpt["environment"]
    threads = torch.get_num_threads()
    same = {**ckpt, "environment": {**here, "threads": threads}}
    assert resume.changed_environment(same, cpu) == []
    other = {**ckpt, "environment": {**here, "threads": threads + 1, "torch": "1.0"}}
    lines = resume.changed_environment(other, cpu)
    assert [line.split(":")[0] for line in lines] == ["torch", "threads"]
    assert "to rounding" in lines[0]


NOT_KEYED = f"""
import sys
sys.path[:0] = ["{ROOT}", "{ROOT / "tests"}"]
import sabotage, train
sabotage.randomness_of_the_process(0)
sys.exit(train.main())
"""


@pytest.mark.slow
def test_it_finds_a_difference(tmp_path, monkeypatch, capsys):
    """The control: a training whose randomness is not keyed by the step."""
    (tmp_path / "train.py").write_text(NOT_KEYED)
    monkeypatch.setattr(verify_resume, "SCRIPT", tmp_path / "train.py")
    assert train.main([*NETWORK, "--prove-resume"]) == 1
    assert "DIFFERENT in" in capsys.readouterr().out


@pytest.mark.slow
def test_it_finds_equal_bits_and_leaves_nothing():
    with folder() as where:
        ended = run(where, [*NETWORK, "--prove-resume"])
        assert ended.code == 0, ended.err
        assert "equal: all" in ended.out
        assert {path.name for path in where.iterdir()} == {"out", "err"}
