"""Judges drawings from outside: draws prompts with a model, reads the drawings without one, prints what was right.

python judge.py DATA OUT; --help lists the options. A caption for drawing means one drawing to the pixel: reading.py
looks up which, and knows no prompt. OUT gets drawings/, results.json and failures.png.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin

import omnimamba_cli as om
from captions import describe
from judge_prompts import GROUPS, Asked, ask
from names import join, thing_name
from omnimamba_cli.data.images import pixels_to_image, vq_pixels
from omnimamba_cli.engine import hub
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.engine.opening import pixel_encoder
from omnimamba_cli.engine.sheets import grid_sheet
from pictures import Pictures
from reading import Reader, Reading, Seen, look_key
from scenes import CANVAS_PX, PLAIN_HANDS, SOLID_STYLE, Scene, Thing, compose

# Set by what the image tokenizer makes of the truth, see "Judged from outside" in README.md.
FIT = 0.45  # of a thing that is right, at least
# What is asked for is right where no look explains so much more of a square's colour: looks of the same thing (it is
# gray by itself, a gray one was read), and pictures of other things, which must be nearly the same to the pixel.
TIE_OF_ONE, TIE_OF_TWO = 0.04, 0.01
STRAY = 0.02  # of the canvas: more ink beside the things is one thing more
CHECKS = ("things", "names", "count", "place", "ground", "all")
SHEET_ROWS = 6  # failures of a group on the sheet
# What a table's last rows say: of which groups, which check.
TOTALS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("single things", "things", ("one",)),
    ("two things, both", "things", ("two, and", "two, unseen", "two, big", "two, left", "two, above")),
    ("count, 2 to 5", "count", ("two of", "three of", "four of", "five of")),
    ("ground", "ground", ("",)),
    ("left, right, above, below", "place", ("two, left", "two, above")),
    ("the same, both things right", "all", ("two, left", "two, above")),
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is right in a drawing."""

    things: bool  # each thing that was asked for is there in its look, well drawn, and no other
    names: bool  # the same, in whatever look and however drawn
    count: bool  # as many things as were asked for
    place: bool  # they stand where they should, and none where another should
    ground: bool

    @property
    def all(self) -> bool:
        """Whether the drawing is the one that was asked for."""
        return self.things and self.count and self.place and self.ground


def judge(reader: Reader, scene: Scene, reading: Reading) -> Verdict:
    """Compares what was read with what was asked for."""
    count = len(reading.things) == len(scene.things) and reading.stray <= STRAY
    at = [_asked_there(scene, seen.thing) for seen in reading.things]
    swapped = any(
        there is not None
        and seen.thing.concept.id != there.concept.id
        and any(seen.thing.concept.id == thing.concept.id for thing in scene.things)
        for seen, there in zip(reading.things, at, strict=True)
    )
    things = _pair_up(scene, reading, lambda thing, seen: _is_drawn(reader, reading, thing, seen))
    return Verdict(
        things=things,
        names=things or _pair_up(scene, reading, lambda thing, seen: thing.concept.id == seen.thing.concept.id),
        count=count,
        place=count and None not in at and len({there.box for there in at if there}) == len(at) and not swapped,
        ground=reading.ground == scene.ground,
    )


def _asked_there(scene: Scene, read: Thing) -> Thing | None:
    """The thing that was asked for where another was read; None where nothing was."""
    for thing in scene.things:
        far = max(abs(a - b) * CANVAS_PX for a, b in zip(thing.centre, read.centre, strict=True))
        if thing.side_px == read.side_px and far < thing.side_px / 2:
            return thing
    return None


