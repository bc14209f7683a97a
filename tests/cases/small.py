"""A small whole model told twice: weights by a formula, and the specification as a float64 loop over time in NumPy.

`python -m tests.cases.small` from the repository root writes small.safetensors, the outputs of that loop.
"""

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from omnimamba_cli.config import Mamba2Config, ModelConfig, TextConfig, TowerConfig, VQConfig
from omnimamba_cli.model.convert import own_shapes
from omnimamba_cli.model.omnimamba import OmniMamba

GOLDEN = Path(__file__).with_name("small.safetensors")
CONFIG = ModelConfig(
    name="small",
    backbone=Mamba2Config(
        d_model=64, n_layer=2, d_state=16, d_conv=3, headdim=16, ngroups=2, chunk_size=7, lora_rank=3, lora_alpha=6.0
    ),
    text=TextConfig(base_vocab_size=37),
    vq=VQConfig(image_size=10, codebook_size=29, ch=32, ch_mult=(1, 1)),
    towers=(TowerConfig(name="none", width=24, patches=11, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3),),
    caption_tokens=9,
    t2i_positions=39,
    mmu_positions=61,
    image_mlp_mult=3,
    projector_mult=2,
)
ROWS, TEXT, ANSWER = 2, 17, 27  # answer ids of the greedy path


def hashed(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1,1), multiples of 2^-23: a 64-bit mix of each value's place and the crc32 of the name."""
    with np.errstate(over="ignore"):
        first = np.uint64(zlib.crc32(name.encode())) * np.uint64(2654435761)
        x = (np.arange(math.prod(shape), dtype=np.uint64) + first) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float64) / 2**24 * 2 - 1).reshape(shape)


def weights() -> dict[str, np.ndarray]:
    """The model's tensors, float64 values that float32 holds exactly."""
    return {n: _weight(n, s).astype(np.float32).astype(np.float64) for n, s in own_shapes(CONFIG).items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    u = hashed(name, shape)
    if name.endswith("A_log"):
        return 1 + u  # A from -7.4 to -1
    if name.endswith("dt_bias"):
        return u - 1  # steps of about 0.3
    if name.endswith("bias"):
        return 0.1 * u
    if len(shape) == 1:
        return 1 + 0.2 * u
    if "embedding" in name or name.endswith(".B"):
        return 0.5 * u
    if "positions" in name:
        return 0.3 * u
    return u * math.sqrt(3 / math.prod(shape[1:]))


def inputs() -> dict[str, np.ndarray]:
    """patches, and ids that stand in for a question, a whole prefix of a drawing, and its codes."""
    c = CONFIG

    def ids(name: str, length: int, below: int) -> np.ndarray:
        return ((hashed(name, (ROWS, length)) + 1) / 2 * below).astype(np.int64)

    caption = ids("caption", c.t2i_prefix, c.text.base_vocab_size)
    s = c.text.special
    caption[:, :5] = [s("t2i"), s("sot"), s("[PAD]"), s("[PAD]"), s("[PAD]")]
    caption[:, -2:] = [s("eot"), s("soi")]
    return {
        "patches": hashed("patches", (ROWS, c.patches, c.vision_dim)).astype(np.float32),
        "text_ids": ids("text", TEXT, c.text.base_vocab_size),
        "caption_ids": caption,
        "image_ids": ids("image", c.vq.codes, c.vq.codebook_size),
    }


def model() -> OmniMamba:
    """The model under test with these weights, in eval mode."""
    result = OmniMamba(CONFIG).eval()
    result.load_state_dict({name: torch.from_numpy(value).float() for name, value in weights().items()})
    return result


# the specification, value by value, in float64


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x) + CONFIG.backbone.norm_eps) * weight


