"""Decoding on CUDA: a whole step, from one embedded token to the next, is recorded once and replayed.

No step waits for a token to reach the CPU: tokens are looked at a few steps later, while the next steps run. On other
devices the same code runs unrecorded, for tests; engine/decode.py has the plain loops.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from omnimamba_cli.config import SamplingConfig, Task
from omnimamba_cli.engine.prefix_reader import PrefixReader
from omnimamba_cli.engine.recording import Recording
from omnimamba_cli.engine.sampling import check_finite, choose, guided, penalize_repetition, uniforms
from omnimamba_cli.model.lora import is_merged
from omnimamba_cli.model.omnimamba import OmniMamba, check_positions
from omnimamba_cli.model.state import InferenceState
from omnimamba_cli.model.stepping import StepMemory, Stepper, embedding_tables
from omnimamba_cli.ops import registry
from omnimamba_cli.ops.chips import at
from omnimamba_cli.ops.draw import DrawBuffers, DrawRule, uniform_now
from omnimamba_cli.ops.step import StepKernels

Watch = Callable[[Tensor], None]  # called with the codes (b done) of pictures while they are drawn
# tokens on their way to the CPU, whether their scores were finite, and the event of their arrival
Fetched = tuple[Tensor, "Tensor | None", "torch.cuda.Event | None"]

WATCHED = 16  # steps between two calls of a Watch
CHUNK = 4  # steps between two looks at the tokens: an end is noticed up to twice as many steps late
RING = 1024  # steps of which random numbers and tokens are kept
RULES = 4  # recorded steps that are kept, for different rules and one number of rows


def state_dtype(task: Task, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the state-space state while decoding.

    Text may run for 100,000 steps, over which half precision drifts; a picture ends after a few hundred, and float16
    (3 bits more than bfloat16) halves what is most of the memory traffic of a large batch.
    """
    return torch.float16 if task == "t2i" and dtype != torch.float32 else torch.float32


@dataclass
class Program:
    """A step for a number of sequences under one rule, recorded twice: it takes turns, see ops.reference.Last."""

    rule: DrawRule
    memory: StepMemory
    buffers: DrawBuffers
    turns: tuple[Recording, Recording]  # without and with a token pending

    def step(self) -> None:
        """From the present token to the next one."""
        pending = self.memory.pending
        self.turns[pending]()
        self.memory.pending = not pending


