"""Model directories: what is written, what is read back, what is refused."""

import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnimamba_cli.config import Mamba2Config, ModelConfig, TextConfig, TowerConfig, VQConfig
from omnimamba_cli.data.tokenizer import TextTokenizer, train_bpe
from omnimamba_cli.engine import checkpoint, storage
from omnimamba_cli.engine.checkpoint import FILES, ModelFiles, load_directory, save_directory
from omnimamba_cli.engine.safetensors_io import read_header, read_safetensors, write_entries, write_safetensors
from omnimamba_cli.errors import CheckpointError, InputError
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.model.vq import VQModel

CONFIG = ModelConfig(
    name="tiny",
    backbone=Mamba2Config(d_model=32, n_layer=2, d_state=16, headdim=16, lora_rank=2),
    text=TextConfig(base_vocab_size=300),
    vq=VQConfig(image_size=16, codebook_size=64, z_channels=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4),
    towers=(
        TowerConfig(
            name="vit_tiny_patch16_224",
            width=24,
            patches=4,
            image_size=32,
            mean=(0.1, 0.2, 0.3),
            std=(0.5, 0.6, 0.7),
            options={"depth": 3, "embed_dim": 24},
        ),
    ),
    caption_tokens=8,
    t2i_positions=80,
    mmu_positions=64,
)


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    torch.manual_seed(0)
    tokenizer = TextTokenizer(train_bpe(["a red fox", "a blue bird"], 300), CONFIG.text)
    model, towers, vq = OmniMamba(CONFIG), VisionTowers(CONFIG.towers), VQModel(CONFIG.vq)
    for module in (model, towers, vq):
        for parameter in module.parameters():
            parameter.data.normal_(std=0.05)
    return ModelFiles(CONFIG, model, towers, vq, tokenizer)


@pytest.fixture(scope="module")
def saved(files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_directory(path, files)
    return path


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "tiny")


def bits(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("how", ["fp32", "fp16", "bf16", "int8"])
def test_save_load_save_gives_the_same_bytes(files: ModelFiles, tmp_path: Path, how: storage.Storage) -> None:
    save_directory(tmp_path / "one", files, storage=how)
    save_directory(tmp_path / "two", load_directory(tmp_path / "one"), storage=how)
    assert sorted(os.listdir(tmp_path / "one")) == sorted(FILES)
    assert bits(tmp_path / "one") == bits(tmp_path / "two")


def test_a_loaded_model_is_the_saved_one(files: ModelFiles, saved: Path) -> None:
    loaded = load_directory(saved)
    assert loaded.config == CONFIG
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("a red fox")) == "a red fox"
    for part, module in files.modules().items():
        mine, theirs = module.state_dict(), loaded.modules()[part].state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert not loaded.modules()[part].training


def test_towers_normalise_pictures_after_loading_as_before(files: ModelFiles, saved: Path) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    towers = load_directory(saved, parts=("vision",)).towers
    assert torch.equal(towers(pixels), files.towers(pixels))  # type: ignore[misc]


def test_buffers_that_no_file_holds_are_real_after_loading(tmp_path: Path) -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    module = checkpoint._load(tmp_path, "model", lambda: torch.nn.Sequential(Table())[0], "cpu", None)
    assert torch.equal(module.table, torch.arange(3.0))
    assert not module.weight.any()


def test_loading_runs_no_initialisation(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = []
    monkeypatch.setattr(torch.nn.init, "normal_", lambda t, **_: filled.append(t.device.type) or t)
    load_directory(saved, parts=("model",))
    assert set(filled) == {"meta"}


def test_tensors_stay_in_the_mapped_file(directory: Path) -> None:
    loaded = load_directory(directory, parts=("model",))
    header = read_header(directory / "model.safetensors")
    info = header.tensors["norm_f.weight"]
    with (directory / "model.safetensors").open("r+b") as file:
        file.seek(header.data_start + info.start)
        file.write(struct.pack("<f", 7.0))
    assert loaded.model.norm_f.weight[0] == 7.0  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["fp32", "fp16", "int8"])
def test_state_parameters_stay_float32_in_half_precision(files: ModelFiles, tmp_path: Path, how: str) -> None:
    save_directory(tmp_path / "m", files, storage=how)  # type: ignore[arg-type]
    model = load_directory(tmp_path / "m", parts=("model",), dtype=torch.float16).model
    dtypes = {name: p.dtype for name, p in model.named_parameters()}  # type: ignore[union-attr]
    wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert wide == {f"layers.{i}.mixer.{p}" for i in (0, 1) for p in ("A_log", "dt_bias", "D")}
    assert torch.equal(model.layers[1].mixer.A_log, files.model.layers[1].mixer.A_log)  # type: ignore[union-attr]


