"""Ways to run the command line: in this process with streams apart, and as a real process."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from omnimamba_cli.cli import models
from omnimamba_cli.cli.app import main
from omnimamba_cli.cli.options import ModelOptions
from omnimamba_cli.config import ModelConfig, SamplingConfig

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Result:
    """What a run left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("caption", "a.png")` in this process, inside an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        capfd.readouterr()
        code = int(main(arguments))
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """`process("caption", "a.png", input=b"...")` as a user's shell would run it, inside an empty folder."""

    def call(*arguments: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(  # type: ignore[call-overload, no-any-return]  # options are subprocess's own
            command_line(*arguments),
            **{"cwd": tmp_path, "env": environment(), "capture_output": True, "timeout": 120, **options},
        )

    return call


def command_line(*arguments: str) -> list[str]:
    """What starts the program from any folder."""
    return [sys.executable, "-m", "omnimamba_cli", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, with this checkout importable."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **changes}


@dataclass
class FakeSession:
    """Answers and draws at once, and remembers what it was asked."""

    answer: str = "a red fox"
    config: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            name="fake", caption_dropout=0.1, image_sampling=SamplingConfig(temperature=1.0, guidance=3.0)
        )
    )
    asked: list[tuple[str | None, SamplingConfig, int | None]] = field(default_factory=list)
    drawn: list[tuple[list[str], list[int], SamplingConfig | None, int | None]] = field(default_factory=list)
    opened: list[tuple[str | None, str, str]] = field(default_factory=list)
    templates: list[str | None] = field(default_factory=list)
    device: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(type="cpu"))

    def question_length(self, question: str | None, template: str | None = None) -> int:
        return len(question or "")

    def captions(
        self,
        images: Sequence[object],
        questions: Sequence[str | None],
        *,
        sampling: SamplingConfig,
        seed: Sequence[int],
        template: str | None = None,
    ) -> list[SimpleNamespace]:
        self.templates.append(template)
        self.asked += [(question, sampling, own) for question, own in zip(questions, seed, strict=True)]
        one = SimpleNamespace(text=self.answer, finish_reason="stop", tokens=3, seconds=0.5)
        return [one for _ in images]

    def stream_caption(
        self,
        image: object,
        question: str | None,
        *,
        sampling: SamplingConfig,
        seed: int | None,
        template: str | None = None,
        last: bool = False,
    ) -> Iterator[SimpleNamespace]:
        assert last  # no other picture follows where one is streamed
        self.templates.append(template)
        self.asked.append((question, sampling, seed))
        for piece in self.answer.split(" "):
            yield SimpleNamespace(text=piece + " ", finish_reason=None)
        yield SimpleNamespace(text="", finish_reason="stop")

    def prompt_was_cut(self, prompt: str) -> bool:
        return len(prompt) > 400

    def stream_generate(
        self,
        prompts: Sequence[str],
        *,
        seed: Sequence[int],
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        watch: object = None,
    ) -> Iterator[SimpleNamespace]:
        self.drawn.append((list(prompts), list(seed), sampling, batch_size))
        for i, prompt in enumerate(prompts):
            picture = Image.new("RGB", (8, 8), (seed[i] % 256, 0, 0))
            yield SimpleNamespace(index=i, prompt=prompt, seed=seed[i], image=picture, seconds=0.1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    """The session that every command in this test opens."""
    session = FakeSession()

    def open_session(out: object, where: ModelOptions, *, task: str | None = None) -> FakeSession:
        session.opened.append((where.model, where.device, where.dtype))
        return session

    monkeypatch.setattr(models, "open_session", open_session)
    return session


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """The name of a good picture in the folder that `run` works in."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "fox.png")
    return "fox.png"
