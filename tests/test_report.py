"""report.html: one file, well-formed, of a bounded size, whatever the run was and left."""

import json
import os
import random
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from run_folders import change, validation, write_history, write_run

from evaluation.embedded import embedded, evenly
from evaluation.markup import VOID, Markup, tag
from evaluation.report import write_report
from evaluation.run_folder import RunFolder

HOSTILE = (
    '<script>alert("1")</script>',
    "\"><img src='http://x' onerror=a>",
    "&lt;b&gt;",
    "\ud800\x07",
)


class Page(HTMLParser):
    """The tags of a page in their order, its text, and the tags that are not closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.wrong, self.tags, self.words = [], [], [], []
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        if not self.open or self.open.pop() != name:
            self.wrong.append(name)

    def handle_data(self, text):
        self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, name: str) -> list[dict]:
        return [attributes for own, attributes in self.tags if own == name]


def read(logs) -> Page:
    """The report of a log folder."""
    return Page(write_report(logs).read_text(encoding="utf-8"))


def loads(page: Page) -> list[str]:
    """What a browser would fetch from elsewhere."""
    links = [
        a.get(key) for _, a in page.tags for key in ("src", "href", "srcset", "action", "data")
    ]
    return [link for link in links if link is not None and not link.startswith("data:image/")]


@pytest.fixture
def logs(tmp_path):
    return write_run(tmp_path, 3, "my-first", lr=0.5)


def test_all_that_is_known_of_a_run_is_in_one_page(logs):
    text = write_report(logs).read_text(encoding="utf-8")
    page = Page(text)
    assert page.wrong == []
    assert loads(page) == []
    assert "http:" not in text
    assert "https:" not in text
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert all(image["alt"] for image in page.all("img"))
    for fact in ("my-first", "version_3", "finished", "400 of 400", "0.3736 at step 400", "40,321"):
        assert fact in page.text
    for section in ("Samples", "Reverse process", "Curves", "Evaluation", "Data", "Settings"):
        assert f"<h2>{section}</h2>" in text
    assert "pets: 90 training images" in page.text
    assert "0.25 ± 0.031" in page.text  # the floor beside the scores
    assert "python train.py --lr 0.5" in page.text
    drawings = [svg["aria-label"] for svg in page.all("svg")]
    assert drawings[0] == "loss"
    assert drawings[2:] == ["fid_classifier", "precision, recall", "images/s"]


def test_a_tag_left_open_and_a_foreign_source_are_found():
    """The control."""
    assert Page("<p><b>a</p>").wrong
    assert loads(Page('<img src="http://x/a.png"><a href="b.html"></a>')) == [
        "http://x/a.png", "b.html"
    ]  # fmt: skip


def test_grids_are_chosen_with_a_slider_and_the_newest_is_shown(logs):
    page = read(logs)
    frames = [a for a in page.all("div") if "data-when" in a]
    assert [a["data-when"] for a in frames] == ["step 100", "step 200", "step 300", "step 400"]
    assert ["hidden" in a for a in frames] == [True, True, True, False]
    (slider,) = page.all("input")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == (
        "range",
        "0",
        "3",
        "3",
    )
    for path in sorted(logs.glob("samples_*"))[1:]:
        path.unlink()
    assert read(logs).all("input") == []  # there is nothing to choose


@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_paths_are_text_whatever_they_hold(logs, name):
    plain = read(logs)
    change(logs / "run.json", name=name, class_names=[name], data=[name], changed={name: name})
    change(logs / "run.json", layers=f"| {name} | a | b | c |", status=name)
    change(logs / "environment.json", command=name, git=name)
    change(logs / "config.json", data={"data_root": name, "dataset": name})
    metrics = json.loads((logs / "metrics.json").read_text())
    metrics["scores"]["rows"] = {name: {name: 1.0}}
    change(logs / "metrics.json", **metrics)
    page = read(logs)
    assert page.wrong == []
    assert loads(page) == []
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == len(plain.all("img"))
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    shown = name.encode("utf-8", "backslashreplace").decode()
    assert page.text.count(shown) >= 8


def test_only_what_is_markup_already_is_not_escaped():
    assert tag("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'
    assert tag("p", Markup("<b>")) == "<p><b></p>"  # control
    assert tag("img", alt=None, hidden=True, class_="a") == '<img hidden class="a">'


FILES = ("history.jsonl", "run.json", "config.json", "environment.json", "metrics.json")


@pytest.mark.parametrize("name", [*FILES, "samples_*", "*.png", "*"])
def test_what_is_absent_is_left_out(logs, name):
    for path in logs.glob(name):
        path.unlink()
    page = read(logs)
    assert page.wrong == []
    assert "version_3" in page.text
    assert "cannot be read" not in page.text


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"a": ', b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_named(logs, name, content):
    (logs / name).write_bytes(content)
    page = read(logs)
    assert page.wrong == []
    assert f"{name} cannot be read" in page.text or f"{name}: 1 of 1 lines" in page.text


@pytest.mark.parametrize("odd", [None, 3, "a", [], {}, [{}], {"a": 1}, 10**400])
def test_values_of_another_type_do_no_harm(logs, odd):
    for name in FILES[1:]:
        content = json.loads((logs / name).read_text())
        change(logs / name, **dict.fromkeys(content, odd))
    (logs / "history.jsonl").write_text(
        json.dumps({"step": 1, "seconds": 2, "train": odd, "score": odd}) + "\n"
    )
    assert read(logs).wrong == []


def test_a_picture_that_cannot_be_read_is_named(logs):
    (logs / "data.png").write_bytes(b"GIF89a")
    page = read(logs)
    assert "This picture cannot be read." in page.text
    assert page.wrong == []


def test_lines_that_a_resumed_run_repeats_stand_for_the_earlier_ones(logs):
    again = [validation(step) | {"train": 7.0} for step in (250, 300)]
    write_history(logs, [*map(validation, (100, 200, 300, 400)), *again])
    with open(logs / "history.jsonl", "a") as file:
        file.write('{"step": 500, "sec')  # killed while it wrote
    run = RunFolder.of(logs)
    assert [own["step"] for own in run.history] == [100, 200, 250, 300]
    assert run.last("train") == 7.0
    assert run.problems == ("history.jsonl: 1 of 7 lines left out",)


def noise(path, side: int) -> None:
    """A colour picture that no encoding makes small."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=1)