class Decoder:
    """A merged model's step for one task, with memory of its own. Keeps no reference to the model itself."""

    def __init__(self, model: OmniMamba, task: Task, kernels: StepKernels) -> None:
        self.task = task
        self.config = model.config
        self.device, self.dtype = model.device, model.dtype
        self.kernels = kernels
        self.stepper = Stepper(model, task, kernels)
        self.table, self.places = embedding_tables(model, task)
        self._programs: dict[tuple[int, int, DrawRule], Program] = {}
        self._prefixes = PrefixReader(self.stepper, self.dtype)

    def rule(self, config: SamplingConfig) -> DrawRule:
        """What of a sampling configuration matters for this task."""
        c, text = config, self.task == "mmu"
        return DrawRule(
            temperature=c.temperature,
            top_k=c.top_k,
            top_p=c.top_p,
            min_p=c.min_p,
            penalty=c.repetition_penalty if text else 1.0,
            guidance=1.0 if text else c.guidance,
            limit=self.config.text.base_vocab_size if text else self.config.vq.codebook_size,
        )

    def program(self, sequences: int, rule: DrawRule, ring: int) -> Program:
        """The recorded step for so many sequences. Programs for another number of rows make room."""
        key, rows = (sequences, ring, rule), 2 * sequences if rule.guided else sequences
        found = self._programs.get(key)
        if found is not None and not found.memory.busy:
            return found
        if any(p.memory.busy for p in self._programs.values()):
            # a decoding is still under way in that memory: this one gets memory of its own, which is not kept
            return self._record(sequences, rule, ring, self._memory(rows))
        for old in [k for k, p in self._programs.items() if len(p.memory.position) != rows]:
            del self._programs[old]
            self._prefixes.forget()
        memory = next((p.memory for p in self._programs.values()), None) or self._memory(rows)
        self._programs[key] = self._record(sequences, rule, ring, memory)
        while len(self._programs) > RULES:
            del self._programs[next(iter(self._programs))]
        return self._programs[key]

    def _memory(self, rows: int) -> StepMemory:
        return self.stepper.memory(rows, len(self.table), state_dtype(self.task, self.dtype))

    def _record(self, sequences: int, rule: DrawRule, ring: int, memory: StepMemory) -> Program:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=self.device)

        buffers = DrawBuffers(
            logits=memory.logits,
            seen=zeros(sequences, len(self.table), dtype=torch.int8) if rule.penalty != 1 else None,
            uniform=zeros(ring, sequences, dtype=torch.float64),
            tokens=zeros(ring, sequences),
            count=zeros(sequences),
            position=memory.position,
            residual=memory.residual,
        )

        def step(pending: bool) -> None:
            memory.pending = pending
            self.stepper.step(memory)
            self._draw(buffers, rule)

        turns = Recording(lambda: step(False), self.device), Recording(lambda: step(True), self.device)
        return Program(rule, memory, buffers, turns)

    def _draw(self, buffers: DrawBuffers, rule: DrawRule) -> None:
        chosen = None if self.kernels.draws(rule) else _choice(buffers, rule)
        with at(self.device):
            self.kernels.draw(buffers, self.table, self.places, rule, chosen)

    def _begin(self, program: Program) -> None:
        """Draw the first token after a prefix."""
        b = program.buffers
        b.count.zero_()
        if b.seen is not None:
            b.seen.zero_()
        self._draw(b, program.rule)

    def read(self, model: OmniMamba, x: Tensor, memory: StepMemory) -> None:
        """Read embedded prefixes x (rows l d): the state after them and the scores of the next token go into memory.

        If x has fewer rows than memory, each is read once and copied to equally many neighbouring rows.
        """
        copies = len(memory.position) // len(x)
        if copies > 1:
            once = self._memory(len(x))
            self._read(model, x, once, record=False)
            memory.spread(once, torch.arange(len(x), device=self.device).repeat_interleave(copies))
            return
        self._read(model, x, memory, record=True)

    def _read(self, model: OmniMamba, x: Tensor, memory: StepMemory, *, record: bool) -> None:
        if self.kernels.reading is None:
            self._go_on(model, x, memory, memory.new_state())
        else:
            self._prefixes.read(x + self.places[: x.shape[1]].float(), memory, record=record)

    def _go_on(self, model: OmniMamba, x: Tensor, memory: StepMemory, state: InferenceState) -> None:
        """Read embedded x (rows l d) after a state by the model's own forward: the kernels start from no state."""
        memory.logits.copy_(model.logits(model(x, self.task, state)[:, -1], self.task))
        memory.take(state)

    def text(
        self,
        model: OmniMamba,
        prefix: Tensor,
        config: SamplingConfig,
        *,
        steps: int,
        seeds: list[int],
        state: InferenceState | None = None,
    ) -> Iterator[list[tuple[int, int]]]:
        """See decode.decode_text."""
        self._check_room(prefix.shape[1] + (state.position if state else 0), steps)
        program = self.program(len(prefix), self.rule(config), RING)
        program.memory.busy = True
        try:
            if state is None:
                self.read(model, prefix, program.memory)
            else:
                self._go_on(model, prefix, program.memory, state)
            draws = uniforms(seeds, steps).t().contiguous().to(self.device) if config.temperature > 0 else None
            self._feed(program, draws, 0)
            self._check(program)
            self._begin(program)
            alive = set(range(len(prefix)))
            for chunk in self._written(program, draws, steps):
                for tokens in chunk:
                    yield [(row, tokens[row]) for row in sorted(alive)]
                    alive -= {row for row in alive if tokens[row] == self.config.text.eos_id}
                    if not alive:
                        return
        finally:
            program.memory.busy = False

    def _written(self, program: Program, draws: Tensor | None, steps: int) -> Iterator[list[list[int]]]:
        """Tokens of all rows, for some steps at a time (steps rows), while later steps run."""
        flying = deque([self._fetch(program, program.buffers.tokens[:1])])
        launched = 1
        while flying:
            if launched < steps and len(flying) < 2:
                slot = launched % RING
                count = min(CHUNK, steps - launched, RING - slot)
                for i in range(launched, launched + count):
                    self._feed(program, draws, i)
                    program.step()
                flying.append(self._fetch(program, program.buffers.tokens[slot : slot + count]))
                launched += count
            if len(flying) > 1 or launched == steps:
                yield _landed(flying.popleft()).tolist()

    def _feed(self, program: Program, draws: Tensor | None, step: int) -> None:
        """Every half ring, copy the random numbers of the steps from `step` on to where the recording reads them."""
        half = RING // 2
        if draws is not None and step % half == 0:
            part = draws[step : step + half]
            program.buffers.uniform[step % RING :][: len(part)] = part

    def image(
        self,
        model: OmniMamba,
        prefix_ids: Tensor,
        config: SamplingConfig,
        *,
        seeds: list[int],
        watch: Watch | None = None,
    ) -> Tensor:
        """See decode.decode_image; `read` finds out how many pictures each prefix stands for."""
        codes, rule = self.config.vq.codes, self.rule(config)
        self._check_room(prefix_ids.shape[1], codes)
        program = self.program(len(seeds), rule, codes)
        program.memory.busy = True
        try:
            self.read(model, model.embed_caption(prefix_ids), program.memory)
            program.buffers.uniform.copy_(uniforms(seeds, codes).t())
            self._check(program)
            self._begin(program)
            tokens, flying = program.buffers.tokens, deque[Fetched]()
            for step in range(1, codes):
                program.step()
                if watch is not None and (step + 1 == codes or (step + 1) % WATCHED == 0):
                    flying.append(self._fetch(program, tokens[: step + 1]))
                    if len(flying) > 1:  # later steps are under way: looking costs no pause
                        watch(_landed(flying.popleft()).t())
            for fetched in flying:
                assert watch is not None
                watch(_landed(fetched).t())
            self._check(program)  # an overflow stays in the state: the last scores tell
            return tokens.t().clone()
        finally:
            program.memory.busy = False

    def _check(self, program: Program) -> None:
        """Raises DeviceError where float16 has overflowed on the way to the scores."""
        if self.dtype == torch.float16:
            check_finite(program.buffers.logits.isfinite().all())

    def _fetch(self, program: Program, tokens: Tensor) -> Fetched:
        finite = program.buffers.logits.isfinite().all() if self.dtype == torch.float16 else None
        here = _copy(tokens), None if finite is None else _copy(finite)
        if not tokens.is_cuda:
            return *here, None
        with at(self.device):
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            ready.record()
        return *here, ready

    def _check_room(self, length: int, steps: int) -> None:
        """Raises InputError where `steps` tokens after a prefix of `length` do not fit the table of positions."""
        check_positions(length + steps - 1, len(self.places), self.task)  # the last token is written, never read


