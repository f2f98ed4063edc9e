"""Several ranks: the same training as one to rounding, whatever their number, and nothing lost."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from faults import NETWORK, ROOT, Process, count, result, store_classifier
from faults import run as run_alone
from numpy.testing import assert_allclose
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.launcher.api import LaunchConfig

import evaluate
import sample
import train
from data import image_set
from training.epochs import Epochs
from utils import checkpoint, rendezvous
from utils.distributed import Ranks, joined, share
from utils.process import STOP_SIGNALS, StopSignal

# 100 images in batches of 33: the last of an epoch is one image, so all ranks but one have none.
PLAIN = [*NETWORK, "--dropout", "0", "--precision", "fp32", "--batch-size", "33", "--epochs", "0"]
SHORT = [*PLAIN, "--max-steps", "12"]
STOP = [getattr(signal, name) for name in STOP_SIGNALS]
HEARD = ["--signals-to-handle", ",".join(["SIGQUIT", *STOP_SIGNALS])]
NAMES = f"{', '.join(STOP_SIGNALS[:-1])} or {STOP_SIGNALS[-1]}"


def curve(where: Path, tag: str = "loss/train") -> np.ndarray:
    """What the steps 1, 2, ... logged."""
    events = EventAccumulator(str(where / "Logs_Checkpoints/Inference/version_0")).Reload()
    points = events.Scalars(tag)
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    return np.array([point.value for point in points])


def newest(where: Path) -> dict:
    return checkpoint.load(checkpoint.newest(where / "Logs_Checkpoints/checkpoints/version_0"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Where one process, without ranks, did SHORT."""
    where = tmp_path_factory.mktemp("alone")
    assert run_alone(where, SHORT).code == 0
    return where


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_has_the_same_curve(alone, tmp_path, world):
    assert [end.code for end in ranks.run(tmp_path, world, SHORT)] == [0] * world
    assert_allclose(curve(tmp_path), curve(alone), rtol=1e-5)
    assert_allclose(
        *(curve(where, "training/gradient_norm") for where in (tmp_path, alone)), rtol=1e-4
    )
    for name, value in newest(alone)["ema"].items():
        torch.testing.assert_close(newest(tmp_path)["ema"][name], value, rtol=1e-3, atol=1e-4)
    out = (tmp_path / "out").read_text()
    assert out.count("Done after step 12") == 1  # the first rank alone prints


def test_ranks_share_mirrored_images_in_several_passes_and_the_weights_of_another_run(
    alone, tmp_path
):
    weights = ["--init-from", str(alone / "Logs_Checkpoints/checkpoints/version_0")]
    flags = [
        *SHORT,
        "--min-epoch-images",
        "128",
        *weights,
    ]  # 2 passes: 7 steps, the last of 2 images
    for name in ("one", "two", "control"):
        (tmp_path / name).mkdir()
    assert run_alone(tmp_path / "one", [*flags, "--flip"]).code == 0
    assert [end.code for end in ranks.run(tmp_path / "two", 2, [*flags, "--flip"])] == [0, 0]
    assert run_alone(tmp_path / "control", flags).code == 0
    assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5)
    assert np.abs(curve(tmp_path / "control") / curve(tmp_path / "one") - 1).max() > 1e-3
    assert (tmp_path / "two/out").read_text().count("weights taken") == 1


def test_ranks_may_accumulate_gradients(alone, tmp_path):
    """Also where the ranks have a different number of them, in the last batch of one image."""
    assert [end.code for end in ranks.run(tmp_path, 2, [*SHORT, "--grad-accum", "3"])] == [0, 0]
    assert_allclose(curve(tmp_path), curve(alone), rtol=1e-5)


def test_the_curve_tells_whose_noise_is_whose(alone, tmp_path):
    """The control of the test above."""
    assert [end.code for end in ranks.run(tmp_path, 2, SHORT, "ranks.same_noise")] == [0, 0]
    assert np.abs(curve(tmp_path) / curve(alone) - 1).max() > 1e-3