def test_however_much_there_is_the_page_stays_below_3_mb(logs):
    noise(logs / "data.png", 500)
    for name in ["reverse_process.png", "nearest_pairs.png"]:
        (logs / name).unlink()
        os.link(logs / "data.png", logs / name)
    for step in range(1000, 1496):
        os.link(logs / "data.png", logs / f"samples_{step:08d}.png")
    names = [f"<class {i}>" for i in range(20_000)]
    change(logs / "run.json", class_names=names, data=["&" * 10**6] * 100)
    change(logs / "config.json", diffusion={"alphas": [0.999] * 20_000})
    rng = random.Random(0)
    lines = [validation(step) | {"images_per_s": rng.random()} for step in range(2000)]
    write_history(logs, lines)
    path = write_report(logs)
    assert path.stat().st_size < 3_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert "24 of 500 grids are shown" in page.text
    assert "... (" in page.text
    assert sum(os.path.getsize(own) for own in logs.glob("samples_*")) > 10 * 3_000_000  # control


def test_a_picture_is_as_it_was_or_as_small_as_it_must_be(tmp_path):
    path = tmp_path / "a.png"
    noise(path, 200)
    size = path.stat().st_size
    whole, small = embedded(path, size), embedded(path, 10_000)
    assert whole.source.startswith("data:image/png")
    assert small.source.startswith("data:image/jpeg")
    assert len(small.source) < 4 / 3 * 10_000 + 30 < len(whole.source)
    assert (small.width, small.height) == (whole.width, whole.height) == (200, 200)
    assert embedded(tmp_path / "b.png", size) is None


def test_some_of_many_are_evenly_spaced_with_both_ends():
    assert list(evenly(range(101), 5)) == [0, 25, 50, 75, 100]
    assert list(evenly(range(4), 5)) == [0, 1, 2, 3]
    assert len(set(evenly(range(25), 24))) == 24