def test_only_the_parts_asked_for_are_read(directory: Path) -> None:
    (directory / "vision.safetensors").unlink()
    loaded = load_directory(directory, parts=("model", "vq"))
    assert loaded.towers is None
    with pytest.raises(CheckpointError, match=r"no vision\.safetensors: it cannot look") as caught:
        load_directory(directory)
    assert "omnimamba convert" in str(caught.value.hint)


def test_a_missing_tokenizer_is_said_when_it_is_needed(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        _ = load_directory(directory, parts=()).tokenizer


# 8-bit storage


def rows(*values: float) -> torch.Tensor:
    return torch.randn(len(values), 128, generator=torch.Generator().manual_seed(0)) * torch.tensor(values)[:, None]


def test_8_bit_rows_are_within_half_a_step() -> None:
    weight = rows(1.0, 30.0, 1e-3, 1e4)
    values, scale = storage.quantize("w", weight)
    error = (storage.dequantize(values, scale, torch.float32) - weight).abs()
    assert (error <= scale.float()[:, None] * 0.57).all()  # half a step, and 127 steps of the fp16 scale's rounding
    assert values.abs().amax(1).tolist() == [127] * 4


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5, 1e-6, 1e-9, 0.0])
def test_8_bit_storage_repeats_exactly_down_to_the_smallest_scales(size: float) -> None:
    values, scale = storage.quantize("w", rows(*[size] * 64))
    again = storage.quantize("w", storage.dequantize(values, scale, torch.float32))
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e8])
def test_8_bit_storage_refuses_what_it_cannot_hold(value: float) -> None:
    with pytest.raises(CheckpointError, match="w holds"):
        storage.quantize("w", torch.full((2, 2), value))


def test_8_bit_file_holds_what_the_card_says(files: ModelFiles, tmp_path: Path) -> None:
    save_directory(tmp_path / "m", files, storage="int8")
    header = read_header(tmp_path / "m" / "model.safetensors")
    assert header.metadata == {"format": "omnimamba", "storage": "int8"}
    assert header.tensors["text_embedding.weight"].dtype == torch.int8
    scale = header.tensors["text_embedding.weight::scale"]
    assert (scale.dtype, scale.shape) == (torch.float16, (CONFIG.text.vocab_size,))
    assert header.tensors["layers.0.mixer.conv1d.weight"].dtype == torch.float16  # fewer than 4,096 elements
    assert "NAME::scale" in (tmp_path / "m" / "README.md").read_text()


def test_fp16_refuses_what_would_become_infinite() -> None:
    with pytest.raises(CheckpointError, match="w holds 1e\\+05") as caught:
        storage.cast("w", torch.tensor([1e5]), torch.float16)
    assert "bf16" in str(caught.value.hint)


# What is refused


def edit(directory: Path, change, name: str = "model.safetensors") -> None:  # type: ignore[no-untyped-def]
    tensors = {k: v.clone() for k, v in load_file(directory / name).items()}
    change(tensors)
    save_file(tensors, directory / name)


def test_missing_unexpected_and_misshapen_tensors_are_named_with_counts(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["layers.0.mixer.D"], tensors["layers.1.mixer.D"]
        tensors["lm_head.weight"] = torch.zeros(1)
        tensors["norm_f.weight"] = torch.zeros(31)

    edit(directory, change)
    with pytest.raises(CheckpointError) as caught:
        load_directory(directory, parts=("model",))
    message = caught.value.message
    assert "layers.0.mixer.D is missing (and 1 more)" in message
    assert "lm_head.weight is not expected" in message
    assert "norm_f.weight is (31,) instead of (32,)" in message


def test_a_weight_of_whole_numbers_is_refused(directory: Path) -> None:
    edit(directory, lambda t: t.update({"norm_f.weight": torch.zeros(32, dtype=torch.int64)}))
    with pytest.raises(CheckpointError, match=r"norm_f\.weight is stored as torch.int64"):
        load_directory(directory, parts=("model",))


def test_a_lone_int8_weight_is_refused(directory: Path) -> None:
    edit(directory, lambda t: t.update({"text_embedding.weight": t["text_embedding.weight"].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=r"text_embedding\.weight is stored as torch.int8"):
        load_directory(directory, parts=("model",))


def test_no_model_directory_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no directory"):
        load_directory(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no model directory: it has no config\.json"):
        load_directory(tmp_path)


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "no valid JSON"), ("[]", "must be an object"), ('{"nam": "x"}', "'nam'"), ("\xff", "no valid JSON")],
)
def test_a_wrong_config_is_a_model_error(directory: Path, text: str, word: str) -> None:
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=word):
        load_directory(directory)


