"""PictureBook: scenes, captions, questions, splits and the make command, on a few synthetic pictures."""

import json
import random
import re
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "picturebook"))

import captions
import concepts
import hands
import make
import names
import palette
import questions
import render
import scenes
import splits
from fetch import PACKAGES, SETS
from pictures import Pictures
from tower import DeviceScenes

# Written down once: a change here would let a model train on what it is tested with.
GOLDEN_UNIT = 0.01599328831739962
GOLDEN_DRAWINGS = ["1F30B", "1F320", "1F328", "1F32A", "1F32D"]
TRAIN_SETS = [style for style in SETS if style != "streamline"]


def synthetic() -> tuple[np.ndarray, list[tuple[str, str]]]:
    """A coloured disc for every third concept in every set; rgba (N 128 128 4) uint8."""
    y, x = np.mgrid[:128, :128]
    disc = (x - 63.5) ** 2 + (y - 63.5) ** 2 < 64**2
    shades = [(200, 60, 30), (30, 160, 60), (60, 60, 200), (90, 90, 90), (240, 200, 40)]
    listed = [(c.id, style) for style in SETS for c in concepts.load_concepts()[::3]]
    plates = np.zeros((len(shades), 128, 128, 4), np.uint8)
    for plate, shade in zip(plates, shades, strict=True):
        plate[disc] = (*shade, 255)
    return plates[np.arange(len(listed)) % len(shades)], listed


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    rgba, listed = synthetic()
    cycle = [palette.contrasts(picture) for picture in rgba[:5]]
    return Pictures(rgba=rgba, listed=listed, contrast=[cycle[row % 5] for row in range(len(listed))])


@pytest.fixture(scope="module")
def train_scenes(pictures: Pictures) -> list[scenes.Scene]:
    rng = random.Random(7)
    draw = scenes.sample_scene
    return [draw(rng, pictures, "train", purpose=("mmu", "t2i")[number % 2]) for number in range(5000)]


def test_every_caption_in_the_table_has_the_right_article() -> None:
    wrong = [c.caption for c in concepts.load_concepts() if c.det == "a" and concepts.with_article(c.np) != c.caption]
    assert wrong == []


@pytest.mark.parametrize(
    ("noun", "full"),
    [
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("X-ray", "an X-ray"),
        ("UFO", "a UFO"),
        ("SUV", "an SUV"),
        ("one-humped camel", "a one-humped camel"),
        ("ewe", "a ewe"),
        ("orange fox", "an orange fox"),
    ],
)
def test_article_follows_the_sound(noun: str, full: str) -> None:
    assert concepts.with_article(noun) == full


def test_no_text_has_a_wrong_article(train_scenes: list[scenes.Scene]) -> None:
    rng = random.Random(1)
    texts = [captions.caption(scene, rng) for scene in train_scenes[:2000]]
    texts += [qa.answer for scene in train_scenes[:1000] for qa in questions.questions(scene, rng, 6)]
    bad = []
    for text in texts:
        words = text.replace(",", "").split()
        pairs = pairwise(words)
        bad += [text for first, after in pairs if first in ("a", "an") and concepts.article(after) != first]
    assert bad == []


def test_held_out_shares_never_move() -> None:
    assert splits.hash_unit("pair:1F98A+1F415") == pytest.approx(GOLDEN_UNIT, abs=1e-12)
    ids = [concept.id for concept in concepts.load_concepts()]
    assert [id_ for id_ in ids if splits.unseen_drawing(id_)][:5] == GOLDEN_DRAWINGS
    share = sum(splits.unseen_pair(a, b) for a, b in combinations(ids[:200], 2)) / (200 * 199 / 2)
    assert share == pytest.approx(0.1, abs=0.01)


def test_pair_order_does_not_matter() -> None:
    assert all(splits.unseen_pair(a, b) == splits.unseen_pair(b, a) for a, b in combinations("abcdefgh", 2))