class Sequence:
    """One sequence of one task, read token by token."""

    def __init__(self, w: dict[str, np.ndarray], task: str) -> None:
        self.w, self.task, self.length = w, task, 0
        c = CONFIG.backbone
        self.past = [[np.zeros(c.conv_dim)] * c.d_conv for _ in range(c.n_layer)]
        self.memory = [np.zeros((c.nheads, c.headdim, c.d_state)) for _ in range(c.n_layer)]

    def _mixer(self, i: int, u: np.ndarray) -> np.ndarray:
        c, name = CONFIG.backbone, f"layers.{i}.mixer."
        w = {k.removeprefix(name): v for k, v in self.w.items() if k.startswith(name)}
        A, B = w[f"in_proj.lora.{self.task}.A"], w[f"in_proj.lora.{self.task}.B"]
        row = w["in_proj.weight"] @ u + c.lora_alpha / c.lora_rank * (B @ (A @ u))
        e, gn = c.d_inner, c.ngroups * c.d_state
        z, xBC, dt = row[:e], row[e : 2 * e + 2 * gn], row[2 * e + 2 * gn :]
        self.past[i] = [*self.past[i][1:], xBC]
        total = w["conv1d.bias"].copy()
        for tap, old in enumerate(self.past[i]):
            total += w["conv1d.weight"][:, 0, tap] * old
        total = _silu(total)
        x, Bs, Cs = total[:e], total[e : e + gn], total[e + gn :]
        y = np.zeros(e)
        for h in range(c.nheads):
            group = h // (c.nheads // c.ngroups)
            part = slice(h * c.headdim, (h + 1) * c.headdim)
            states = slice(group * c.d_state, (group + 1) * c.d_state)
            step = np.log1p(np.exp(dt[h] + w["dt_bias"][h]))
            decay = np.exp(-np.exp(w["A_log"][h]) * step)
            self.memory[i][h] = decay * self.memory[i][h] + step * np.outer(x[part], Bs[states])
            y[part] = self.memory[i][h] @ Cs[states] + w["D"][h] * x[part]
        return w["out_proj.weight"] @ _rms(y * _silu(z), w["norm.weight"])

    def read(self, x: np.ndarray) -> np.ndarray:
        """One embedded token (d) to scores (v)."""
        residual = x + self.w[f"{self.task}_positions"][self.length]
        self.length += 1
        for i in range(CONFIG.backbone.n_layer):
            residual = residual + self._mixer(i, _rms(residual, self.w[f"layers.{i}.norm.weight"]))
        head = self.w["text_embedding.weight" if self.task == "mmu" else "image_embedding.weight"]
        return head @ _rms(residual, self.w["norm_f.weight"])


def _three(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    for j in (0, 2):
        x = _gelu(w[f"{name}.{j}.weight"] @ x + w[f"{name}.{j}.bias"])
    return w[f"{name}.4.weight"] @ x + w[f"{name}.4.bias"]


def _code(w: dict[str, np.ndarray], code: int) -> np.ndarray:
    return _three(w, "image_mlp", w["image_embedding.weight"][code])


def _greedy(sequence: Sequence, scores: np.ndarray, embed: object, count: int) -> tuple[list[int], float]:
    """The best tokens after some scores, and the least distance to the second best."""
    path, least = [], math.inf
    for _ in range(count):
        second, best = np.sort(scores)[-2:]
        least = min(least, best - second)
        path.append(int(scores.argmax()))
        if len(path) < count:
            scores = sequence.read(embed(path[-1]))
    return path, least


def outputs() -> tuple[dict[str, np.ndarray], float]:
    """Logits and greedy paths of both tasks, and the least margin on the paths."""
    w, given, special = weights(), inputs(), CONFIG.text.special
    rows: dict[str, list[object]] = {"mmu.logits": [], "mmu.greedy": [], "t2i.logits": [], "t2i.greedy": []}
    margins = []
    words, hidden = w["text_embedding.weight"], [w["caption_mlp.0.weight"], w["caption_mlp.2.weight"]]
    for b in range(ROWS):
        sequence = Sequence(w, "mmu")
        x = [words[special("mmu")], words[special("soi")]]
        x += [_three(w, "projector", patch.astype(np.float64)) for patch in given["patches"][b]]
        x += [words[special("eoi")], words[special("sot")], *(words[i] for i in given["text_ids"][b])]
        logits = [sequence.read(token) for token in x]
        rows["mmu.logits"].append(logits[-TEXT - 2 :])
        path, margin = _greedy(sequence, logits[-1], lambda i: words[i], ANSWER)
        rows["mmu.greedy"].append(path)
        margins.append(margin)

        caption = [hidden[1] @ _tanh_gelu(hidden[0] @ words[i]) for i in given["caption_ids"][b]]
        sequence = Sequence(w, "t2i")
        logits = [sequence.read(token) for token in [*caption, *(_code(w, i) for i in given["image_ids"][b])]]
        rows["t2i.logits"].append(logits[len(caption) - 1 :])
        sequence = Sequence(w, "t2i")
        last = [sequence.read(token) for token in caption][-1]
        path, margin = _greedy(sequence, last, lambda i: _code(w, i), CONFIG.vq.codes)
        rows["t2i.greedy"].append(path)
        margins.append(margin)
    kinds = {"logits": np.float32, "greedy": np.int64}
    return {k: np.array(v, dtype=kinds[k.split(".")[1]]) for k, v in rows.items()}, min(margins)


if __name__ == "__main__":
    tensors, least = outputs()
    assert least > 1e-3, least
    save_file(tensors, GOLDEN, {"least_margin": f"{least:.4f}"})
