"""Measures how fast training samples are read and made ready: whether the loader will keep a GPU fed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL

from omnimamba_cli.data.batches import Collate
from omnimamba_cli.data.mixing import Split, sample_batches
from omnimamba_cli.data.talks import TalkMaker
from omnimamba_cli.engine.data_check import CheckSettings
from omnimamba_cli.engine.opening import open_samples
from omnimamba_cli.engine.runtime import processors


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast training samples are read and made ready."""

    workers: int
    samples_per_s: float
    cpu_ms: float | None  # processor time of a sample, whatever else the machine does; None with workers
    samples: int
    seconds: float
    batch: int
    side_px: int
    processors: int
    pillow: str


def measure_speed(
    paths: Sequence[Path], settings: CheckSettings, workers: int, *, seconds: float = 5.0, batch: int = 24
) -> Speed:
    """The mmu task's samples as training reads them: decoded, scaled, tokenized, in batches."""
    maker = TalkMaker(settings.config, settings.tokenizer, questions=True, seed=settings.seed)
    samples = open_samples(paths, settings.image_root, maker, seed=settings.seed, limit=settings.limit)
    collate = Collate(settings.config)
    stream = sample_batches(samples, settings.seed, Split(batch), 0, collate=collate, workers=workers, pin=False)
    for _ in range(max(1, 4 * workers)):  # not counted: read ahead while the workers started
        next(stream)
    read, start, cpu = 0, time.monotonic(), time.process_time()
    while (passed := time.monotonic() - start) < seconds:
        read += next(stream).samples
    return Speed(
        workers=workers,
        samples_per_s=round(read / passed, 1),
        cpu_ms=None if workers else round(1000 * (time.process_time() - cpu) / read, 2),
        samples=read,
        seconds=round(passed, 2),
        batch=batch,
        side_px=settings.config.vision_image_size,
        processors=processors(),
        pillow=PIL.__version__,
    )
