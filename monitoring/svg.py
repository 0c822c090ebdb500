"""Small drawings as inline SVG: shapes, axes and a frame that says in words what it shows.

Colours and fonts are the page's (`report.css`), so that dark, light and paper each get their own. All text is escaped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 400
"""Units; a drawing is as wide as its place, so text of 12 is 11 pixels on a phone and 16 on a desk."""
_STEPS = (1, 2, 2.5, 5, 10)
_WIDEST = 27  # characters of a label beside a row


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` -> places from `start` to `end`; what lies beyond is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value, to a tenth of a unit."""
        part = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + min(max(part, 0.0), 1.0) * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within, `most` at most."""
        raw = (self.high - self.low) / most or 1.0
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(step * power for step in _STEPS if step * power >= raw * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def frame(name: str, height: float, title: str, told: str, shapes: Iterable[Markup]) -> Markup:
    """A drawing of so many units' height with its title and its content in words, for those who can't see it.

    `name` is unique on the page.
    """
    return Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-t {n}-d"><title id="{n}-t">{title}</title>'
        '<desc id="{n}-d">{told}</desc>{shapes}</svg>'
    ).format(w=WIDTH, h=round(height), n=name, title=title, told=told, shapes=Markup("").join(shapes))


def text(x: float, y: float, said: str, style: str = "", anchor: str = "start") -> Markup:
    """A line of text; its base is at y."""
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(x, y, style, anchor, said)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line."""
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, style)


def box(x: float, y: float, width: float, height: float, style: str) -> Markup:
    """A filled rectangle."""
    sides = (round(max(side, 0.0), 1) for side in (width, height))
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>').format(x, y, *sides, style)


def dot(x: float, y: float, style: str, radius: float = 3) -> Markup:
    """A dot."""
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>').format(x, y, radius, style)


def path(points: Sequence[tuple[float, float]], style: str) -> Markup:
    """A line through points."""
    places = " ".join(f"{x:g},{y:g}" for x, y in points)
    return Markup('<polyline points="{}" class="{}"/>').format(places, style)


def label(said: str) -> str:
    """A label that fits beside its row: the middle of a long one is left out."""
    half = _WIDEST // 2
    return said if len(said) <= _WIDEST else f"{said[:half]}…{said[1 - half :]}"


def rows(labels: Sequence[str], place: Scale, ticks: Sequence[tuple[float, str]], height: float) -> list[Markup]:
    """The ground of a drawing with a row a label: labels on the left, a grid of ticks, and their words below."""
    bottom = height * len(labels) + 6
    grid = [line(place(value), 0, place(value), bottom, "zero" if value == 0 else "grid") for value, _ in ticks]
    words = [text(place(value), bottom + 14, said, "small", "middle") for value, said in ticks]
    names = [
        Markup('<text x="0" y="{}" class="name">{}</text>').format(height * number + height / 2 + 4, label(said))
        for number, said in enumerate(labels)
    ]
    return [*grid, *words, *names]


def upright(place: Scale, left: float, ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    """The ground of a drawing over time: a line a tick across, and its words on the left."""
    return [
        part
        for value, said in ticks
        for part in (
            line(left, place(value), WIDTH, place(value), "zero" if value == 0 else "grid"),
            text(left - 5, place(value) + 4, said, "small", "end"),
        )
    ]
