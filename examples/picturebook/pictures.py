"""The rendered pictures in memory: which there are of each concept and set, and their pixels."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from concepts import Concept, load_concepts
from fetch import SETS
from palette import COLOUR_NUMBER, contrasts
from splits import held_out_picture

STYLE_NUMBER: dict[str, int] = {name: number for number, name in enumerate(SETS)}


@dataclass(kw_only=True)
class Pictures:
    """Pictures and where to find them.

    rgba (N 128 128 4) uint8, straight alpha, read-only; `listed` has one (concept id, set) a picture.
    """

    rgba: np.ndarray
    listed: list[tuple[str, str]]
    contrast: list[list[int]]  # median RGB distance of each picture to each ground colour
    concepts: tuple[Concept, ...] = field(default_factory=load_concepts)
    by_style: dict[str, dict[str, list[int]]] = field(init=False)  # concept id -> set -> rows
    pools: dict[tuple[str, str], list[Concept]] = field(init=False)  # (split, role) -> concepts with pictures

    def __post_init__(self) -> None:
        """Builds the look-up tables."""
        self.by_style = {}
        for row, (concept, style) in enumerate(self.listed):
            self.by_style.setdefault(concept, {}).setdefault(style, []).append(row)
        self.pools = {}

    @classmethod
    def open(cls, data: Path) -> "Pictures":
        """Maps DATA/pictures.npy without reading it: many processes share one copy."""
        listing = json.loads((data / "pictures.json").read_text())["pictures"]
        return cls(
            rgba=np.load(data / "pictures.npy", mmap_mode="r"),
            listed=[(entry["concept"], entry["set"]) for entry in listing],
            contrast=[entry["contrast"] for entry in listing],
        )

    @classmethod
    def from_arrays(cls, rgba: np.ndarray, listed: list[tuple[str, str]]) -> "Pictures":
        """Pictures that are already in memory; rgba (N 128 128 4) uint8."""
        return cls(rgba=rgba, listed=listed, contrast=[contrasts(picture) for picture in rgba])

    def styles(self, concept: str, split: str) -> dict[str, list[int]]:
        """The sets, and rows in them, that a split may show of a concept."""
        found = self.by_style.get(concept, {})
        wants_held = split in ("unseen_drawing", "unseen_style")
        allowed = {style: rows for style, rows in found.items() if held_out_picture(concept, style) == wants_held}
        if not wants_held:
            return allowed
        return {style: rows for style, rows in allowed.items() if (style == "streamline") == (split == "unseen_style")}

    def pool(self, split: str, role: str) -> list[Concept]:
        """Concepts a split may show: "any" alone, "joins" beside others, "counts" several times."""
        if (split, role) not in self.pools:
            self.pools[split, role] = [
                concept
                for concept in self.concepts
                if self.styles(concept.id, split) and (role == "any" or getattr(concept, role))
            ]
        return self.pools[split, role]

    def stands_out(self, row: int, ground: str) -> int:
        """Median RGB distance of a picture's ink to a ground colour, 0 to 442."""
        return self.contrast[row][COLOUR_NUMBER[ground]]
