"""Renders every picture once into one memory-mappable array: DATA/pictures.npy with DATA/pictures.json.

Each picture is trimmed to its ink, padded to a square and scaled to 128 px RGBA (straight alpha).
"""

import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from concepts import load_concepts, load_streamline
from fetch import PACKAGES, fetch
from palette import COLOURS, contrasts

Json = dict[str, Any]  # the packages' own files, of many shapes
PICTURE_PX = 128
RASTER_PX = 256  # an SVG is drawn this large first
INK_ALPHA = 8  # alpha above this is ink
RENDER_VERSION = 1  # raise when the pixels would change
ICONIFY_SETS = ("noto", "noto_v1", "fluent_flat", "fluent_hc")
# Pictures that show something else than their name, found by eye.
WRONG: dict[str, frozenset[str]] = {
    "streamline": frozenset({"1F52B", "1F3A7", "1F983"}),
    "noto_v1": frozenset({"1F997"}),
    "noto": frozenset({"1F46A"}),
    "twemoji": frozenset({"1F46A"}),
    "fluent_flat": frozenset({"1F408-200D-2B1B", "1F426-200D-2B1B"}),
    "fluent_3d": frozenset({"1F408-200D-2B1B", "1F426-200D-2B1B"}),
    "fluent_hc": frozenset({"1F408-200D-2B1B", "1F426-200D-2B1B"}),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one picture comes from: SVG text, or a file."""

    concept: str
    style: str  # name of the set
    svg: str = ""
    file: str = ""


def render(data: Path, processes: int | None = None) -> Path:
    """Renders all sets unless DATA holds them already; returns the path of pictures.npy."""
    target, listing = data / "pictures.npy", data / "pictures.json"
    key = fingerprint()
    if target.exists() and listing.exists() and json.loads(listing.read_text())["fingerprint"] == key:
        return target
    sources = list(find_sources(fetch(data)))
    partial = data / f"pictures.npy.{os.getpid()}.partial"
    shape = (len(sources), PICTURE_PX, PICTURE_PX, 4)
    np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape).flush()
    jobs = ((str(partial), row, source) for row, source in enumerate(sources))
    try:
        with multiprocessing.Pool(processes or os.cpu_count()) as pool:
            found = pool.starmap(_render_row, jobs, chunksize=16)
        # The listing goes first and comes back last: a stop between the two means "render again".
        listing.unlink(missing_ok=True)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    entries = [
        {"concept": source.concept, "set": source.style, "index": row, "contrast": contrast}
        for row, (source, contrast) in enumerate(zip(sources, found, strict=True))
    ]
    text = json.dumps({"fingerprint": key, "size_px": PICTURE_PX, "pictures": entries})
    temporary = listing.with_suffix(".partial")
    temporary.write_text(text)
    temporary.replace(listing)
    return target


def fingerprint() -> str:
    """Changes whenever the rendered pictures would."""
    digest = hashlib.blake2b(digest_size=8)
    packages = [(package.name, package.version) for package in PACKAGES.values()]
    wrong = sorted((style, sorted(ids)) for style, ids in WRONG.items())
    ids = [concept.id for concept in load_concepts()]
    digest.update(repr((RENDER_VERSION, packages, wrong, ids, load_streamline(), COLOURS)).encode())
    return digest.hexdigest()


def find_sources(folders: dict[str, Path]) -> Iterator[Source]:
    """Every picture of a known concept, in a fixed order: by set, then by concept."""
    ids = [concept.id for concept in load_concepts()]
    names = _code_points(_read(folders["noto"] / "chars.json"))
    for style in PACKAGES:
        wanted = [id_ for id_ in ids if id_ not in WRONG.get(style, ())]
        if style in ICONIFY_SETS:
            own = _code_points(_read(folders[style] / "chars.json"))
            # The file of noto_v1 is empty, but its icons have noto's names.
            yield from _iconify(style, folders[style], wanted, own or names)
        elif style == "streamline":
            pairs = [(id_, icon) for id_, icon in load_streamline() if id_ in set(wanted)]
            icons = _read(folders[style] / "icons.json")
            yield from (Source(concept=id_, style=style, svg=_svg(icons, icon)) for id_, icon in sorted(pairs))
        else:
            inner = "dist/svg" if style == "twemoji" else "assets"
            files = {_plain(path.stem): path for path in sorted((folders[style] / inner).iterdir())}
            yield from (Source(concept=i, style=style, file=str(files[i])) for i in wanted if i in files)


def _iconify(style: str, folder: Path, ids: list[str], names: dict[str, str]) -> Iterator[Source]:
    """The pictures of one Iconify set whose icons are found by code point."""
    icons = _read(folder / "icons.json")
    for id_ in ids:
        name = names.get(id_, "")
        alias = icons.get("aliases", {}).get(name, {})
        # Only plain renames: a flipped or turned alias is another drawing.
        name = alias["parent"] if set(alias) == {"parent"} else name
        if name in icons["icons"]:
            yield Source(concept=id_, style=style, svg=_svg(icons, name))


def _svg(icons: Json, name: str) -> str:
    """One icon as a whole SVG document."""
    icon = icons["icons"][name]
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'


def _code_points(chars: dict[str, str]) -> dict[str, str]:
    """Concept id -> icon name; a spelling without FE0F wins."""
    return {_plain(points): name for points, name in sorted(chars.items(), key=lambda item: -len(item[0]))}


def _plain(points: str) -> str:
    """Code points as concept ids are written: upper case, FE0F left out."""
    return "-".join(point for point in points.upper().split("-") if point != "FE0F")


def _read(path: Path) -> Json:
    """A JSON file of a package."""
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content


def _render_row(path: str, row: int, source: Source) -> list[int]:
    """Writes one picture into its row and returns its contrast with each ground colour."""
    picture = trim(_raster(source))
    rows = np.load(path, mmap_mode="r+")
    rows[row] = picture
    rows.flush()
    return contrasts(picture)


def _raster(source: Source) -> Image.Image:
    """The picture as RGBA, at a size at least that of the cache where the source allows."""
    if source.file.endswith(".webp"):
        with Image.open(source.file) as file:
            return file.convert("RGBA")
    svg = source.svg or Path(source.file).read_text(encoding="utf-8")
    image = _draw_svg(svg, RASTER_PX)
    box = _ink_box(image)
    side = max(box[2] - box[0], box[3] - box[1])
    # Ink that fills little of its canvas is drawn again, larger, so that nothing is scaled up.
    return image if side >= PICTURE_PX else _draw_svg(svg, RASTER_PX * PICTURE_PX * 3 // (2 * side))


def _draw_svg(svg: str, width_px: int) -> Image.Image:
    """An SVG document drawn at a width."""
    import resvg_py  # only rendering needs it: composing scenes must run without

    return Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=width_px))).convert("RGBA")


def _ink_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the ink, in pixels."""
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > INK_ALPHA)).getbbox()
    if box is None:
        raise ValueError("the picture is empty: the package changed, or the renderer does not know its features")
    return box


def trim(image: Image.Image) -> np.ndarray:
    """An RGBA picture cut to its ink, centred on a square, scaled to (128 128 4) uint8."""
    ink = image.crop(_ink_box(image))
    side = max(ink.size)
    square = Image.new("RGBA", (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return np.asarray(square.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS))
