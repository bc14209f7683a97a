"""Pictures as text for a terminal: its graphics where it has them (kitty, sixel), coloured half blocks, or letters.

Each function takes a picture and returns the text to write. What a terminal can show is found out in terminal.py.
"""

import base64
import io
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Way = Literal["kitty", "sixel", "truecolor", "256", "letters"]

CHUNK = 4096  # characters of one piece of kitty's protocol
SIXEL_COLOURS = 64
CELL_PX = 16  # height of a sixel line of text, about
UPPER_HALF = "\N{UPPER HALF BLOCK}"
CUBE = (0, 95, 135, 175, 215, 255)  # what each of red, green and blue can be in 216 of the 256 colours
SHADES = " .:-=+*#%@"  # dark to light


def rendered(picture: "Image", way: Way, columns: int, rows: int) -> str:
    """A picture in at most columns x rows character cells, twice as high as wide, with its line end."""
    height = max(1, min(rows, round(columns * picture.height / picture.width / 2)))
    width = max(1, min(columns, round(2 * height * picture.width / picture.height)))
    if way == "kitty":
        return kitty(picture, width, height)
    if way == "sixel":
        side = CELL_PX * height
        return sixel(_sized(picture, side * picture.width // picture.height or 1, side))
    if way == "letters":
        return letters(_sized(picture, width, height))
    return half_blocks(_sized(picture, width, 2 * height), true_colour=way == "truecolor")


def _sized(picture: "Image", width: int, height: int) -> "Image":
    from PIL.Image import Resampling

    return picture.convert("RGB").resize((width, height), Resampling.LANCZOS)


def half_blocks(picture: "Image", *, true_colour: bool) -> str:
    """Two pixels a character: the upper one is its ink, the lower one its ground."""
    import numpy as np

    pixels = np.asarray(picture.convert("RGB"))
    colour = _true_colour if true_colour else _of_256
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = [
            f"\x1b[38;{colour(*up)};48;{colour(*low)}m{UPPER_HALF}"
            for up, low in zip(upper.tolist(), lower.tolist(), strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)


def _true_colour(red: int, green: int, blue: int) -> str:
    return f"2;{red};{green};{blue}"


def _of_256(red: int, green: int, blue: int) -> str:
    """The nearest of the 6x6x6 colours and 24 grays that every terminal of 256 colours has."""
    wanted = (red, green, blue)
    cube = [min((abs(step - value), i) for i, step in enumerate(CUBE))[1] for value in wanted]
    gray = min(23, max(0, round((sum(wanted) / 3 - 8) / 10)))
    off_cube = sum((CUBE[i] - value) ** 2 for i, value in zip(cube, wanted, strict=True))
    off_gray = sum((8 + 10 * gray - value) ** 2 for value in wanted)
    if off_gray < off_cube:
        return f"5;{232 + gray}"
    return f"5;{16 + 36 * cube[0] + 6 * cube[1] + cube[2]}"


def letters(picture: "Image") -> str:
    """A character a pixel, lighter ones for lighter pixels: for no colours at all."""
    import numpy as np

    shades = np.asarray(picture.convert("L")).astype(int) * len(SHADES) // 256
    return "".join("".join(SHADES[i] for i in row) + "\n" for row in shades.tolist())


def kitty(picture: "Image", columns: int, rows: int) -> str:
    """The picture as PNG in kitty's graphics protocol, scaled by the terminal to columns x rows cells.

    Source: sw.kovidgoyal.net/kitty/graphics-protocol. Makes room first, so that nothing scrolls under it.
    """
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "png")
    data = base64.standard_b64encode(buffer.getvalue()).decode()
    pieces = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    written = []
    for i, piece in enumerate(pieces):
        # a=T transmit and show, f=100 PNG, q=2 no replies, C=1 leave the cursor
        keys = f"a=T,f=100,q=2,C=1,c={columns},r={rows}," if i == 0 else ""
        written.append(f"\x1b_G{keys}m={int(i + 1 < len(pieces))};{piece}\x1b\\")
    return "\n" * rows + f"\x1b[{rows}A" + "".join(written) + f"\x1b[{rows}B\n"


def sixel(picture: "Image") -> str:
    """The picture at its own size in DEC's sixels: bands of six pixel rows, for each colour a bit mask a column."""
    import numpy as np
    from PIL.Image import Dither

    reduced = picture.convert("RGB").quantize(SIXEL_COLOURS, dither=Dither.NONE)
    index = np.asarray(reduced)
    palette = reduced.getpalette() or []
    height, width = index.shape
    parts = [f'\x1bP0;1;0q"1;1;{width};{height}']
    for n in np.unique(index).tolist():
        red, green, blue = (round(v * 100 / 255) for v in palette[3 * n : 3 * n + 3])
        parts.append(f"#{n};2;{red};{green};{blue}")
    for top in range(0, height, 6):
        band = index[top : top + 6]
        bits = 1 << np.arange(len(band))
        for n in np.unique(band).tolist():
            mask = ((band == n) * bits[:, None]).sum(0)
            parts.append(f"#{n}{_run_lengths(mask.tolist())}$")
        parts.append("-")
    return "".join(parts) + "\x1b\\\n"


def _run_lengths(mask: list[int]) -> str:
    parts: list[str] = []
    start = 0
    for i in range(1, len(mask) + 1):
        if i == len(mask) or mask[i] != mask[start]:
            count, character = i - start, chr(63 + mask[start])
            parts.append(character * count if count < 4 else f"!{count}{character}")
            start = i
    return "".join(parts)
