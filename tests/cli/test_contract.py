"""What scripts rely on. A change here is a change for users: write it into CHANGELOG too."""

import re

import pytest

from tests.cli.conftest import Run

COMMON = "--quiet --verbose --color --json --help"
MODEL = "--model --offline --device --dtype"
SAMPLING = "--quantize --temperature --top-k --top-p --min-p --repetition-penalty --seed --batch-size"
LOOP = (
    "--config --resume --dry-run --force --device --dtype --weight-decay --clip --accumulate --ema --log-every "
    "--save-every --save-minutes --keep --max-minutes --clock-minutes --workers --seed --tensorboard --output"
)
STAGE = (
    f"{LOOP} --init --image-root --tokenizer --vision --vq --unfreeze --caption-dropout --steps --lr --warmup "
    "--checkpoint-activations --eval-every --eval-samples"
)
FLAGS = {
    "train-stage1": f"{STAGE} --task --data --batch --keep-question --ignore-question --eval-data",
    "train-stage2": f"{STAGE} --data-mmu --data-t2i --init-mmu --init-t2i --batch-mmu --batch-t2i --weight-mmu "
    "--weight-t2i --eval-mmu --eval-t2i",
    "train-tokenizer": f"{LOOP} --data --vocab-size --preset --batch --init --steps --lr --warmup --revive-every "
    "--sheet-every --compile",
    "caption": f"{MODEL} {SAMPLING} --prompt --template --from --max-new-tokens --with-filename --no-filename "
    "--stream --no-stream --fail-fast",
    "generate": f"{MODEL} {SAMPLING} --output --count --from --force --skip-existing --format --guidance --candidates "
    "--metadata --no-metadata",
    "download": "--task --dir --from --dtype --keep --verify --dry-run --force --offline",
    "models": "",
    "remove": "--yes",
    "export": "--output --repo --license --notes --force",
    "convert": "--dtype --preset --force",
    "doctor": "",
    "data check": "--image-root --model --preset --tokenizer --task --decode --all --examples --list --max-bad-share "
    "--speed --seed",
    "data index": "--output --force",
    "tokenize": "--data --vq --output --image-root --preset --shard --batch-size --workers --max-bad-share --force "
    "--device",
    "bench": f"{MODEL} --seq-len --task --batch --baseline --full --seconds --plot --force --rows-mmu --rows-t2i "
    "--checkpoint-activations --quantize",
}


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


@pytest.mark.parametrize("command", ["train-stage1", "train-stage2"])
def test_a_fresh_model_can_be_made_without_the_papers_decouplings(run: Run, command: str) -> None:
    options = run(command, "--help").out
    assert "--vocabulary" in options
    assert "--lora" in options
