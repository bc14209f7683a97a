"""Items of the mmu task: a picture (or none) and the conversation about it as ids and targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from omnimamba_cli.config import BAD_SHARE, ModelConfig
from omnimamba_cli.data.images import tower_pixels
from omnimamba_cli.data.rejects import Bad
from omnimamba_cli.data.samples import ANSWER, Raw, Samples, chosen
from omnimamba_cli.data.sequences import Turn, conversation
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.errors import DataError


@dataclass
class Talk:
    """uint8 pixels (3 s s) or None; text ids; which of them are targets."""

    pixels: Tensor | None
    ids: list[int]
    targets: list[bool]
    instead_of: tuple[Bad, ...] = ()


class TalkMaker:
    """Makes Talks of conversations and captions; a caption becomes the answer to the model's own question."""

    def __init__(self, config: ModelConfig, tokenizer: TextTokenizer, *, questions: bool, seed: int = 0) -> None:
        self.config, self.tokenizer, self.questions, self.seed = config, tokenizer, questions, seed

    def turns(self, raw: Raw, position: int) -> list[Turn]:
        """The questions and answers that are trained on at this position."""
        if raw.turns is None:
            caption = chosen(self.seed, position, ANSWER, raw.captions or [""])
            return [(self.config.default_question, caption)]
        # without questions, as in the paper's stage 1, the first answer alone
        return raw.turns if self.questions else raw.turns[:1]

    def words(self, raw: Raw, position: int) -> tuple[list[int], list[bool]]:
        """Ids and targets. Raises DataError where no target is left."""
        ids, targets = conversation(self.config, self.tokenizer, self.turns(raw, position), questions=self.questions)
        if not any(targets):
            raise DataError(
                f"no answer within {self.config.max_text_tokens} tokens: its first question alone has as many"
            )
        return ids, targets

    def check(self, raw: Raw) -> None:
        """Raises DataError where a sample's words alone rule it out."""
        self.words(raw, 0)

    def __call__(self, raw: Raw, position: int) -> Talk:
        ids, targets = self.words(raw, position)
        pixels = None if raw.picture is None else tower_pixels(raw.open(), self.config.vision_image_size)
        return Talk(pixels, ids, targets)


class Conversations(Samples):
    """The mmu task's samples of files and folders."""

    maker: TalkMaker

    def __init__(
        self,
        paths: Sequence[Path],
        image_root: Path | None,
        config: ModelConfig,
        tokenizer: TextTokenizer,
        *,
        questions: bool,
        seed: int = 0,
        limit: float = BAD_SHARE,
    ) -> None:
        maker = TalkMaker(config, tokenizer, questions=questions, seed=seed)
        super().__init__(paths, image_root, maker, seed=seed, limit=limit)
