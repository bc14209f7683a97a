"""Contact sheets: pictures in a grid, each with its words under it."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]

GAP = 12  # pixels around every cell
LINE = 1.3  # line height in font sizes
GROUND: Colour = (255, 255, 255)
INK: Colour = (40, 40, 40)
EDGE: Colour = (208, 208, 208)


def grid_sheet(
    pictures: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    columns: int | None = None,
    cell_px: int = 160,
    font_px: int = 14,
    most_lines: int = 6,
) -> Image.Image:
    """Pictures in rows, fitted into squares of cell_px, with their labels wrapped under them.

    A label keeps its line ends; after most_lines it ends in "...". Each row is as high as its longest label needs.
    Without `columns` the sheet is about as wide as high, with 8 columns at most.
    """
    if not pictures:
        raise ValueError("a sheet needs at least one picture")
    if columns is None:
        columns = min(8, max(1, round((1.3 * len(pictures)) ** 0.5)))
    columns = min(columns, len(pictures))
    font = ImageFont.load_default(font_px)
    lines = [wrapped(label, font, cell_px, most_lines) for label in labels]
    rows = [range(first, min(first + columns, len(pictures))) for first in range(0, len(pictures), columns)]
    line_px = round(font_px * LINE)
    heights = [cell_px + GAP // 2 + line_px * max(len(lines[i]) for i in row) for row in rows]
    size = (GAP + columns * (cell_px + GAP), GAP + sum(height + GAP for height in heights))
    sheet = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (cell_px + GAP)
            _place(sheet, draw, pictures[i], left, top, cell_px)
            for n, line in enumerate(lines[i]):
                draw.text((left, top + cell_px + GAP // 2 + n * line_px), line, fill=INK, font=font)
        top += height + GAP
    return sheet


def _place(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, left: int, top: int, cell_px: int
) -> None:
    """One picture in the middle of its square, with a thin edge that white grounds need."""
    scale = cell_px / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, top = left + (cell_px - width) // 2, top + (cell_px - height) // 2
    sheet.paste(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=EDGE)


def wrapped(text: str, font: Font, width_px: int, most_lines: int) -> list[str]:
    """The text in lines no wider than width_px; a word that is wider by itself is cut into pieces."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width_px:
                line = joined
                continue
            if line:
                lines.append(line)
            *whole, line = _pieces(word, font, width_px)
            lines += whole
        lines.append(line)
    if len(lines) <= most_lines:
        return lines
    last = lines[most_lines - 1]
    while last and font.getlength(f"{last}...") > width_px:
        last = last[:-1]
    return [*lines[: most_lines - 1], f"{last}..."]


def _pieces(word: str, font: Font, width_px: int) -> list[str]:
    """A word cut where it no longer fits; at least one letter a piece."""
    pieces, piece = [], ""
    for letter in word:
        if piece and font.getlength(piece + letter) > width_px:
            pieces.append(piece)
            piece = ""
        piece += letter
    return [*pieces, piece]
