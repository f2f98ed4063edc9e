"""What is drawn can be read back off the axes, as a person reads it."""

import math
import random
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageColor

from evaluation.axes import MOST, linear, logarithmic
from evaluation.charts import (
    COLOURS,
    PLOT_HEIGHT,
    SHARP,
    Chart,
    Dot,
    Line,
    Series,
    Words,
    dashes,
    has_points,
    lay_out,
    picture,
    save_charts,
    svg,
    thinned,
)


def read_off(text: str, scale=float) -> list[tuple[float, float]]:
    """The points of the dots in an SVG, by the labels of its ticks and where these stand."""
    words = re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"[^>]*>([\d.e-]+)<', text
    )
    across = sorted((float(x), float(label)) for x, _, side, label in words if side == "middle")
    up = sorted((float(y) - 4, scale(float(label))) for _, y, side, label in words if side == "end")
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text)
    return [(between(float(x), across), between(float(y), up)) for x, y in dots]


def between(pixel: float, ticks: list[tuple[float, float]]) -> float:
    """The value at a pixel on the line through the first and the last tick."""
    (p, a), (q, b) = ticks[0], ticks[-1]
    return a + (pixel - p) * (b - a) / (q - p)


@pytest.mark.parametrize(("name", "scale"), [("linear", float), ("log", math.log)])
def test_points_are_read_back_off_the_axes(name, scale):
    rng = random.Random(0)
    points = [(x, math.exp(rng.gauss(0, 2))) for x in range(0, 900, 30)]
    text = svg(lay_out(Chart("loss", "step", [Series("", points)], name)))
    found = read_off(text, scale)
    pixel = (scale(100) - scale(0.01)) / PLOT_HEIGHT
    assert [x for x, _ in found] == pytest.approx([x for x, _ in points], abs=900 / 300)
    assert [y for _, y in found] == pytest.approx([scale(y) for _, y in points], abs=pixel)
    wrong = [y for _, y in read_off(text, float if name == "log" else math.log1p)]
    assert wrong != pytest.approx([scale(y) for _, y in points], abs=pixel)  # control


def ranges():
    """Low and high ends of all sizes, some of them equal, some negative."""
    rng = random.Random(1)
    for _ in range(2000):
        low = rng.choice([0.0, rng.uniform(-5, 5), 10 ** rng.uniform(-30, 30)])
        yield low, low + rng.choice([0, 10 ** rng.uniform(-30, 30)])


def test_ticks_cover_the_range_and_are_few_and_even():
    for low, high in ranges():
        for axis in [linear([low, high])] + ([logarithmic([low, high])] if low > 0 else []):
            assert 2 <= len(axis.ticks) <= MOST + 1
            assert -1e-6 < axis.place(low) <= axis.place(high) < 1 + 1e-6
        steps = [b - a for a, b in pairwise(linear([low, high]).ticks)]
        assert steps == pytest.approx([steps[0]] * len(steps))
    assert linear([0, 4070]).place(6000) > 1  # control
    assert linear([0.1, 0.3]).ticks == (0.1, 0.15, 0.2, 0.25, 0.3)  # not 0.30000000000000004
    assert linear([0, 56250]).labels == ["0", "20k", "40k", "60k"]


def curves_in(chart: Chart) -> tuple[list[Line], list[Dot]]:
    """The lines and dots of its first curve; its legend aside."""
    shapes = lay_out(chart).shapes
    lines = [s for s in shapes if isinstance(s, Line) and s.colour == COLOURS[0]]
    return lines, [s for s in shapes if isinstance(s, Dot)]


def test_a_value_that_is_not_finite_is_a_gap():
    points = [(x, math.nan if x in (3, 7) else float(x)) for x in range(10)]
    lines, dots = curves_in(Chart("a", "step", [Series("", points)]))
    assert [len(line.points) for line in lines] == [3, 3, 2]
    assert len(dots) == 8
    lines, _ = curves_in(Chart("a", "step", [Series("", [(x, float(x)) for x in range(10)])]))
    assert [len(line.points) for line in lines] == [10]  # control
    for absent in (0.0, -1.0, math.inf):
        lines, _ = curves_in(Chart("a", "x", [Series("", [(0, 1), (1, 1), (2, absent)])], "log"))
        assert len(lines[0].points) == 2


