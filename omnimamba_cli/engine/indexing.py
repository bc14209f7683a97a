"""`data index`: lists of shards with their numbers of samples, which training cannot count behind a URL."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from omnimamba_cli.data.rejects import Rejects
from omnimamba_cli.data.shards import count, count_local, is_remote
from omnimamba_cli.engine.safetensors_io import partial
from omnimamba_cli.errors import InputError
from omnimamba_cli.train.events import Event, Progress, Saved, Skipped


def index_shards(urls: Sequence[str], output: Path, *, force: bool = False) -> Iterator[Event]:
    """Count every shard and write the list. Local paths are written relative to it, URLs are read whole."""
    if output.exists() and not force:
        raise InputError(f"{output} exists", hint="--force replaces it")
    lines = []
    for number, url in enumerate(urls, 1):
        rejects = Rejects()
        samples = count(url) if is_remote(url) else count_local(Path(url), rejects)
        for name, reason in rejects.reasons.items():
            yield Skipped(name=name, reason=reason)
        place = url if is_remote(url) else os.path.relpath(url, output.parent)
        lines.append(json.dumps({"shard": place, "samples": samples}, ensure_ascii=False) + "\n")
        yield Progress(step=number, steps=len(urls), values={}, seconds=0.0)
    with partial(output) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    yield Saved(path=output, step=len(lines))