def test_a_checkpoint_of_two_ranks_continues_on_one_and_then_three(alone, tmp_path):
    """Stopped by a signal that reaches one rank only, which is not the first."""
    again = [*SHORT, "--resume", "auto"]
    two = [process.end() for process in start_and_stop(tmp_path, 2, again, 5)]
    assert [end.code for end in two] == [143, 143]
    assert newest(tmp_path)["step"] == 5
    one = [process.end() for process in start_and_stop(tmp_path, 1, again, 9)]
    assert [end.code for end in one] == [143]
    assert [end.code for end in ranks.run(tmp_path, 3, again)] == [0, 0, 0]
    assert_allclose(curve(tmp_path), curve(alone), rtol=1e-5)
    out = (tmp_path / "out").read_text()
    assert "Resuming after step 5\nranks: 2 -> 1" in out
    assert "Resuming after step 9\nranks: 1 -> 3" in out


def start_and_stop(where: Path, world: int, argv: list[str], step: int) -> list:
    """SIGTERM to the last rank once this step has begun."""
    processes = ranks.start(where, world, argv, hook="ranks.slow")
    assert processes[-1].wait_for(step)
    processes[-1].kill(signal.SIGTERM)
    return processes


def test_a_killed_rank_ends_the_job_with_a_clear_line(tmp_path):
    endless = [*PLAIN, "--max-steps", "100000"]
    first, second = ranks.start(tmp_path, 2, endless)
    assert second.wait_for(6)
    second.kill()
    end = first.end()  # fails after 400 seconds; torch itself would wait for ten minutes
    assert end.code == 1
    assert end.err.count("another rank is gone") == 1
    assert "--resume auto" in end.err
    assert "Traceback" not in end.err


def torchrun(where: Path, **variables: str) -> subprocess.Popen[str]:
    """The launcher of two ranks, which it starts again when one dies."""
    where.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "3",
        *HEARD,
        str(ROOT / "tests" / "ranks.py"),
    ]
    return subprocess.Popen(
        [*command, *SHORT, "--resume", "auto", "--save-minutes", "0"],
        cwd=where,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(launcher: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed. One that hangs is ended: at SIGTERM it kills its ranks."""
    try:
        return launcher.communicate(timeout=120)
    finally:
        with suppress(subprocess.TimeoutExpired):
            launcher.terminate()
            launcher.wait(40)
        launcher.kill()


def survive_death(where: Path, step: int) -> bool:
    """Whether a rank died at this step; it must not show in the curve."""
    launcher = torchrun(where, DIE_AT=str(step))
    out, errors = wait_for(launcher)
    assert launcher.returncode == 0, errors
    assert curve(where).shape == (12,)
    return f"Resuming after step {step - 1}" in out


def test_a_job_that_is_started_again_meets_nobody_of_the_one_before(alone, tmp_path):
    """Its store, the launcher's, still has the addresses of ranks that died.

    test_a_rank_may_die_at_any_step has the real launcher.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    again = [*SHORT, "--resume", "auto"]
    agent = {rendezvous.AGENT: "True", "MASTER_PORT": str(store.port)}
    first, second = ranks.start(tmp_path, 2, again, "ranks.slow", agent)
    assert second.wait_for(7)
    second.kill()
    assert first.end().code == 1
    ends = [
        process.end()
        for process in ranks.start(tmp_path, 2, again, variables=agent | {rendezvous.RESTART: "1"})
    ]
    assert [end.code for end in ends] == [0, 0]
    assert "Resuming after step" in ends[0].out
    assert_allclose(curve(tmp_path), curve(alone), rtol=1e-5)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    """What two ranks come to that nobody disturbs."""
    where = tmp_path_factory.mktemp("unbroken")
    wait_for(torchrun(where))
    return result(where)


@pytest.mark.slow
def test_a_rank_may_die_at_any_step(tmp_path, unbroken):
    """Two addends have one sum: so with two ranks the result is the same to the bit."""
    hits = 0
    for step in range(2, 12):
        hits += survive_death(tmp_path / str(step), step)
        assert result(tmp_path / str(step)) == unbroken
    assert hits == 10
    count("SIGKILL of one of two ranks under torchrun", 10, hits, "equal to the bit")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["launcher", "all"])
@pytest.mark.parametrize("number", STOP)
def test_a_signal_to_the_launcher_stops_all_ranks_with_a_checkpoint(tmp_path, number, to, unbroken):
    """Or to all its processes, as clusters send it."""
    launcher = torchrun(tmp_path, SLOW="1")
    wait_for_step(tmp_path, 3)
    pids = [launcher.pid]
    if to == "all":
        pids = [*children(launcher.pid), launcher.pid]
        assert len(pids) == 3
    hit = launcher.poll() is None
    for pid in pids:
        os.kill(pid, number)
    out, _ = wait_for(launcher)
    assert "Interrupted after step" in out
    assert 3 <= newest(tmp_path)["step"] < 12
    wait_for(torchrun(tmp_path))
    assert result(tmp_path) == unbroken
    count(f"{NAMES} to torchrun", 1, hit, "all ranks stop, equal to the bit")


def wait_for_step(where: Path, step: int) -> None:
    """Until it is saved."""
    folder, ends = where / "Logs_Checkpoints/checkpoints/version_0", time.monotonic() + 60
    while max(checkpoint.steps(folder), default=0) < step and time.monotonic() < ends:
        time.sleep(0.05)


GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # seconds that torchrun waits before it kills
HAS_GRACE = hasattr(LaunchConfig, "shutdown_timeout")  # from PyTorch 2.12 on


def stopped_in_a_save(where: Path, grace: int) -> tuple[bool, str, int]:
    """SIGUSR1 to torchrun in the save of step 4, which takes 35 seconds.

    Whether it came there; what torchrun said; the newest checkpoint.
    """
    launcher, ends = torchrun(where, **{"SLOW_SAVE": "35", GRACE: str(grace)}), 120
    while not (where / "saving").exists() and ends > 0 and launcher.poll() is None:
        time.sleep(0.1)
        ends -= 0.1
    hit = (where / "saving").exists() and newest(where)["step"] == 3
    launcher.send_signal(signal.SIGUSR1)
    _, errors = wait_for(launcher)
    return hit, errors, newest(where)["step"]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_GRACE, reason="torchrun has 30 seconds")
