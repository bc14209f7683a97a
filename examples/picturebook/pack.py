"""The last step of nano's recipe: a trained run becomes the small model directory that travels in the package.

Weights are stored in 8 bits, sampling settings are the ones that drew best; attributions and sixteen first tries at
drawing go along.
Run: python examples/picturebook/pack.py RUN DEST [--temperature T] [--guidance G] [--top-k K] [--candidates N]
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from omnimamba_cli.engine.card import PartSize, render
from omnimamba_cli.engine.checkpoint import ModelFiles, load_directory, part_sizes, save_directory
from omnimamba_cli.engine.session import load
from omnimamba_cli.engine.sheets import grid_sheet
from omnimamba_cli.presets import preset

HERE = Path(__file__).parent
LARGEST = 24 * 2**20  # bytes of the whole directory
NOTES = (
    "nano knows PictureBook: drawings of 1,038 things, animals, food, vehicles, faces and people on coloured grounds, "
    "alone, counted and side by side. It was trained from scratch by the recipe in `examples/picturebook/` and has "
    "seen no photograph. It names and answers well; it draws single things well, on most grounds and in most colours "
    "that are named, two things and several of a kind mostly so, and three in a row roughly. The program's README has "
    "the figures.",
    "Licence: Apache-2.0. Trained on drawings by others; see ATTRIBUTION.md beside this file.",
)
# Drawn with seed 0 and shown whatever they look like.
SAMPLES = (
    *("a red fox", "a fox", "a dog", "a rocket", "a guitar", "a whale on a yellow background", "a blue cat"),
    *(
        "a pizza on a blue background",
        "a house on a green background",
        "a pink elephant",
        "two bells",
        "five rice balls",
    ),
    *("a grinning face", "a bicycle", "a cactus on a pink background", "a cat to the left of a dog"),
)


def pack(run: Path, dest: Path, **drawing: float | int) -> int:
    """Write DEST from the run's directory; returns the bytes it takes. Replaces an older DEST."""
    files = load_directory(run, dtype=torch.float32)
    now = preset("nano")  # settings that are not weights follow the preset of today
    config = replace(
        files.config,
        ranking_question=now.ranking_question,
        caption_sampling=now.caption_sampling,
        image_sampling=replace(now.image_sampling, **drawing),
    )
    model = ModelFiles(config, files.model, files.towers, files.vq, files.tokenizer)
    save_directory(dest, model, storage="int8", overwrite=True)
    sizes: dict[str, PartSize] = part_sizes(dest)
    (dest / "README.md").write_text(render(config, sizes, NOTES), encoding="utf-8")
    shutil.copy(HERE / "ATTRIBUTION.md", dest / "ATTRIBUTION.md")
    shutil.copy(HERE.parent.parent / "LICENSE", dest / "LICENSE")
    pictures = load(dest).generate(SAMPLES, seed=0)
    grid_sheet(pictures, SAMPLES, columns=8).save(dest / "samples.png", optimize=True)
    total = sum(path.stat().st_size for path in dest.iterdir())
    if total > LARGEST:
        raise SystemExit(f"{dest} takes {total / 2**20:.1f} MiB, more than {LARGEST / 2**20:.0f}")
    return total


def main() -> None:
    """Parse the command line and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--candidates", type=int)
    args = vars(parser.parse_args())
    run, dest = args.pop("run"), args.pop("dest")
    total = pack(run, dest, **{name: value for name, value in args.items() if value is not None})
    print(f"{dest}: {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
