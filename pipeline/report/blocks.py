"""Parts that sections are made of. A template shows each kind of them, and escapes every text in it.

A section chooses blocks and writes no HTML, so all sections look alike and no text of a corpus can become markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure in large type."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Figures side by side. With `flow`, arrows lead from each to the next."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]
    flow: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts below the names of columns.

    Attributes:
        numbers: Indexes of columns that are aligned right.
        note: A sentence below the table, such as how many rows are not shown.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. With `tone` "warning" or "error" it is highlighted; with "heading" it is the name of what follows."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = "plain"


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True, slots=True)
class Share:
    """A named part of a whole."""

    name: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Shares:
    """Horizontal bars, one below the other."""

    kind: ClassVar[str] = "shares"
    shares: Sequence[Share]

    def widths(self) -> Iterator[tuple[Share, str]]:
        """Yield each part with the width of its bar, in percent of the largest."""
        most = max((share.value for share in self.shares), default=0.0)
        for share in self.shares:
            yield share, f"{100 * share.value / most if most > 0 else 0:.2f}"


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart.

    Attributes:
        label: Text below the bar; empty for none.
        hint: Text that is shown while the pointer is over the bar.
        breaks: Whether a line before the bar marks a break in the axis.
    """

    value: float
    label: str
    hint: str
    breaks: bool = False


_WIDTH, _HEIGHT = 960, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 26, 40
_CHARACTER = 6.6  # width of a character of the labels
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Chart:
    """Vertical bars, as inline SVG.

    Attributes:
        title: Description for people who do not see it.
        unit: Of the values, above the axis.
        axis: Name of the horizontal axis.
    """

    kind: ClassVar[str] = "chart"
    title: str
    bars: Sequence[Bar]
    unit: str
    axis: str
    width: int = field(default=_WIDTH, init=False)
    height: int = field(default=_HEIGHT, init=False)
    left: int = field(default=_LEFT, init=False)
    floor: int = field(default=_HEIGHT - _BOTTOM, init=False)

    @property
    def right(self) -> int:
        """End of the horizontal axis."""
        return self.width - _RIGHT

    def _scale(self) -> tuple[float, float]:
        """Return the distance of the ticks, 1, 2 or 5 times a power of ten, and the highest of them."""
        most = max((bar.value for bar in self.bars), default=0.0) or 1.0
        power = 10.0 ** math.floor(math.log10(most / _TICKS))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * _TICKS >= most * 0.999)
        return step, step * math.ceil(most / step - 1e-9)

    def ticks(self) -> Iterator[tuple[str, str]]:
        """Yield height and label of each tick."""
        step, top = self._scale()
        for number in range(round(top / step) + 1):
            yield f"{self._y(number * step, top):.1f}", short(number * step)

    def _y(self, value: float, top: float) -> float:
        return self.floor - (self.floor - _TOP) * value / top

    def places(self) -> Iterator[tuple[Bar, dict[str, str]]]:
        """Yield each bar with x, y, width and height, and the middle of its label; a label that has no room is left out."""
        _, top = self._scale()
        pitch = (self.right - self.left) / max(len(self.bars), 1)
        gap = min(pitch * 0.18, 6.0)
        free = -math.inf
        for number, bar in enumerate(self.bars):
            x, y = self.left + number * pitch, self._y(bar.value, top)
            middle, half = x + pitch / 2, len(bar.label) * _CHARACTER / 2
            place = {
                "x": x + gap / 2,
                "y": y,
                "width": pitch - gap,
                "height": self.floor - y,
                "edge": x,
                "middle": middle,
            }
            texts = {name: f"{value:.1f}" for name, value in place.items()}
            if bar.label and middle - half >= free:
                free = middle + half + _CHARACTER
                texts["label"] = bar.label
            yield bar, texts


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points, as inline SVG.

    Attributes:
        title: Description for people who do not see it.
        points: x and y of each point, by rising x; at least one.
        unit: Of the values, above the axis.
        axis: Name of the horizontal axis.
    """

    kind: ClassVar[str] = "curve"
    title: str
    points: Sequence[tuple[float, float]]
    unit: str
    axis: str
    width: int = field(default=_WIDTH, init=False)
    height: int = field(default=_HEIGHT, init=False)
    left: int = field(default=_LEFT, init=False)
    right: int = field(default=_WIDTH - _RIGHT, init=False)
    floor: int = field(default=_HEIGHT - _BOTTOM, init=False)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Return a point on the page. The curve fills the height; a constant one is in the middle."""
        (first, *_), (last, *_) = self.points[0], self.points[-1]
        low, high = min(y for _, y in self.points), max(y for _, y in self.points)
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return self.left + (self.right - self.left) * across, self.floor - (self.floor - _TOP) * up

    def line(self) -> str:
        """Return the points for a polyline."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (self._place(*point) for point in self.points))

    def dots(self) -> Iterator[tuple[str, str, str]]:
        """Yield x, y and the text of each point."""
        for x, y in self.points:
            across, up = self._place(x, y)
            yield f"{across:.1f}", f"{up:.1f}", f"{self.axis} {x:,g}: {y:.4g}"

    def marks(self) -> Iterator[tuple[str, str]]:
        """Yield height and label of the smallest and the largest value, once if they are the same."""
        for value in dict.fromkeys((min(y for _, y in self.points), max(y for _, y in self.points))):
            yield f"{self._place(self.points[0][0], value)[1]:.1f}", f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a page.

    Attributes:
        name: Its anchor: letters and hyphens.
        lead: A sentence below the title that says what is to be seen.
    """

    name: str
    title: str
    blocks: Sequence[Tiles | Table | Text | Code | Shares | Chart | Curve]
    lead: str = ""


def short(value: float) -> str:
    """Return a number of three digits, as in 12.5 k."""
    rounded = float(f"{value:.3g}")
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(rounded) >= limit:
            return f"{rounded / limit:.4g}{unit}"
    return f"{rounded:.3g}"


def percent(part: float, whole: float) -> str:
    """Return a share of a whole, as in 1.5 %; of nothing, 0 %."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.2g} %" if share < 1 else f"{share:.1f} %"


def duration(seconds: float) -> str:
    """Return a duration, as in 1.2 s, 45 s, 2.5 min or 3.1 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