def test_training_never_holds_what_is_held_out(train_scenes: list[scenes.Scene]) -> None:
    for scene in train_scenes:
        ids = {thing.concept.id for thing in scene.things}
        assert not any(splits.unseen_pair(a, b) for a, b in combinations(ids, 2))
        for thing in scene.things:
            assert thing.style in TRAIN_SETS
            assert PACKAGES[thing.style].trained
            assert not (thing.style == "twemoji" and splits.unseen_drawing(thing.concept.id))
            assert thing.tint is None or not splits.unseen_tint(thing.concept.id, thing.tint)
            assert not splits.unseen_ground(thing.concept.id, scene.ground)


def test_splits_are_disjoint(pictures: Pictures) -> None:
    rng = random.Random(3)
    for split in splits.SPLITS:
        for _ in range(100):
            scene = scenes.sample_scene(rng, pictures, split, purpose="mmu")
            found = {other for other in ("train", *splits.SPLITS) if splits.belongs(scene, other)}
            # Unseen scenes are new draws of the training distribution.
            assert found == ({"train", "unseen_scenes"} if split == "unseen_scenes" else {split})


def test_same_seed_gives_same_scene_and_text(pictures: Pictures) -> None:
    def draw() -> tuple:
        rng = random.Random("seed")
        scene = scenes.sample_scene(rng, pictures, "train", purpose="mmu")
        return scene, captions.captions(scene, rng, 3), questions.questions(scene, rng, 6)

    assert draw() == draw()


def test_drawings_say_all_that_is_not_plain(train_scenes: list[scenes.Scene]) -> None:
    rng = random.Random(5)
    for scene in train_scenes[1::2]:
        text = captions.caption(scene, rng)
        assert scene.plain_ground or f" {scene.ground} background" in text
        assert scene.size is None or scene.size in text.split()
        assert scene.corner is None or f"in the {scene.corner} corner" in text
        assert scene.kind != "one" or scene.size or scene.things[0].side_px == 112
        assert ("3D rendering" in text) == ({thing.style for thing in scene.things} == {"fluent_3d"})


def test_a_caption_without_colour_style_or_ground_means_one_drawing(pictures: Pictures) -> None:
    rng = random.Random(6)
    drawn: dict[str, np.ndarray] = {}
    repeats = 0
    for _ in range(6000):
        scene = scenes.sample_scene(rng, pictures, "train", purpose="t2i", kind="one")
        text = captions.caption(scene, rng)
        image = scenes.compose(scene, pictures)
        repeats += text in drawn
        assert np.array_equal(drawn.setdefault(text, image), image), text
    assert repeats > 500


def test_captions_put_things_where_they_are(train_scenes: list[scenes.Scene]) -> None:
    rng = random.Random(9)
    for scene in (scene for scene in train_scenes if scene.kind == "two"):
        text = captions.caption(scene, rng)
        (ax, ay), (bx, by) = (thing.centre for thing in scene.things)
        in_order = _place(text, scene.things[0]) < _place(text, scene.things[1])
        if " to the left of " in text:
            assert (ax < bx) == in_order
        elif " to the right of " in text:
            assert (ax > bx) == in_order
        elif " above " in text:
            assert (ay < by) == in_order
        elif " below " in text:
            assert (ay > by) == in_order
        else:
            assert in_order
            assert ax < bx


def _place(text: str, thing: scenes.Thing) -> int:
    """Where a thing is named in a text."""
    found = [re.search(rf"\b{re.escape(noun)}", text) for noun in (names.thing_noun(thing), *thing.concept.aliases)]
    return min(match.start() for match in found if match)


def test_relation_answers_follow_from_the_boxes(train_scenes: list[scenes.Scene]) -> None:
    rng = random.Random(11)
    seen = 0
    for scene in (scene for scene in train_scenes if scene.kind == "two"):
        things = {names.definite(thing.concept): thing for thing in scene.things}
        for qa in questions.questions(scene, rng, 12):
            if qa.type == "bigger":
                a, b = scene.things
                wide = max((a, b), key=lambda thing: thing.side_px)
                right = wide if "bigger" in qa.question else (a if wide is b else b)
                assert things[qa.answer] is right
                seen += 1
            if qa.type == "beside":
                other = next(thing for name, thing in things.items() if qa.question.endswith(f"{name}?"))
                answer = next(thing for thing in scene.things if thing is not other)
                assert qa.answer in names.accepted_names(answer)
                axis = 0 if "left" in qa.question or "right" in qa.question else 1
                before = "left" in qa.question or "above" in qa.question
                assert (answer.centre[axis] < other.centre[axis]) == before
                seen += 1
    assert seen > 300