def test_torchrun_can_wait_for_a_save_of_more_than_thirty_seconds(tmp_path):
    """As the script for Slurm tells it to."""
    graces = [270, 270, 270, 270, 30]
    with ThreadPoolExecutor(len(graces)) as pool:  # they wait most of the time
        ends = list(pool.map(lambda i: stopped_in_a_save(tmp_path / str(i), graces[i]), range(5)))
    *trials, control = ends
    for hit, errors, step in trials:
        assert hit
        assert "forcefully exiting" not in errors
        assert step == 4
    assert "forcefully exiting" in control[1]
    assert control[2] == 3
    count("SIGUSR1 to torchrun in a save of 35 seconds", 4, 4, "it waits, the checkpoint is whole")


def children(pid: int) -> list[int]:
    """The processes that it started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_ranks_agree_on_the_schedule_of_their_minutes(tmp_path):
    """Although their clocks differ."""
    ends = ranks.run(tmp_path, 2, [*PLAIN, "--max-minutes", "0.05"], "ranks.other_clocks")
    assert [end.code for end in ends] == [0, 0]
    assert ends[0].step == ends[1].step == newest(tmp_path)["scheduler"]["total_steps"]


def test_dry_run_takes_as_many_steps_on_every_rank(tmp_path):
    """Although their clocks differ: else one would wait for a gradient that never comes."""
    ends = ranks.run(tmp_path, 2, [*SHORT, "--dry-run"], "ranks.other_clocks")
    assert [end.code for end in ends] == [0, 0]
    assert ends[0].step == ends[1].step > 2


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["slow_validation", "slow_scorer"])
def test_ranks_wait_for_what_the_first_does_alone_longer_than_for_one_another(tmp_path, hook):
    store_classifier(tmp_path / "Logs_Checkpoints")
    scored = ["--score-every", "12", "--score-images", "16"]
    ends = ranks.run(tmp_path, 2, [*SHORT, *scored], f"ranks.{hook}")
    assert [end.code for end in ends] == [0, 0]


@pytest.mark.slow
def test_a_rank_that_is_slow_elsewhere_ends_the_job(tmp_path):
    """The control."""
    ends = ranks.run(tmp_path, 2, SHORT, "ranks.slow_step")
    assert 1 in [end.code for end in ends]


def test_ranks_with_different_images_are_refused(tmp_path):
    ends = ranks.run(tmp_path, 2, SHORT, "ranks.other_images")
    assert {end.code for end in ends} == {1}
    assert "a different checkpoint or images than rank 0" in ends[0].err


def test_sampling_on_any_number_of_ranks_draws_the_same_images(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    for world, seed in ((1, 0), (2, 0), (3, 0), (2, 1)):
        argv = ["--ckpt", "latest", "--run-root", str(alone / "Logs_Checkpoints"), "--save", "npz"]
        argv += ["--num", "7", "--batch-size", "2", "--out", f"{world}_{seed}", "--device", "cpu"]
        assert ranks.script(world, sample.main, [*argv, "--seed", str(seed)]) == [0] * world
        with np.load(f"{world}_{seed}/samples.npz") as arrays:
            drawn.append((arrays["arr_0"].astype(int), arrays["arr_1"]))
    for images, labels in drawn[1:3]:
        assert np.abs(images - drawn[0][0]).max() <= 1
        assert (labels == drawn[0][1]).all()
    assert np.abs(drawn[3][0] - drawn[0][0]).max() > 1  # control


@pytest.mark.slow
def test_evaluation_on_two_ranks_finds_what_one_finds(alone, tmp_path):
    found = []
    for world, seed in ((1, 0), (2, 0), (2, 1)):
        root = tmp_path / f"{world}_{seed}"
        shutil.copytree(alone / "Logs_Checkpoints", root)
        store_classifier(root)
        argv = ["--ckpt", str(root / "checkpoints/version_0"), "--num", "41", "--only", "memory"]
        argv += ["--device", "cpu", "--seed", str(seed)]
        assert ranks.script(world, evaluate.main, argv) == [0] * world
        metrics = json.loads((root / "Inference/version_0/metrics.json").read_text())
        found.append(metrics["memorization"]["pixels"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[2] != pytest.approx(found[0], rel=1e-3)  # control


def test_the_parts_of_all_ranks_are_the_batch():
    indices = torch.arange(100)
    for batch in indices.split(33):
        rows = [share(batch, rank, 3) for rank in range(3)]
        assert [len(part) for part in rows] == ([11, 11, 11] if len(batch) == 33 else [1, 0, 0])
        assert torch.equal(torch.cat(rows), batch)
    batch = torch.randn(7, 2)
    split = [Ranks(rank, 3).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat(split), batch)
    assert [len(part) for part in split] == [3, 2, 2]


def test_the_batches_of_an_epoch_are_all_images():
    epochs = Epochs(images=100, batch_size=33)
    rows = [epochs.global_batch(step) for step in range(1, 9)]
    assert rows == [33, 33, 33, 1] * 2
    assert sum(rows[: epochs.steps]) == 100


COMPLETE = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


def environments() -> list[dict[str, str]]:
    """Every incomplete one, and some that cannot be."""
    names = list(COMPLETE)
    some = [c for n in range(1, 5) for c in itertools.combinations(names, n)]
    wrong = [
        ("RANK", "2"),
        ("RANK", "x"),
        ("RANK", "-1"),
        ("WORLD_SIZE", "0"),
        ("MASTER_PORT", "7e9"),
    ]
    wrong += [("LOCAL_WORLD_SIZE", value) for value in ("x", "0", "8")]
    wrong += [("TORCHELASTIC_RESTART_COUNT", "x"), ("TORCHELASTIC_USE_AGENT_STORE", "maybe")]
    incomplete = [{name: COMPLETE[name] for name in found} for found in some]
    return incomplete + [COMPLETE | {name: value} for name, value in wrong]


@pytest.fixture
def no_launcher(monkeypatch) -> pytest.MonkeyPatch:
    """Whatever the tests were started by; to set variables with."""
    for name in (*rendezvous.VARIABLES, *rendezvous.OPTIONAL):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_variables(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        patch.setenv(name, value)


def test_what_a_shell_left_of_a_launcher_is_one_line_at_once(tmp_path, no_launcher, capsys):
    no_launcher.chdir(tmp_path)
    trials = environments()
    for variables in trials:
        with no_launcher.context() as patch:
            set_variables(patch, variables)
            assert train.main(SHORT) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        left = " ".join(name for name in rendezvous.VARIABLES if name in variables)
        assert error.endswith(f"; to run alone: unset {left}\n")
    assert list(tmp_path.iterdir()) == []
    assert rendezvous.launched() is None
    set_variables(no_launcher, COMPLETE)  # control: a complete one
    assert rendezvous.launched() == rendezvous.Launch(0, 2, 0, 29500, "127.0.0.1")
    count("some of torchrun's variables in the environment", len(trials), len(trials), "one line")


STRAY = [("LOCAL_WORLD_SIZE", value) for value in ("x", "0", "8")]
STRAY += [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "x")]


@pytest.mark.parametrize(("name", "value"), STRAY)
def test_what_a_launcher_says_beside_is_believed_only_with_a_launch(no_launcher, name, value):
    no_launcher.setattr(image_set, "cores", lambda: 16)
    no_launcher.setenv(name, value)
    assert rendezvous.launched() is None
    assert image_set.num_threads() == 16
    no_launcher.delenv(name)
    set_variables(no_launcher, COMPLETE | {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"})
    assert image_set.num_threads() == 2  # control


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("it was asked for")


def unknown_name(*_: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


ONE = COMPLETE | {"WORLD_SIZE": "1", "MASTER_ADDR": "node17.invalid"}


@pytest.mark.parametrize("agent", ["True", "False"])
def test_one_rank_of_one_meets_nobody(no_launcher, agent):
    """Whatever the address: that of a machine which is gone, or of a launcher."""
    no_launcher.setattr(socket, "getaddrinfo", refuse)
    no_launcher.setattr(torch.distributed, "TCPStore", refuse)
    set_variables(no_launcher, ONE | {"TORCHELASTIC_USE_AGENT_STORE": agent})
    with joined(torch.device("cpu")) as alone:
        assert alone == Ranks(launched=True)
    set_variables(no_launcher, {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "False"})
    with pytest.raises(AssertionError, match="asked for"), joined(torch.device("cpu")):
        pass  # control


def test_a_name_of_rank_0_that_is_unknown_is_one_line_at_once(no_launcher):
    no_launcher.setattr(socket, "getaddrinfo", unknown_name)
    no_launcher.setattr(torch.distributed, "TCPStore", refuse)
    launch = rendezvous.Launch(0, 2, 0, 29500, "node17.invalid")
    with pytest.raises(rendezvous.LaunchError, match="not known; to run alone: unset RANK WORLD"):
        rendezvous.meet(launch)


@pytest.mark.slow
@pytest.mark.usefixtures("no_launcher")
def test_a_run_begins_whatever_a_launcher_of_one_rank_left(tmp_path, alone):
    hosts = ("node17.invalid", "10.255.255.1", "127.0.0.1")
    more = [{"TORCHELASTIC_USE_AGENT_STORE": "True"}, {"TORCHELASTIC_RESTART_COUNT": "3"}]
    more += [{"LOCAL_WORLD_SIZE": "1"}, {}]
    trials = [ONE | {"MASTER_ADDR": host} | other for host in hosts for other in more]
    hits = 0
    for i, variables in enumerate(trials):
        (tmp_path / str(i)).mkdir()
        ended = Process(tmp_path / str(i), SHORT, environment=variables).end()
        assert (ended.code, ended.err) == (0, "")
        hits += result(tmp_path / str(i)) == result(alone)
    assert hits == len(trials)
    end = "runs alone, bit-identical"
    count("a launcher's variables for one rank in the environment", len(trials), hits, end)


TO_RUN_ALONE = "; to run alone: unset RANK WORLD_SIZE LOCAL_RANK MASTER_PORT MASTER_ADDR\n"


@pytest.mark.parametrize(
    ("rank", "agent", "who"),
    [(0, False, "rank 1, 2 of 3"), (1, False, "rank 0 of 3"), (0, True, "torchrun")],
)
def test_waiting_for_a_rank_says_so(rank, agent, who, capsys):
    launch = rendezvous.Launch(rank, 3, 0, ranks.free_port(), "127.0.0.1", agent=agent)
    with pytest.raises(rendezvous.RankError, match="did not start; to run alone: unset"):
        rendezvous.meet(launch, notice=0.1, timeout=timedelta(seconds=0.3))
    line = f"rank {rank} waits for {who} at 127.0.0.1:{launch.port}{TO_RUN_ALONE}"
    assert capsys.readouterr().err == line


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        launch = rendezvous.Launch(0, 2, 0, other.getsockname()[1], "127.0.0.1")
        with pytest.raises(rendezvous.LaunchError, match=r"failed to listen.*run alone: unset"):
            rendezvous.meet(launch)


STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "torchrun": """
        trap 'sleep 0.1; touch saved; exit 1' USR1
        echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > grace
        echo "$@" > started
        until [ -e finish ]; do sleep 0.01; done""",
    "scontrol": 'if [ -e saved ]; then echo "$@" >> queued; fi',
}


@pytest.mark.parametrize("stopped", [True, False])
def test_the_slurm_script_queues_itself_again_where_it_was_stopped(tmp_path, stopped):
    """After the checkpoint, and only then."""
    for name, script in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    blocks = (ROOT / "docs/distributed.md").read_text(encoding="utf-8").split("```bash\n")
    (script,) = (block.partition("```")[0] for block in blocks if "#SBATCH" in block)
    cluster = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    cluster["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    job = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=cluster)
    ends = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < ends:
        time.sleep(0.01)
    if stopped:
        job.send_signal(signal.SIGUSR1)
    else:
        (tmp_path / "finish").touch()
    code = job.wait(60)
    started = (tmp_path / "started").read_text()
    assert "--run-root runs/7 --resume auto" in started
    assert set(HEARD[1].split(",")) == set(started.partition("handle ")[2].split()[0].split(","))
    notice = int(re.search(r"--signal=B:USR1@(\d+)", script)[1])
    assert 30 < int((tmp_path / "grace").read_text()) < notice  # 30: what torchrun waits by itself
    queued = tmp_path / "queued"
    assert (queued.read_text() if queued.exists() else code) == ("requeue 7\n" if stopped else 0)


@pytest.mark.slow
def test_the_program_says_after_ten_seconds_for_whom_it_waits(tmp_path):
    """And hears Ctrl-C: six first ranks, six second ones."""
    waiting = []
    for trial in range(12):
        where = tmp_path / str(trial)
        where.mkdir()
        variables = ranks.environment(trial % 2, 2, ranks.free_port())
        waiting.append((time.monotonic(), Process(where, SHORT, environment=variables)))
    hits = sum(waits(trial % 2, *process) for trial, process in enumerate(waiting))
    assert hits == 12
    count("a rank that does not start", 12, hits, "said after ten seconds, Ctrl-C is heard")


def waits(rank: int, began: float, process: Process) -> bool:
    """Whether this rank, alone of two, had to wait; Ctrl-C ends it."""
    errors = process.where / "err"
    while not (errors.exists() and "waits for" in errors.read_text()):
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    hit = time.monotonic() - began > 10
    process.kill(signal.SIGINT)
    ended = process.end()
    assert ended.code == 130
    line, last = ended.err.splitlines()[-2:]
    assert line.startswith(f"rank {rank} waits for rank {1 - rank} of 2")
    assert last == "train.py: interrupted before the first step"
    return hit


def test_ranks_are_not_ended_by_a_signal_that_comes_twice():
    """From the cluster and from the launcher. tests/test_crash.py has one process, which is."""
    with StopSignal(Ranks(launched=True)) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM


def test_a_single_rank_knows_its_launcher(monkeypatch):
    with joined(torch.device("cpu")) as ranks:
        assert not ranks.launched  # control
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere"}
    for name, value in (variables | {"MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    with joined(torch.device("cpu")) as ranks:
        assert ranks.launched
        assert ranks.world == 1


def test_one_process_joins_nothing():
    single = Ranks()
    assert single.highest(3, True, 0) == (3, True, 0)
    assert single.from_first(lambda: "made") == "made"
    module, rows = torch.nn.Linear(2, 2), torch.randn(3)
    assert single.wrap(module) is module
    assert single.gather(rows) is rows
    assert not torch.distributed.is_initialized()
