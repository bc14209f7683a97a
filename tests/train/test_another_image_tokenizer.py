"""--vq with an image tokenizer of other sizes: the model takes its sizes, the image vocabulary starts anew."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnimamba_cli.config import ModelConfig, VQConfig
from omnimamba_cli.engine.checkpoint import read_config
from omnimamba_cli.engine.safetensors_io import write_safetensors
from omnimamba_cli.engine.session import Session
from omnimamba_cli.engine.training import Note, train
from omnimamba_cli.errors import CheckpointError
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.train.events import Plan
from tests.train.conftest import Data, loop, stage


def tokenizer(folder: Path, config: VQConfig, *, sizes: bool = True) -> Path:
    """A random image tokenizer as train-tokenizer leaves it, perhaps without its config.json."""
    folder.mkdir()
    torch.manual_seed(1)
    write_safetensors(folder / "vq.safetensors", VQModel(config).state_dict(), {"format": "omnimamba"})
    if sizes:
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def codes(path: Path, config: VQConfig) -> Path:
    row = {"tokens": [i % config.codebook_size for i in range(config.codes)], "captions": ["a red house"]}
    path.write_text((json.dumps(row) + "\n") * 4)
    return path


@pytest.mark.parametrize("sizes", [True, False])
def test_a_larger_codebook_is_taken_over(
    sizes: bool, data: Data, tiny_config: ModelConfig, tiny_model: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config.vq, codebook_size=96)
    vq = tokenizer(tmp_path / "vq", config, sizes=sizes)
    run = stage(
        "both",
        data,
        tiny_model,
        tmp_path / "out",
        vq=vq,
        data_t2i=(codes(tmp_path / "codes.jsonl", config),),
        loop=loop(steps=1, lr=1e-30),  # what starts anew is told from what is kept
    )
    said = [event.text for event in train(run) if isinstance(event, Note)]
    assert any("codebook_size 96 instead of 64" in text and "start anew" in text for text in said)
    assert read_config(run.output).vq == config
    before, after = (load_file(p / "model.safetensors") for p in (tiny_model, run.output))
    assert after["image_embedding.weight"].shape == (96, tiny_config.backbone.d_model)
    assert 0.015 < after["image_embedding.weight"].std() < 0.025
    for name in before.keys() - {"image_embedding.weight"}:
        torch.testing.assert_close(before[name], after[name], rtol=0.0, atol=1e-20, msg=name)
    session = Session(run.output, device="cpu")
    assert session.generate("a red house", seed=0)[0].size == (32, 32)


def test_longer_drawings_get_more_positions(
    data: Data, tiny_config: ModelConfig, tiny_model: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config.vq, image_size=48)  # 144 codes instead of 64
    vq = tokenizer(tmp_path / "vq", config)
    file = codes(tmp_path / "codes.jsonl", config)
    run = stage("t2i", data, tiny_model, tmp_path / "out", vq=vq, data_t2i=(file,), loop=loop(steps=1, lr=1e-30))
    said = [event.text for event in train(run) if isinstance(event, Note)]
    found = read_config(run.output)
    assert found.t2i_positions == found.t2i_length > tiny_config.t2i_positions
    assert any(f"{found.t2i_positions - tiny_config.t2i_positions} positions are new" in text for text in said)
    before, after = (load_file(p / "model.safetensors")["t2i_positions"] for p in (tiny_model, run.output))
    torch.testing.assert_close(after[: len(before)], before, rtol=0.0, atol=1e-20)


def test_the_same_sizes_keep_the_vocabulary(
    data: Data, tiny_config: ModelConfig, tiny_model: Path, tmp_path: Path
) -> None:
    vq = tokenizer(tmp_path / "vq", tiny_config.vq)
    run = stage("t2i", data, tiny_model, tmp_path / "out", vq=vq, loop=loop(steps=1, lr=1e-30))
    list(train(run))
    before, after = (load_file(p / "model.safetensors") for p in (tiny_model, run.output))
    one, two = before["image_embedding.weight"], after["image_embedding.weight"]
    torch.testing.assert_close(one, two, rtol=0.0, atol=1e-20)
    assert (run.output / "vq.safetensors").read_bytes() == (vq / "vq.safetensors").read_bytes()


def test_other_sizes_are_refused_where_drawing_is_not_trained(
    data: Data, tiny_config: ModelConfig, tiny_model: Path, tmp_path: Path
) -> None:
    vq = tokenizer(tmp_path / "vq", dataclasses.replace(tiny_config.vq, codebook_size=96))
    with pytest.raises(CheckpointError, match="drawing is not trained"):
        list(train(stage("mmu", data, tiny_model, tmp_path / "out", vq=vq)))


def test_a_shared_vocabulary_keeps_its_words_and_takes_new_codes(
    data: Data, tiny_config: ModelConfig, tiny_model: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config.vq, codebook_size=96)
    vq, file = tokenizer(tmp_path / "vq", config), codes(tmp_path / "codes.jsonl", config)
    still = loop(steps=1, lr=1e-30)
    run = stage("t2i", data, tiny_model, tmp_path / "out", vq=vq, data_t2i=(file,), loop=still, vocabulary="shared")
    list(train(run))
    before, after = (load_file(p / "model.safetensors") for p in (tiny_model, run.output))
    text = tiny_config.text.vocab_size
    assert after["vocabulary.weight"].shape == (text + 96, tiny_config.backbone.d_model)
    torch.testing.assert_close(after["vocabulary.weight"][:text], before["text_embedding.weight"], rtol=0, atol=1e-20)
    assert 0.015 < after["vocabulary.weight"][text:].std() < 0.025


def test_a_rehearsal_counts_what_the_tasks_share(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    run = stage("t2i", data, tiny_model, tmp_path / "out", vocabulary="shared", lora="shared", dry_run=True)
    plan, *_ = [event for event in train(run) if isinstance(event, Plan)]
    counted = {part: (whole, trained) for part, whole, trained in plan.parts}
    assert counted["vocabulary"][0] == counted["vocabulary"][1] > 0
    assert counted["lora_shared"][0] == counted["lora_shared"][1] > 0
