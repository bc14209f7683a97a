"""Training the tokenizers, and turning pictures into codes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.images import vq_pixels
from omnimamba_cli.data.reading import load_image
from omnimamba_cli.engine import tokenizing
from omnimamba_cli.engine.encoding import TokenizeSettings, Tokenizing
from omnimamba_cli.engine.vq_training import VQSettings, train_image_tokenizer
from omnimamba_cli.errors import InputError
from omnimamba_cli.train.events import Progress
from omnimamba_cli.train.pictures import scaled
from tests.train.conftest import Data, loop


def settings(data: Data, config: ModelConfig, output: Path, **changes: object) -> VQSettings:
    base = VQSettings(data=data.folder, output=output, config=config.vq, loop=loop(), batch=8, device="cpu")
    return dataclasses.replace(base, revive_every=2, sheet_every=0, **changes)  # type: ignore[arg-type]


def test_reconstruction_improves_and_codes_stay_in_use(data: Data, tiny_config: ModelConfig, tmp_path: Path) -> None:
    run = settings(data, tiny_config, tmp_path / "vq", loop=loop(steps=40, lr=2e-3, warmup=2))
    reports = [e for e in train_image_tokenizer(run) if isinstance(e, Progress)]
    assert reports[-1].values["l1"] < 0.5 * reports[0].values["l1"]
    assert reports[-1].values["usage"] > 0.1
    with Image.open(tmp_path / "vq" / "sheets" / "step-000040.png") as sheet:
        assert sheet.size == (8 * 32, 2 * 32)


def test_resumed_image_tokenizer_equals_the_uninterrupted(data: Data, tiny_config: ModelConfig, tmp_path: Path) -> None:
    whole = settings(data, tiny_config, tmp_path / "whole", loop=loop(steps=5, save_every=3, ema=0.9))
    list(train_image_tokenizer(whole))
    halves = dataclasses.replace(whole, output=tmp_path / "halves")
    for event in train_image_tokenizer(halves):
        if isinstance(event, Progress) and event.step == 4:
            break
    list(train_image_tokenizer(dataclasses.replace(halves, resume=True)))
    one, two = ((run.output / "vq.safetensors").read_bytes() for run in (whole, halves))
    assert one == two


def test_image_tokenizer_starts_from_given_weights(data: Data, tiny_config: ModelConfig, tmp_path: Path) -> None:
    first = settings(data, tiny_config, tmp_path / "first", loop=loop(steps=1))
    list(train_image_tokenizer(first))
    still = dataclasses.replace(first, output=tmp_path / "second", init=first.output, loop=loop(steps=1, lr=1e-30))
    list(train_image_tokenizer(still))
    one, two = (load_file(run.output / "vq.safetensors") for run in (first, still))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_codes_file_holds_each_pictures_codes(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes.jsonl"
    settings = TokenizeSettings(data=(data.captions,), vq=tiny_model, output=out, batch=3, device="cpu")
    list(Tokenizing(settings).run())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    captions = [json.loads(line)["captions"] for line in data.captions.read_text().splitlines()]
    model = tokenizing.load_vq(tiny_model)
    picture = vq_pixels(load_image(data.folder / "5.png"), 32)
    with torch.no_grad():
        assert rows[5]["tokens"] == model.encode(scaled(picture[None]))[0].tolist()
    assert [row["captions"] for row in rows] == captions


def test_interrupted_tokenize_continues_after_the_last_whole_line(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    rows = data.captions.read_text().splitlines()
    rows = [*rows, *rows, *rows]
    rows[1] = json.dumps({"image": "missing.png", "captions": ["nothing"]})
    source = tmp_path / "captions.jsonl"
    source.write_text("\n".join(rows) + "\n")
    run = TokenizeSettings(
        data=(source,), vq=tiny_model, output=tmp_path / "a.jsonl", image_root=data.folder, batch=2, device="cpu"
    )
    list(Tokenizing(run).run())
    halves = dataclasses.replace(run, output=tmp_path / "b.jsonl")
    for event in Tokenizing(halves).run():
        if isinstance(event, Progress) and event.step == 6:
            break
    partial = tmp_path / "b.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:-20])
    assert not halves.output.exists()
    list(Tokenizing(halves).run())
    assert run.output.read_bytes() == halves.output.read_bytes()
    assert len(run.output.read_text().splitlines()) == len(rows) - 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "captions.jsonl"]


def test_text_tokenizer_reads_every_format_and_refuses_to_overwrite(data: Data, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("zebra zebra zebra zebra\n")
    table = tmp_path / "table.csv"
    table.write_text("image,caption\n" + "x.png,walrus\n" * 4)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (4, 4)).save(photos / "a.png")
    (photos / "a.txt").write_text("quokka\n" * 4)
    out = tmp_path / "tokenizer.json"
    files = [data.talks, data.captions, data.codes, plain, table, photos]
    list(tokenizing.train_text_tokenizer(files, 320, out))
    vocabulary = json.loads(out.read_text())["model"]["vocab"]
    assert "zebra" in vocabulary
    assert {"walrus", "quokka"} & {word.removeprefix("\u0120") for word in vocabulary} == {"walrus", "quokka"}
    assert any("house" in word for word in vocabulary)
    with pytest.raises(InputError, match="exists"):
        list(tokenizing.train_text_tokenizer(files, 300, out))


def test_a_text_tokenizer_that_cannot_be_written_is_an_input_error(data: Data, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(InputError, match=r"tokenizer\.json cannot be written: file too large"):
            list(tokenizing.train_text_tokenizer([data.captions], 300, tmp_path / "tokenizer.json"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
