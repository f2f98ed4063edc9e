"""Line charts: laid out once as lines, dots and words, then written as SVG or as a picture."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from evaluation.axes import HUGE, TINY, Axis, linear, logarithmic
from evaluation.markup import Markup, tag
from utils.files import whole_file

Point = tuple[float, float]
SCALES = {"linear": linear, "log": logarithmic}
# Okabe and Ito (2008): told apart also by the colour-blind, on white and on black. The yellow is
# left out, which white swallows; after the last colour they begin anew, dashed.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, FAINT = "currentColor", "grey"  # words and axes; in a picture black, and light grey
ON_PAPER = {INK: "#222222", FAINT: "#dddddd"}
WIDTH, PLOT_HEIGHT = 440, 190  # units: pixels of SVG at its own size
FONT, TITLE, LINE, SIDE = 12, 14, 18, 8  # sizes of letters, height of a line, and the margin
MOST_DOTS = 60  # points of a curve that are marked
DASH = 6
SHARP = 2  # pixels of a picture to a unit


@dataclass(frozen=True)
class Series:
    """A curve. points: (x, y) with rising x; a y that is not finite is a gap.

    Its place among the curves of a chart decides its colour, also where others have no points.
    """

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes. x_reach, y_reach: what is on the axes in any case."""

    title: str
    x_label: str
    series: Sequence[Series]
    scale: str = "linear"  # of y, a name in SCALES
    x_reach: tuple[float, ...] = ()
    y_reach: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """Through these points."""

    points: Sequence[Point]
    colour: str
    width: float = 1.0


@dataclass(frozen=True)
class Dot:
    """A point of a curve, and what it says in words."""

    at: Point
    colour: str
    label: str


@dataclass(frozen=True)
class Words:
    """Text whose baseline starts, ends or has its middle at a point."""

    at: Point
    text: str
    anchor: str = "start"
    size: int = FONT


@dataclass(frozen=True)
class Drawing:
    """A chart laid out: shapes in the order in which they are drawn, y downwards."""

    title: str
    height: float
    shapes: tuple[Line | Dot | Words, ...]


@dataclass(frozen=True)
class Frame:
    """Where the axes lie: the pixels of their ends."""

    x: Axis
    y: Axis
    left: float
    top: float

    def at(self, point: Point) -> Point:
        """The pixel of a point of the data."""
        width = WIDTH - 2 * SIDE - self.left
        up = self.y.place(point[1])
        return self.left + width * self.x.place(point[0]), self.top + PLOT_HEIGHT * (1 - up)


def lay_out(chart: Chart) -> Drawing:
    """Title, legend, axes and curves. ValueError where there is no point to be shown."""
    shown = [[p for p in own.points if is_shown(p, chart.scale)] for own in chart.series]
    points = [point for own in shown for point in own]
    if not points:
        raise ValueError(f"nothing to be shown: {chart.title}")
    y = SCALES[chart.scale]([*(value for _, value in points), *chart.y_reach])
    legend = list(legend_of(chart))
    top = max([LINE, *(own.at[1] for own in legend if isinstance(own, Words))]) + LINE + SIDE
    left = SIDE + 6 + max(map(width_of, y.labels))
    frame = Frame(linear([*(x for x, _ in points), *chart.x_reach]), y, left, top)
    shapes = [Words((SIDE, LINE), chart.title, size=TITLE), *legend, *axes(frame, chart.x_label)]
    for i, own in enumerate(chart.series):
        shapes += curve(frame, chart, own, i)
    return Drawing(chart.title, top + PLOT_HEIGHT + 2 * LINE + SIDE, tuple(shapes))


def has_points(chart: Chart) -> bool:
    """Whether any point of it can be shown."""
    return any(is_shown(p, chart.scale) for own in chart.series for p in own.points)


def is_shown(point: Point, scale: str) -> bool:
    """Whether the point has a place on axes of this scale; NaN has none."""
    x, y = point
    return abs(x) < HUGE and (TINY if scale == "log" else -HUGE) < y < HUGE


def legend_of(chart: Chart) -> Iterator[Line | Words]:
    """A dash of its colour and the name of each curve, in lines as long as they fit."""
    x, y = float(SIDE), 2.0 * LINE
    for i, own in enumerate(chart.series):
        if not (own.name and own.points):
            continue
        text = shortened(own.name, WIDTH - 2 * SIDE - 24)
        width = 24 + width_of(text)
        if x > SIDE and x + width > WIDTH - SIDE:
            x, y = float(SIDE), y + LINE
        yield from line_of([(x, y - 4), (x + 18, y - 4)], i)
        yield Words((x + 24, y), text)
        x += width + 2 * SIDE


def axes(frame: Frame, x_label: str) -> Iterator[Line | Words]:
    """Lines across at the ticks of y, a bottom line, and what the ticks and x are."""
    left, right = frame.left, WIDTH - 2 * SIDE
    bottom = frame.top + PLOT_HEIGHT
    for value, label in zip(frame.y.ticks, frame.y.labels, strict=True):
        y = frame.at((frame.x.ticks[0], value))[1]
        yield Line([(left, y), (right, y)], FAINT)
        yield Words((left - 6, y + 4), label, "end")
    for value, label in zip(frame.x.ticks, frame.x.labels, strict=True):
        x = frame.at((value, frame.y.ticks[0]))[0]
        yield Line([(x, bottom), (x, bottom + 4)], INK)
        yield Words((x, bottom + LINE), label, "middle")
    yield Line([(left, bottom), (right, bottom)], INK)
    yield Words(((left + right) / 2, bottom + 2 * LINE), x_label, "middle")