def _choice(t: DrawBuffers, rule: DrawRule) -> Tensor:
    """The tokens (b) of this step, chosen from the scores as engine/sampling.py does."""
    scores = (guided(t.logits, rule.guidance) if rule.guided else t.logits)[:, : rule.limit]
    if t.seen is not None:
        scores = penalize_repetition(scores, t.seen[:, : rule.limit] != 0, rule.penalty)
    config = SamplingConfig(temperature=rule.temperature, top_k=rule.top_k, top_p=rule.top_p, min_p=rule.min_p)
    return choose(scores, config, uniform_now(t) if rule.temperature > 0 else None)


def _copy(tensor: Tensor) -> Tensor:
    """Start copying a tensor to the CPU."""
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _landed(fetched: Fetched) -> Tensor:
    """The tokens, after waiting for their arrival. Raises DeviceError where float16 overflowed on the way to them."""
    tokens, finite, ready = fetched
    if ready is not None:
        ready.synchronize()
    if finite is not None:
        check_finite(finite)
    return tokens


_decoders: WeakKeyDictionary[OmniMamba, dict[Task, Decoder]] = WeakKeyDictionary()


def decoder_for(model: OmniMamba, task: Task) -> Decoder | None:
    """The decoder of a model merged for a task; None where the plain loops run: no CUDA, no kernels, or not merged.

    A merged model no longer changes, so its decoder is made once and lives as long as the model.
    """
    if model.device.type != "cuda" or not is_merged(model, task):
        return None
    c = model.config.backbone
    kernels = registry.step_kernels(model.norm_f.weight, c.headdim, c.d_state)
    if kernels.name == "torch":
        return None
    made = _decoders.setdefault(model, {})
    if task not in made or made[task].kernels != kernels:
        made[task] = Decoder(model, task, kernels)
    return made[task]
