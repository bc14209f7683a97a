"""Sizes and settings: frozen dataclasses, JSON round trip. Builds nothing, reads nothing.

A leaf but for errors. Derived sizes are properties; unknown keys are refused by name.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from omnimamba_cli.errors import ConfigError, nearest

Task = Literal["mmu", "t2i"]
TASKS: tuple[Task, ...] = ("mmu", "t2i")
# the paper gives each task its own ("decoupled", "task"); the other choices are its ablations
Vocabulary = Literal["decoupled", "shared"]
Pairs = Literal["task", "shared"]
LoRA = Literal["task", "shared", "none"]
T = TypeVar("T")

BAD_SHARE = 0.05  # of the training samples may be bad; more than that means the data set itself is wrong
SPECIAL_TOKENS = ("[PAD]", "soi", "eoi", "sot", "eot", "t2i", "mmu", "soc", "eoc", "lvg")


def _convert(value: Any, kind: Any, path: str) -> Any:  # Any: JSON on one side, type hints on the other
    """One JSON value as the annotated type, recursing into dataclasses, tuples and optionals."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        return _convert(value, inner[0], path)
    if origin in (tuple, dict) and not isinstance(value, dict if origin is dict else list | tuple):
        raise ConfigError(f"{path} is {value!r}; it must be {'an object' if origin is dict else 'a list'}")
    if origin is tuple:
        return tuple(_convert(v, typing.get_args(kind)[0], f"{path}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{path} is {value!r}; it can be one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, float, str, bool) and type(value) is not kind:
        raise ConfigError(f"{path} is {value!r}; it must be of type {kind.__name__}")
    return value


def from_dict(cls: type[T], data: dict[str, Any], path: str = "") -> T:
    """A config dataclass from plain JSON data.

    Raises ConfigError for an unknown key (naming the nearest known one), a missing key or a wrong type.
    """
    name = path or cls.__name__
    if not isinstance(data, dict):
        raise ConfigError(f"{name} is {data!r}; it must be an object with named fields")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise ConfigError(f"{name} has no field {key!r}", hint=nearest(key, hints))
    values = {k: _convert(v, hints[k], f"{path}.{k}" if path else k) for k, v in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from None


class _JSON:
    """Round trip to plain data for the dataclasses below."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; `from_dict` gives an equal object."""
        data = dataclasses.asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass
        return typing.cast(dict[str, Any], _plain(data))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """See the module's from_dict."""
        return from_dict(cls, data)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(_JSON):
    """The backbone, in the words of Dao & Gu 2024 (arXiv:2405.21060)."""

    d_model: int = 2048
    n_layer: int = 48
    d_state: int = 128
    d_conv: int = 4  # taps
    expand: int = 2
    headdim: int = 64
    ngroups: int = 1
    chunk_size: int = 256  # tokens a chunk of the scan; changes speed, not results
    norm_eps: float = 1e-5
    lora_rank: int = 8  # 0: no LoRA
    lora_pairs: Pairs = "task"  # a pair for each task, or one that both use
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05  # while training only

    def __post_init__(self) -> None:
        _check_positive(self, "d_model", "n_layer", "d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size")
        _check_range("lora_rank", self.lora_rank, 0, 1 << 31)
        _check_range("lora_dropout", self.lora_dropout, 0.0, 1.0)
        _check_range("norm_eps", self.norm_eps, 0.0, 1.0, open_low=True)
        if self.d_inner % self.headdim:
            raise ConfigError(f"headdim {self.headdim} does not divide d_inner {self.d_inner} (expand * d_model)")
        if self.nheads % self.ngroups:
            raise ConfigError(f"ngroups {self.ngroups} does not divide the {self.nheads} heads")

    @property
    def d_inner(self) -> int:
        """Inner width e."""
        return self.expand * self.d_model

    @property
    def nheads(self) -> int:
        """Heads h."""
        return self.d_inner // self.headdim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: x, B and C."""
        return self.d_inner + 2 * self.ngroups * self.d_state

    @property
    def d_in_proj(self) -> int:
        """Rows of in_proj: z, x, B, C, dt."""
        return self.d_inner + self.conv_dim + self.nheads

    @property
    def lora_names(self) -> tuple[str, ...]:
        """Names of the LoRA pairs on each in_proj."""
        if not self.lora_rank:
            return ()
        return ("shared",) if self.lora_pairs == "shared" else TASKS

    def lora_name(self, task: Task) -> str | None:
        """The pair that a task uses; None without LoRA."""
        return None if not self.lora_rank else "shared" if self.lora_pairs == "shared" else task


@dataclass(frozen=True, kw_only=True)
class TextConfig(_JSON):
    """The text vocabulary: a tokenizer's ids, then ten special tokens, padded for the matrix units."""

    base_vocab_size: int = 50_277  # ids of tokenizer.json alone
    eos_id: int = 0  # <|endoftext|>
    pad_multiple: int = 16

    def __post_init__(self) -> None:
        _check_positive(self, "base_vocab_size", "pad_multiple")

    @property
    def vocab_size(self) -> int:
        """Rows of the text embedding and of its tied head."""
        used = self.base_vocab_size + len(SPECIAL_TOKENS)
        return -(-used // self.pad_multiple) * self.pad_multiple

    def special(self, name: str) -> int:
        """Id of a special token such as "soi"."""
        return self.base_vocab_size + SPECIAL_TOKENS.index(name)


@dataclass(frozen=True, kw_only=True)
class TowerConfig(_JSON):
    """One frozen image encoder, by the name that timm has for it."""

    name: str  # timm model name
    width: int  # features a patch
    patches: int  # patches an image
    image_size: int  # pixels a side; pictures are squashed to it
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layer: int = -2  # block (ViT) or stage (convolutional) whose output is read; later ones are dropped
    options: dict[str, Any] = field(default_factory=dict)  # in the words of timm.create_model

    def __post_init__(self) -> None:
        _check_positive(self, "width", "patches", "image_size")
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"std of {self.name} is {self.std}; pixels are divided by it, so it must be above 0")


@dataclass(frozen=True, kw_only=True)
class VQConfig(_JSON):
    """The image tokenizer (LlamaGen's VQ, arXiv:2406.06525)."""

    image_size: int = 256  # pixels a side
    codebook_size: int = 16_384  # entries
    code_dim: int = 8
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_groups: int = 32
    patch_width: int = 0  # width of a PatchEncoder (each patch alone); 0: LlamaGen's encoder (the whole picture)
    patch_blocks: int = 4  # blocks of a PatchEncoder

    def __post_init__(self) -> None:
        _check_positive(self, "image_size", "codebook_size", "code_dim", "z_channels", "ch")
        _check_positive(self, "num_res_blocks", "norm_groups", "patch_blocks")
        if self.patch_width < 0:
            raise ConfigError(f"vq.patch_width is {self.patch_width}; it must be 0 or more")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ConfigError(f"vq.ch_mult is {self.ch_mult}; it must be widths of at least 1")
        if any(self.ch * m % self.norm_groups for m in self.ch_mult):
            raise ConfigError(f"vq.norm_groups {self.norm_groups} does not divide every width ({self.ch} * ch_mult)")
        if self.image_size % self.downsample:
            raise ConfigError(f"vq.image_size {self.image_size} is no multiple of {self.downsample} (2^(levels - 1))")

    @property
    def downsample(self) -> int:
        """Pixels per side of a code."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def grid(self) -> int:
        """Codes per side of an image."""
        return self.image_size // self.downsample

    @property
    def codes(self) -> int:
        """Codes per image."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(_JSON):
    """How the next token is drawn. Greedy when temperature is 0."""

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off; share of the likeliest token's probability
    repetition_penalty: float = 1.0  # 1: off
    max_new_tokens: int = 256  # text only
    guidance: float = 1.0  # pictures only; 1: off
    candidates: int = 1  # pictures only; draw so many, keep the one from which the model best reads the prompt

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_k", self.top_k, 0, 1 << 31)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _check_range("max_new_tokens", self.max_new_tokens, 1, 1 << 31)
        _check_range("guidance", self.guidance, 0.0, 1000.0)
        _check_range("candidates", self.candidates, 1, 1 << 10)


def _check_positive(config: _JSON, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be at least 1")


def _check_range(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    # "not ... <= ..." also refuses NaN
    if not (low <= value <= high) or (open_low and value == low):
        raise ConfigError(f"{name} is {value}; it must be {'above' if open_low else 'from'} {low:g} and up to {high:g}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_JSON):
    """Everything a model directory's config.json says."""

    name: str
    backbone: Mamba2Config = field(default_factory=Mamba2Config)
    text: TextConfig = field(default_factory=TextConfig)
    vq: VQConfig = field(default_factory=VQConfig)
    vocabulary: Vocabulary = "decoupled"  # a table each for text and codes, or one of both
    towers: tuple[TowerConfig, ...] = ()
    caption_tokens: int = 68  # ids of a prompt to draw, left-padded
    t2i_positions: int = 329  # rows of the learned table of positions: the longest sequence
    mmu_positions: int = 1_500  # the same for mmu
    max_text_tokens: int = 449  # ids of a training conversation
    image_mlp_mult: int = 4  # hidden width of the image codes' MLP, in d_model
    projector_mult: int = 4  # hidden width of the projector, in vision width
    prompt: str = "USER: {question} ASSISTANT:"  # of the released inference script
    default_question: str = "Please describe this image in detail."
    ranking_question: str = "Please describe this image in detail."  # of candidates: is the prompt a likely answer?
    caption_dropout: float = 0.0  # share of captions left out in training; above 0, guidance works
    caption_sampling: SamplingConfig = field(default_factory=SamplingConfig)
    image_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=1.0, top_k=0))
    format: int = 1  # of config.json

    def __post_init__(self) -> None:
        if self.format != 1:
            raise ConfigError(
                f"config.json has format {self.format}; this program reads format 1",
                hint="pip install --upgrade omnimamba-cli",
            )
        _check_positive(self, "caption_tokens", "t2i_positions", "mmu_positions", "max_text_tokens")
        _check_positive(self, "image_mlp_mult", "projector_mult")
        _check_range("caption_dropout", self.caption_dropout, 0.0, 1.0)
        if "{question}" not in self.prompt:
            raise ConfigError(f"prompt is {self.prompt!r}; it must contain {{question}}")
        if len({(t.image_size, t.patches) for t in self.towers}) > 1:
            raise ConfigError("the towers differ in image_size or patches; their features are joined patch by patch")
        if self.t2i_length > self.t2i_positions:
            raise ConfigError(f"t2i_positions {self.t2i_positions} is less than the {self.t2i_length} of one drawing")

    @property
    def vision_dim(self) -> int:
        """Features per patch, all towers together."""
        return sum(t.width for t in self.towers)

    @property
    def patches(self) -> int:
        """Patches per image; every tower has the same number."""
        return self.towers[0].patches if self.towers else 0

    @property
    def vision_image_size(self) -> int:
        """Pixels per side of the towers' input."""
        return self.towers[0].image_size if self.towers else 0

    @property
    def deviations(self) -> tuple[str, ...]:
        """Where the model's parts differ from the paper's, in words; the published layout has no place for them."""
        found = ["one vocabulary of text and codes"] if self.vocabulary == "shared" else []
        found += ["one LoRA pair for both tasks"] if self.backbone.lora_names == ("shared",) else []
        return tuple(found)

    @property
    def t2i_prefix(self) -> int:
        """Tokens before the first code: [t2i][sot]{caption}[eot][soi]."""
        return self.caption_tokens + 4

    @property
    def t2i_length(self) -> int:
        """Tokens of a drawing, its closing eoi included."""
        return self.t2i_prefix + self.vq.codes + 1
