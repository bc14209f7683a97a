"""Published files into a model directory, at sizes that take no time."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnimamba_cli.config import TextConfig
from omnimamba_cli.data.tokenizer import train_bpe
from omnimamba_cli.engine import convert_files, sources
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.engine.convert_files import ConvertEvent, Finished, Note, PartWritten, SourceRead
from omnimamba_cli.engine.safetensors_io import read_header
from omnimamba_cli.errors import CheckpointError, ConfigError, ExitCode, InputError, UsageError
from omnimamba_cli.model import convert as names
from omnimamba_cli.model.vision import Tower
from omnimamba_cli.model.vq import VQModel
from omnimamba_cli.presets import PRESETS
from tests.cases.published import CONFIG, TOWERS, published, write_files


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", CONFIG)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The published files, each as its authors store it."""
    return write_files(tmp_path_factory.mktemp("published"))


def run(*paths: Path, dest: Path, **options) -> list[ConvertEvent]:  # type: ignore[no-untyped-def]
    return list(convert_files.convert(list(paths), dest, **options))


ALL = ("tok.json", "siglip", "vq.pt", "main.pth", "dino")


def test_all_files_in_any_order_make_a_whole_model(files: dict[str, Path], tmp_path: Path) -> None:
    events = run(*(files[name] for name in ALL), dest=tmp_path / "m", preset="tiny")
    assert [type(e).__name__ for e in events].count("SourceRead") == 5
    assert {e.file for e in events if isinstance(e, PartWritten)} == {
        "model.safetensors", "vision.safetensors", "vq.safetensors", "tokenizer.json",
    }  # fmt: skip
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.lacks == ()
    assert any("codebook_used" in e.text for e in events if isinstance(e, Note))
    loaded = load_directory(tmp_path / "m")
    assert loaded.model is not None
    back = names.to_published(loaded.model.state_dict(), loaded.config)
    assert all(torch.equal(back[name], tensor.to(back[name].dtype)) for name, tensor in published().items())
    pixels = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert loaded.towers is not None
    assert loaded.towers(pixels).shape == (1, 9, 24)


def test_towers_give_the_published_features(files: dict[str, Path], tmp_path: Path) -> None:
    run(*(files[name] for name in ("main.pth", "dino", "siglip")), dest=tmp_path / "m", preset="tiny")
    towers = load_directory(tmp_path / "m", parts=("vision",)).towers
    import timm

    options = {**TOWERS[1].options, "img_size": 48}
    whole = timm.create_model(TOWERS[1].name, pretrained=False, num_classes=0, **options).eval()
    whole.load_state_dict(load_file(files["siglip"]))
    pixels = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = whole.forward_intermediates(
            (pixels - 0.5) / 0.5, indices=[1], norm=False, output_fmt="NLC", intermediates_only=True
        )[0]
    assert torch.allclose(towers(pixels)[..., 16:], expected, atol=1e-6)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("how", "weights"), [("keep", "float16"), ("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")]
)
def test_dtype_is_what_was_asked(files: dict[str, Path], tmp_path: Path, how: str, weights: str) -> None:
    run(files["main.pth"], dest=tmp_path / "m", dtype=how)
    header = read_header(tmp_path / "m" / "model.safetensors")
    found = {str(info.dtype) for name, info in header.tensors.items() if not name.endswith(("A_log", "dt_bias", ".D"))}
    assert found == {f"torch.{weights}"}
    assert header.tensors["layers.0.mixer.A_log"].dtype == torch.float32


def test_a_partial_conversion_says_what_is_lacking_and_takes_it_later(files: dict[str, Path], tmp_path: Path) -> None:
    last = run(files["main.pth"], dest=tmp_path / "m")[-1]
    assert isinstance(last, Finished)
    assert [text.split(" (")[0] for text in last.lacks] == [
        "it cannot look at pictures", "it cannot draw pictures", "it cannot read or write text",
    ]  # fmt: skip
    assert load_directory(tmp_path / "m", parts=("model",)).model is not None
    with pytest.raises(CheckpointError, match=r"no vq\.safetensors: it cannot draw") as caught:
        load_directory(tmp_path / "m", parts=("vq",))
    assert f"omnimamba convert vq_ds16_t2i.pt {tmp_path / 'm'}" in str(caught.value.hint)

    model = (tmp_path / "m" / "model.safetensors").read_bytes()
    run(files["vq.pt"], dest=tmp_path / "m")
    assert load_directory(tmp_path / "m", parts=("model", "vq")).config.vq == CONFIG.vq
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == model
    assert "image tokenizer" in (tmp_path / "m" / "README.md").read_text()
    with pytest.raises(InputError, match=r"already has vq\.safetensors"):
        run(files["vq.pt"], dest=tmp_path / "m")
    run(files["vq.pt"], dest=tmp_path / "m", force=True)
    assert os.listdir(tmp_path) == ["m"]