def curve(frame: Frame, chart: Chart, series: Series, number: int) -> Iterator[Line | Dot]:
    """Its parts between gaps as lines; dots on its points where they are few or alone."""
    parts = groupby(series.points, lambda point: is_shown(point, chart.scale))
    for part in (list(part) for shown, part in parts if shown):
        if len(part) > 1:
            yield from line_of(thinned([frame.at(point) for point in part]), number)
        if len(part) == 1 or len(series.points) <= MOST_DOTS:
            for x, y in part:
                label = f"{series.name or chart.title}: {y:.4g} at {x:,.6g} {chart.x_label}"
                yield Dot(frame.at((x, y)), colour_of(number), label)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most four points of each column of pixels: first, lowest, highest and last."""
    kept = []
    for _, column in groupby(enumerate(points), lambda numbered: int(numbered[1][0])):
        own = list(column)
        by_height = sorted(own, key=lambda numbered: numbered[1][1])
        kept += sorted({own[0], by_height[0], by_height[-1], own[-1]})
    return [point for _, point in kept]


def line_of(points: Sequence[Point], number: int) -> Iterator[Line]:
    """The line of the curve of this number: in its colour, dashed once the colours are used up."""
    parts = [points] if number < len(COLOURS) else dashes(points)
    for part in parts:
        yield Line(part, colour_of(number), 2)


def dashes(points: Sequence[Point]) -> Iterator[list[Point]]:
    """A line cut into dashes as long as the gaps between them."""
    part, left, drawn = [points[0]], float(DASH), True
    for end in points[1:]:
        while (apart := math.dist(part[-1], end)) > left:
            (x, y), share = part[-1], left / apart
            cut = (x + share * (end[0] - x), y + share * (end[1] - y))
            if drawn:
                yield [*part, cut]
            part, left, drawn = [cut], float(DASH), not drawn
        part, left = [*part, end], left - apart
    if drawn and len(part) > 1:
        yield part


def colour_of(number: int) -> str:
    """Of the curve of this number, in CSS; the colours repeat."""
    return COLOURS[number % len(COLOURS)]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, which needs no file."""
    return ImageFont.load_default(size)


def width_of(text: str) -> float:
    """In a browser's font it may be a little more."""
    return 1.1 * font(FONT).getlength(text)


def shortened(text: str, width: float) -> str:
    """The text, or as much of its beginning as fits."""
    if width_of(text) <= width:
        return text
    while width_of(text + "...") > width:
        text = text[:-1]
    return text + "..."


def svg(drawing: Drawing) -> Markup:
    """For a page, whose colour of text it takes; a dot shows its label under the mouse."""
    box = f"0 0 {WIDTH} {drawing.height:g}"
    shapes = map(svg_shape, drawing.shapes)
    names = {"role": "img", "aria_label": drawing.title, "font_size": FONT}
    return tag("svg", *shapes, viewBox=box, width=WIDTH, height=f"{drawing.height:g}", **names)


def svg_shape(shape: Line | Dot | Words) -> Markup:
    """One element."""
    if isinstance(shape, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        faint = 0.3 if shape.colour == FAINT else None
        style = {"stroke": shape.colour, "stroke_width": shape.width, "stroke_opacity": faint}
        return tag("polyline", points=points, fill="none", stroke_linejoin="round", **style)
    x, y = (f"{value:.1f}" for value in shape.at)
    if isinstance(shape, Dot):
        return tag("circle", tag("title", shape.label), cx=x, cy=y, r=2.5, fill=shape.colour)
    anchor = None if shape.anchor == "start" else shape.anchor
    size = None if shape.size == FONT else shape.size
    return tag("text", shape.text, x=x, y=y, text_anchor=anchor, font_size=size, fill=INK)


def picture(drawing: Drawing) -> Image.Image:
    """RGB on white, SHARP pixels to a unit; drawn at twice that, so that edges are smooth."""
    zoom = 2 * SHARP
    image = Image.new("RGB", (WIDTH * zoom, math.ceil(drawing.height) * zoom), "white")
    draw = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        paint(draw, shape, zoom)
    return image.reduce(2)


def paint(draw: ImageDraw.ImageDraw, shape: Line | Dot | Words, zoom: int) -> None:
    """One shape."""
    if isinstance(shape, Line):
        colour = ON_PAPER.get(shape.colour, shape.colour)
        points = [(x * zoom, y * zoom) for x, y in shape.points]
        draw.line(points, colour, round(shape.width * zoom), joint="curve")
        return
    x, y = (value * zoom for value in shape.at)
    if isinstance(shape, Dot):
        draw.circle((x, y), 2.5 * zoom, shape.colour)
    else:
        anchor = shape.anchor[0].replace("e", "r").replace("s", "l") + "s"  # s: on the baseline
        draw.text((x, y), shape.text, ON_PAPER[INK], font(shape.size * zoom), anchor)


def save_charts(rows: Sequence[Sequence[Chart]], path: Path) -> None:
    """Write rows of charts as one PNG. Raises OSError."""
    drawn = [[picture(lay_out(chart)) for chart in row] for row in rows]
    heights = [max(image.height for image in row) for row in drawn]
    size = (max(sum(image.width for image in row) for row in drawn), sum(heights))
    sheet, y = Image.new("RGB", size, "white"), 0
    for row, height in zip(drawn, heights, strict=True):
        for i, image in enumerate(row):
            sheet.paste(image, (i * WIDTH * SHARP, y))
        y += height
    with whole_file(path) as file:
        sheet.save(file, "PNG", optimize=True)
