"""The items of each data set: one scene's image file and its record, decided by the seed and the item's number."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from captions import caption, captions
from names import accepted_sets
from pictures import Pictures
from questions import QA, naming_question, questions
from scenes import TRAINED_KINDS, Scene, compose, sample_scene
from splits import SPLITS, TRAIN

IMAGES_A_FOLDER = 1000
TURNS = 6  # questions an image
CAPTIONS = 3  # at most, an image
PNG_LEVEL = 1  # three times as fast as the default, files a fifth larger
PROMPT_KINDS = ("one", "one", "one", "two", "two", "count", "three")
UNCHECKED = frozenset({"name", "describe", "style", "exists"})  # of a drawing: asked already, or told by the question
Record = dict[str, Any]  # one line of JSON


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of the command: everything an item depends on besides its number."""

    command: str  # a key of ITEMS
    seed: int
    n: int  # items; for "eval" items a split
    out: Path


def make_item(job: Job, pictures: Pictures, number: int) -> Record | None:
    """Makes one item: writes its image, returns its record. Depends on the job and the number alone."""
    rng = random.Random(f"picturebook/{job.command}/{job.seed}/{number}")
    return ITEMS[job.command](job, pictures, number, rng)


def image_path(number: int) -> str:
    """Relative path of an image: at most a thousand files a folder."""
    return f"images/{number // IMAGES_A_FOLDER:03d}/{number:06d}.png"


def _save(scene: Scene, pictures: Pictures, job: Job, number: int) -> str:
    """Writes the scene's image and returns its relative path."""
    path = image_path(number)
    Image.fromarray(compose(scene, pictures)).save(job.out / path, compress_level=PNG_LEVEL)
    return path


def as_typed(text: str, rng: random.Random) -> str:
    """A question or caption as hurried people type it: now and then with a capital, without its last mark."""
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    if text.endswith("?"):
        return text[:-1] if rng.random() < 0.1 else text
    return text + "." if rng.random() < 0.05 else text


def _mmu(job: Job, pictures: Pictures, number: int, rng: random.Random) -> Record:
    """A conversation about a scene, as LLaVA writes them."""
    (kind,) = rng.choices(list(TRAINED_KINDS), list(TRAINED_KINDS.values()))
    scene = sample_scene(rng, pictures, TRAIN, purpose="mmu", kind=kind)
    turns = []
    for place, qa in enumerate(questions(scene, rng, TURNS)):
        question = as_typed(qa.question, rng)
        turns.append({"from": "human", "value": question if place else f"<image>\n{question}"})
        turns.append({"from": "gpt", "value": qa.answer})
    return {"id": f"{number:06d}", "image": _save(scene, pictures, job, number), "conversations": turns}


def _captions(job: Job, pictures: Pictures, number: int, rng: random.Random) -> Record:
    """A canonical scene with up to three true captions."""
    scene = sample_scene(rng, pictures, TRAIN, purpose="t2i")
    said = [as_typed(text, rng) for text in captions(scene, rng, CAPTIONS)]
    return {"image": _save(scene, pictures, job, number), "captions": said}


def _held_out(job: Job, pictures: Pictures, number: int, rng: random.Random) -> Record:
    """The same of a scene with a pair that is never trained, to measure the loss of drawing with."""
    scene = sample_scene(rng, pictures, "unseen_pairs", purpose="t2i")
    said = [as_typed(text, rng) for text in captions(scene, rng, CAPTIONS)]
    return {"image": _save(scene, pictures, job, number), "captions": said}


def _image(job: Job, pictures: Pictures, number: int, rng: random.Random) -> None:
    """An image alone. Seven of eight are drawings, which is what the image tokenizer is for."""
    purpose = "mmu" if number % 8 == 0 else "t2i"
    _save(sample_scene(rng, pictures, TRAIN, purpose=purpose), pictures, job, number)


def _eval(job: Job, pictures: Pictures, number: int, rng: random.Random) -> Record:
    """A scene of a split with its questions; every other one is a single thing, always asked its name."""
    split = SPLITS[number // job.n]
    scene = sample_scene(rng, pictures, split, purpose="mmu", kind="one" if number % 2 == 0 else None)
    asked = [naming_question(scene), *(qa for qa in questions(scene, rng, TURNS) if qa.type != "name")]
    return {"split": split, "image": _save(scene, pictures, job, number), "asked": [_question(qa) for qa in asked]}


def _question(qa: QA) -> Record:
    """A question as the eval files spell it."""
    return {"question": qa.question, "type": qa.type, "answers": qa.accepted}


def _prompt(job: Job, pictures: Pictures, number: int, rng: random.Random) -> Record:
    """A prompt to draw, and what a viewer of the drawing should answer; half hold an unseen pair."""
    split = SPLITS[number % 2]
    scene = sample_scene(rng, pictures, split, purpose="t2i", kind=PROMPT_KINDS[number // 2 % len(PROMPT_KINDS)])
    checks = [{"question": "what is here?", "answers": accepted_sets(scene)}]
    # One question of a type: five ways to ask how many would only count one mistake five times.
    by_type = {qa.type: qa for qa in questions(scene, rng, 30) if qa.type not in UNCHECKED}
    checks += [{"question": qa.question, "answers": qa.accepted} for qa in list(by_type.values())[:5]]
    return {"prompt": caption(scene, rng), "kind": f"{scene.kind}/{split}", "checks": checks}


ITEMS = {
    "train-mmu": _mmu,
    "captions": _captions,
    "held-out": _held_out,
    "images": _image,
    "eval": _eval,
    "prompts": _prompt,
}
