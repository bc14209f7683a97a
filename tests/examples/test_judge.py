"""The outside judge of drawings, on a few synthetic pictures: it passes the truth and says what is wrong otherwise."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "picturebook"))

import concepts
import judge
import judge_prompts
import palette
import reading
import scenes
from pictures import Pictures

SETS = ("twemoji", "noto", "fluent_3d")


def patchwork(rng: np.random.Generator) -> np.ndarray:
    """A picture of its own: patches of strong colours in a disc; rgba (128 128 4) uint8."""
    y, x = np.mgrid[:128, :128]
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[..., :3] = rng.choice([20, 120, 230], (8, 8, 3)).repeat(16, 0).repeat(16, 1)
    rgba[..., 3] = 255 * ((x - 63.5) ** 2 + (y - 63.5) ** 2 < 62**2)
    return rgba


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    rng = np.random.default_rng(5)
    chosen = [concept for concept in concepts.load_concepts() if concept.counts and concept.tintable][::12]
    listed = [(concept.id, style) for concept in chosen for style in SETS]
    return Pictures.from_arrays(np.stack([patchwork(rng) for _ in listed]), listed)


@pytest.fixture(scope="module")
def reader(pictures: Pictures) -> reading.Reader:
    return reading.Reader(pictures)


@pytest.fixture(scope="module")
def asked(pictures: Pictures) -> list[judge.Asked]:
    return judge_prompts.ask(pictures, 1, 0)


@pytest.fixture(scope="module")
def pair(asked: list[judge.Asked]) -> scenes.Scene:
    return next(a.scene for a in asked if a.group == "two, and")


def verdict(reader: reading.Reader, scene: scenes.Scene, drawn: scenes.Scene) -> judge.Verdict:
    """What the judge says of one scene's pixels when another was asked for."""
    return judge.judge(reader, scene, reader.read(Image.fromarray(scenes.compose(drawn, reader.pictures))))


def test_the_truth_is_read_as_it_is(reader: reading.Reader, asked: list[judge.Asked]) -> None:
    for a in asked:
        seen = reader.read(Image.fromarray(scenes.compose(a.scene, reader.pictures)))
        assert seen.ground == a.scene.ground, a.prompt
        assert [replace(s.thing, rgb=None) for s in seen.things] == [replace(t, rgb=None) for t in a.scene.things]
        assert seen.stray == 0
        assert judge.judge(reader, a.scene, seen).all


