"""Shards of small pictures."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

Write = Callable[..., Path]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write_shards(tmp_path: Path) -> Write:
    """`write_shards([3, 2])` writes 00.tar with samples s0 to s2 and 01.tar with s3 and s4; returns their pattern."""

    def write(sizes: Sequence[int], *, bad: Sequence[int] = ()) -> Path:
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        sample = 0
        for number, size in enumerate(sizes):
            with tarfile.open(folder / f"{number:02}.tar", "w") as tar:
                add(tar, "__meta__", b"{}")
                for _ in range(size):
                    add(tar, f"s{sample}.png", b"no picture" if sample in bad else png(sample))
                    if sample % 2:
                        add(tar, f"s{sample}.txt", f"number {sample}\n".encode())
                    else:
                        add(tar, f"s{sample}.json", json.dumps({"captions": [f"number {sample}"]}).encode())
                    sample += 1
        return folder / f"{{00..{len(sizes) - 1:02}}}.tar"

    return write
