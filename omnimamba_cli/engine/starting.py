"""The start of a training run: its settings, and the models that they name, loaded. Trains nothing."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnimamba_cli.config import BAD_SHARE, LoRA, ModelConfig, Task, Vocabulary, VQConfig
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine import checkpoint, hub, storage
from omnimamba_cli.engine.safetensors_io import read_header, read_safetensors
from omnimamba_cli.engine.storage import Storage
from omnimamba_cli.errors import CheckpointError, ConfigError, UsageError
from omnimamba_cli.json_text import parse
from omnimamba_cli.model.convert import check
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.sizes import vq_from_shapes
from omnimamba_cli.model.switches import SHARED_TABLE, switched
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.presets import PRESETS, preset, with_switches
from omnimamba_cli.train.loop_config import LoopConfig
from omnimamba_cli.train.stages import Stage, merge


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One run of a stage. Paths are as the user gave them."""

    stage: Stage
    task: Task | None = None  # stage 1 only
    output: Path
    loop: LoopConfig
    init: str | None = None  # a model as every command takes it, or a preset's name for fresh weights
    init_mmu: Path | None = None  # stage 2: results of stage 1 to be merged
    init_t2i: Path | None = None
    vocabulary: Vocabulary | None = None  # None: as --init has it
    lora: LoRA | None = None
    tokenizer: Path | None = None  # with a preset
    vision: Path | None = None
    vq: Path | None = None
    data_mmu: tuple[Path, ...] = ()
    data_t2i: tuple[Path, ...] = ()
    eval_mmu: tuple[Path, ...] = ()  # held out, for evaluations during the run
    eval_t2i: tuple[Path, ...] = ()
    eval_samples: int = 256  # held-out samples of each task, at most
    image_root: Path | None = None
    questions: bool = True  # False: the paper's first stage, captions alone
    batch_mmu: int = 0  # rows a step
    batch_t2i: int = 0
    weight_mmu: float = 1.0  # of the loss
    weight_t2i: float = 1.0
    caption_dropout: float | None = None  # None: the model's own
    unfreeze: tuple[str, ...] = ()
    max_bad_share: float = BAD_SHARE  # of the samples seen; more bad ones end the run
    checkpoint_activations: bool = False
    tensorboard: bool = False
    workers: int = 0
    device: str = "auto"
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    storage: Storage = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the command line, for train.toml

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that train."""
        return ("mmu", "t2i") if self.task is None else (self.task,)


def part_file(path: Path, name: str) -> Path:
    """A file given by itself or by the directory it stands in. Raises CheckpointError when it is not there."""
    found = path / name if path.is_dir() else path
    if not found.is_file():
        raise CheckpointError(f"{found} is missing", hint=f"give {name} or a directory that holds it")
    return found


@dataclass
class Start:
    """Where a run starts: modules in memory, and the files that go into the result as they are."""

    config: ModelConfig
    model: OmniMamba
    towers: VisionTowers | None
    tokenizer: TextTokenizer
    copies: dict[str, Path]  # files that are copied into the result: name there -> where it is now
    notes: list[str] = field(default_factory=list)  # remarks for the user


def _fresh(settings: StageSettings) -> Start:
    """Random weights of a preset; tokenizers and towers come from files."""
    config = with_switches(preset(settings.init or ""), settings.vocabulary, settings.lora)
    missing = {"--tokenizer": settings.tokenizer, "--vq": settings.vq}
    if "mmu" in settings.tasks:
        missing["--vision"] = settings.vision
    for option, value in missing.items():
        if value is None:
            known = dict(hub.installed()).get(settings.init or "")
            hint = f"{option} FILE" + (f"; to continue the trained model: --init {known}" if known else "")
            raise UsageError(f"--init {settings.init} starts from nothing and needs {option}", hint=hint)
    assert settings.tokenizer is not None
    tokenizer = TextTokenizer.from_file(part_file(settings.tokenizer, checkpoint.TOKENIZER), config.text)
    torch.manual_seed(settings.loop.seed)
    return Start(config, OmniMamba(config), None, tokenizer, {})


def _loaded(directory: Path) -> Start:
    files = checkpoint.load_directory(directory, dtype=torch.float32, parts=("model",))
    assert files.model is not None
    found = {f"{part}.safetensors": directory / f"{part}.safetensors" for part in ("vision", "vq")}
    copies = {name: path for name, path in found.items() if path.is_file()}
    return Start(files.config, files.model, None, files.tokenizer, copies)


def _switch(start: Start, settings: StageSettings) -> None:
    """Apply the settings' vocabulary and lora. Raises CheckpointError where trained LoRA pairs would be lost."""
    target = with_switches(start.config, settings.vocabulary, settings.lora)
    if target == start.config:
        return
    torch.manual_seed(settings.loop.seed)
    tensors = switched(start.model.state_dict(), start.config, target)
    with torch.device("meta"):
        start.model = OmniMamba(target)
    start.model.load_state_dict(tensors, assign=True)
    start.config = target


