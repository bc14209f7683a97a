"""Session: a loaded model and what it can do. The Python API, and what the commands call. Prints nothing."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from omnimamba_cli.config import ModelConfig, SamplingConfig, Task
from omnimamba_cli.data import sequences
from omnimamba_cli.data.images import pixels_to_image, tower_pixels
from omnimamba_cli.data.reading import Source, load_image
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine import answering, decode, hub, runtime
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.engine.conversation import Seen
from omnimamba_cli.engine.decoder import Watch
from omnimamba_cli.engine.events import CaptionResult, DrawingEvent, ImageEvent, TextEvent
from omnimamba_cli.engine.pixels import PixelDecoder
from omnimamba_cli.engine.sampling import candidate_seed, new_seed, seeds_of
from omnimamba_cli.engine.task_models import load_for_task
from omnimamba_cli.errors import CheckpointError, InputError
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.quantized import Quantization
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.ops.halves import processor_multiplies


class Session:
    """A model directory on a device. Its parts are read when a task first needs them."""

    def __init__(
        self, directory: Path, device: str = "auto", dtype: str = "auto", quantize: Quantization | None = None
    ) -> None:
        self.directory = directory
        self.device, self.device_reason = runtime.pick_device(device)
        files = load_directory(directory, parts=())
        self.config: ModelConfig = files.config
        self.tokenizer: TextTokenizer = files.tokenizer
        self.dtype, self.dtype_reason = runtime.pick_dtype(dtype, self.device, self.config)
        self.quantization = quantize
        if quantize is not None:
            runtime.check_quantization(quantize, self.device)
        self._merged: dict[Task, OmniMamba] = {}

    @cached_property
    def towers(self) -> VisionTowers:
        """The image encoders. Raises CheckpointError when the directory has none."""
        # in float32 on a processor without 16-bit arithmetic: seven times faster, and float32 files stay mapped
        slow = self.device.type == "cpu" and not processor_multiplies(self.dtype)
        dtype = torch.float32 if slow else self.dtype
        towers = load_directory(self.directory, device=self.device, dtype=dtype, parts=("vision",)).towers
        assert towers is not None
        return towers

    @cached_property
    def pixels(self) -> PixelDecoder:
        """Codes to pixels, in float32: they are what people look at."""
        vq = load_directory(self.directory, device=self.device, dtype=torch.float32, parts=("vq",)).vq
        assert vq is not None
        return PixelDecoder(vq.eval())

    def for_task(self, task: Task) -> OmniMamba:
        """The model with one task's LoRA folded in. Both tasks' models share the tensors that they have in common."""
        if task not in self._merged:
            self._merged[task] = load_for_task(
                self.directory,
                task,
                device=self.device,
                dtype=self.dtype,
                quantization=self.quantization,
                other=next(iter(self._merged.values()), None),
            )
        return self._merged[task]

    def _looking(self) -> tuple[OmniMamba, VisionTowers]:
        """The model and the towers; the first time both files are read at once, in two threads."""
        if "mmu" not in self._merged and "towers" not in vars(self):
            with ThreadPoolExecutor(1) as pool:
                towers = pool.submit(getattr, self, "towers")
                self.for_task("mmu")
                towers.result()
        return self.for_task("mmu"), self.towers

    # understanding

    def caption(
        self,
        image: Source,
        question: str | None = None,
        *,
        sampling: SamplingConfig | None = None,
        seed: int | None = None,
        template: str | None = None,
    ) -> str:
        """The answer to a question about a picture (a path, the bytes of a file, or a PIL image).

        Greedy unless sampling says otherwise. Raises InputError for a bad picture or a question that is too long.
        """
        return self.captions([image], [question], sampling=sampling, seed=seed, template=template)[0].text

    def captions(
        self,
        images: Sequence[Source],
        questions: Sequence[str | None] | None = None,
        *,
        sampling: SamplingConfig | None = None,
        seed: int | Sequence[int] | None = None,
        template: str | None = None,
    ) -> list[CaptionResult]:
        """Answers about many pictures. Row i uses seed + i, or seeds[i] of a sequence; the batch does not change it."""
        asked = [self._question(q, template) for q in questions or [None] * len(images)]
        if len(asked) != len(images):
            raise ValueError(f"{len(images)} pictures, but {len(asked)} questions: give one each")
        seeds = seeds_of(seed, len(images))

        def decode_rows(rows: list[int]) -> answering.Steps:
            return self._decode([images[i] for i in rows], [asked[i] for i in rows], sampling, [seeds[i] for i in rows])

        return answering.gather(self.config, self.tokenizer, asked, decode_rows)

    def stream_caption(
        self,
        image: Source,
        question: str | None = None,
        *,
        sampling: SamplingConfig | None = None,
        seed: int | None = None,
        template: str | None = None,
        last: bool = False,
    ) -> Iterator[TextEvent]:
        """The answer in pieces as they are written, each ending on a whole character.

        last: no other picture follows, so the image encoders' memory is given up before the answer is written.
        """
        base = new_seed() if seed is None else seed
        steps = self._decode([image], [self._question(question, template)], sampling, [base])
        if last:
            vars(self).pop("towers", None)
        yield from answering.pieces(self.config, self.tokenizer, steps)

    def look(self, image: Source) -> Seen:
        """Look at a picture once, to ask many questions about it: `session.look("fox.png").ask("how many?")`.

        Raises InputError for a bad picture, CheckpointError for a model that only draws.
        """
        return Seen.at(self, image)

    def recall(self, path: str | Path) -> Seen:
        """What `Seen.save` wrote, without its picture. Raises InputError for another model's, or no such file."""
        return Seen.load(self, Path(path))

    def question_length(self, question: str | None, template: str | None = None) -> int:
        """Tokens of a question in its template; pictures with questions of one length share a batch.

        Raises InputError for one that does not fit beside a picture.
        """
        return len(self._question(question, template))

    def _question(self, question: str | None, template: str | None) -> list[int]:
        used = sequences.mmu_length(self.config, 0)
        return answering.question_ids(self.config, self.tokenizer, question, template, used=used)

    def _decode(
        self, images: Sequence[Source], asked: list[list[int]], sampling: SamplingConfig | None, seeds: list[int]
    ) -> answering.Steps:
        """Steps of (row, token) for questions of one length."""
        config = sampling or self.config.caption_sampling
        steps = answering.most_steps(self.config, config, used=sequences.mmu_length(self.config, len(asked[0])))
        prefix = self.embed_question(images, asked)
        return decode.decode_text(self.for_task("mmu"), prefix, config, steps=steps, seeds=seeds)

    @torch.inference_mode()
    def embed_question(self, images: Sequence[Source], asked: list[list[int]]) -> Tensor:
        """Pictures and question ids of one length, embedded (b l d)."""
        ids = torch.tensor(asked, device=self.device)
        return torch.cat([self.embed_images(images), self.for_task("mmu").embed_text(ids)], dim=1)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Source]) -> Tensor:
        """Pictures with the special tokens around them, up to where a question begins, embedded (b l d)."""
        if not self.config.towers:
            raise CheckpointError(f"{self.config.name} has no image encoder, it can only draw")
        size = self.config.vision_image_size
        pixels = torch.stack([tower_pixels(load_image(image), size) for image in images]).to(self.device)
        model, towers = self._looking()
        patches = towers(pixels.to(towers.dtype) / 255)
        before, after = (
            torch.tensor([part(self.config)] * len(images), device=self.device)
            for part in (sequences.mmu_prefix, sequences.mmu_middle)
        )
        return torch.cat([model.embed_text(before), model.embed_patches(patches), model.embed_text(after)], dim=1)

    # drawing

    def prompt_was_cut(self, prompt: str) -> bool:
        """Whether a prompt is longer than what the model reads (caption_tokens ids)."""
        return len(self.tokenizer.encode(prompt)) > self.config.caption_tokens

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
    ) -> list[Image.Image]:
        """n pictures of a prompt, or of each of several; picture i uses seed + i whatever the batch size."""
        drawn = self.stream_generate(prompt, n=n, seed=seed, sampling=sampling, batch_size=batch_size)
        return [event.image for event in drawn]

    def stream_generate(
        self,
        prompts: str | Sequence[str],
        *,
        n: int = 1,
        seed: int | Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        watch: Callable[[DrawingEvent], None] | None = None,
    ) -> Iterator[ImageEvent]:
        """Pictures as they are finished, prompt by prompt, n of each; seed: the first's, or one for each picture.

        `watch` is told now and then how far they are.
        """
        config = sampling or self.config.image_sampling
        if not self.config.caption_dropout and config.guidance != 1:
            if sampling is not None:
                what = f"guidance {config.guidance:g} needs a model trained with dropped captions"
                raise InputError(f"{what}; {self.config.name} was not", hint="--guidance 1")
            config = replace(config, guidance=1.0)
        jobs = [prompt for prompt in ([prompts] if isinstance(prompts, str) else prompts) for _ in range(n)]
        every_seed = seeds_of(seed, len(jobs))
        size = batch_size or max(1, (32 if self.device.type == "cuda" else 8) // config.candidates)
        for start in range(0, len(jobs), size):
            begun = time.perf_counter()
            batch = jobs[start : start + size]
            seeds = every_seed[start : start + size]
            images = self._draw_best(batch, config, seeds, self._watcher(watch, start, len(batch)))
            seconds = time.perf_counter() - begun
            for i, image in enumerate(images):
                yield ImageEvent(start + i, batch[i], seeds[i], image, seconds)

    def _watcher(self, watch: Callable[[DrawingEvent], None] | None, index: int, pictures: int) -> Watch | None:
        """A function of codes (b done) that calls `watch` with an event; None without `watch`."""
        if watch is None:
            return None
        total = self.config.vq.codes

        def told(codes: Tensor) -> None:
            preview = partial(self.pixels.unfinished, codes[0])
            watch(DrawingEvent(index, pictures, codes.shape[1], total, preview))

        return told

    def _draw_best(
        self, prompts: list[str], config: SamplingConfig, seeds: list[int], watch: Watch | None
    ) -> list[Image.Image]:
        """One picture for each prompt: the candidate about which the model finds the prompt the likeliest answer."""
        k = config.candidates
        if k == 1:
            return self._draw(prompts, config, seeds, watch)
        if not self.config.towers:
            raise InputError(
                f"candidates {k} are told apart by looking; {self.config.name} cannot", hint="--candidates 1"
            )
        several = [candidate_seed(seed, j) for seed in seeds for j in range(k)]
        drawn = self._draw(prompts, config, several, watch, copies=k)
        scores = [self.likelihood(drawn[i * k : (i + 1) * k], prompt) for i, prompt in enumerate(prompts)]
        return [drawn[i * k + int(score.argmax())] for i, score in enumerate(scores)]

    @torch.inference_mode()
    def likelihood(self, images: Sequence[Source], text: str, question: str | None = None) -> Tensor:
        """Log-probability (b) of a text as the beginning of the answer about each picture, float32 on the CPU.

        The question is the model's ranking_question unless another is given.
        """
        asked = self._question(question or self.config.ranking_question, None)
        said = text.strip().rstrip(".")
        room = self.config.mmu_positions - sequences.mmu_length(self.config, len(asked))
        ids = self.tokenizer.encode(" " + said[:1].lower() + said[1:])[:room]
        if not ids:
            return torch.zeros(len(images))
        model = self.for_task("mmu")
        prefix = self.embed_question(images, [asked] * len(images))
        answer = torch.tensor([ids] * len(images), device=self.device)
        hidden = model(torch.cat([prefix, model.embed_text(answer[:, :-1])], dim=1), "mmu")[:, -len(ids) :]
        scores = model.logits(hidden, "mmu").float().log_softmax(-1)  # (b l v)
        return scores.gather(2, answer[..., None]).sum((1, 2)).cpu()

    @torch.inference_mode()
    def _draw(
        self, prompts: list[str], config: SamplingConfig, seeds: list[int], watch: Watch | None, *, copies: int = 1
    ) -> list[Image.Image]:
        """A picture a seed: `copies` of each prompt, one after the other."""
        captions = self.tokenizer.encode_batch(prompts)
        if config.guidance != 1:
            captions += [[]] * len(prompts)
        prefix = torch.tensor([sequences.t2i_prefix(self.config, ids) for ids in captions], device=self.device)
        codes = decode.decode_image(self.for_task("t2i"), prefix, config, seeds=seeds, copies=copies, watch=watch)
        # one by one: convolutions round differently in a batch, so pixels would depend on its size
        return [pixels_to_image(self.pixels(row[None])[0]) for row in codes]


def load(
    model: str | Path = "nano", *, device: str = "auto", dtype: str = "auto", quantize: Quantization | None = None
) -> Session:
    """A session on a model: a directory, the name of an installed one ("nano"), or a Hub id "org/name[@revision]".

    device: "auto", "cpu", "cuda[:N]" or "mps"; dtype: "auto", "fp32", "fp16" or "bf16"; quantize: None, "int8" or
    "fp8" (weights of one byte for decoding; on a CPU "int8" alone).
    Raises CheckpointError, DownloadError or DeviceError, each with what to do next.

    >>> import omnimamba_cli as om
    >>> om.load("nano").generate("a red fox", seed=7)[0].save("fox.png")  # doctest: +SKIP
    """
    return Session(hub.resolve(str(model)), device, dtype, quantize)
