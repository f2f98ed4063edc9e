"""history.jsonl: what was written is read; what a crash cut short, and NaN, do no harm."""

import math

from training.outputs import Outputs
from utils.history import HISTORY, line_of, read_history

ROW = {"step": 200, "held_out": 0.25, "held_out_by_t": [0.5, math.nan], "score": {"recall": 0.125}}
READ = {**ROW, "held_out_by_t": [0.5, None]}


def test_rows_are_read_as_written_without_nan_and_with_six_digits(tmp_path):
    outputs = Outputs(tmp_path)
    assert read_history(tmp_path) == []
    for row in (ROW, {"step": 400, "seconds": 1 / 3}):
        outputs.add_to_history(row)
    assert read_history(tmp_path) == [READ, {"step": 400, "seconds": 0.333333}]


def test_a_line_that_a_crash_cut_short_is_left_out_and_a_resumed_run_drops_it(tmp_path):
    cut = line_of({"step": 600})[:7]
    (tmp_path / HISTORY).write_bytes(line_of(ROW) + line_of({"step": 400}) + cut)
    assert [row["step"] for row in read_history(tmp_path)] == [200, 400]
    outputs = Outputs(tmp_path)
    outputs.go_back_to(200)
    outputs.add_to_history({"step": 300})
    assert [row["step"] for row in read_history(tmp_path)] == [200, 300]


def test_what_cannot_be_written_is_one_warning_until_it_can_be_again(tmp_path, capsys):
    outputs = Outputs(tmp_path / "absent")
    outputs.add_to_history(ROW)
    outputs.whole("a.gif", b"")
    assert capsys.readouterr().err.count("warning: cannot write") == 1
    (tmp_path / "absent").mkdir()
    outputs.add_to_history(ROW)
    assert read_history(tmp_path / "absent") == [READ]