def _pair_up(scene: Scene, reading: Reading, right: Callable[[Thing, Seen], bool]) -> bool:
    """Whether each thing has one of its own among those that were read, and none is left over."""
    left = list(reading.things)
    for thing in scene.things:
        found = next((seen for seen in left if right(thing, seen)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _is_drawn(reader: Reader, reading: Reading, thing: Thing, seen: Seen) -> bool:
    """Whether what was read is what was asked for, or so like it that its pixels cannot tell."""
    if look_key(thing) == look_key(seen.thing):
        return seen.fit >= FIT
    if thing.side_px != seen.thing.side_px:
        return False
    tie = TIE_OF_ONE if thing.concept.id == seen.thing.concept.id else TIE_OF_TWO
    return reader.fit(reading, thing, seen.square) >= max(FIT, seen.fit - tie)


def render_truth(asked: list[Asked], pictures: Pictures) -> Iterator[Image.Image]:
    """What the prompts mean."""
    return (Image.fromarray(compose(a.scene, pictures)) for a in asked)


def render_other(asked: list[Asked], pictures: Pictures) -> Iterator[Image.Image]:
    """The same things, in the same places, by another hand; as they are where there is none."""
    for a in asked:
        things = []
        for thing in a.scene.things:
            rows = pictures.by_style[thing.concept.id]
            style = next((s for s in reversed(PLAIN_HANDS) if s in rows and s != thing.style), thing.style)
            things.append(replace(thing, style=style, picture=rows[style][0]))
        yield Image.fromarray(compose(replace(a.scene, things=tuple(things)), pictures))


def render_wrong(asked: list[Asked], pictures: Pictures) -> Iterator[Image.Image]:
    """What the prompt before means: of the same group, but for the first of each."""
    return render_truth([*asked[-1:], *asked[:-1]], pictures)


RENDERED = {"truth": render_truth, "other-hand": render_other, "wrong": render_wrong}


def through_tokenizer(images: Iterator[Image.Image], model: str) -> Iterator[Image.Image]:
    """Pictures as the image tokenizer gives them back: the best that its model could draw."""
    files = load_directory(hub.resolve(model), dtype=torch.float32, parts=("vq",))
    assert files.vq is not None
    encode = pixel_encoder(files.vq, torch.device("cpu"))
    for image in images:
        with torch.inference_mode():
            pixels = files.vq.decode(encode(vq_pixels(image, CANVAS_PX)[None]))
        yield pixels_to_image(pixels[0])


def draw(asked: list[Asked], model: str, seed: int, folder: Path) -> Iterator[Image.Image]:
    """What a model draws, as `omnimamba generate` does; picture i uses seed + i. Those in `folder` are not redrawn."""
    session = om.load(model)
    marks = [json.dumps([model, seed + i, a.prompt]) for i, a in enumerate(asked)]
    paths = [folder / f"{i:04d}.png" for i in range(len(asked))]
    todo = [i for i, path in enumerate(paths) if not path.exists() or Image.open(path).info.get("judge") != marks[i]]
    prompts, seeds = [asked[i].prompt for i in todo], [seed + i for i in todo]
    for i, event in zip(todo, session.stream_generate(prompts, seed=seeds), strict=True):
        info = PngImagePlugin.PngInfo()
        info.add_text("judge", marks[i])
        event.image.save(paths[i], pnginfo=info)
        if sys.stderr.isatty():
            print(f"\rdrawn {i + 1} of {len(asked)}", end="", file=sys.stderr, flush=True)
    return (Image.open(path).convert("RGB") for path in paths)


def interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n, Wilson's, 0 to 1."""
    z, share = 1.96, right / n
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (edge / (1 + z * z / n) for edge in (middle - half, middle + half))
    return max(0.0, low), min(1.0, high)


def score(asked: list[Asked], verdicts: list[Verdict]) -> dict[str, dict[str, dict[str, Any]]]:
    """What was right, by group and check: n, right, share, low and high of its 95 % interval."""
    groups = {group.name: (CHECKS, (group.name,)) for group in GROUPS}
    totals = {f"total: {name}": ((check,), starts) for name, check, starts in TOTALS}
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for name, (checks, starts) in (groups | totals).items():
        rows = [verdict for a, verdict in zip(asked, verdicts, strict=True) if a.group.startswith(starts)]
        for check in checks if rows else ():
            right = sum(getattr(verdict, check) for verdict in rows)
            low, high = interval(right, len(rows))
            found = {"n": len(rows), "right": right, "share": right / len(rows), "low": low, "high": high}
            scores.setdefault(name, {})[check] = found
    return scores


def table(scores: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The scores in percent, as Markdown; the interval is that of the last column, or of a total's one."""
    lines = [f"| | n | {' | '.join(CHECKS)} | 95 % interval |", f"|---|{'---|' * (len(CHECKS) + 2)}"]
    for name, by_check in scores.items():
        cells = [f"{100 * by_check[c]['share']:.0f}" if c in by_check else "" for c in CHECKS]
        last = list(by_check.values())[-1]
        span = f"{100 * last['low']:.0f} to {100 * last['high']:.0f}"
        lines.append(f"| {name} | {last['n']} | {' | '.join(cells)} | {span} |")
    return "\n".join(lines)


def in_words(reading: Reading) -> str:
    """What was read, for people: names, how well they fit, the ground."""
    things = [f"{_look_name(seen.thing)} {seen.fit:.2f}" for seen in reading.things]
    stray = f", {reading.stray:.1%} beside" if reading.stray > STRAY else ""
    return f"{join(things) if things else 'nothing'} on {reading.ground}{stray}"


def _look_name(thing: Thing) -> str:
    return f"{thing_name(thing)} in 3D" if thing.style == SOLID_STYLE else thing_name(thing)


def failure_sheet(
    asked: list[Asked], images: list[Image.Image], readings: list[Reading], verdicts: list[Verdict]
) -> Image.Image | None:
    """The first drawings of each group that are not right, with what was asked for and read; None without any."""
    rows: dict[str, list[int]] = {}
    for i, (a, verdict) in enumerate(zip(asked, verdicts, strict=True)):
        if not verdict.all:
            rows.setdefault(a.group, []).append(i)
    chosen = [i for found in rows.values() for i in found[:SHEET_ROWS]]
    labels = []
    for i in chosen:
        wrong = ", ".join(check for check in CHECKS[:-1] if not getattr(verdicts[i], check))
        labels.append(f"{i}: {asked[i].prompt}\n> {in_words(readings[i])}\nwrong: {wrong}")
    return grid_sheet([images[i] for i in chosen], labels, columns=SHEET_ROWS, most_lines=9) if chosen else None


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the rendered pictures (make.py DATA prepare)")
    parser.add_argument("out", type=Path, help="folder to write to; drawings of the same model and seed are kept")
    parser.add_argument("--model", default="nano", help="model to draw with (default nano)")
    parser.add_argument("--n", type=int, default=40, help="prompts of each group (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--by", choices=("model", *RENDERED, "tokenizer"), default="model",
        help="who draws; others than the model test the judge: the truth, the truth as the model's image tokenizer "
        "gives it back, another hand, or the truth of another prompt",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.n < 1:
        parser.error("--n must be at least 1")
    begun = time.monotonic()
    pictures = Pictures.open(args.data)
    asked = ask(pictures, args.n, args.seed)
    (args.out / "drawings").mkdir(parents=True, exist_ok=True)
    if args.by == "model":
        drawn = draw(asked, args.model, args.seed, args.out / "drawings")
    elif args.by == "tokenizer":
        drawn = through_tokenizer(render_truth(asked, pictures), args.model)
    else:
        drawn = RENDERED[args.by](asked, pictures)
    images = list(drawn)
    reader = Reader(pictures)
    readings = [reader.read(image) for image in images]
    verdicts = [judge(reader, a.scene, reading) for a, reading in zip(asked, readings, strict=True)]
    scores = score(asked, verdicts)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"by": args.by, "model": args.model, "n": args.n, "seed": args.seed},
        "limits": {"fit": FIT, "tie_of_one": TIE_OF_ONE, "tie_of_two": TIE_OF_TWO, "stray": STRAY},
        "versions": {"omnimamba": om.__version__, "torch": torch.__version__},
        "seconds": round(time.monotonic() - begun, 1),
        "scores": scores,
        "drawings": [
            {"group": a.group, "prompt": a.prompt, "asked": describe(a.scene), "read": in_words(reading)}
            | {check: getattr(verdict, check) for check in CHECKS}
            for a, reading, verdict in zip(asked, readings, verdicts, strict=True)
        ],
    }
    (args.out / "results.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    sheet = failure_sheet(asked, images, readings, verdicts)
    if sheet is not None:
        sheet.save(args.out / "failures.png")
    print(table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