@pytest.mark.parametrize("points", [[(3, 0.5)], [(0, 0.0), (1, 0.0)], [(0, 7.0), (9, 7.0)]])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_one_point_and_a_constant_have_axes_around_them(points, scale):
    chart = Chart("a", "step", [Series("one", points)], scale)
    if not has_points(chart):
        assert points[0][1] == 0
        with pytest.raises(ValueError, match="nothing to be shown"):
            lay_out(chart)
        return
    _, dots = curves_in(chart)
    heights = {dot.at[1] for dot in dots}
    assert len(dots) == len(points)
    assert len(heights) == 1
    assert 0 < heights.pop() < lay_out(chart).height


def test_thousands_of_points_are_thinned_and_keep_their_peaks():
    rng = random.Random(2)
    points = [(x / 100, rng.random()) for x in range(40_000)]
    kept = thinned(points)
    assert len(kept) <= 4 * 400
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    for extreme in (min, max):
        highest = extreme(points, key=lambda point: point[1])
        assert highest in kept
        assert highest not in points[::100]  # control: every hundredth point would miss it
    assert thinned(points[::400]) == points[::400]  # few are all kept


def test_both_renderers_draw_the_same_shapes():
    names = [f"run {i}" for i in range(3)]
    series = [Series(name, [(0, i), (1, i + 0.5)]) for i, name in enumerate(names)]
    drawing = lay_out(Chart("loss", "step", series))
    image = picture(drawing)
    dots = [shape for shape in drawing.shapes if isinstance(shape, Dot)]
    for dot in dots:
        x, y = (round(SHARP * value) for value in dot.at)
        assert image.getpixel((x, y)) == ImageColor.getrgb(dot.colour)
        assert image.getpixel((x, y + 40)) != ImageColor.getrgb(dot.colour)  # control
    text = svg(drawing)
    assert text.count("<circle") == len(dots) == 6
    words = [shape.text for shape in drawing.shapes if isinstance(shape, Words)]
    assert re.findall(r">([^<]+)</text>", text) == words
    assert set(names) < set(words)


def test_a_curve_without_points_leaves_the_colours_of_the_others():
    both = Chart("a", "step", [Series("none", []), Series("some", [(0, 1), (1, 2)])])
    assert {dot.colour for dot in curves_in(both)[1]} == {COLOURS[1]}
    assert ">none<" not in svg(lay_out(both))
    assert ">some<" in svg(lay_out(both))


def test_after_the_last_colour_curves_are_dashed():
    straight = [(0.0, 0.0), (30.0, 0.0), (30.0, 60.0)]
    lengths = [sum(map(math.dist, part, part[1:])) for part in dashes(straight)]
    assert lengths == pytest.approx([6] * 8)  # of 90: half
    many = [Series(f"{i}", [(0, i), (1, i)]) for i in range(len(COLOURS) + 1)]
    parts, _ = curves_in(Chart("a", "step", many))
    assert len(parts) > 20


def test_text_is_escaped_and_long_names_are_cut():
    text = svg(lay_out(Chart("<b>", "&", [Series("<script>" + "x" * 200, [(0, 1)])])))
    assert "<b>" not in text
    assert "<script" not in text
    assert "xxx...</text>" in text


def test_charts_are_written_as_one_picture(tmp_path):
    chart = Chart("a", "step", [Series("", [(0, 1), (1, 2)])])
    one = picture(lay_out(chart))
    save_charts([[chart, chart], [chart]], tmp_path / "a.png")
    whole = Image.open(tmp_path / "a.png")
    assert whole.size == (2 * one.width, 2 * one.height)
    left = whole.crop((0, one.height, one.width, 2 * one.height))
    assert left.tobytes() == one.tobytes()


# Machado, Oliveira and Fernandes (2009), for linear RGB: no red cones, no green cones.
BLIND = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


def lab(colour: str, eye: list[list[float]]) -> np.ndarray:
    """CIELAB of a colour as this eye sees it."""
    rgb = (np.array(ImageColor.getrgb(colour)) / 255) ** 2.2
    to_xyz = np.array([[0.412, 0.358, 0.180], [0.213, 0.715, 0.072], [0.019, 0.119, 0.950]])
    x, y, z = np.cbrt(to_xyz @ np.clip(eye @ rgb, 0, 1) / to_xyz.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(colours, eye) -> float:
    """The distance of the two that are nearest to each other."""
    seen = [lab(colour, np.array(eye)) for colour in colours]
    return min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])


# The control: the first colours of matplotlib.
COMMON = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")


@pytest.mark.parametrize("kind", BLIND)
def test_colours_are_told_apart_without_red_or_green_cones(kind):
    assert apart(COLOURS, BLIND[kind]) > 15
    assert apart(COMMON, BLIND[kind]) < 10
