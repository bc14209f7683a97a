"""The commands around installed models, from the command line down to a Hub on loopback."""

import json
import socket
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli.cli import download as command
from omnimamba_cli.cli.output import Bar
from omnimamba_cli.engine import hub
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.engine.downloading import Progress
from tests.cli.conftest import Run
from tests.cli.test_output import make, written
from tests.loopback_hub import Fault, Hub


def test_from_empty_to_a_caption_and_a_picture(loopback: Hub, run: Run, tmp_path: Path) -> None:
    told = run("download", "tiny", "--dry-run")
    assert told.code == 0
    assert "to fetch" in told.out
    assert "org/main/OmniMamba.pth" in told.out
    result = run("download", "tiny")
    place = tmp_path / "data" / "omnimamba" / "tiny"
    assert (result.code, result.out) == (0, f"{place}\n")
    assert "got    org/vq/vq.pt" in result.err
    Image.new("RGB", (9, 9), "red").save("fox.png")
    asked = run("caption", "fox.png", "what is here?", "-m", "tiny", "--max-new-tokens", "2", "--offline")
    assert asked.code == 0, asked.err
    assert run("generate", "a fox", "-m", "tiny", "-o", "x.png", "--offline", "-q").out == "x.png\n"
    again = run("download", "tiny", "--json")
    assert json.loads(again.out)["fetched_bytes"] == 0
    assert "is complete" in again.err
    assert json.loads(run("download", "tiny", "--verify", "--json").out)["fetched_bytes"] == 0
    # a byte that only a whole reading finds
    with (place / "vq.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert json.loads(run("download", "tiny", "--json").out)["fetched_bytes"] == 0
    damaged = run("download", "tiny", "--verify")
    assert (damaged.code, damaged.out) == (4, "")
    assert "vq.safetensors has another hash" in damaged.err


def test_json_tells_the_plan(loopback: Hub, run: Run) -> None:
    record = json.loads(run("download", "tiny", "--task", "t2i", "--dry-run", "--json").out)
    assert [file["file"] for file in record["files"]] == [
        "org/main/OmniMamba.pth", "org/tokenizer/tokenizer.json", "org/vq/vq.pt",
    ]  # fmt: skip
    assert record["fetch_bytes"] == sum(file["bytes"] for file in record["files"])
    assert record["files"][0]["commit"] == loopback.commits["org/main"]


def test_quiet_says_nothing_but_errors(loopback: Hub, run: Run, tmp_path: Path) -> None:
    assert run("download", "tiny", "-q", "--dir", "m").err == ""
    loopback.gated.add("org/main")
    failed = run("download", "tiny", "-q", "--dir", "other")
    assert (failed.code, failed.out, failed.err.count("\n")) == (4, "", 2)
    assert failed.err.startswith("error: org/main/OmniMamba.pth could not be downloaded")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tyny"], 2, "did you mean 'tiny'"),
        (["me/mine", "--task", "mmu"], 2, "no option applies"),
        (["tiny", "--offline"], 4, "network is not to be used"),
        (["tiny", "--from", "nowhere"], 3, "no such folder"),
        (["me/mine"], 4, "no such repository"),
    ],
)
def test_what_cannot_be_downloaded_has_its_exit_code(
    loopback: Hub, run: Run, arguments: list[str], code: int, words: str
) -> None:
    result = run("download", *arguments)
    assert (result.code, result.out) == (code, "")
    assert words in result.err


@pytest.mark.parametrize("option", ["--dir", "--from"])
def test_an_unset_variable_is_no_folder(loopback: Hub, run: Run, option: str) -> None:
    result = run("download", "tiny", option, "")
    assert (result.code, result.out) == (2, "")
    assert f"error: {option} is empty\n" in result.err
    assert loopback.requests == []


def test_a_hub_id_works_wherever_a_model_does(loopback: Hub, run: Run, tiny_model: Path) -> None:
    loopback.add("me/mine", {path.name: path for path in tiny_model.iterdir()})
    assert load_directory(Path(run("download", "me/mine").out.strip())).config.name == "tiny"
    result = run("generate", "a fox", "-m", "me/mine@main", "-o", "x.png")
    assert (result.code, result.out) == (0, "x.png\n")
    assert "Fetching" not in result.err


def test_offline_opens_no_socket(
    loopback: Hub, run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, picture: str
) -> None:
    loopback.add("me/mine", {path.name: path for path in tiny_model.iterdir()})
    assert run("download", "me/mine").code == 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    assert run("caption", picture, "-m", "me/mine", "--offline").code == 0
    assert run("generate", "a fox", "-m", "me/mine", "--offline", "-o", "x.png").code == 0


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    out = make()
    teller = command.Teller(out, Bar())
    for second in range(40):
        now[0] = float(second)
        done = second * 1_000_000
        teller(Progress(key="a/b/c", done_bytes=done, size_bytes=10**8, all_done_bytes=done, all_size_bytes=10**8))
    assert written(out)[1].splitlines() == ["       c: 15.0 MB of 100.0 MB", "       c: 30.0 MB of 100.0 MB"]


