"""What can be measured: the interface of all systems, and its implementation for this program's own models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from omnimamba_cli.config import ModelConfig, Task
from omnimamba_cli.data import sequences
from omnimamba_cli.engine import decode, hub, runtime
from omnimamba_cli.engine.bench_machine import fill_random
from omnimamba_cli.engine.checkpoint import load_directory, read_config
from omnimamba_cli.engine.pixels import PixelDecoder
from omnimamba_cli.engine.session import Session
from omnimamba_cli.errors import CheckpointError, nearest
from omnimamba_cli.model.lora import is_merged, merged
from omnimamba_cli.model.meta import on_meta
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import PackedLinear, Quantization, QuantizedLinear, quantize
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.ops import registry
from omnimamba_cli.presets import PRESETS

M = TypeVar("M", bound=nn.Module)
NEEDED = {"train": ("model",), "image": ("vq",)}  # parts that a task reads from the directory as they are stored
STEPS = 512  # least number of steps that `System.steps` gives
QUESTION = 27  # tokens: with a picture's patches and four special tokens, the prefix is 760 for the published model


class System(Protocol):
    """One model on one device at one batch size."""

    name: str
    dtype: torch.dtype
    batch: int

    def what(self, task: str) -> str:
        """Exactly what is measured, in words."""
        ...

    def kernels(self) -> dict[str, str]:
        """Which kernels ran."""
        ...

    def step_bytes(self, task: str, position: int) -> tuple[int, int]:
        """Bytes that one step must move after `position` tokens: weights, and state or cache of all rows."""
        ...

    def work(self, position: int) -> float:
        """What one step costs after `position` tokens, to predict one from another; any unit."""
        ...

    def flops(self, length: int) -> float:
        """Floating-point operations of a pass over `length` tokens of all rows."""
        ...

    def memory_bytes(self, read: int, length: int) -> int:
        """At least so much memory, beside the weights, takes a pass over `read` tokens and what is kept of `length`."""
        ...

    def first_token(self, prefix: int) -> None:
        """Reads a prefix and finds the token after it."""
        ...

    def steps(self, position: int) -> Iterator[object]:
        """Steps after `position` tokens, STEPS of them or more."""
        ...

    def generate(self, prefix: int, count: int) -> Iterator[object]:
        """Reads a prefix and generates `count` tokens, one an item."""
        ...

    def train_loss(self, length: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        """The module to train, and its loss on rows of `length` random tokens."""
        ...


def random_module(
    build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype
) -> Any:  # Any: what it builds
    """A module with random weights of a sensible scale, made quickly on the device; A_log, dt_bias, D in float32."""
    module = on_meta(build)
    for name, parameter in list(module.named_parameters()):
        owner, _, key = name.rpartition(".")
        wide = key in ("A_log", "dt_bias", "D") and dtype in (torch.float16, torch.bfloat16)
        values = torch.empty(parameter.shape, device=device, dtype=torch.float32 if wide else dtype)
        if key == "A_log":
            values.uniform_(1, 16).log_()
        elif key == "dt_bias":
            values.fill_(-4.0)  # steps of about 0.02
        elif values.ndim < 2:
            values.fill_(0.0 if key == "bias" else 1.0)
        else:
            fill_random(values, (3 / values[0].numel()) ** 0.5)
        module.get_submodule(owner)._parameters[key] = nn.Parameter(values)
    return module.eval()


@dataclass
class Loaded:
    """A model of ours, for one task."""

    config: ModelConfig
    model: OmniMamba  # LoRA of the task folded in, but for training
    device: torch.device
    dtype: torch.dtype
    notes: list[str]
    vq: VQModel | None = None
    narrow: Quantization | None = None  # layers and heads in one byte a weight

    @property
    def name(self) -> str:
        """The name in its rows."""
        return own_name(self.config, self.narrow)


def own_name(config: ModelConfig, narrow: Quantization | None) -> str:
    """The name of a model in its rows."""
    return f"{config.name} {narrow}" if narrow else config.name


def config_of(name: str) -> ModelConfig:
    """The sizes of a preset or of a model, without its weights. Raises CheckpointError for what is neither."""
    if name in PRESETS:
        return PRESETS[name]
    try:
        return read_config(hub.resolve(name))
    except CheckpointError as error:
        if error.hint is None or "/" in name or "did you mean" in error.hint:
            raise
        presets = nearest(name.lower(), PRESETS) or f"presets with random weights: {', '.join(PRESETS)}; {error.hint}"
        raise CheckpointError(error.message, hint=presets) from None


def prefix_of(model: ModelConfig) -> int:
    """Tokens before the text: a picture's patches, four special tokens and a question of usual length."""
    return model.patches + 4 + QUESTION