def test_counts_and_grounds_are_true(train_scenes: list[scenes.Scene]) -> None:
    rng = random.Random(13)
    for scene in train_scenes[:2000]:
        for qa in questions.questions(scene, rng, 8):
            assert qa.answer == qa.accepted[0]
            if qa.type == "ground":
                assert qa.answer == scene.ground
                assert palette.distance(scene.ground_rgb, palette.COLOURS[qa.answer]) < 30
            if qa.type == "things":
                assert names.NUMBER_WORDS.index(qa.answer) == len(scene.things)
            if qa.type == "count":
                assert names.NUMBER_WORDS.index(qa.answer) == (len(scene.things) if scene.kind == "count" else 1)
            if qa.type == "where":
                assert not ("left" in qa.answer and min(t.centre[0] for t in scene.things) > 0.5)


def test_yes_and_no_are_balanced_and_no_is_true(train_scenes: list[scenes.Scene]) -> None:
    rng = random.Random(17)
    by_caption = {concept.caption: concept for concept in concepts.load_concepts()}
    yes = total = asked_in_all = 0
    for scene in train_scenes:
        for qa in questions.questions(scene, rng, 6):
            asked_in_all += 1
            if qa.type != "exists":
                continue
            total += 1
            yes += qa.answer == "yes"
            name = qa.question.removesuffix(" in the picture?").removesuffix(" here?").removesuffix("?")
            concept = by_caption[name.removeprefix("is there ").removeprefix("do you see ")]
            shown = [thing.concept for thing in scene.things]
            assert (concept in shown) == (qa.answer == "yes")
            assert qa.answer == "yes" or not any(concept.words & other.words for other in shown)
    assert 0.47 < yes / total < 0.53
    assert total / asked_in_all < 0.25


def test_twins_are_accepted_either_way() -> None:
    chef = next(concept for concept in concepts.load_concepts() if concept.np == "male chef")
    twin = concepts.twin_of(chef)
    assert twin is not None
    assert twin.np == "female chef"
    assert concepts.twin_of(twin) == chef
    thing = scenes.Thing(
        concept=chef, picture=0, style="noto", tint=None, rgb=None, box=(0, 0, 128, 128), mirrored=False
    )
    assert names.accepted_names(thing) == ["a male chef", "a chef", "a female chef"]


def test_things_stand_apart_and_on_the_canvas(train_scenes: list[scenes.Scene]) -> None:
    for scene in train_scenes:
        for left, top, right, bottom in (thing.box for thing in scene.things):
            assert 0 <= left < right <= 128
            assert 0 <= top < bottom <= 128
        for a, b in combinations([thing.box for thing in scene.things], 2):
            shared = min(min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))
            assert shared <= 2  # pixels: rounding


