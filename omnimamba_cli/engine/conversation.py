"""One picture, many questions: the picture is read once, and the model's state after it is kept.

    seen = session.look("fox.png")
    seen.ask("what is here?")
    seen.ask("how many?")  # costs no image work

The state has the same size for every picture: a Mamba's state does not grow.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.data import sequences
from omnimamba_cli.data.reading import Source
from omnimamba_cli.engine import answering, decode, seen_file
from omnimamba_cli.engine.events import CaptionResult, TextEvent
from omnimamba_cli.engine.sampling import new_seed, seeds_of
from omnimamba_cli.model.state import InferenceState

if TYPE_CHECKING:
    from omnimamba_cli.engine.session import Session

BATCH = 8  # questions at once: each takes a copy of the state, 102 MB at 1.3B


@dataclass(frozen=True)
class Seen:
    """A model's state after a picture, and perhaps after questions about it. Asking does not change it.

    Made by `Session.look` and `Session.recall`. Every answer is that of `Session.caption` with the same arguments.
    """

    session: "Session"
    state: InferenceState  # of one row, never written to
    turns: int = 0  # questions (with answers) that were read after the picture

    @classmethod
    @torch.inference_mode()
    def at(cls, session: "Session", image: Source) -> Self:
        """See Session.look."""
        x = session.embed_images([image])
        model = session.for_task("mmu")
        state = model.new_state(1)
        model(x, "mmu", state)
        return cls(session, state)

    @classmethod
    def load(cls, session: "Session", path: Path) -> Self:
        """See Session.recall."""
        state, turns = seen_file.read(path, session.directory, session.config)
        return cls(session, state.to(session.device, session.dtype), turns)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the state to a safetensors file, for Session.recall with the same model. The picture is not in it.

        Raises InputError for a file that exists, unless `overwrite`, or that cannot be written.
        """
        directory, config = self.session.directory, self.session.config
        seen_file.write(Path(path), self.state, self.turns, directory, config, overwrite=overwrite)

    @property
    def text_tokens(self) -> int:
        """Tokens of questions and answers that were read after the picture."""
        return self.state.position - sequences.mmu_length(self.session.config, 0)

    def ask(
        self,
        question: str | None = None,
        *,
        sampling: SamplingConfig | None = None,
        seed: int | None = None,
        template: str | None = None,
    ) -> str:
        """The answer to a question; without one, to the model's own. See Session.caption."""
        return self.answers([question], sampling=sampling, seed=seed, template=template)[0].text

    def answers(
        self,
        questions: Sequence[str | None],
        *,
        sampling: SamplingConfig | None = None,
        seed: int | Sequence[int] | None = None,
        template: str | None = None,
        batch_size: int = BATCH,
    ) -> list[CaptionResult]:
        """Answers to many questions; number i uses seed + i (or its own) and gets what it would get alone."""
        asked = [self._ids(question, template) for question in questions]
        seeds = seeds_of(seed, len(questions))

        def decode_rows(rows: list[int]) -> answering.Steps:
            return self._decode([asked[i] for i in rows], sampling, [seeds[i] for i in rows])

        config, tokenizer = self.session.config, self.session.tokenizer
        return answering.gather(config, tokenizer, asked, decode_rows, batch_size=batch_size)

    def stream(
        self,
        question: str | None = None,
        *,
        sampling: SamplingConfig | None = None,
        seed: int | None = None,
        template: str | None = None,
    ) -> Generator[TextEvent, None, None]:
        """The answer in pieces as they are written, each ending on a whole character."""
        base = new_seed() if seed is None else seed
        steps = self._decode([self._ids(question, template)], sampling, [base])
        yield from answering.pieces(self.session.config, self.session.tokenizer, steps)

    @torch.inference_mode()
    def after(self, question: str | None, answer: str, *, template: str | None = None) -> "Seen":
        """The state after one more question and its answer, put as in a training conversation.

        The next question then follows them. Raises InputError where they do not fit the model's positions.
        """
        session = self.session
        said = [*session.tokenizer.encode(f" {answer}"), session.config.text.eos_id]
        model, state = session.for_task("mmu"), self.state.clone()
        ids = torch.tensor([self._ids(question, template) + said], device=session.device)
        model(model.embed_text(ids), "mmu", state)
        return Seen(session, state, self.turns + 1)

    def _ids(self, question: str | None, template: str | None) -> list[int]:
        s = self.session
        lead = "\n" if self.turns else ""
        form = lead + (template or s.config.prompt)
        return answering.question_ids(s.config, s.tokenizer, question, form, used=self.state.position)

    @torch.inference_mode()
    def _decode(self, asked: list[list[int]], sampling: SamplingConfig | None, seeds: list[int]) -> answering.Steps:
        """Steps of (row, token) for questions of one length."""
        session = self.session
        config = sampling or session.config.caption_sampling
        steps = answering.most_steps(session.config, config, used=self.state.position + len(asked[0]))
        model = session.for_task("mmu")
        x = model.embed_text(torch.tensor(asked, device=session.device))
        state = self.state.select(torch.zeros(len(asked), dtype=torch.long))
        return decode.decode_text(model, x, config, steps=steps, seeds=seeds, state=state)