def number_format(choice: str, task: str, device: torch.device, config: ModelConfig) -> tuple[torch.dtype, str]:
    """What is computed in, and why: of decoding the weights, of training the forward pass (its weights are float32)."""
    if task == "train" and choice == "auto" and device.type != "cuda":
        return torch.float32, "training without a CUDA device"
    return runtime.pick_dtype(choice, device, config)


def load_ours(
    name: str, device: str, dtype: str, task: str, positions: int, narrow: Quantization | None = None
) -> Loaded:
    """A preset with random weights, or a model directory, its tables of positions long enough.

    Raises what Session and hub.resolve raise for a model, device or dtype that cannot be.
    """
    lora: Task = "t2i" if task == "image" else "mmu"
    notes = []
    place, _ = runtime.pick_device(device)
    config = config_of(name)
    kind, _ = number_format(dtype, task, place, config)
    if name in PRESETS:
        # folded in, a random pair is one more random matrix; in training it has its own work
        bare = config if task == "train" else replace(config, backbone=replace(config.backbone, lora_rank=0))
        model = random_module(lambda: OmniMamba(bare), place, torch.float32 if task == "train" else kind)
        model = model if task == "train" else merged(model, lora)
        if narrow is not None:
            runtime.check_quantization(narrow, place)
            model = quantize(model, lora, narrow, pack=place.type == "cpu")
        notes.append("random weights")
        vq = random_module(lambda: VQModel(config.vq), place, torch.float32) if task == "image" else None
    else:
        directory = hub.resolve(name)
        session = Session(directory, device, "fp32" if task == "train" else dtype, narrow)
        parts = load_directory(directory, device=place, dtype=torch.float32, parts=NEEDED.get(task, ()))
        trained, vq = parts.model, parts.vq
        model = session.for_task(lora) if trained is None else trained
    # as end-of-text a token that is never drawn, so that no answer ends early
    model.config = replace(config, text=replace(config.text, eos_id=config.text.special("lvg")))
    if task != "image" and positions > config.mmu_positions:
        table = model.mmu_positions.detach()
        # repeated, since no model has these positions; a real copy, because kernels read it by address
        longer = table.repeat(-(-positions // len(table)), 1)[:positions].clone()
        model.mmu_positions = nn.Parameter(longer, requires_grad=task == "train")
        size = f"{longer.nbytes / (1 << 30):.2f} GiB of its memory"
        notes.append(f"positions extended from {len(table)} to {positions} for the benchmark ({size})")
    return Loaded(model.config, model, place, kind, notes, vq, narrow)


class OmniMambaSystem:
    """This program's own way to decode: engine.decode, whatever it runs on."""

    def __init__(self, loaded: Loaded, batch: int) -> None:
        self.loaded, self.batch = loaded, batch
        self.name, self.dtype, self.device = loaded.name, loaded.dtype, loaded.device
        self.model, self.config = loaded.model, loaded.config
        self.to_pixels = None if loaded.vq is None else PixelDecoder(loaded.vq)

    def what(self, task: str) -> str:
        """See System."""
        said = {
            "text": "this program's decode_text, greedy, from the same prefix",
            "image": f"this program's decode_image, {self.config.vq.codes} codes one by one, guidance "
            f"{self.config.image_sampling.guidance:g}, one candidate",
            "prefill": "this program's decode_text up to its first token",
            "train": "forward, backward, clipping and AdamW on all weights, text rows",
        }[task]
        return f"{said}; {', '.join(self.loaded.notes)}" if self.loaded.notes else said

    def kernels(self) -> dict[str, str]:
        """See System."""
        found = {c.op: c.backend for c in registry.report(self.device) if c.chosen}
        merged_for_a_task = is_merged(self.model, "mmu") or is_merged(self.model, "t2i")
        other = {"int8": self.loaded.narrow is None, "row_step": not merged_for_a_task}  # what did not run
        return {op: backend for op, backend in found.items() if not other.get(op)}

    def step_bytes(self, task: str, position: int) -> tuple[int, int]:
        """See System. The state is read, and written with every token, on a GPU with every second."""
        model = self.model
        lora: Task = "t2i" if task == "image" else "mmu"
        read = [model.layers, model.narrow_heads[lora] if lora in model.narrow_heads else nn.ParameterList()]
        if task == "image":
            read.append(model.image_mlp)
        mixers = sum(size for part in read for _, size in linear_weights(part))
        rest = 0 if lora in model.narrow_heads else model.head(lora).nbytes
        rows = self.batch * (2 if task == "image" and self.config.image_sampling.guidance != 1 else 1)
        written = 0.5 if self.device.type == "cuda" else 1
        return mixers + rest, int((1 + written) * self._state_bytes(rows))

    def _state_bytes(self, rows: int) -> int:
        c = self.config.backbone
        conv = (c.d_conv - 1) * c.conv_dim * self.dtype.itemsize
        return rows * c.n_layer * (conv + c.nheads * c.headdim * c.d_state * 4)

    def work(self, position: int) -> float:
        """See System: the same everywhere."""
        return 1.0

    def flops(self, length: int) -> float:
        """See System: the matrices alone; the scan adds a few percent."""
        weights = sum(number for number, _ in linear_weights(self.model.layers))
        return 2.0 * self.batch * length * weights

    def memory_bytes(self, read: int, length: int) -> int:
        """See System; the state is as large for any length."""
        return self._state_bytes(self.batch) + self.batch * read * self.config.backbone.d_in_proj * self.dtype.itemsize

    def _prefix(self, length: int) -> Tensor:
        d = self.config.backbone.d_model
        prefix = torch.empty(self.batch, length, d, device=self.device, dtype=self.dtype)
        fill_random(prefix, 0.03)
        return prefix

    def first_token(self, prefix: int) -> None:
        """See System."""
        next(self.generate(prefix, STEPS))

    def steps(self, position: int) -> Iterator[object]:
        """See System. A GPU really reads so many tokens; on a CPU the state only claims to, see standing_at."""
        if self.device.type == "cuda":
            yield from self.generate(max(1, position), STEPS)
            return
        with standing_at(self.model, max(0, position - 1)):
            yield from self.generate(1, STEPS)

    def generate(self, prefix: int, count: int) -> Iterator[object]:
        """See System."""
        config = replace(self.config.caption_sampling, temperature=0.0, repetition_penalty=1.0)
        seeds = list(range(self.batch))
        yield from decode.decode_text(self.model, self._prefix(prefix), config, steps=count, seeds=seeds)

    @torch.inference_mode()
    def codes(self) -> Tensor:
        """The codes (b codes) of one batch of pictures."""
        config = self.config.image_sampling
        captions: list[list[int]] = [[1, 2, 3]] * self.batch + ([[]] * self.batch if config.guidance != 1 else [])
        ids = [sequences.t2i_prefix(self.config, caption) for caption in captions]
        prefix = torch.tensor(ids, device=self.device)
        return decode.decode_image(self.model, prefix, config, seeds=list(range(self.batch)))

    @torch.inference_mode()
    def pixels(self, codes: Tensor) -> None:
        """The pictures of codes, one by one as Session draws them."""
        assert self.to_pixels is not None
        for row in codes:
            self.to_pixels(row[None])

    def train_loss(self, length: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        """See System."""
        ids = random_ids(self.batch, length + 1, self.config.text.base_vocab_size, self.device)

        def loss() -> Tensor:
            hidden = self.model(self.model.embed_text(ids[:, :-1]), "mmu")
            logits = self.model.training_logits(hidden, "mmu").float()
            return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

        return self.model.train(), loss


def linear_weights(module: nn.Module) -> list[tuple[int, int]]:
    """(number, bytes) of the weights of every map and table in a module, narrow ones too."""
    plain = [(p.numel(), p.nbytes) for p in module.parameters() if p.ndim > 1]
    narrow = [m.get_buffer("weight") for m in module.modules() if isinstance(m, QuantizedLinear)]
    packed = [m.product.size for m in module.modules() if isinstance(m, PackedLinear)]
    return plain + [(w.numel(), w.nbytes) for w in narrow] + [(size, size) for size in packed]


def random_ids(batch: int, length: int, vocab_size: int, device: torch.device) -> Tensor:
    """Token ids (b l), the same in every run."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (batch, length), generator=rng).to(device)


@contextmanager
def standing_at(model: OmniMamba, position: int) -> Iterator[None]:
    """While the block runs, the model's new states claim to have read `position` tokens; their size does not change."""
    new_state = model.new_state

    def later(batch: int) -> Any:  # Any: an InferenceState
        state = new_state(batch)
        state.position = position
        return state

    model.new_state = later  # type: ignore[method-assign]  # one way through decode, whatever position is measured
    try:
        yield
    finally:
        del model.new_state