def test_compose_draws_things_on_their_ground(pictures: Pictures, train_scenes: list[scenes.Scene]) -> None:
    scene = next(scene for scene in train_scenes if scene.kind == "one" and scene.size is None)
    image = scenes.compose(scene, pictures)
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8
    left, top, right, bottom = scene.things[0].box
    assert tuple(image[top, left]) == scene.ground_rgb
    middle = image[(top + bottom) // 2, (left + right) // 2].astype(int)
    assert np.abs(middle - np.array(scene.ground_rgb)).max() > 30
    assert scenes.compose(scene, pictures, 64).shape == (64, 64, 3)


def test_tower_labels_match_the_pixels(pictures: Pictures) -> None:
    torch.manual_seed(19)
    made = DeviceScenes(pictures, torch.device("cpu"))
    pixels, labels = made.sample(64)
    assert pixels.shape == (64, 3, 128, 128)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    bare = labels.concept < 0
    assert labels.concept.shape == (64, 8, 8)
    assert ((labels.style < 0) == bare).all()
    assert bool((~bare).any((1, 2)).all())
    ground = torch.tensor([palette.COLOURS[palette.COLOUR_NAMES[i]] for i in labels.ground]) / 255
    cells = pixels.unfold(2, 16, 16).unfold(3, 16, 16).flatten(4)  # (b 3 g g pixels)
    far = (cells - ground[:, :, None, None, None]).abs().amax(1).median(-1).values  # (b g g)
    assert float(far[bare].max()) <= 0.05


def test_tower_never_sees_what_is_held_out(pictures: Pictures) -> None:
    torch.manual_seed(23)
    made = DeviceScenes(pictures, torch.device("cpu"))
    ids = [concept.id for concept in pictures.concepts]
    for _ in range(20):
        _, labels = made.sample(64)
        assert not (labels.style == SETS.index("streamline")).any()
        for concept, style, tint, ground in zip(labels.concept, labels.style, labels.tint, labels.ground, strict=True):
            shown = sorted({ids[i] for i in concept.flatten().tolist() if i >= 0})
            colour = palette.COLOUR_NAMES[int(ground)]
            assert not any(splits.unseen_pair(a, b) for a, b in combinations(shown, 2))
            assert not any(splits.unseen_ground(i, colour) for i in shown)
            cells = zip(*(part.flatten().tolist() for part in (concept, style, tint)), strict=True)
            for i, s, t in set(cells):
                if i >= 0:
                    assert not splits.held_out_picture(ids[i], SETS[s])
                    assert t < 0 or not splits.unseen_tint(ids[i], palette.COLOUR_NAMES[t])


def test_make_writes_the_same_bytes_with_one_and_two_processes(tmp_path: Path) -> None:
    rgba, listed = synthetic()
    keep = list(range(0, len(listed), 2))
    np.save(tmp_path / "pictures.npy", rgba[keep])
    cycle = [palette.contrasts(picture) for picture in rgba[:5]]
    entries = [
        {"concept": listed[row][0], "set": listed[row][1], "index": place, "contrast": cycle[row % 5]}
        for place, row in enumerate(keep)
    ]
    text = json.dumps({"fingerprint": render.fingerprint(), "size_px": 128, "pictures": entries})
    (tmp_path / "pictures.json").write_text(text)
    for command, n in (("train-mmu", 300), ("captions", 300), ("held-out", 20), ("images", 20), ("eval", 20)):
        outs = [tmp_path / f"{command}-{processes}" for processes in (1, 2)]
        for processes, out in zip((1, 2), outs, strict=True):
            flags = ["--n", str(n), "--out", str(out), "--processes", str(processes)]
            assert make.main([str(tmp_path), command, *flags]) == 0
        files = [
            {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} for out in outs
        ]
        assert files[0] == files[1]
        assert len([path for path in files[0] if path.suffix == ".png"]) == n * (4 if command == "eval" else 1)
    assert len((tmp_path / "held-out-1" / "captions.jsonl").read_text().splitlines()) == 20
    conversations = json.loads((tmp_path / "train-mmu-1" / "mmu.json").read_text())
    assert all(item["conversations"][0]["value"].startswith("<image>\n") for item in conversations)
    lines = [json.loads(line) for line in (tmp_path / "eval-1" / "eval.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == set(splits.SPLITS)


@pytest.mark.parametrize("name", palette.COLOUR_NAMES)
def test_a_recoloured_picture_keeps_its_lights_and_darks(name: str) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., :3] = np.linspace(10, 240, 16, dtype=np.uint8)[:, None, None] * np.array((1, 0.5, 0.2)).astype(np.float32)
    rgba[:, 2:14, 3] = 255
    before = rgba.copy()
    painted = palette.recoloured(rgba, palette.COLOURS[name])
    assert (rgba == before).all()
    assert (painted[..., 3] == rgba[..., 3]).all()
    luma = painted[..., :3].astype(np.float32) @ np.array(palette.LUMA, np.float32)
    steps = np.diff(luma[:, 8])
    assert (steps >= -1).all()
    assert luma[-1, 8] - luma[0, 8] > 80
    middle = painted[2:14, 2:14, :3].reshape(-1, 3).mean(0)
    far = {other: palette.distance(tuple(middle), rgb) for other, rgb in palette.COLOURS.items()}
    assert far[name] < 130
    if name not in ("white", "black"):  # whose shades are grays
        assert min(far, key=lambda other: far[other]) == name


def test_recolouring_nothing_or_one_shade_is_no_error() -> None:
    empty = np.zeros((8, 8, 4), np.uint8)
    assert (palette.recoloured(empty, (214, 40, 40)) == empty).all()
    flat = np.full((8, 8, 4), 255, np.uint8)
    assert len(np.unique(palette.recoloured(flat, (214, 40, 40)).reshape(-1, 4), axis=0)) == 1


def test_drawings_with_a_named_colour_are_drawings_not_glyphs(pictures: Pictures) -> None:
    rng = random.Random(5)
    tinted = [
        (scene, thing)
        for scene in (scenes.sample_scene(rng, pictures, "train", purpose="t2i") for _ in range(200))
        for thing in scene.things
        if thing.tint is not None
    ]
    assert tinted
    assert {thing.style for _, thing in tinted} <= set(scenes.PLAIN_HANDS)
    thing = tinted[0][1]
    assert thing.rgb is not None
    drawn = np.asarray(scenes.thing_image(thing, pictures, 128))
    assert (drawn == palette.recoloured(pictures.rgba[thing.picture], thing.rgb)).all()


def test_another_hand_draws_the_same_thing_otherwise() -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (200, 40, 40, 255)
    rgba[24:40, 24:40, :3] = (250, 220, 60)
    before = rgba.copy()
    drawn = [hands.by_another_hand(rgba, random.Random(seed)) for seed in range(40)]
    assert (rgba == before).all()
    assert all(picture.shape == rgba.shape and picture.dtype == np.uint8 for picture in drawn)
    assert (hands.by_another_hand(rgba, random.Random(3)) == drawn[3]).all()
    assert len({picture.tobytes() for picture in drawn}) > 30
    ink = rgba[..., 3] > 128
    for picture in drawn:  # it stands where it stood
        covered = picture[..., 3] > 128
        assert (ink & covered).sum() > 0.75 * ink.sum()
        assert covered.sum() < 1.5 * ink.sum()


def test_another_hand_grows_and_shrinks_as_pillow_does() -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    image = Image.fromarray(np.pad(values, 3))  # nothing is beyond the edge
    inner = (slice(3, -3), slice(3, -3))
    for by in (1, 2):
        want = np.asarray(image.filter(ImageFilter.MaxFilter(2 * by + 1)))[inner]
        assert (hands._grown(values, by) == want).all()
    assert (hands._shrunk(values) == np.asarray(image.filter(ImageFilter.MinFilter(3)))[inner]).all()


def test_another_hand_sets_a_thing_on_its_shadow() -> None:
    alpha = np.zeros((64, 64), np.uint8)
    alpha[10:40, 20:44] = 255
    pixels = np.full((64, 64, 3), 200, np.uint8)
    shaded, cover = hands._on_its_shadow(pixels, alpha, random.Random(2))
    assert (shaded[alpha == 255] == 200).all()
    assert (cover >= alpha).all()
    beside = (cover > 0) & (alpha == 0)
    assert beside.any()
    assert (shaded[beside] == 0).all()
    assert 20 <= cover[beside].max() <= 80
    assert not beside[:30].any()
    nothing = np.zeros_like(alpha)
    assert not hands._on_its_shadow(pixels, nothing, random.Random(2))[1].any()


def test_other_hands_draw_for_training_alone(pictures: Pictures, train_scenes: list[scenes.Scene]) -> None:
    drawn = [thing for scene in train_scenes for thing in scene.things if thing.hand is not None]
    assert drawn
    assert all(thing.tint is None and thing.concept.tintable for thing in drawn)
    rng = random.Random(6)
    for split, purpose in (("unseen_scenes", "mmu"), ("unseen_style", "mmu"), ("train", "t2i")):
        for _ in range(60):
            scene = scenes.sample_scene(rng, pictures, split, purpose=purpose)
            assert all(thing.hand is None for thing in scene.things)
    scene = next(scene for scene in train_scenes if any(thing.hand is not None for thing in scene.things))
    assert all(qa.type != "style" for seed in range(20) for qa in questions.questions(scene, random.Random(seed), 6))
    assert (scenes.compose(scene, pictures) == scenes.compose(scene, pictures)).all()
