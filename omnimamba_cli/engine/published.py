"""The table of published models: which files of which repositories make each. Touches no network.

A file's revision, size and sha256 are None where the authors of this table could not look them up. What is None is
asked of the Hub when a download starts, checked against the bytes, and written into the model's lock file.
"""

from dataclasses import dataclass
from typing import Literal

from omnimamba_cli.config import Task
from omnimamba_cli.engine.checkpoint import Part
from omnimamba_cli.errors import UsageError, nearest

Piece = Part | Literal["tokenizer"]


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file of one repository."""

    repo: str
    file: str
    piece: Piece  # what of the model directory it becomes
    tasks: tuple[Task, ...]  # who needs it
    revision: str | None = None  # commit; None: whatever "main" is when it is fetched
    size_bytes: int | None = None
    sha256: str | None = None
    tower_width: int = 0  # features a patch, of an image encoder: tells one from the other by content

    @property
    def key(self) -> str:
        """Repository and file name together: both encoders are called model.safetensors."""
        return f"{self.repo}/{self.file}"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published model."""

    name: str  # of the model directory, and of the command's argument
    title: str
    preset: str  # its sizes, in presets
    files: tuple[PublishedFile, ...]

    def needed(self, task: Task | None) -> tuple[PublishedFile, ...]:
        """The files that one task needs, or both for None."""
        return tuple(file for file in self.files if task is None or task in file.tasks)


OMNIMAMBA_1_3B = Release(
    name="omnimamba-1.3b",
    title="OmniMamba 1.3B (arXiv:2503.08686)",
    preset="1.3b",
    files=(
        # revision and sha256 unknown here, of this file and the others: no Hub could be reached when this was written
        PublishedFile(repo="hustvl/OmniMamba", file="OmniMamba-1.3b.pth", piece="model", tasks=("mmu", "t2i")),
        PublishedFile(repo="EleutherAI/gpt-neox-20b", file="tokenizer.json", piece="tokenizer", tasks=("mmu", "t2i")),
        PublishedFile(
            repo="timm/vit_large_patch14_reg4_dinov2.lvd142m",
            file="model.safetensors",
            piece="vision",
            tasks=("mmu",),
            tower_width=1024,
        ),
        # the image half alone: the file with both halves is twice as long
        PublishedFile(
            repo="timm/vit_so400m_patch14_siglip_384.webli",
            file="model.safetensors",
            piece="vision",
            tasks=("mmu",),
            tower_width=1152,
        ),
        PublishedFile(
            repo="peizesun/llamagen_t2i",
            file="vq_ds16_t2i.pt",
            piece="vq",
            tasks=("t2i",),
            size_bytes=287_920_306,
        ),
    ),
)

RELEASES: dict[str, Release] = {release.name: release for release in (OMNIMAMBA_1_3B,)}


def release(name: str) -> Release:
    """A published model by name. Raises UsageError naming the nearest."""
    if name not in RELEASES:
        raise UsageError(
            f"{name!r} is no published model; they are {', '.join(RELEASES)}",
            hint=nearest(name, RELEASES, cutoff=0.4) or "a Hub id (org/name) of a model directory works too",
        )
    return RELEASES[name]
