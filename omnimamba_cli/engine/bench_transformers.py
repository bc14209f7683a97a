"""Transformers as a bench_systems.System: without a cache, with a growing cache, or a fixed one in a CUDA graph."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from omnimamba_cli.engine.bench_machine import fill_random, seconds_of
from omnimamba_cli.engine.bench_opponents import Opponent
from omnimamba_cli.engine.bench_systems import random_ids, random_module
from omnimamba_cli.model.baseline import FixedCache, GrowingCache, Transformer

BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
BUCKET = 1024  # tokens that one CUDA graph serves when every token is generated


class TransformerSystem:
    """An opponent on a device; see bench_systems.System for the methods without a text of their own."""

    def __init__(
        self, name: str, opponent: Opponent, task: str, device: torch.device, dtype: torch.dtype, batch: int
    ) -> None:
        self.name, self.opponent, self.device, self.dtype, self.batch = name, opponent, device, dtype, batch
        config, picture = opponent.config, opponent.picture
        self.rows = batch
        if task == "image" and picture is not None:
            self.rows = batch * picture.rows
            config = replace(config, vocab_size=picture.vocab_size or 1024, tied=False)
        self.config = config
        self.net = random_module(lambda: Transformer(config), device, torch.float32 if task == "train" else dtype)
        self.attention = "torch"

    def what(self, task: str) -> str:
        """See System."""
        if task == "image" and self.opponent.picture is not None:
            return f"{self.opponent.what}; {self.opponent.picture.what}; random weights"
        if task == "train":
            return "forward, backward, clipping and AdamW on all weights, causal rows; random weights"
        return f"{self.opponent.what}; random weights"

    def kernels(self) -> dict[str, str]:
        """See System."""
        graphed = self.opponent.cache == "fixed" and self.device.type == "cuda"
        return {"attention": self.attention, "step": "CUDA graph" if graphed else "eager"}

    def step_bytes(self, task: str, position: int) -> tuple[int, int]:
        """See System. Without a cache too: what a perfect step with one would move."""
        size = self.dtype.itemsize
        return size * self.config.step_weights, size * self.rows * self.config.kv_values * position

    def work(self, position: int) -> float:
        """See System: operations of a pass without a cache, bytes of a step with one."""
        if self.opponent.cache == "none":
            return self.flops(position + 1)
        return float(sum(self.step_bytes("text", position)))

    def flops(self, length: int) -> float:
        """See System."""
        c = self.config
        return self.rows * (2.0 * length * c.layer_weights + 2.0 * c.n_layer * c.d_model * length**2)

    def memory_bytes(self, read: int, length: int) -> int:
        """See System: what a layer is widened to and, with a cache, that."""
        c = self.config
        cached = c.kv_values * length if self.opponent.cache != "none" else 0
        return self.dtype.itemsize * self.rows * (cached + c.d_ff * read)

    # reading

    @torch.inference_mode()
    def first_token(self, prefix: int) -> None:
        """See System."""
        if self.opponent.cache == "none":
            self._pass(self._ids(prefix), self._mask(prefix))
            return
        cache = GrowingCache(self.config) if self.opponent.cache == "growing" else self._room(prefix)
        hidden = self.net(self._ids(prefix), torch.arange(prefix, device=self.device), cache)
        self.net.logits(hidden[:, -1:]).argmax(-1)

    def _ids(self, length: int) -> Tensor:
        return random_ids(self.rows, length, self.config.vocab_size, self.device)

    def _room(self, length: int) -> FixedCache:
        return FixedCache(self.config, self.rows, length, self.device, self.dtype)

    def _mask(self, length: int) -> Tensor | None:
        """Show-o's additive mask (l l) of text; None for those that are plainly causal."""
        if not self.opponent.as_released:
            return None
        lowest = torch.finfo(self.dtype).min
        return torch.full((length, length), lowest, device=self.device, dtype=self.dtype).triu(1)

    def _pass(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The token (rows 1) after ids (rows l), by a whole pass."""
        hidden = self.net(ids, torch.arange(ids.shape[1], device=self.device), mask=mask)
        scores: Tensor = self.net.logits(hidden if self.opponent.as_released else hidden[:, -1:])
        return scores[:, -1:].argmax(-1)

    # steps at one position, over and over

    @torch.inference_mode()
    def steps(self, position: int) -> Iterator[object]:
        """See System."""
        if self.opponent.cache == "none":
            ids, mask = self._ids(position + 1), self._mask(position)
            while True:
                yield self._pass(ids, None if mask is None else grown(mask))
        token, place = self._ids(1), torch.tensor([position], device=self.device)
        if self.opponent.cache == "growing":
            yield from self._growing_steps(token, place)  # without end
        room = self._room(position + 1)
        fill_random(room.kv, 1.0)
        step, _ = self._graphed(lambda: self._step(token, place, room, None), keys=position + 1, masked=False)
        while True:
            yield step()

    def _step(self, token: Tensor, place: Tensor, cache: FixedCache | GrowingCache, mask: Tensor | None) -> None:
        """Replace token (rows 1), which stands at place (1), by the next one."""
        token.copy_(self.net.logits(self.net(token, place, cache, mask)).argmax(-1))

    def _growing_steps(self, token: Tensor, place: Tensor) -> Iterator[object]:
        cache, c = GrowingCache(self.config), self.config
        kept: list[tuple[Tensor, Tensor] | None] = []
        for _ in range(c.n_layer if int(place) else 0):
            shape = (2, self.rows, c.n_kv_head, int(place), c.head_dim)
            kv = torch.empty(shape, device=self.device, dtype=self.dtype)
            fill_random(kv, 1.0)
            kept.append((kv[0], kv[1]))
        while True:
            cache.layers = list(kept) or [None] * c.n_layer
            self._step(token, place, cache, None)
            yield token

    def _graphed(self, work: Callable[[], None], keys: int, masked: bool) -> tuple[Callable[[], None], str]:
        """The work under the fastest attention for so many keys; on CUDA as one graph."""
        if self.device.type != "cuda":
            return work, "torch"
        choose, self.attention = self._fastest_attention(keys, masked)
        with choose:
            graph = captured(work)
        return graph.replay, self.attention

    def _fastest_attention(self, keys: int, masked: bool) -> tuple[AbstractContextManager[None], str]:
        """PyTorch's fastest attention for one query and so many keys, found by timing all of them."""
        c = self.config
        q = torch.ones(self.rows, c.n_head, 1, c.head_dim, device=self.device, dtype=self.dtype)
        k = torch.ones(self.rows, c.n_kv_head, keys, c.head_dim, device=self.device, dtype=self.dtype)
        mask = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=self.device) if masked else None
        grouped = c.n_head != c.n_kv_head
        best: tuple[float, SDPBackend] | None = None
        for backend in BACKENDS:
            try:
                with sdpa_kernel(backend):
                    graph = captured(
                        lambda: [
                            F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=grouped)
                            for _ in range(10)
                        ]
                    )
            except RuntimeError:  # it does not take this shape
                continue
            seconds = min(seconds_of(graph.replay, self.device) for _ in range(3))
            if best is None or seconds < best[0]:
                best = seconds, backend
        if best is None:
            return nullcontext(), "torch"
        return sdpa_kernel(best[1]), best[1].name.lower().removesuffix("_attention")

    # every token

    @torch.inference_mode()
    def generate(self, prefix: int, count: int) -> Iterator[object]:
        """See System."""
        if self.opponent.cache == "none":
            yield from self._generate_uncached(prefix, count)
        elif self.opponent.cache == "growing":
            yield from self._generate_growing(prefix, count)
        else:
            yield from self._generate_fixed(prefix, count)

    def _generate_uncached(self, prefix: int, count: int) -> Iterator[object]:
        ids, mask = self._ids(prefix), self._mask(prefix)
        for _ in range(count):
            ids = torch.cat([ids, self._pass(ids, mask)], dim=1)
            mask = None if mask is None else grown(mask)
            yield ids

    def _generate_growing(self, prefix: int, count: int) -> Iterator[object]:
        cache = GrowingCache(self.config)
        hidden = self.net(self._ids(prefix), torch.arange(prefix, device=self.device), cache)
        token = self.net.logits(hidden[:, -1:]).argmax(-1)
        yield token
        for i in range(prefix, prefix + count - 1):
            self._step(token, torch.tensor([i], device=self.device), cache, None)
            yield token

    def _generate_fixed(self, prefix: int, count: int) -> Iterator[object]:
        cache = self._room(-(-(prefix + count) // BUCKET) * BUCKET)
        cache.visible = prefix
        hidden = self.net(self._ids(prefix), torch.arange(prefix, device=self.device), cache)
        token = self.net.logits(hidden[:, -1:]).argmax(-1)
        yield token
        place = torch.tensor([prefix], device=self.device)
        on_gpu = self.device.type == "cuda"
        step: Callable[[], None] | None = None
        for i in range(prefix, prefix + count - 1):
            if not on_gpu:
                cache.visible = i + 1
                self._step(token, place, cache, None)
                place += 1
            elif step is None or i >= cache.visible:
                cache.visible = (i // BUCKET + 1) * BUCKET
                step = self._bucket_step(token, place, cache, i)
            if step is not None:
                step()
            yield token

    def _bucket_step(self, token: Tensor, place: Tensor, cache: FixedCache, position: int) -> Callable[[], None]:
        """A step, one graph for all positions within the visible part of the cache."""
        every = torch.arange(cache.visible, device=self.device)

        def work() -> None:
            self._step(token, place, cache, (every <= place)[None, None, None])
            place.add_(1)

        kept = token.clone()
        step, _ = self._graphed(work, keys=cache.visible, masked=True)
        # recording has run the work, which moved both
        token.copy_(kept)
        place.fill_(position)
        return step

    # pictures and training

    def rounds(self) -> Iterator[object]:
        """Rounds of one batch of pictures, over and over."""
        picture = self.opponent.picture
        assert picture is not None
        length = picture.prompt + picture.tokens
        ids, places = self._ids(length), torch.arange(length, device=self.device)
        mask = self._mask(length)

        def work() -> None:
            with torch.inference_mode():
                hidden = self.net(ids, places, mask=mask)
                if picture.vocab_size:
                    self.net.logits(hidden if self.opponent.as_released else hidden[:, -picture.tokens :]).argmax(-1)

        graphed = self.opponent.cache == "fixed" and self.device.type == "cuda"
        run = captured(work).replay if graphed else work
        return (run() for _ in itertools.count())

    def train_loss(self, length: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        """See System."""
        ids = self._ids(length + 1)
        places = torch.arange(length, device=self.device)

        def loss() -> Tensor:
            logits = self.net.logits(self.net(ids[:, :-1], places)).float()
            return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

        return self.net.train(), loss


def grown(mask: Tensor) -> Tensor:
    """Show-o's mask (l l) for one token more, made anew as its decoder does: (l+1 l+1)."""
    lowest = torch.full((len(mask), 1), torch.finfo(mask.dtype).min, device=mask.device, dtype=mask.dtype)
    last = torch.cat([mask[-1], mask.new_zeros(1)])
    return torch.cat([torch.cat([mask, lowest], dim=1), last[None]])


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The work as a CUDA graph, after running it twice on another stream."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it so
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
