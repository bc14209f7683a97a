"""What scripts rely on. A change here is a change for users: write it into CHANGELOG too."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli.cli import settings
from omnimamba_cli.cli.app import ALIASES, COMMANDS
from omnimamba_cli.errors import ExitCode
from tests.cli.conftest import FakeSession, Run

COMMON = "--quiet --verbose --color --json --help"
MODEL = "--model --offline --device --dtype"
SAMPLING = "--quantize --temperature --top-k --top-p --min-p --repetition-penalty --seed --batch-size"
MANY = "--output --from --append --skip-existing --force --fail-fast --deterministic --dry-run"
LOOP = (
    "--config --resume --dry-run --force --device --dtype --weight-decay --clip --accumulate --ema --log-every "
    "--save-every --save-minutes --keep --max-minutes --clock-minutes --workers --max-bad-share --seed --tensorboard "
    "--output"
)
STAGE = (
    f"{LOOP} --init --image-root --tokenizer --vision --vq --vocabulary --lora --unfreeze --caption-dropout --steps "
    "--lr --warmup --checkpoint-activations --eval-every --eval-samples"
)
FLAGS = {
    "caption": f"{MODEL} {SAMPLING} {MANY} --prompt --questions --template --recursive --allow-urls --max-new-tokens "
    "--with-filename --no-filename --stream --no-stream --save-state --load-state",
    "chat": f"{MODEL} {SAMPLING.replace(' --batch-size', '')} --template --max-new-tokens --load-state "
    "--follow --no-follow --show --no-show --history --no-history",
    "generate": f"{MODEL} {SAMPLING} {MANY} --count --format --guidance --candidates --metadata --no-metadata --grid "
    "--show",
    "download": "--task --dir --from --dtype --keep --verify --dry-run --force --offline",
    "models": "",
    "remove": "--yes",
    "export": "--output --repo --license --notes --force",
    "convert": "--dtype --preset --force",
    "doctor": "",
    "bench": f"{MODEL} --seq-len --task --batch --baseline --full --seconds --plot --force --rows-mmu --rows-t2i "
    "--checkpoint-activations --quantize",
    "eval": f"{MODEL} --quantize --data --limit --draw --sheet --failures --out --force",
    "data check": "--image-root --model --preset --tokenizer --task --decode --all --examples --list --max-bad-share "
    "--speed --seed",
    "data index": "--output --force",
    "train-tokenizer": f"{LOOP} --data --vocab-size --preset --batch --init --steps --lr --warmup --revive-every "
    "--sheet-every --compile",
    "tokenize": "--config --data --vq --output --image-root --preset --shard --batch-size --workers --max-bad-share "
    "--force --device",
    "train-stage1": f"{STAGE} --task --data --batch --keep-question --ignore-question --eval-data",
    "train-stage2": f"{STAGE} --data-mmu --data-t2i --init-mmu --init-t2i --batch-mmu --batch-t2i --weight-mmu "
    "--weight-t2i --eval-mmu --eval-t2i",
    "man": "",
}


def test_commands_are_the_listed_ones() -> None:
    assert list(COMMANDS) == list(dict.fromkeys(name.split()[0] for name in FLAGS))
    assert ALIASES == {"benchmark": "bench"}


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_the_listed_ones(run: Run, command: str) -> None:
    options = run(*command.split(), "--help").out.split("Options:")[1]
    # an option stands at the start of its row, perhaps after its short twin or before its opposite
    rows = re.findall(r"^ {2}(?:-\w, )?(--[\w-]+)(?: / |/)?(--[\w-]+)?", options, re.MULTILINE)
    assert {flag for row in rows for flag in row if flag} == set(f"{FLAGS[command]} {COMMON}".split())


SHORT = {"-o": "--output", "-n": "--count", "-p": "--prompt", "-q": "--quiet", "-v": "--verbose", "-h": "--help"}


@pytest.mark.parametrize("command", FLAGS)
def test_a_letter_means_the_same_everywhere(run: Run, command: str) -> None:
    for letter, name in re.findall(r"^ {2}(-\w), (--[\w-]+)", run(*command.split(), "--help").out, re.MULTILINE):
        assert {**SHORT, "-m": "--model", "-H": "--with-filename"}[letter] == name


def test_exit_codes_are_the_listed_ones() -> None:
    codes = {"DONE": 0, "BUG": 1, "USAGE": 2, "INPUT": 3, "MODEL": 4, "DEVICE": 5, "SOME_FAILED": 6}
    assert {code.name: code.value for code in ExitCode} == {
        **codes,
        "INTERRUPTED": 130,
        "CLOSED_PIPE": 141,
        "TERMINATED": 143,
    }


CAPTION = "schema image sha256 question text caption finish_reason tokens seconds seed model"
DRAWN = "schema path prompt seed run_seed width height format seconds model"
FIELDS = {
    "caption a.png --json": CAPTION,
    "caption a.png -o a.txt --json": f"{CAPTION} output",
    "caption a.png --json --dry-run": "schema image question output",
    "generate fox -o fox.png --json": DRAWN,
    "generate fox -o fox.png --json --dry-run": "schema path prompt seed format",
    "doctor --json": "schema omnimamba python platform cpus packages devices kernels models config environment",
    "man --json": "schema name text",
}


@pytest.mark.parametrize("line", FIELDS)
def test_json_fields_are_the_listed_ones(run: Run, fake: FakeSession, tmp_path: Path, line: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = run(*line.split())
    assert list(json.loads(result.out)) == FIELDS[line].split()


@pytest.mark.parametrize(("line", "fields"), [("caption a.png", CAPTION), ("generate fox -o fox.png", DRAWN)])
def test_an_appended_line_has_the_same_fields(
    run: Run, fake: FakeSession, tmp_path: Path, line: str, fields: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run(*line.split(), "--append", "log.jsonl").code == 0
    assert list(json.loads((tmp_path / "log.jsonl").read_text())) == fields.split()


@pytest.mark.parametrize(("command", "fields"), [("caption", CAPTION), ("generate", DRAWN)])
def test_help_names_every_json_field(run: Run, command: str, fields: str) -> None:
    text = " ".join(run(command, "--help").out.split("Options:")[0].split())
    for field in set(fields.split()) - {"caption"}:  # the older name of text
        assert re.search(rf"\b{field}\b", text), field


def test_variables_and_shared_settings_are_the_listed_ones(run: Run) -> None:
    text = run("--help").out + "".join(run(command, "--help").out for command in COMMANDS)
    names = {f"OMNIMAMBA_{name}" for name in "MODEL DEVICE DTYPE SEED KERNELS CONFIG".split()}
    assert set(re.findall(r"OMNIMAMBA_[A-Z]+", text)) - {"OMNIMAMBA_PDL"} == names
    shared = "model device dtype quantize seed offline quiet verbose color batch-size deterministic"
    assert " ".join(settings.SHARED) == shared
