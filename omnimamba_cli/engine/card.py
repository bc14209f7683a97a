"""README.md of a model directory: what the files are, how they are stored, how to use them. Text only."""

from collections.abc import Mapping
from dataclasses import dataclass

from omnimamba_cli.config import ModelConfig

CONTENTS = {
    "model": "language model: Mamba-2 backbone, embeddings (heads are tied to them), task LoRA, projector",
    "vision": "image encoders, up to the block whose patches are read",
    "vq": "image tokenizer: pixels to codes and back",
}
STORAGE_NOTES = {
    "int8": (
        "8-bit storage: a weight of two or more dimensions and at least 4,096 elements is int8 under its name, with "
        "one fp16 scale for each output row under `NAME::scale`. row = int8 * scale, where scale is the row's largest "
        "magnitude / 127 and int8 is rounded to nearest. The rest is fp16. It is read back as float32."
    ),
    "keep": "Tensors are stored in the precision of the files they came from.",
}


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """One safetensors file."""

    storage: str
    parameters: int
    size_bytes: int


def render(
    config: ModelConfig,
    parts: Mapping[str, PartSize],
    notes: tuple[str, ...] = (),
    front: tuple[str, ...] | None = None,
) -> str:
    """The card of a directory with these parts; `notes` become paragraphs of their own.

    `front` are more lines for the Hub's metadata: then it is a card to share, whose notes say how to use the model.
    """
    b = config.backbone
    sizes = (
        f"Backbone: {b.n_layer} Mamba-2 layers, width {b.d_model}. Text vocabulary {config.text.vocab_size:,}, image "
        f"codes {config.vq.codebook_size:,}, pictures drawn at {config.vq.image_size} x {config.vq.image_size}."
    )
    if config.deviations:
        sizes += f" Unlike the paper's, this model has {' and '.join(config.deviations)}."
    lines = [
        "---",
        "library_name: omnimamba",
        *(front or ()),
        "---",
        f"# {config.name}",
        "",
        "A model directory of `omnimamba` (OmniMamba, arXiv:2503.08686): captions of pictures, pictures of captions.",
        "",
        sizes,
        "",
        "| file | holds | parameters | stored | size |",
        "|---|---|---|---|---|",
    ]
    for part, size in parts.items():
        row = (f"{part}.safetensors", CONTENTS[part], f"{size.parameters:,}", size.storage, _mebibytes(size.size_bytes))
        lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    lines += [STORAGE_NOTES[s] + "\n" for s in sorted({p.storage for p in parts.values()}) if s in STORAGE_NOTES]
    lines.append("`A_log`, `dt_bias` and `D` are float32 in every storage.\n")
    lines += [note + "\n" for note in notes]
    if front is None:
        lines += ["```", 'omnimamba generate "a red fox" --model DIRECTORY -o fox.png', "```", ""]
    return "\n".join(lines)


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"
