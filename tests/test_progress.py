"""Signs of life: lines where there is no terminal, with what is done and what is left."""

import pytest

from utils import progress
from utils.progress import Progress, duration, track


def test_a_line_says_what_is_done_and_what_is_left():
    bar = Progress("sampling", 200, "images", done=20)
    assert bar.line() == "sampling: 20/200 images"
    bar.began -= 60  # nine tenths of the work take as many minutes
    bar.update(18)
    assert bar.line() == "sampling: 38/200 images, 9.0 minutes left"
    bar.update(162)  # what follows it, as the validation at the end, is not its own
    assert bar.line() == "sampling: 200/200 images"
    bar.update(-162)
    bar.describe("Train :: Epoch: 1/?", None, "Loss: 0.5")
    assert bar.line() == "Train :: Epoch: 1/?: 38 images, Loss: 0.5"


def test_without_a_terminal_there_are_lines_and_no_carriage_return(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    monkeypatch.setattr(progress, "LINES", 0.001)
    with Progress("validating", 10, "images") as bar:
        while "validating: 0/10 images" not in capsys.readouterr().err:
            pass
        bar.update(4)
        seen = ""
        while "validating: 4/10 images" not in seen:
            seen += capsys.readouterr().err
    assert "\r" not in seen


def test_silence_and_short_work_print_nothing(capsys):
    with Progress("sampling", 3, "images", silent=True) as bar:
        bar.update(3)
    assert list(track([1, 2, 3], "classifier", "steps")) == [1, 2, 3]
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 seconds"), (89, "89 seconds"), (90, "1.5 minutes"), (7200, "2.0 hours")],
)
def test_durations_are_in_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text
