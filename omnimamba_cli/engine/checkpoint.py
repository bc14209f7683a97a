"""Model directories: checked strictly when read, written whole or not at all.

A directory holds config.json, model.safetensors, vision.safetensors, vq.safetensors, tokenizer.json and README.md.
Tensors are mapped from their files, and modules are built without initialising what is about to be replaced.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.data.tokenizer import save as save_tokenizer
from omnimamba_cli.engine import card, storage
from omnimamba_cli.engine.safetensors_io import Header, read_header, write_entries
from omnimamba_cli.engine.storage import Storage
from omnimamba_cli.engine.weight_file import WeightFile
from omnimamba_cli.errors import CheckpointError, ConfigError, InputError, file_reason
from omnimamba_cli.json_text import parse
from omnimamba_cli.model.convert import check
from omnimamba_cli.model.meta import on_meta
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.model.vq import VQModel

Part = Literal["model", "vision", "vq"]
PARTS: tuple[Part, ...] = ("model", "vision", "vq")
CONFIG, TOKENIZER, CARD = "config.json", "tokenizer.json", "README.md"
FILES = (CONFIG, TOKENIZER, CARD, *(f"{part}.safetensors" for part in PARTS))
LOCK = "download.lock.json"  # of a downloaded model, see engine/lock; void when a file is written anew
NEEDED: dict[str, tuple[str, str]] = {  # file -> (what fails without it, what to convert)
    "model.safetensors": ("it has no language model", "OmniMamba-1.3b.pth"),
    "vision.safetensors": ("it cannot look at pictures", "DINOV2.safetensors SIGLIP.safetensors"),
    "vq.safetensors": ("it cannot draw pictures", "vq_ds16_t2i.pt"),
    "tokenizer.json": ("it cannot read or write text", "tokenizer.json"),
}
M = TypeVar("M", bound=nn.Module)


class ModelFiles:
    """What a model directory holds: the config, the modules that were asked for, and the tokenizer on first use."""

    def __init__(
        self,
        config: ModelConfig,
        model: OmniMamba | None = None,
        towers: VisionTowers | None = None,
        vq: VQModel | None = None,
        tokenizer: TextTokenizer | None = None,
        directory: Path | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.towers = towers
        self.vq = vq
        self.directory = directory
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> TextTokenizer:
        """Read from the directory the first time. Raises CheckpointError where there is none."""
        if self._tokenizer is None:
            if self.directory is None:
                raise CheckpointError("this model was made without a tokenizer")
            path = part_path(self.directory, TOKENIZER)
            self._tokenizer = TextTokenizer.from_file(path, self.config.text)
        return self._tokenizer

    def modules(self) -> dict[Part, nn.Module]:
        """The modules that are here, by part."""
        present: dict[Part, nn.Module | None] = {"model": self.model, "vision": self.towers, "vq": self.vq}
        return {part: module for part, module in present.items() if module is not None}


def is_model_directory(path: Path) -> bool:
    """True for a directory with a config.json of ours; a broken one is still ours."""
    return (path / CONFIG).is_file()


def part_path(directory: Path, file: str) -> Path:
    """A file of a model directory. Raises CheckpointError that says what the model cannot do without it."""
    path = directory / file
    if not path.is_file():
        lack, source = NEEDED[file]
        raise CheckpointError(
            f"{directory} has no {file}: {lack}", hint=f"add it: omnimamba convert {source} {directory}"
        )
    return path


def read_config(directory: Path) -> ModelConfig:
    """The config.json of a model directory. Raises CheckpointError when it is missing or wrong."""
    path = directory / CONFIG
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory", hint="make one: omnimamba convert SRC... DIRECTORY")
    if not path.is_file():
        raise CheckpointError(
            f"{directory} is no model directory: it has no {CONFIG}",
            hint="make one: omnimamba convert SRC... DIRECTORY",
        )
    try:
        return ModelConfig.from_dict(parse(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {file_reason(error)}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}") from None
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from None


def load_directory(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    parts: Collection[str] = PARTS,
) -> ModelFiles:
    """A model directory with the parts asked for, in eval mode.

    dtype None keeps what is stored (8-bit becomes float32); A_log, dt_bias and D are float32 whatever it says.
    On a CPU, tensors that need no conversion stay in the mapped file. Raises CheckpointError for anything missing,
    unexpected, misshapen or damaged, naming the first offender.
    """
    directory = Path(path)
    config = read_config(directory)
    files = ModelFiles(config, directory=directory)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if "model" in parts:
        files.model = _load(directory, "model", lambda: OmniMamba(config), device, dtype)
    if "vision" in parts:
        files.towers = _load(directory, "vision", lambda: VisionTowers(config.towers), device, dtype)
    if "vq" in parts:
        files.vq = _load(directory, "vq", lambda: VQModel(config.vq), device, dtype)
    return files


def check_file(path: Path, part: Part, config: ModelConfig) -> None:
    """Raise CheckpointError unless a part's file fits the config; reads its header alone."""
    builders: dict[Part, Callable[[], nn.Module]] = {
        "model": lambda: OmniMamba(config),
        "vision": lambda: VisionTowers(config.towers),
        "vq": lambda: VQModel(config.vq),
    }
    check_part(path, read_header(path), on_meta(builders[part]))


