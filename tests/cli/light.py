"""The command line as a process of its own with a model that takes no time: `python -m tests.cli.light caption ...`.

It says the colour of a picture and draws its seed as one, so that nothing can be mixed up unnoticed. Everything but the
model is the real thing.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from omnimamba_cli import __main__
from omnimamba_cli.cli import models
from omnimamba_cli.config import SamplingConfig
from tests.cli.conftest import FakeSession

PICTURE_S = 0.01  # for one picture, so that a run can be interrupted


class LightSession(FakeSession):
    def captions(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str | None],
        *,
        sampling: SamplingConfig,
        seed: Sequence[int],
        template: str | None = None,
    ) -> list[SimpleNamespace]:
        time.sleep(PICTURE_S * len(images))
        texts = [" ".join(map(str, image.getpixel((0, 0)))) for image in images]
        return [SimpleNamespace(text=text, finish_reason="stop", tokens=3, seconds=PICTURE_S) for text in texts]

    def look(self, image: Image.Image) -> "LightSeen":
        return LightSeen(self, image)

    def recall(self, path: Path) -> "LightSeen":
        return LightSeen(self, Image.open(path))

    def stream_caption(self, image: Image.Image, question: str | None, **options: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(text=" ".join(map(str, image.getpixel((0, 0)))), finish_reason="stop")

    def stream_generate(
        self,
        prompts: Sequence[str],
        *,
        seed: Sequence[int],
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        watch: object = None,
    ) -> Iterator[SimpleNamespace]:
        for event in super().stream_generate(prompts, seed=seed, sampling=sampling, batch_size=batch_size):
            time.sleep(PICTURE_S)
            yield event


@dataclass
class LightSeen:
    session: LightSession
    image: Image.Image

    def answers(self, questions: Sequence[str | None], **options: object) -> list[SimpleNamespace]:
        return self.session.captions([self.image] * len(questions), questions, **options)

    def stream(self, question: str | None, **options: object) -> Iterator[SimpleNamespace]:
        return self.session.stream_caption(self.image, question, **options)

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        self.image.save(path, "png")


def main() -> int:
    models.open_session = lambda *_, **__: LightSession()  # type: ignore[assignment,return-value]
    return __main__.run()


if __name__ == "__main__":
    sys.exit(main())
