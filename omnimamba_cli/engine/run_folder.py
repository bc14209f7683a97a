"""A run's directory: a model directory (the result) with what the run wrote beside it.

train.json (settings), train.toml (options for --config), metrics.jsonl, curves.svg, snapshots/, and with evaluations
sheets/ and best/ (a model directory).
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnimamba_cli.engine import card, checkpoint
from omnimamba_cli.engine.alone import alone
from omnimamba_cli.engine.bench_machine import versions
from omnimamba_cli.engine.checkpoint import ModelFiles
from omnimamba_cli.engine.safetensors_io import partial
from omnimamba_cli.engine.starting import Start
from omnimamba_cli.engine.storage import Storage
from omnimamba_cli.errors import InputError, file_reason
from omnimamba_cli.train import snapshots
from omnimamba_cli.train.events import Event, Note

SETTINGS, OPTIONS = "train.json", "train.toml"
BEST = "best"  # the model of the best evaluation
# settings that change a run's result; data and weights are compared with the snapshot itself
DECIDING = (
    "steps", "clock_minutes", "lr", "warmup", "lr_floor", "weight_decay", "clip", "precision", "accumulate", "ema",
    "seed", "batch", "batch_mmu", "batch_t2i", "weight_mmu", "weight_t2i", "caption_dropout", "questions",
)  # fmt: skip
OF_A_RUN = ("snapshots", "sheets", BEST, "tensorboard")  # folders of an old run, which a new one deletes


def check_output(output: Path, *, resume: bool, force: bool, marker: str = checkpoint.CONFIG) -> None:
    """Raise InputError for a directory that holds a run or a model already; writes nothing."""
    holds = has_snapshot(output) or (output / marker).exists()
    if holds and not (resume or force):
        raise InputError(f"{output} holds a run or a model", hint="--resume continues, --force starts anew")


@contextmanager
def held(output: Path, writes: bool) -> Iterator[None]:
    """Holds a run's directory for this run alone, if this process `writes`. Raises InputError as alone() does."""
    if not writes:
        yield
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {file_reason(error)}") from None
    with alone(output / ".running", output):
        yield


def prepare_output(output: Path, *, resume: bool) -> list[Event]:
    """Make the run's directory ready: no snapshots unless it resumes, no unfinished files. Raises InputError."""
    try:
        if not resume:
            for old in OF_A_RUN:
                shutil.rmtree(output / old, ignore_errors=True)
        for unfinished in [*output.glob(".*.partial"), *output.glob("*/.*.partial")]:  # of a run that was killed
            shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    except OSError as error:
        raise InputError(f"{output} cannot be written: {file_reason(error)}") from None
    if resume and not has_snapshot(output):
        return [Note(text=f"{output} holds no snapshot yet: starting at step 0")]
    return []


def has_snapshot(output: Path) -> bool:
    """Whether there is a run to resume."""
    return next(snapshots.newest_first(output / "snapshots"), None) is not None


def _plain(value: Any) -> Any:  # Any: dataclass fields of every kind
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def changed_settings(output: Path, settings: Any) -> list[Event]:  # Any: a dataclass
    """A remark on settings of a resumed run that differ from those it began with; none if these are not known."""
    try:
        before = _flat(json.loads((output / SETTINGS).read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    now = _flat(_plain(dataclasses.asdict(settings)))
    said = [f"{n} {now[n]} (was {before[n]})" for n in DECIDING if n in now and n in before and now[n] != before[n]]
    if not said:
        return []
    return [
        Note(text=f"other settings than before the stop: {', '.join(said)}; a run without a stop would end elsewhere")
    ]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Settings with those of the loop on the same level."""
    return {**settings, **settings["loop"]}


def write_settings(output: Path, settings: Any, config: Any = None) -> None:  # Any: dataclasses
    """train.json, the settings a run really had and the versions it ran with; train.toml, its options for --config."""
    values = _plain(dataclasses.asdict(settings))
    options = values.pop("options", {})
    data = {"settings": values, "versions": versions()}
    if config is not None:
        data["model"] = config.to_dict()
    texts = {SETTINGS: json.dumps(data, indent=2) + "\n"}
    if options:
        texts[OPTIONS] = f"# to repeat or resume this run: omnimamba {options['command']} --config {OPTIONS}\n"
        texts[OPTIONS] += "".join(f"{name} = {toml(value)}\n" for name, value in options.items())
    for name, text in texts.items():
        with partial(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def toml(value: Any) -> str:  # Any: text, numbers, truth values and lists of them
    """A value in TOML. Its basic strings are written as JSON's, except for one control character."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def save_result(output: Path, start: Start, storage: Storage) -> None:
    """The model directory: each file whole before it takes its name, config.json last. Raises InputError."""
    temporary = output / ".result.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write_result(temporary, start, storage)
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == checkpoint.CONFIG):
            path.replace(output / path.name)
    except (OSError, InputError) as error:
        said = f"{output} cannot be written: {file_reason(error)}" if isinstance(error, OSError) else error.message
        # the last snapshot holds all that was learnt
        raise InputError(said, hint="free some space, then --resume") from None
    finally:
        # after a failure; or because renaming a file onto another link to itself keeps both names
        shutil.rmtree(temporary, ignore_errors=True)


def _write_result(folder: Path, start: Start, storage: Storage) -> None:
    trained = start.towers is not None and any(p.requires_grad for p in start.towers.parameters())
    files = ModelFiles(start.config, start.model, start.towers if trained else None, None, start.tokenizer)
    checkpoint.save_directory(folder, files, storage=storage)
    for name, source in start.copies.items():
        target = folder / name
        if not target.exists():
            checkpoint.link_or_copy(source, target)
    text = card.render(start.config, checkpoint.part_sizes(folder))
    (folder / checkpoint.CARD).write_text(text, encoding="utf-8")