def module_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a module's file must hold."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_part(path: Path, header: Header, module: nn.Module) -> None:
    """Raise CheckpointError unless the file holds exactly the module's tensors."""
    check(storage.logical_shapes(header), module_shapes(module), str(path), hint="convert or download the model again")
    for name, wanted in module.state_dict().items():
        stored = header.tensors[name].dtype
        is_number = stored.is_floating_point or storage.is_int8(name, header)
        if wanted.is_floating_point() != is_number:
            raise CheckpointError(f"{path}: {name} is stored as {stored}, which is no weight")


def _load(
    directory: Path, part: Part, build: Callable[[], M], device: str | torch.device, dtype: torch.dtype | None
) -> M:
    path = part_path(directory, f"{part}.safetensors")
    header = read_header(path)
    module = on_meta(build)
    check_part(path, header, module)
    if dtype is None and header.metadata.get("storage") == "int8":
        dtype = torch.float32
    names = list(module_shapes(module))
    with WeightFile(path, header, torch.device(device), names) as file:
        tensors = {name: file.weight(name, dtype) for name in names}
    module.load_state_dict(tensors, strict=True, assign=True)
    if any(buffer.is_meta for buffer in module.buffers()):
        _fill_buffers(module, build(), device)
    return module.eval()


def _fill_buffers(module: nn.Module, real: nn.Module, device: str | torch.device) -> None:
    """Buffers that no file holds (fixed tables of some timm models), from a module built in earnest."""
    values = dict(real.named_buffers())
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, key = name.rpartition(".")
            module.get_submodule(owner)._buffers[key] = values[name].to(device)


def save_directory(
    path: str | Path,
    files: ModelFiles,
    *,
    storage: Storage = "fp32",
    overwrite: bool = False,
    card_text: str | None = None,
) -> None:
    """Write a model directory: config, the modules that `files` has, its tokenizer if it has one, and a card.

    Atomic: the directory appears whole under its name or not at all. Storage is "fp32", "fp16", "bf16", "int8"
    (see storage) or "keep". An existing directory is refused, or replaced with `overwrite` (files in it that are
    not ours stay). Raises InputError when it exists or cannot be written.
    """
    with whole_directory(Path(path), overwrite=overwrite) as directory:
        for part, module in files.modules().items():
            write_part(directory, part, module.state_dict(), storage)
        tokenizer = files._tokenizer
        if tokenizer is not None:
            save_tokenizer(tokenizer.tokenizer, directory / TOKENIZER)
        elif files.directory is not None and (files.directory / TOKENIZER).is_file():
            shutil.copyfile(files.directory / TOKENIZER, directory / TOKENIZER)
        write_config(directory, files.config)
        text = card_text or card.render(files.config, part_sizes(directory))
        (directory / CARD).write_text(text, encoding="utf-8")


def write_config(directory: Path, config: ModelConfig) -> None:
    """config.json, the same bytes for the same config."""
    text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")


def write_part(directory: Path, part: Part, tensors: Mapping[str, Tensor], how: Storage) -> int:
    """One of the safetensors files of a directory, streamed; returns its bytes."""
    metadata = {"format": "omnimamba", "storage": how}
    return write_entries(directory / f"{part}.safetensors", storage.entries(tensors, how), metadata)


def part_sizes(directory: Path) -> dict[str, card.PartSize]:
    """What the card says of each safetensors file of a directory."""
    result: dict[str, card.PartSize] = {}
    for part in PARTS:
        path = directory / f"{part}.safetensors"
        if path.is_file():
            header = read_header(path)
            shapes = storage.logical_shapes(header)
            count = sum(torch.Size(shape).numel() for shape in shapes.values())
            how = header.metadata.get("storage", "keep")
            result[part] = card.PartSize(storage=how, parameters=count, size_bytes=path.stat().st_size)
    return result


@contextmanager
def whole_directory(path: Path, *, overwrite: bool = False, within: Path | None = None) -> Iterator[Path]:
    """A temporary directory beside `path` (or `within` a folder of the same disk), renamed to it if all goes well.

    Raises InputError where `path` exists and may not be replaced, or where nothing can be written.
    """
    path = path.resolve()
    others = check_replaceable(path, overwrite)
    temporary = (within or path.parent) / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for name in others:
            link_or_copy(path / name, temporary / name)
        _take_name(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {file_reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, overwrite: bool) -> list[str]:
    """The names of files in an existing directory that are not ours: its replacement must keep them.

    Raises InputError where the path is something that may not be replaced.
    """
    if not path.exists():
        return []
    if not path.is_dir():
        raise InputError(f"{path} is a file, a model is a directory", hint="choose another name")
    names = sorted(p.name for p in path.iterdir())
    if not names:
        return []
    if not is_model_directory(path):
        raise InputError(f"{path} exists and is no model directory", hint="choose another name")
    if not overwrite:
        raise InputError(f"{path} exists", hint="--force replaces it")
    others = [name for name in names if name not in (*FILES, LOCK)]
    if folders := [name for name in others if (path / name).is_dir()]:
        raise InputError(f"{path} holds the folder {folders[0]}, it is not replaced", hint="choose another name")
    return others


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _take_name(temporary: Path, path: Path) -> None:
    """Rename a finished directory, moving an older one out of its way and back if that fails."""
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old.partial")
    replaces = path.exists()
    if replaces:
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        if replaces:
            with suppress(OSError):
                old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