def _merged(settings: StageSettings) -> Start:
    if settings.init_mmu is None or settings.init_t2i is None:
        raise UsageError(
            "stage 2 starts from two results of stage 1 or from one model",
            hint="--init-mmu DIR --init-t2i DIR, or --init MODEL",
        )
    _check_task(settings.init_mmu, "mmu")
    _check_task(settings.init_t2i, "t2i")
    mmu, t2i = _loaded(settings.init_mmu), _loaded(settings.init_t2i)
    for name in ("backbone", "text", "vq", "vocabulary"):
        if getattr(mmu.config, name) != getattr(t2i.config, name):
            raise CheckpointError(f"{settings.init_mmu} and {settings.init_t2i} differ in config.json: {name}")
    mmu.model.load_state_dict(merge(mmu.model.state_dict(), t2i.model.state_dict()))
    return dataclasses.replace(mmu, copies={**t2i.copies, **mmu.copies})


def _check_task(directory: Path, task: Task) -> None:
    """Raises CheckpointError for a result of the other task, whose parts for this task are untrained.

    train.json says which task a directory is the result of; a directory without one is accepted.
    """
    try:
        settings = parse((directory / "train.json").read_text(encoding="utf-8"))["settings"]
        found = settings["task"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found in ("mmu", "t2i") and found != task:
        raise CheckpointError(
            f"{directory} is the result of stage 1 of {found}, not of {task}",
            hint=f"--init-{found} {directory}; one that has learnt both tasks: --init {directory}",
        )


def start_of(settings: StageSettings) -> Start:
    """Load or make the models that the settings ask for. Raises UsageError or CheckpointError."""
    if settings.init is None and settings.stage == 2:
        start = _merged(settings)
    elif settings.init is None:
        raise UsageError("stage 1 needs a start", hint=f"--init DIR, or a fresh one: --init {' | '.join(PRESETS)}")
    elif settings.init in PRESETS and not Path(settings.init).is_dir():
        start = _fresh(settings)
    else:
        start = _loaded(hub.resolve(settings.init))
    _switch(start, settings)
    if settings.vq is not None:
        start = with_image_tokenizer(start, settings)
    for name, given in (("vision.safetensors", settings.vision), ("vq.safetensors", settings.vq)):
        if given is not None:
            start.copies[name] = part_file(given, name)
    if settings.caption_dropout is not None:
        start.config = dataclasses.replace(start.config, caption_dropout=settings.caption_dropout)
        start.model.config = start.config
    for name, path in start.copies.items():
        checkpoint.check_file(path, "vision" if name.startswith("vision") else "vq", start.config)
    if "mmu" in settings.tasks:
        start.towers = _towers(start)
    return start


def vq_config(path: Path, like: VQConfig) -> VQConfig:
    """The sizes of an image tokenizer's file: config.json beside it, else what its shapes tell.

    Raises CheckpointError for a config.json that is no VQ configuration.
    """
    beside = path.parent / checkpoint.CONFIG
    if not beside.is_file():
        return vq_from_shapes(storage.logical_shapes(read_header(path)), like, str(path))
    try:
        data = parse(beside.read_text(encoding="utf-8"))
        return VQConfig.from_dict(data.get("vq", data))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{beside} is no valid JSON: {error}") from None
    except ConfigError as error:
        raise CheckpointError(f"{beside}: {error.message}", hint=error.hint) from None


def with_image_tokenizer(start: Start, settings: StageSettings) -> Start:
    """The start with the image tokenizer of --vq. If its sizes differ, the model's config takes them over.

    Codes then mean something else: the image vocabulary (embedding and tied head) starts anew, and positions are added
    where a drawing has become longer. Raises CheckpointError where drawing is not trained.
    """
    assert settings.vq is not None
    path = part_file(settings.vq, "vq.safetensors")
    old, new = start.config.vq, vq_config(path, start.config.vq)
    if new == old:
        return start
    differ = [f.name for f in dataclasses.fields(new) if getattr(new, f.name) != getattr(old, f.name)]
    what = ", ".join(f"{name} {getattr(new, name)} instead of {getattr(old, name)}" for name in differ)
    if "t2i" not in settings.tasks:
        raise CheckpointError(
            f"{path} has other sizes than the model ({what}), and drawing is not trained",
            hint="train-stage1 --task t2i or train-stage2",
        )
    length = start.config.t2i_prefix + new.codes + 1
    rows = max(start.config.t2i_positions, length)
    config = dataclasses.replace(start.config, vq=new, t2i_positions=rows)
    torch.manual_seed(settings.loop.seed)
    model = OmniMamba(config)
    kept = start.model.state_dict()
    fresh = model.state_dict()
    if config.vocabulary == "shared":
        words = config.text.vocab_size
        kept[SHARED_TABLE] = torch.cat([kept[SHARED_TABLE][:words], fresh[SHARED_TABLE][words:]])
    else:
        kept["image_embedding.weight"] = fresh["image_embedding.weight"]
    kept["t2i_positions"] = torch.cat([kept["t2i_positions"], fresh["t2i_positions"][len(kept["t2i_positions"]) :]])
    model.load_state_dict(kept)
    said = f"{path} is another image tokenizer ({what}): image_embedding and the image head start anew"
    if rows > start.config.t2i_positions:
        said += f", {rows - start.config.t2i_positions} positions are new"
    return dataclasses.replace(start, config=config, model=model, notes=[*start.notes, said])


def _towers(start: Start) -> VisionTowers:
    path = start.copies.get("vision.safetensors")
    if path is None:
        raise CheckpointError("the model has no vision.safetensors: it cannot look at pictures", hint="--vision FILE")
    towers = VisionTowers(start.config.towers)
    fill(towers, path)
    return towers


def fill(module: nn.Module, path: Path) -> None:
    """Load a module's weights, in float32, from its file. Raises CheckpointError naming the first that does not fit."""
    header = read_header(path)
    wanted = checkpoint.module_shapes(module)
    check(storage.logical_shapes(header), wanted, str(path), hint="give the model or config it belongs to")
    mapped, _ = read_safetensors(path)
    decoded = {n: storage.decode(n, header, mapped.__getitem__, torch.float32) for n in wanted}
    module.load_state_dict(decoded)


def own_memory(start: Start, device: torch.device) -> None:
    """Move the modules to the device, and copy weights that lie in a mapped file: training writes to them."""
    for module in (start.model, start.towers):
        if module is None:
            continue
        module.to(device)
        for parameter in module.parameters():
            if parameter.device.type == "cpu":
                parameter.data = parameter.data.clone()
