"""Published files to a model directory: recognised by content, streamed, every tensor accounted for.

Pickles are read for this alone (sources.py), with weights_only: their code never runs. Yields events, prints nothing.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from omnimamba_cli.config import ModelConfig, TextConfig
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine import card, checkpoint, storage
from omnimamba_cli.engine.checkpoint import CARD, NEEDED, PARTS, TOKENIZER, Part
from omnimamba_cli.engine.sources import Source, open_source
from omnimamba_cli.engine.storage import STORAGES, Storage
from omnimamba_cli.errors import CheckpointError, ConfigError, InputError, UsageError
from omnimamba_cli.model import convert as names
from omnimamba_cli.model import sizes
from omnimamba_cli.model.meta import on_meta
from omnimamba_cli.model.vision import Tower, timm_state
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.presets import preset as config_preset


@dataclass(frozen=True, kw_only=True)
class SourceRead:
    """A source was recognised."""

    path: Path
    kind: str  # what it is, in words
    tensors: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something the user should know: what was left out, or started anew."""

    text: str


@dataclass(frozen=True, kw_only=True)
class PartWritten:
    """A file of the model directory is written."""

    file: str
    tensors: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The model directory is in its place."""

    directory: Path
    config: ModelConfig
    size_bytes: int
    seconds: float
    lacks: tuple[str, ...]  # what the model cannot do yet, a sentence each


ConvertEvent = SourceRead | Note | PartWritten | Finished


@dataclass(kw_only=True)
class _Plan:
    """What is to be written: the config, and the tensors of each part (mapped, not read)."""

    config: ModelConfig
    parts: dict[Part, dict[str, Tensor]]
    tokenizer: Path | None
    notes: list[str]


def convert(
    sources: Sequence[Path],
    dest: Path,
    *,
    dtype: Storage = "keep",
    preset: str | None = None,
    force: bool = False,
    within: Path | None = None,
    seal: Callable[[Path], None] | None = None,
) -> Iterator[ConvertEvent]:
    """Make the model directory `dest` of published files, or add the parts it lacks.

    Sources may be the published OmniMamba file or a plain state-spaces/mamba2 one, the image tokenizer, both towers
    and tokenizer.json, in any order; what is not given is missing from the directory, and `Finished.lacks` says so.
    The size comes from the shapes; `preset` names it where no source tells. `dest` is made whole or left as it was;
    parts it already has are replaced only with `force`. It is made in the folder `within`, on the same disk, or else
    beside `dest`; `seal` gets it before it takes its name, to add what only the caller knows.
    Raises InputError, UsageError or CheckpointError (a tensor missing, extra or misshapen is named).
    """
    start = time.perf_counter()
    if dtype not in STORAGES:
        raise UsageError(f"{dtype!r} is no dtype", hint=f"--dtype {', '.join(STORAGES)}")
    opened: list[Source] = []
    for path in sources:
        source = open_source(Path(path))
        opened.append(source)
        count = len(source.tensors)
        yield SourceRead(path=source.path, kind=source.label, tensors=count, size_bytes=source.path.stat().st_size)
    exists = checkpoint.is_model_directory(dest)
    kept = _kept_files(opened, dest, force) if exists else []
    derived = preset is None and _one(opened, "published", "base") is not None
    plan = _plan(opened, _base_config(opened, dest, preset), derived=derived)
    del opened, source
    for note in plan.notes:
        yield Note(text=note)
    _check_kept(plan.config, dest, kept)
    _check_disk(plan, dest, dtype)
    with checkpoint.whole_directory(dest, overwrite=exists, within=within) as directory:
        yield from _write(plan, directory, dtype)
        for name in kept:
            checkpoint.link_or_copy(dest / name, directory / name)
        (directory / CARD).write_text(card.render(plan.config, checkpoint.part_sizes(directory)), encoding="utf-8")
        if seal is not None:
            seal(directory)
        size = sum(path.stat().st_size for path in directory.iterdir())
        lacks = tuple(f"{NEEDED[f][0]} ({f} is missing)" for f in NEEDED if not (directory / f).is_file())
    seconds = time.perf_counter() - start
    yield Finished(directory=dest, config=plan.config, size_bytes=size, seconds=seconds, lacks=lacks)


def _one(opened: Sequence[Source], *kinds: str) -> Source | None:
    """The only source of these kinds, or None. Raises UsageError for two."""
    found = [source for source in opened if source.kind in kinds]
    if len(found) > 1:
        raise UsageError(f"{found[0].path} and {found[1].path} are both {found[1].label}", hint="give one of them")
    return found[0] if found else None


def _kept_files(opened: Sequence[Source], dest: Path, force: bool) -> list[str]:
    """The files of an existing model directory that no source replaces."""
    given = {source.file for source in opened}
    present = [name for name in NEEDED if (dest / name).is_file()]
    if (both := sorted(given & set(present))) and not force:
        raise InputError(f"{dest} already has {both[0]}", hint="--force replaces it")
    return [name for name in present if name not in given]


def _base_config(opened: Sequence[Source], dest: Path, preset: str | None) -> ModelConfig:
    """The configuration, before sizes are taken from the image tokenizer and the text tokenizer."""
    if preset is not None:
        return config_preset(preset)
    main = _one(opened, "published", "base")
    if main is not None:
        return sizes.config_from_shapes(names.shapes_of(main.tensors), str(main.path))
    if not checkpoint.is_model_directory(dest):
        raise UsageError("no source tells which model this is", hint="give OmniMamba-1.3b.pth too, or --preset 1.3b")
    return checkpoint.read_config(dest)


def _plan(opened: Sequence[Source], config: ModelConfig, *, derived: bool) -> _Plan:
    """`derived`: the config comes from the shapes of a source, not from a preset or the directory itself."""
    plan = _Plan(config=config, parts={}, tokenizer=None, notes=[])
    _plan_tokenizer(plan, _one(opened, "tokenizer"), derived=derived)
    if source := _one(opened, "vq"):
        _plan_vq(plan, source)
    if source := _one(opened, "published"):
        plan.parts["model"] = names.from_published(source.tensors, plan.config, str(source.path))
    if source := _one(opened, "base"):
        _plan_base(plan, source)
    _plan_towers(plan, [source for source in opened if source.kind == "tower"])
    return plan


def _plan_tokenizer(plan: _Plan, source: Source | None, *, derived: bool) -> None:
    """Check the number of ids. Where sizes come from shapes alone, the tokenizer tells where the special ids start."""
    text = plan.config.text
    guessed = derived and text != TextConfig()  # an embedding of GPT-NeoX's size is GPT-NeoX's
    if source is None:
        if guessed:
            plan.notes.append(
                f"the text vocabulary is taken to be {text.base_vocab_size:,} ids, the most that fit; give the model's "
                "tokenizer.json in the same conversion to be sure"
            )
        return
    count = _count_ids(source.path)
    if guessed:
        text = dataclasses.replace(text, base_vocab_size=count)
    rows, room = plan.config.text.vocab_size, text.base_vocab_size
    if text.vocab_size != rows or count > room or (derived and count < room):
        raise CheckpointError(
            f"{source.path} has {count:,} ids, the model has {plan.config.text.base_vocab_size:,} in {rows:,} rows",
            hint="use the tokenizer.json that the model was trained with",
        )
    plan.tokenizer = source.path
    plan.config = dataclasses.replace(plan.config, text=text)


def _count_ids(path: Path) -> int:
    from tokenizers import Tokenizer  # here: only a conversion with a tokenizer needs it

    try:
        return int(Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is no tokenizer file ({error})") from error


def _plan_vq(plan: _Plan, source: Source) -> None:
    vq = sizes.vq_from_shapes(names.shapes_of(source.tensors), plan.config.vq, str(source.path))
    if vq.codebook_size != plan.config.vq.codebook_size:
        raise CheckpointError(
            f"{source.path} has {vq.codebook_size:,} codes, the model draws with {plan.config.vq.codebook_size:,}",
            hint="use the image tokenizer that the model was trained with",
        )
    try:
        plan.config = dataclasses.replace(plan.config, vq=vq)
    except ConfigError as error:
        raise CheckpointError(f"{source.path} does not fit the model: {error.message}") from None
    expected = checkpoint.module_shapes(on_meta(lambda: VQModel(vq)))
    plan.parts["vq"], dropped = names.from_vq(source.tensors, expected, str(source.path))
    plan.notes += [f"left out {name}: a training-time count that no one reads" for name in dropped]


def _plan_base(plan: _Plan, source: Source) -> None:
    loaded = names.from_mamba2_base(source.tensors, plan.config, str(source.path))
    fresh = names.fresh_tensors(plan.config, seed=0)
    dtype = loaded["text_embedding.weight"].dtype
    plan.parts["model"] = loaded | {name: tensor.to(dtype) for name, tensor in fresh.items()}
    plan.notes.append(
        f"{source.path.name} is a plain language model: {len(fresh)} of {len(plan.parts['model'])} tensors are new and "
        "untrained (image codes, projector, LoRA, positions); it can be trained, not used"
    )


def _plan_towers(plan: _Plan, found: Sequence[Source]) -> None:
    """vision.safetensors of one file for each tower, matched by width."""
    if not found:
        return
    by_tower: dict[int, Source] = {}
    for source in found:
        matches = [j for j, t in enumerate(plan.config.towers) if t.width == source.tower_width and j not in by_tower]
        if not matches:
            wanted = ", ".join(f"{t.name} (width {t.width})" for t in plan.config.towers) or "none"
            raise CheckpointError(
                f"{source.path} is an encoder of width {source.tower_width}; the model's are {wanted}"
            )
        by_tower[matches[0]] = source
    tensors: dict[str, Tensor] = {}
    for j, config in enumerate(plan.config.towers):
        if j not in by_tower:
            raise CheckpointError(f"the image encoder {config.name} is not among the sources; the model needs them all")
        if config.name == sizes.UNKNOWN_TOWER:
            raise CheckpointError(f"{by_tower[j].path}: nothing says which encoders this model was trained with")
        source = by_tower[j]
        expected = checkpoint.module_shapes(on_meta(lambda config=config: Tower(config).net))  # type: ignore[misc]
        kept = timm_state(config, source.tensors)
        names.check(names.shapes_of(kept), expected, str(source.path))
        tensors |= {f"towers.{j}.net.{name}": kept[name] for name in expected}
        if left := [name for name in source.tensors if name not in kept]:
            plan.notes.append(f"left out {len(left)} tensors of {source.path.name} past the block that is read")
    plan.parts["vision"] = tensors


def _check_disk(plan: _Plan, dest: Path, dtype: Storage) -> None:
    """Raise InputError where the result does not fit the disk."""
    needed = sum(e.size_bytes for tensors in plan.parts.values() for e in storage.entries(tensors, dtype))
    folder = next(p for p in (dest.absolute(), *dest.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{dest} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there", hint="choose another disk"
        )


def _write(plan: _Plan, directory: Path, dtype: Storage) -> Iterator[ConvertEvent]:
    for part in PARTS:
        if part not in plan.parts:
            continue
        tensors = plan.parts.pop(part)
        count = len(tensors)
        size = checkpoint.write_part(directory, part, tensors, dtype)
        del tensors  # unmaps the source before the next part is read
        yield PartWritten(file=f"{part}.safetensors", tensors=count, size_bytes=size)
    if plan.tokenizer is not None:
        shutil.copyfile(plan.tokenizer, directory / TOKENIZER)
        yield PartWritten(file=TOKENIZER, tensors=0, size_bytes=(directory / TOKENIZER).stat().st_size)
    checkpoint.write_config(directory, plan.config)


def _check_kept(config: ModelConfig, directory: Path, kept: Sequence[str]) -> None:
    """Raise CheckpointError unless the parts that stay fit the new config."""
    for part in PARTS:
        if f"{part}.safetensors" in kept:
            checkpoint.check_file(directory / f"{part}.safetensors", part, config)
    if TOKENIZER in kept:
        TextTokenizer.from_file(directory / TOKENIZER, config.text)