# models, remove


@pytest.fixture
def own_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    (bundled / "nano").symlink_to(tiny_model)
    monkeypatch.setattr(hub, "bundled_folders", lambda: [bundled])


def test_models_are_listed_with_what_they_can_do(loopback: Hub, run: Run, own_bundle: None) -> None:
    run("download", "tiny", "--task", "t2i")
    rows = {row["name"]: row for row in map(json.loads, run("models", "--json").out.splitlines())}
    assert rows["tiny"]["tasks"] == ["t2i"]
    assert (rows["tiny"]["dtype"], rows["tiny"]["release"]) == ("fp16, fp32", "tiny")
    assert rows["nano"]["default_for"] == ["mmu", "t2i"]
    table = run("models").out.splitlines()
    assert table[0].split() == ["model", "tasks", "stored", "size", "directory"]
    assert "mmu* t2i*" in table[1]


def test_a_damaged_model_is_listed_as_one(run: Run, tmp_path: Path, own_bundle: None) -> None:
    broken = tmp_path / "data" / "omnimamba" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    result = run("models")
    assert result.code == 0
    assert "is no valid JSON" in next(line for line in result.out.splitlines() if line.startswith("broken"))


def test_removing_takes_a_yes_and_leaves_nothing_of_ours(
    loopback: Hub, run: Run, tmp_path: Path, own_bundle: None
) -> None:
    run("download", "tiny", "--keep")
    place = tmp_path / "data" / "omnimamba"
    asked = run("remove", "tiny")
    assert (asked.code, asked.out) == (2, "")
    assert "remove tiny --yes" in asked.err
    assert (place / "tiny" / "config.json").is_file()
    (place / "tiny" / "mine.txt").write_text("mine")
    result = run("remove", "tiny", "--yes")
    assert result.out.splitlines() == [str(place / "tiny"), str(place / "tiny.original")]
    assert "they stay" in result.err
    assert [p.name for p in place.rglob("*") if p.is_file()] == ["mine.txt"]
    assert "tiny" not in run("models").out.split()


def test_what_an_unfinished_download_left_can_be_removed(
    loopback: Hub, run: Run, tmp_path: Path, own_bundle: None
) -> None:
    loopback.faults["vq.pt"] = [Fault(status=403)]
    assert run("download", "tiny").code == 4
    place = tmp_path / "data" / "omnimamba"
    assert [p.name for p in place.iterdir()] == [".tiny.download"]
    assert run("remove", "tiny", "--yes").code == 0
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("nano", 3, "comes with the program"), ("nothing", 4, "no model 'nothing'"), ("../data", 3, "is no name")],
)
def test_what_is_not_the_users_is_not_removed(
    run: Run, tiny_model: Path, own_bundle: None, name: str, code: int, words: str
) -> None:
    result = run("remove", name, "--yes")
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert (tiny_model / "config.json").is_file()


# export


def test_an_exported_folder_is_a_whole_model_with_a_card(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "about.md").write_text("Trained on foxes.")
    arguments = ["--repo", "me/mine", "--license", "mit", "--notes", "about.md"]
    result = run("export", str(tiny_model), "-o", "out", *arguments)
    assert (result.code, result.out) == (0, "out\n")
    assert "hf upload me/mine out" in result.err
    assert load_directory(tmp_path / "out").vq is not None
    card = (tmp_path / "out" / "README.md").read_text()
    front = card.split("---")[1]
    assert "license: mit" in front
    assert "pipeline_tag: any-to-any" in front
    for words in ("Trained on foxes.", "--model me/mine", "| model.safetensors | `"):
        assert words in card
    assert run("export", str(tiny_model), "-o", "out").code == 3
    assert run("export", str(tiny_model), "-o", "out", "--force", "-q").code == 0


def test_only_the_models_own_files_are_exported(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    run_folder = shutil.copytree(tiny_model, tmp_path / "run")
    (run_folder / "snapshots").mkdir()
    (run_folder / "train.json").write_text("{}")
    (run_folder / "LICENSE").write_text("mine")
    (run_folder / "vq.safetensors").unlink()
    result = run("export", "run")
    assert result.code == 0
    assert "cannot draw" in result.err
    names = {path.name for path in (tmp_path / "run.export").iterdir()}
    assert names == {
        "config.json", "model.safetensors", "vision.safetensors", "tokenizer.json", "README.md", "LICENSE",
    }  # fmt: skip
    assert "This model is not whole" in (tmp_path / "run.export" / "README.md").read_text()


def test_a_model_that_does_not_fit_its_config_is_not_exported(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    text = (broken / "config.json").read_text()
    (broken / "config.json").write_text(text.replace('"t2i_positions": 96', '"t2i_positions": 97'))
    result = run("export", "broken")
    assert (result.code, result.out) == (4, "")
    assert not (tmp_path / "broken.export").exists()
