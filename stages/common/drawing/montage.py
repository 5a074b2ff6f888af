"""A sheet of panels: rows of images under column heads, with text beside each row.

Panels are pasted unchanged; matplotlib draws only the text, in its bundled font, so that equal
content gives equal bytes. All sizes are in pixels, origin top-left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap

import cv2
import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from stages.common.drawing.panels import Colour, Panel
from stages.common.runtime.storage import replace_file

DPI = 100
EDGE, GAP = 24, 10  # around the sheet, between panels
HEAD, COLUMN_HEAD = 62, 26  # heights of the sheet's title block and of the column heads
INK, QUIET = "#1b1f24", "#5b6470"
MARK_COLOURS = {"base": (44, 96, 160), "novel": (196, 78, 20)}


@dataclass(frozen=True)
class Row:
    """A row of panels with the text to its left.

    Attributes:
        panels: one per column.
        title: what the row shows, such as the class.
        mark: "base", "novel" or "", drawn on a coloured ground.
        lines: further paragraphs.
    """

    panels: list[Panel]
    title: str
    mark: str = ""
    lines: list[str] = field(default_factory=list)


def draw_sheet(
    title: str, subtitle: str, columns: list[str], rows: list[Row], words_width: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the sheet, RGB; all panels are squares of one size, one per column."""
    side = rows[0].panels[0].pixels.shape[0]
    left, top = EDGE + words_width, EDGE + HEAD + COLUMN_HEAD
    width = left + len(columns) * (side + GAP) - GAP + EDGE
    height = top + len(rows) * (side + GAP) - GAP + EDGE
    sheet = np.full((height, width, 3), 255, np.uint8)
    type_setter = _TypeSetter(sheet)
    type_setter.set(title, EDGE, EDGE, 15, bold=True)
    type_setter.set(subtitle, EDGE, EDGE + 29, 9, colour=QUIET)
    for number, column in enumerate(columns):
        x = left + number * (side + GAP)
        type_setter.set(column, x, top - 20, 9, bold=True)
    for row_number, row in enumerate(rows):
        y = top + row_number * (side + GAP)
        _set_words(type_setter, row, y, words_width, side)
        for number, panel in enumerate(row.panels):
            x = left + number * (side + GAP)
            sheet[y : y + side, x : x + side] = panel.pixels
            _set_tags(type_setter, panel, x, y)
    return type_setter.draw()


def draw_panel(panel: Panel) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels, RGB, of one panel with its tags; it need not be square."""
    setter = _TypeSetter(panel.pixels)
    _set_tags(setter, panel, 0, 0)
    return setter.draw()


def write_png(path: Path, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write RGB as PNG; equal pixels give equal bytes."""
    _, encoded = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    with replace_file(path) as partial:
        partial.write_bytes(encoded.tobytes())


class _TypeSetter:
    """Collects texts at pixel positions of a sheet and draws them all at once."""

    def __init__(self, sheet: UInt8[np.ndarray, "H W 3"]) -> None:
        self.sheet = sheet
        height, width = sheet.shape[:2]
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
        self.fonts = [fonts / "DejaVuSans.ttf", fonts / "DejaVuSans-Bold.ttf"]

    def measure(self, text: str, points: float, bold: bool = False) -> float:
        """Return the width of a text in pixels."""
        font = FontProperties(fname=self.fonts[bold], size=points)
        return self.canvas.get_renderer().get_text_width_height_descent(text, font, False)[0]

    def set(
        self,
        text: str,
        x: float,
        y: float,
        points: float,
        bold: bool = False,
        colour: str = INK,
        ground: Colour | None = None,
    ) -> None:
        """Add a text with its upper left corner at (x, y), on a coloured ground if given."""
        height, width = self.sheet.shape[:2]
        box = None
        if ground is not None:
            colour = "black" if np.dot(ground, (0.299, 0.587, 0.114)) > 140 else "white"
            face = [channel / 255 for channel in ground]
            box = {"boxstyle": "round,pad=0.25,rounding_size=0.3", "facecolor": face, "lw": 0}
        self.figure.text(
            x / width,
            1 - y / height,
            text,
            font=FontProperties(fname=self.fonts[bold], size=points),
            color=colour,
            va="top",
            bbox=box,
            parse_math=False,  # a caption may have a dollar sign
        )

    def draw(self) -> UInt8[np.ndarray, "H W 3"]:
        self.figure.figimage(self.sheet, zorder=-1)
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def _set_words(setter: _TypeSetter, row: Row, y: int, width: int, height: int) -> None:
    """Add title, mark and paragraphs to the left of a row; lines that do not fit are dropped."""
    setter.set(row.title, EDGE, y + 2, 12, bold=True)
    if row.mark:
        x = EDGE + setter.measure(row.title, 12, bold=True) + 14
        setter.set(row.mark, x, y + 5, 8, bold=True, ground=MARK_COLOURS[row.mark])
    letters = int((width - 16) / 6.6)  # mean advance of the font at 8.5 points
    place, step = y + 30, 16
    for paragraph in row.lines:
        for line in wrap(paragraph, letters):
            if place + step > y + height:
                return
            setter.set(line, EDGE, place, 8.5, colour=QUIET)
            place += step
        place += 5


def _set_tags(setter: _TypeSetter, panel: Panel, x: int, y: int) -> None:
    points = 8
    widths = [setter.measure(tag.text, points) + 8 for tag in panel.tags]
    for tag, (left, top) in zip(panel.tags, place_tags(panel, widths), strict=True):
        setter.set(tag.text, x + left + 4, y + top + 4, points, ground=tag.colour)


def place_tags(panel: Panel, widths: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yield (left, top) in pixels of each tag of a panel, given the tags' widths.

    A tag is moved into its panel, and then vertically by the least amount that keeps it off the
    earlier tags.
    """
    height = 18
    taken: list[tuple[float, float, float, int]] = []
    panel_height, panel_width = panel.pixels.shape[:2]
    for tag, width in zip(panel.tags, widths, strict=True):
        left = float(np.clip(tag.x, 2, max(panel_width - width - 2, 2)))
        top = float(np.clip(tag.y - height, 2, max(panel_height - height - 2, 2)))
        places = sorted(range(2, panel_height - height - 1), key=lambda place: abs(place - top))
        free = [p for p in places if not any(_cover(left, p, width, height, t) for t in taken)]
        top = free[0] if free else top
        taken.append((left, top, width, height))
        yield left, top


def _cover(left: float, top: float, width: float, height: float, other: tuple) -> bool:
    x, y, other_width, other_height = other
    beside = left + width <= x or x + other_width <= left
    return not beside and top < y + other_height and y < top + height