def test_a_part_that_stays_must_fit_the_new_model(files: dict[str, Path], tmp_path: Path) -> None:
    run(files["main.pth"], files["vq.pt"], dest=tmp_path / "m", preset="tiny")
    before = (tmp_path / "m" / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"m/vq\.safetensors does not fit"):
        run(files["main.pth"], dest=tmp_path / "m", force=True)  # without a preset, its image tokenizer is LlamaGen's
    assert (tmp_path / "m" / "config.json").read_bytes() == before


def bpe(path: Path, size: int) -> Path:
    words = " ".join(chr(97 + i) + chr(97 + j) for i in range(12) for j in range(12))
    tokenizer = train_bpe([words], size)
    assert tokenizer.get_vocab_size() == size
    tokenizer.save(str(path))
    return path


def test_the_tokenizer_tells_where_the_special_ids_start(files: dict[str, Path], tmp_path: Path) -> None:
    guess = run(files["main.pth"], dest=tmp_path / "guess")
    assert any("taken to be 310 ids" in e.text for e in guess if isinstance(e, Note))
    sure = run(files["main.pth"], bpe(tmp_path / "t", 303), dest=tmp_path / "sure")[-1]
    assert isinstance(sure, Finished)
    assert sure.config.text == TextConfig(base_vocab_size=303)
    assert not any(isinstance(e, Note) for e in run(files["main.pth"], tmp_path / "t", dest=tmp_path / "third"))


@pytest.mark.parametrize(("size", "options"), [(290, {}), (315, {}), (301, {"preset": "tiny"})])
def test_a_tokenizer_that_does_not_fit_is_refused(
    files: dict[str, Path], tmp_path: Path, size: int, options: dict[str, str]
) -> None:
    with pytest.raises(CheckpointError, match=f"has {size} ids"):
        run(files["main.pth"], bpe(tmp_path / "t", size), dest=tmp_path / "m", **options)


def test_a_plain_mamba2_makes_a_whole_untrained_model(files: dict[str, Path], tmp_path: Path) -> None:
    events = run(files["base.bin"], dest=tmp_path / "m", preset="tiny")
    assert any("untrained" in e.text for e in events if isinstance(e, Note))
    model = load_directory(tmp_path / "m", parts=("model",)).model
    assert model is not None
    assert torch.equal(model.norm_f.weight, torch.load(files["base.bin"])["backbone.norm_f.weight"])
    assert model.dtype == torch.float16
    assert model.image_embedding.weight.dtype == torch.float16


def test_an_older_torch_file_is_read_too(tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert isinstance(run(tmp_path / "old.pth", dest=tmp_path / "m")[0], SourceRead)


def refused(tensors: object, tmp_path: Path) -> CheckpointError:
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "bad.pth", dest=tmp_path / "m")
    assert os.listdir(tmp_path) == ["bad.pth"]
    return caught.value


def test_missing_extra_and_misshapen_are_each_named_and_nothing_is_written(tmp_path: Path) -> None:
    tensors = published()
    prefix = "llm_backbone.mamba.backbone.layers.1."
    del tensors[prefix + "norm.weight"]
    tensors["extra.weight"] = torch.zeros(1)
    tensors[prefix + "mixer.conv1d.bias"] = torch.zeros(3)
    message = refused(tensors, tmp_path).message
    assert f"{prefix}norm.weight is missing" in message
    assert "extra.weight is not expected" in message
    assert f"{prefix}mixer.conv1d.bias is (3,) instead of (96,)" in message


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_in_one_line(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "evil.pth"
    torch.save({**published(), "x": Attack(tmp_path / "pwned")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"names posix\.mkdir|names os\.mkdir|names nt\.mkdir") as caught:
        sources.open_source(path)
    assert caught.value.exit_code == ExitCode.MODEL
    assert "\n" not in caught.value.message
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!doctype html>", "knows"),
        (b'{"a": 1}', "knows"),
        (b"{broken", "knows"),
        (b"PK\x03\x04 nothing more", "damaged or no torch file"),
        (b"\x80\x02 nothing more", "damaged or no torch file"),
        (b"\xff" * 8 + b"{", "no safetensors header"),
    ],
)
def test_other_content_is_refused(content: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=word):
        sources.open_source(tmp_path / "x")


