"""Who is compared with: published decoders by their sizes, and how each is run. Builds nothing.

Sizes are those of the published configurations: Phi-1.5 as Show-o uses it (arXiv:2408.12528), DeepSeek-LLM 1.3B as
JanusFlow (arXiv:2411.07975) and Janus-Pro (arXiv:2501.17811) use it, Emu3 (arXiv:2409.18869).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine.runtime import parameter_count
from omnimamba_cli.errors import UsageError, nearest
from omnimamba_cli.model.baseline import TransformerConfig

CacheUse = Literal["none", "growing", "fixed"]


@dataclass(frozen=True, kw_only=True)
class PictureWork:
    """What the language model of an opponent does for one picture. Its pixel decoder is left out, in its favour."""

    way: Literal["codes", "rounds"]  # one code a step, or rounds over the whole picture
    tokens: int  # of the picture
    prompt: int  # tokens
    rounds: int = 1
    rows: int = 2  # a picture: with and without the prompt, for guidance
    vocab_size: int  # of the head for pictures; 0: no head, the hidden states go on
    what: str


@dataclass(frozen=True, kw_only=True)
class Opponent:
    """A size and a way to run it."""

    config: TransformerConfig
    cache: CacheUse
    what: str  # of the text task
    picture: PictureWork | None = None
    as_released: bool = False  # Show-o's own waste: a dense mask that grows, scores where nobody reads them
    paper: str = ""  # the name of the system whose published figures belong here


PHI = TransformerConfig(
    d_model=2048,
    n_layer=24,
    n_head=32,
    n_kv_head=32,
    d_ff=8192,
    vocab_size=58_498,
    norm="layer",
    mlp="gelu",
    parallel=True,
    bias=True,
    rotary_share=0.5,
)
LLAMA_1B3 = TransformerConfig(d_model=2048, n_layer=24, n_head=16, n_kv_head=16, d_ff=5632, vocab_size=102_400)
EMU3 = TransformerConfig(
    d_model=4096, n_layer=32, n_head=32, n_kv_head=8, d_ff=14_336, vocab_size=184_622, rope_theta=1e6
)

FIXED = (
    "cache in place; on CUDA the whole step in one graph of this very length, under the fastest of PyTorch's attentions"
)
GROWING = "cache lengthened by concatenation, eager code (leaner than Hugging Face's)"

MASKED = PictureWork(
    way="rounds",
    tokens=258,  # 256 codes between soi and eoi
    prompt=129,
    rounds=18,
    vocab_size=PHI.vocab_size,
    what="18 rounds of masked parallel decoding, each a whole pass over 387 tokens x 2 rows; without MAGVIT-v2",
)
FLOW = PictureWork(
    way="rounds",
    tokens=577,  # 24 x 24 latents and the time
    prompt=72,
    rounds=30,
    vocab_size=0,
    what="30 steps of rectified flow, each a whole pass over 649 tokens x 2 rows; without ConvNeXt and SDXL-VAE",
)
JANUS_CODES = PictureWork(
    way="codes", tokens=576, prompt=72, vocab_size=16_384, what="576 codes one by one, 2 rows for guidance; without VQ"
)
EMU3_CODES = PictureWork(
    way="codes", tokens=8_190, prompt=72, vocab_size=32_768, what="8,190 codes (720x720) one by one, 2 rows; without VQ"
)

OPPONENTS: dict[str, Opponent] = {
    "show-o": Opponent(
        config=PHI,
        cache="none",
        what="Show-o as released: no cache, a whole pass a token under its growing float mask, scores at all places",
        as_released=True,
        picture=MASKED,
        paper="show-o",
    ),
    "show-o-cached": Opponent(config=PHI, cache="fixed", what=f"Show-o's size, {FIXED}", picture=MASKED),
    "janusflow": Opponent(
        config=LLAMA_1B3,
        cache="growing",
        what=f"JanusFlow's LLaMA-1.3B, {GROWING}",
        picture=FLOW,
        paper="janusflow",
    ),
    "janusflow-graph": Opponent(config=LLAMA_1B3, cache="fixed", what=f"JanusFlow's LLaMA-1.3B, {FIXED}", picture=FLOW),
    "janus-pro": Opponent(config=LLAMA_1B3, cache="fixed", what=f"Janus-Pro-1B, {FIXED}", picture=JANUS_CODES),
    "emu3": Opponent(config=EMU3, cache="fixed", what=f"Emu3-8B, {FIXED}", picture=EMU3_CODES),
}
MATCHED = ("matched", "matched-uncached")  # made for the model that is measured
ALL = (*OPPONENTS, *MATCHED)
SETS = ("all", "none", "auto")
LARGE = 700_000_000  # weights from which the published opponents are the fair ones


def matched(config: ModelConfig) -> TransformerConfig:
    """A LLaMA-like Transformer of a model's width and vocabulary with about as many weights in its layers."""
    c = config.backbone
    weights = c.n_layer * c.d_model * (c.d_in_proj + c.d_inner)
    heads = max(1, c.d_model // 64)
    d_ff = -(-8 * c.d_model // 3 // 32) * 32
    one = TransformerConfig(
        d_model=c.d_model,
        n_layer=1,
        n_head=heads if c.d_model % heads == 0 else 1,
        n_kv_head=heads if c.d_model % heads == 0 else 1,
        d_ff=d_ff,
        vocab_size=config.text.vocab_size,
        tied=True,
    )
    return replace(one, n_layer=max(1, round(weights / one.layer_weights)))


def opponent(name: str, config: ModelConfig) -> Opponent:
    """An opponent by name; the matched ones are made for the model's configuration."""
    if name not in MATCHED:
        return OPPONENTS[name]
    size, rows = matched(config), 1 if config.image_sampling.guidance == 1 else 2
    picture = PictureWork(
        way="codes",
        tokens=config.vq.codes,
        prompt=config.t2i_prefix,
        rows=rows,
        vocab_size=config.vq.codebook_size,
        what=f"{config.vq.codes} codes one by one, {rows} rows a picture as the model has; without VQ",
    )
    about = f"a Transformer of this model's width and weights ({size.n_layer} layers x {size.d_model})"
    if name == "matched":
        return Opponent(config=size, cache="fixed", what=f"{about}, {FIXED}", picture=picture)
    return Opponent(config=size, cache="none", what=f"{about}, no cache, every token a whole causal pass")


def check_names(words: Sequence[str]) -> None:
    """Raises UsageError for what is neither an opponent nor a set of them, naming the nearest; and for none at all."""
    if not words:
        raise UsageError("--baseline is empty", hint="--baseline none measures the model alone")
    for word in words:
        if word not in (*ALL, *SETS):
            raise UsageError(
                f"there is no baseline {word!r}; baselines are {', '.join(ALL)}, and {', '.join(SETS)}",
                hint=nearest(word, (*ALL, *SETS)),
            )


def chosen(words: Sequence[str], config: ModelConfig, task: str = "text") -> list[str]:
    """The opponents that were asked for: names, "all", "none", or "auto": the fair ones for the model's size.

    Raises UsageError for another word.
    """
    check_names(words)
    auto = list(OPPONENTS)[:4] if parameter_count(config) > LARGE else list(MATCHED)
    if task == "train":  # no cache takes part, so one of each size says it all
        auto = ["show-o", "janusflow"] if parameter_count(config) > LARGE else ["matched"]
    sets: dict[str, list[str]] = {"all": list(ALL), "none": [], "auto": auto}
    return list(dict.fromkeys(name for word in words for name in sets.get(word, [word])))
