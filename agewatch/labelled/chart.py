"""The model card's figure as SVG, written by hand: error and coverage by decade of true age."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from agewatch.labelled.calibration import COVERAGE
from agewatch.labelled.evaluate import Evaluation
from agewatch.labelled.metrics import MIN_SLICE_FACES, Slice

_DECADES = [f"{low}-{low + 9}" for low in range(0, 80, 10)] + ["80+"]
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe & Ito's, for all eyes
_GREY = "#555"
_WIDTH, _HEIGHT, _TOP, _BOTTOM = 1000, 400, 56, 330
_PANELS = ((60.0, 480.0), (560.0, 980.0))  # left and right end of each, pixels


@dataclass(frozen=True)
class _Panel:
    left: float
    right: float
    lowest: float
    highest: float

    def x(self, decade: float) -> float:
        return self.left + decade / len(_DECADES) * (self.right - self.left)

    def y(self, value: float) -> float:
        return _BOTTOM - (value - self.lowest) / (self.highest - self.lowest) * (_BOTTOM - _TOP)


def figure(found: Evaluation) -> str:
    """Draw two panels: MAE by decade of every source, and the coverage of the intervals by decade.

    Decades with fewer than MIN_SLICE_FACES faces are left out.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        f' font-size="12" role="img"><title>{escape(found.model)}: error and coverage by true age</title>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        *_errors(found),
        *_coverage(found),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _errors(found: Evaluation) -> list[str]:
    series = {name: _large(parts) for name, parts in found.decades.items()}
    highest = max((part.mae_high for parts in series.values() for part in parts), default=1.0)
    panel = _Panel(*_PANELS[0], 0.0, float(np.ceil(highest)))
    step = max(1, round(panel.highest / 6))
    drawn = _axes(panel, "MAE by true age, years (bars: 95 % CI)", range(0, int(panel.highest) + 1, step), str)
    for index, (name, parts) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        shift = 0.5 + (index - (len(series) - 1) / 2) * 0.8 / max(len(series), 4)
        for part in parts:
            drawn += _bar(panel, _DECADES.index(part.value) + shift, part.mae_low, part.mae, part.mae_high, colour)
        drawn += _legend(panel.left + index % 3 * 145, _HEIGHT - 26 + index // 3 * 16, colour, name)
    return drawn


def _coverage(found: Evaluation) -> list[str]:
    decades = _large([part for part in found.slices if part.dimension == "age"])
    lows = [part.coverage_low or 0.0 for part in decades]
    panel = _Panel(*_PANELS[1], float(np.floor(min([COVERAGE, *lows]) * 10) / 10), 1.0)
    ticks = np.arange(panel.lowest, 1.001, 0.1 if panel.lowest < 0.7 else 0.05)
    drawn = _axes(panel, "Intervals: share that holds the true age (bars: 95 % CI)", ticks, lambda tick: f"{tick:.0%}")
    drawn.append(_rule(panel, COVERAGE, 'stroke="black" stroke-dasharray="6 4"'))
    for part in decades:
        low, middle, high = (value or 0.0 for value in (part.coverage_low, part.coverage, part.coverage_high))
        drawn += _bar(panel, _DECADES.index(part.value) + 0.5, low, middle, high, _COLOURS[0])
    return drawn + _legend(panel.left, _HEIGHT - 26, _COLOURS[0], "all sources (dashed: the aim)")


def _large(parts: Sequence[Slice]) -> list[Slice]:
    return [part for part in parts if part.n >= MIN_SLICE_FACES]


def _axes(panel: _Panel, title: str, ticks: Sequence[float] | np.ndarray, written: Callable[..., str]) -> list[str]:
    drawn = [_text(panel.left, _TOP - 24, title, size=14, colour="black")]
    for tick in ticks:
        drawn.append(_rule(panel, float(tick), 'stroke="#ddd"'))
        drawn.append(_text(panel.left - 6, panel.y(float(tick)) + 4, written(tick), anchor="end"))
    for index, name in enumerate(_DECADES):
        drawn.append(_text(panel.x(index + 0.5), _BOTTOM + 18, name, anchor="middle"))
    return drawn


def _rule(panel: _Panel, value: float, style: str) -> str:
    y = panel.y(value)
    return f'<line x1="{panel.left}" x2="{panel.right}" y1="{y:.1f}" y2="{y:.1f}" {style}/>'


def _bar(panel: _Panel, decade: float, low: float, middle: float, high: float, colour: str) -> list[str]:
    x, bottom, y, top = panel.x(decade), panel.y(low), panel.y(middle), panel.y(high)
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" y2="{top:.1f}" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
    ]


def _legend(x: float, y: float, colour: str, name: str) -> list[str]:
    return [f'<circle cx="{x + 5:.1f}" cy="{y - 4:.1f}" r="4" fill="{colour}"/>', _text(x + 14, y, name)]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = _GREY) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )
