"""Where a training run starts: its settings, and the models they name, in memory. Trains nothing."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from omnimamba_cli.config import LoRA, ModelConfig, Task, Vocabulary
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine import checkpoint, storage
from omnimamba_cli.engine.safetensors_io import read_header, read_safetensors
from omnimamba_cli.engine.storage import Storage
from omnimamba_cli.errors import CheckpointError, UsageError
from omnimamba_cli.model.convert import check
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.switches import switched
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.presets import PRESETS, preset, with_switches
from omnimamba_cli.train.loop import LoopConfig
from omnimamba_cli.train.stages import Stage, merge


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One run of a stage. Paths are as the user gave them."""

    stage: Stage
    task: Task | None = None  # stage 1 only
    output: Path
    loop: LoopConfig
    init: str | None = None  # model directory, or a preset's name for fresh weights
    init_mmu: Path | None = None  # stage 2: results of stage 1 to be merged
    init_t2i: Path | None = None
    vocabulary: Vocabulary | None = None  # what the tasks share; None: as --init has it
    lora: LoRA | None = None
    tokenizer: Path | None = None  # with a preset
    vision: Path | None = None
    vq: Path | None = None
    data_mmu: tuple[Path, ...] = ()
    data_t2i: tuple[Path, ...] = ()
    image_root: Path | None = None
    questions: bool = True  # False: the paper's first stage, captions alone
    batch_mmu: int = 0  # rows a step
    batch_t2i: int = 0
    weight_mmu: float = 1.0  # of the loss
    weight_t2i: float = 1.0
    caption_dropout: float | None = None  # None: the model's own
    unfreeze: tuple[str, ...] = ()
    workers: int = 0
    device: str = "auto"
    resume: bool = False
    force: bool = False
    storage: Storage = "fp32"

    @property
    def tasks(self) -> tuple[Task, ...]:
        """That train."""
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
    copies: dict[str, Path]  # vision.safetensors, vq.safetensors: file in the result -> where it is now


def _fresh(settings: StageSettings) -> Start:
    """Random weights of a preset; tokenizers and towers come from files."""
    config = with_switches(preset(settings.init or ""), settings.vocabulary, settings.lora)
    missing = {"--tokenizer": settings.tokenizer, "--vq": settings.vq}
    if "mmu" in settings.tasks:
        missing["--vision"] = settings.vision
    for option, value in missing.items():
        if value is None:
            raise UsageError(f"--init {settings.init} starts from nothing and needs {option}", hint=f"{option} FILE")
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
    """Let the tasks share what the settings say, or not. Raises CheckpointError where that would lose LoRA."""
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
        raise UsageError("stage 2 starts from two results of stage 1 or from one model", hint="--init-mmu, --init-t2i")
    mmu, t2i = _loaded(settings.init_mmu), _loaded(settings.init_t2i)
    for name in ("backbone", "text", "vq", "vocabulary"):
        if getattr(mmu.config, name) != getattr(t2i.config, name):
            raise CheckpointError(f"{settings.init_mmu} and {settings.init_t2i} differ in config.json: {name}")
    mmu.model.load_state_dict(merge(mmu.model.state_dict(), t2i.model.state_dict()))
    return dataclasses.replace(mmu, copies={**t2i.copies, **mmu.copies})


def start_of(settings: StageSettings) -> Start:
    """Models in memory for the settings' --init."""
    if settings.init is None and settings.stage == 2:
        start = _merged(settings)
    elif settings.init is None:
        raise UsageError("stage 1 needs a start", hint=f"--init DIR, or a fresh one: --init {' | '.join(PRESETS)}")
    elif Path(settings.init).is_dir():
        start = _loaded(Path(settings.init))
    else:
        start = _fresh(settings)
    _switch(start, settings)
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
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check(storage.logical_shapes(header), wanted, str(path), hint="give the model or config it belongs to")
    mapped, _ = read_safetensors(path)
    decoded = {n: storage.decode(n, header, mapped.__getitem__, torch.float32) for n in wanted}
    module.load_state_dict(decoded)


def own_memory(start: Start, device: torch.device) -> None:
    """Weights that lie in a mapped file are copied: training writes to them."""
    for module in (start.model, start.towers):
        if module is None:
            continue
        module.to(device)
        for parameter in module.parameters():
            if parameter.device.type == "cpu":
                parameter.data = parameter.data.clone()