def test_noise_and_a_small_shift_change_nothing(reader: reading.Reader, asked: list[judge.Asked]) -> None:
    rng = np.random.default_rng(0)
    for a in asked:
        pixels = scenes.compose(a.scene, reader.pictures)
        if any(not 2 <= edge <= scenes.CANVAS_PX - 2 for thing in a.scene.things for edge in thing.box):
            continue
        noisy = np.roll(pixels, 2, 1) + rng.normal(0, 12, pixels.shape)
        seen = reader.read(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
        assert judge.judge(reader, a.scene, seen).all, a.prompt
        assert [s.thing.box[0] for s in seen.things] == [t.box[0] + 2 for t in a.scene.things]


def test_another_ground_is_wrong_alone(reader: reading.Reader, pair: scenes.Scene) -> None:
    other = next(name for name in palette.COLOURS if palette.distance(palette.COLOURS[name], pair.ground_rgb) > 150)
    said = verdict(reader, pair, replace(pair, ground=other, ground_rgb=palette.COLOURS[other]))
    assert said == judge.Verdict(things=True, names=True, count=True, place=True, ground=False)


def test_a_missing_thing_and_one_too_many_are_counted(reader: reading.Reader, asked: list[judge.Asked]) -> None:
    for group, sign in (("two of a kind", 1), ("three of a kind", -1)):
        scene = next(a.scene for a in asked if a.group == group)
        n = len(scene.things) + sign
        squares = scenes.layouts.CANONICAL_GROUPS[n]
        things = tuple(replace(scene.things[0], box=scenes.box_of(square)) for square in squares)
        said = verdict(reader, scene, replace(scene, things=things))
        assert not said.count
        assert not said.things


def test_things_that_changed_places_are_right_things_in_wrong_places(
    reader: reading.Reader, pair: scenes.Scene
) -> None:
    first, second = pair.things
    swapped = replace(pair, things=(replace(second, box=first.box), replace(first, box=second.box)))
    said = verdict(reader, pair, swapped)
    assert said == judge.Verdict(things=True, names=True, count=True, place=False, ground=True)


def test_a_thing_in_another_size_is_in_the_wrong_place(reader: reading.Reader, asked: list[judge.Asked]) -> None:
    scene = next(a.scene for a in asked if a.group == "one, plain ground")
    small = replace(scene.things[0], box=scenes.box_of(scenes.layouts.canonical_one("small", None)[0]))
    said = verdict(reader, scene, replace(scene, things=(small,)))
    assert said.names
    assert not said.place


def test_another_hand_has_the_name_and_not_the_look(reader: reading.Reader, asked: list[judge.Asked]) -> None:
    plain = [a for a in asked if a.group in ("one, plain ground", "one, named ground")]
    for a, image in zip(plain, judge.render_other(plain, reader.pictures), strict=True):
        said = judge.judge(reader, a.scene, reader.read(image))
        assert (said.things, said.names) == (False, True)


def test_another_prompts_drawing_is_never_right(reader: reading.Reader, asked: list[judge.Asked]) -> None:
    images = judge.render_wrong(asked, reader.pictures)
    said = [judge.judge(reader, a.scene, reader.read(image)) for a, image in zip(asked, images, strict=True)]
    assert not any(verdict.all for verdict in said)


def test_an_empty_canvas_and_noise_hold_nothing_that_was_asked_for(reader: reading.Reader, pair: scenes.Scene) -> None:
    empty = reader.read(Image.new("RGB", (128, 128), pair.ground_rgb))
    assert empty.things == ()
    assert not judge.judge(reader, pair, empty).count
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    assert not judge.judge(reader, pair, reader.read(Image.fromarray(noise))).things


def test_ink_beside_the_things_is_one_thing_more(reader: reading.Reader, asked: list[judge.Asked]) -> None:
    scene = next(a.scene for a in asked if a.group == "three in a row")
    pixels = scenes.compose(scene, reader.pictures).copy()
    pixels[10:30, 54:74] = (0, 0, 0) if sum(scene.ground_rgb) > 380 else (255, 255, 255)
    assert not judge.judge(reader, scene, reader.read(Image.fromarray(pixels))).count


def test_a_drawing_of_another_size_is_refused(reader: reading.Reader) -> None:
    with pytest.raises(ValueError, match="128 x 128"):
        reader.read(Image.new("RGB", (64, 64)))


def test_prompts_mean_one_drawing_and_keep_to_their_group(pictures: Pictures, asked: list[judge.Asked]) -> None:
    assert [a.prompt for a in asked] == [a.prompt for a in judge_prompts.ask(pictures, 1, 0)]
    assert [a.prompt for a in asked] != [a.prompt for a in judge_prompts.ask(pictures, 1, 1)]
    for a in asked:
        first = a.scene.things[0].concept
        assert (first.plural if a.scene.kind == "count" else first.np) in a.prompt
    assert all(a.scene.corner in a.prompt for a in asked if a.group == "one, in a corner" and a.scene.corner)
    assert {len(a.scene.things) for a in asked if a.group == "four of a kind"} == {4}


def test_the_interval_is_wilsons() -> None:
    assert judge.interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert judge.interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert judge.interval(10, 10)[1] == 1.0


def test_the_command_judges_the_truth_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(5)
    chosen = [concept for concept in concepts.load_concepts() if concept.counts and concept.tintable][::12]
    rgba = np.stack([patchwork(rng) for _ in chosen])
    listing = [
        {"concept": concept.id, "set": "noto", "contrast": palette.contrasts(picture)}
        for concept, picture in zip(chosen, rgba, strict=True)
    ]
    # some things must be drawn in 3-D as well
    listing += [{**entry, "set": "fluent_3d"} for entry in listing]
    np.save(tmp_path / "pictures.npy", np.concatenate((rgba, rgba[::-1])))
    (tmp_path / "pictures.json").write_text(json.dumps({"pictures": listing}))
    assert judge.main([str(tmp_path), str(tmp_path / "out"), "--by", "truth", "--n", "1"]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(result["drawings"]) == len(judge_prompts.GROUPS)
    assert all(drawing["all"] for drawing in result["drawings"])
    assert result["scores"]["total: ground"]["ground"]["n"] == len(judge_prompts.GROUPS)
    assert "| total: single things | 8 | 100 |" in capsys.readouterr().out
    assert not (tmp_path / "out" / "failures.png").exists()


def test_drawings_of_the_same_model_seed_and_prompt_are_kept(
    tmp_path: Path, asked: list[judge.Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, int]] = []

    def stream(prompts: list[str], *, seed: list[int]) -> Iterator[SimpleNamespace]:
        for prompt, one in zip(prompts, seed, strict=True):
            drawn.append((prompt, one))
            yield SimpleNamespace(image=Image.new("RGB", (128, 128), (one, 0, 0)))

    monkeypatch.setattr(judge.om, "load", lambda model: SimpleNamespace(stream_generate=stream))
    first = asked[:3]
    assert [image.getpixel((0, 0)) for image in judge.draw(first, "m", 7, tmp_path)] == [(n, 0, 0) for n in (7, 8, 9)]
    list(judge.draw(first, "m", 7, tmp_path))
    assert len(drawn) == 3
    list(judge.draw([first[0], first[2], first[1]], "m", 7, tmp_path))
    assert drawn[3:] == [(first[2].prompt, 8), (first[1].prompt, 9)]
    list(judge.draw(first[:1], "m", 8, tmp_path))
    assert drawn[5:] == [(first[0].prompt, 8)]