def test_a_cut_off_torch_file_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    data = files["main.pth"].read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        sources.open_source(tmp_path / "cut.pth")


def test_values_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    assert "'step' is a int, not a tensor" in refused({**published(), "step": 3}, tmp_path).message
    assert "no table of tensors" in refused([torch.zeros(1)], tmp_path).message
    assert "unknown model (first: a.b)" in refused({"a.b": torch.zeros(1)}, tmp_path).message


def test_sources_that_do_not_fit_together_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    dest = tmp_path / "m"
    with pytest.raises(InputError, match="cannot be read"):
        run(tmp_path / "none.pth", dest=dest)
    with pytest.raises(UsageError, match="no source tells which model"):
        run(files["vq.pt"], dest=dest)
    with pytest.raises(UsageError, match="are both"):
        run(files["main.pth"], files["base.bin"], files["vq.pt"], files["vq.pt"], dest=dest)
    with pytest.raises(CheckpointError, match="vit_so400m_patch14_siglip_384 is not among the sources"):
        run(files["main.pth"], files["dino"], dest=dest, preset="tiny")
    with pytest.raises(CheckpointError, match=r"is an encoder of width 16; the model's are unknown \(width 24\)"):
        run(files["main.pth"], files["dino"], dest=dest)
    with pytest.raises(CheckpointError, match="does not fit"):
        run(files["main.pth"], dest=dest, preset="nano")
    with pytest.raises(ConfigError, match="there is no preset"):
        run(files["main.pth"], dest=dest, preset="tini")
    assert os.listdir(tmp_path) == []


def test_an_image_tokenizer_of_another_codebook_is_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    save_file(VQModel(replace(CONFIG.vq, codebook_size=32)).state_dict(), tmp_path / "vq")
    with pytest.raises(CheckpointError, match="has 32 codes, the model draws with 64"):
        run(files["main.pth"], tmp_path / "vq", dest=tmp_path / "m")


def test_a_tower_with_a_strange_tensor_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    tower = load_file(files["siglip"])
    save_file(tower | {"blocks.0.strange": torch.zeros(1)}, tmp_path / "extra")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.strange is not expected"):
        run(files["main.pth"], files["dino"], tmp_path / "extra", dest=tmp_path / "m", preset="tiny")
    del tower["blocks.1.norm1.weight"]
    save_file(tower, tmp_path / "less")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm1\.weight is missing"):
        run(files["main.pth"], files["dino"], tmp_path / "less", dest=tmp_path / "m", preset="tiny")


def test_position_tables_are_resampled_to_the_models_grid(files: dict[str, Path], tmp_path: Path) -> None:
    assert load_file(files["dino"])["pos_embed"].shape[1] == 16
    run(files["main.pth"], files["dino"], files["siglip"], dest=tmp_path / "m", preset="tiny")
    stored = load_file(tmp_path / "m" / "vision.safetensors")
    assert stored["towers.0.net.pos_embed"].shape == (1, 9, 16)
    assert {f"towers.0.net.{n}" for n in Tower(TOWERS[0]).net.state_dict()} <= stored.keys()


def test_a_full_disk_is_said_before_anything_is_written(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="are free there"):
        run(files["main.pth"], dest=tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_no_model_is_left_alone(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no model directory"):
        run(files["main.pth"], dest=tmp_path, force=True)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_memory_stays_below_one_and_a_half_times_the_file(tmp_path: Path) -> None:
    torch.save({f"t{i}": torch.zeros(1 << 22, dtype=torch.float16) for i in range(16)}, tmp_path / "x.pth")
    code = """
import resource, sys
from pathlib import Path
from omnimamba_cli.engine import safetensors_io, sources, storage
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors = sources._read_pickle(Path(sys.argv[1]), zipped=True)
safetensors_io.write_entries(Path(sys.argv[2]), storage.entries(tensors, "fp32"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.pth"), str(tmp_path / "y")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 1.5 * (tmp_path / "x.pth").stat().st_size