def header_of(path: Path) -> tuple[dict[str, dict[str, list[int]]], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda d: b"", "empty"),
        (lambda d: d[:5], "no safetensors header"),
        (lambda d: d[:100], "no safetensors header"),
        (lambda d: d[:-1], "bytes of data, the file has"),
        (lambda d: d + b"x", "bytes of data, the file has"),
        (lambda d: struct.pack("<Q", 1 << 60) + d[8:], "no safetensors header"),
        (lambda d: b"hello, I am no model at all", "no safetensors header"),
        (lambda d: d[:8] + b"[" + d[9:], "no valid JSON"),
        (lambda d: struct.pack("<Q", 100_000) + b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_damaged_file_is_refused(directory: Path, damage, word: str) -> None:  # type: ignore[no-untyped-def]
    path = directory / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=word) as caught:
        load_directory(directory)
    assert "model.safetensors" in caught.value.message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"data_offsets": [0, 8]}, "span 8 bytes"),
        ({"data_offsets": [4, 132]}, "starts at byte"),
        ({"data_offsets": [-128, 0]}, "no whole number"),
        ({"dtype": ["F32"]}, "lacks dtype"),
        ({"data_offsets": [1 << 40, (1 << 40) + 128]}, "starts at byte"),
        ({"shape": [16]}, "span 128 bytes"),
        ({"shape": [1.5]}, "no whole number"),
        ({"dtype": "F4"}, "stored as F4"),
        ({"shape": None}, "lacks dtype, shape"),
    ],
)
def test_a_header_that_lies_is_refused(directory: Path, change: dict[str, object], word: str) -> None:
    path = directory / "model.safetensors"
    header, data = header_of(path)
    header["norm_f.weight"] |= change  # type: ignore[arg-type]
    with_header(path, header, data)
    with pytest.raises(CheckpointError, match=word) as caught:
        load_directory(directory)
    assert "norm_f.weight" in caught.value.message or word == "starts at byte"


def test_a_config_that_is_nested_without_end_is_refused(directory: Path) -> None:
    (directory / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json is no valid JSON: it is nested too deep"):
        load_directory(directory)


def test_the_writer_is_read_by_the_library_itself(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(3, dtype=torch.int8),
        "a": torch.randn(2, 3).T,
        "half": torch.randn(5).bfloat16(),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.5),
        "flag": torch.tensor([True]),
    }
    write_safetensors(tmp_path / "x", tensors, {"format": "pt"})
    read = load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k], tensors[k]) and read[k].dtype == tensors[k].dtype for k in tensors)
    assert read_safetensors(tmp_path / "x")[1] == {"format": "pt"}


def test_the_writer_leaves_nothing_when_a_tensor_fails(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("before")
    bad = storage.entries({"w": torch.full((64, 64), float("nan"))}, "int8")
    with pytest.raises(CheckpointError):
        write_entries(tmp_path / "x", bad)
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "before"


# Writing directories


def test_an_existing_model_is_replaced_only_when_asked(files: ModelFiles, directory: Path) -> None:
    before = bits(directory)
    with pytest.raises(InputError, match="exists"):
        save_directory(directory, files, storage="fp16")
    assert bits(directory) == before
    (directory / "LICENSE").write_text("mine")
    save_directory(directory, files, storage="fp16", overwrite=True)
    assert read_header(directory / "model.safetensors").metadata["storage"] == "fp16"
    assert (directory / "LICENSE").read_text() == "mine"
    assert os.listdir(directory.parent) == ["tiny"]


def test_a_folder_that_is_no_model_is_never_replaced(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="no model directory"):
        save_directory(tmp_path / "home", files, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_broken_off_save_leaves_the_old_model_and_nothing_else(
    files: ModelFiles, directory: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = bits(directory)
    changed = ModelFiles(replace(CONFIG, name="changed"), files.model, tokenizer=files.tokenizer)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "write_config", fail)
    with pytest.raises(error):
        save_directory(directory, changed, overwrite=True)
    assert bits(directory) == before
    assert os.listdir(directory.parent) == ["tiny"]


def test_an_unwritable_place_is_an_input_error(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_directory(tmp_path / "file" / "model", files)
