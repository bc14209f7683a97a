"""A model directory as a folder to share: the model's own files, checked, and a complete card. Touches no network."""

from dataclasses import dataclass
from pathlib import Path

from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine import card, checkpoint, lock
from omnimamba_cli.engine.checkpoint import CARD, CONFIG, NEEDED, PARTS, TOKENIZER
from omnimamba_cli.errors import CheckpointError, UsageError

NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "ATTRIBUTION*")  # go with a model wherever it goes


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was made."""

    files: tuple[str, ...]
    size_bytes: int
    lacks: tuple[str, ...]  # what the model cannot do, a sentence each


def export(
    directory: Path, dest: Path, *, repo: str, licence: str | None, notes: str | None, force: bool = False
) -> Exported:
    """Make `dest` of a model directory: its files as links where the disk has them, and a card of its own.

    Every part's names and shapes are checked first. `notes` become a section of the card. Whole or not at all.
    Raises CheckpointError for a model that is not sound or has no language model, InputError where dest exists.
    """
    if dest.resolve() == directory.resolve():
        raise UsageError(f"{dest} is the model itself", hint="choose another folder: -o DIR")
    config = checkpoint.read_config(directory)
    files = [name for name in NEEDED if (directory / name).is_file()]
    if "model.safetensors" not in files:
        raise CheckpointError(f"{directory} has no model.safetensors: it has no language model")
    for part in PARTS:
        if f"{part}.safetensors" in files:
            checkpoint.check_file(directory / f"{part}.safetensors", part, config)
    if TOKENIZER in files:
        TextTokenizer.from_file(directory / TOKENIZER, config.text)
    lacks = tuple(NEEDED[name][0] for name in NEEDED if name not in files)
    notices = sorted({path.name for pattern in NOTICES for path in directory.glob(pattern) if path.is_file()})
    with checkpoint.whole_directory(dest, overwrite=force) as folder:
        for name in (*files, *notices):
            checkpoint.link_or_copy((directory / name).resolve(), folder / name)
        checkpoint.write_config(folder, config)
        hashes = {name: lock.sha256(folder / name) for name in (CONFIG, *files)}
        sections = _notes(repo, files, lacks, hashes, notes)
        text = card.render(config, checkpoint.part_sizes(folder), sections, _front(files, licence))
        (folder / CARD).write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
    return Exported(files=(CONFIG, *files, *notices, CARD), size_bytes=size, lacks=lacks)


def _front(files: list[str], licence: str | None) -> tuple[str, ...]:
    """Lines of the card's metadata, which the Hub reads."""
    sees, draws = "vision.safetensors" in files, "vq.safetensors" in files
    kind = "any-to-any" if sees and draws else "image-to-text" if sees else "text-to-image"
    lines = [f"pipeline_tag: {kind}"] if sees or draws else []
    lines += ["tags:", "- omnimamba", "- mamba2"]
    lines += ["- image-captioning"] * sees + ["- text-to-image"] * draws
    return tuple([*lines, f"license: {licence}"] if licence else lines)


def _notes(
    repo: str, files: list[str], lacks: tuple[str, ...], hashes: dict[str, str], notes: str | None
) -> tuple[str, ...]:
    """The sections of the card after the sizes."""
    commands = []
    if "vision.safetensors" in files:
        commands.append(f'omnimamba caption photo.jpg "what is here?" --model {repo}')
    if "vq.safetensors" in files:
        commands.append(f'omnimamba generate "a red fox" --model {repo} -o fox.png')
    use = "\n".join(["## Use", "", "```sh", "pip install omnimamba-cli", *commands, "```"])
    table = "\n".join(f"| {name} | `{digest}` |" for name, digest in hashes.items())
    sections = [notes.strip()] if notes and notes.strip() else []
    sections += [f"This model is not whole: {'; '.join(lacks)}."] if lacks else []
    return (*sections, use, f"## Hashes\n\n| file | sha256 |\n|---|---|\n{table}")
