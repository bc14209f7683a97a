"""What scripts rely on. A change here is a change for users: write it into CHANGELOG too."""

import re

import pytest

from tests.cli.conftest import Run

COMMON = "--quiet --verbose --color --json --help"
MODEL = "--model --offline --device --dtype"
SAMPLING = "--quantize --temperature --top-k --top-p --min-p --repetition-penalty --seed --batch-size"
FLAGS = {
    "caption": f"{MODEL} {SAMPLING} --prompt --template --from --max-new-tokens --with-filename --no-filename "
    "--stream --no-stream --fail-fast --questions --save-state --load-state --force",
    "chat": f"{MODEL} {SAMPLING.replace(' --batch-size', '')} --template --max-new-tokens --load-state "
    "--follow --no-follow --show --no-show --history --no-history",
    "generate": f"{MODEL} {SAMPLING} --output --count --from --force --skip-existing --format --guidance --candidates "
    "--metadata --no-metadata --grid --show",
    "download": "--task --dir --from --dtype --keep --verify --dry-run --force --offline",
    "models": "",
    "remove": "--yes",
    "export": "--output --repo --license --notes --force",
    "convert": "--dtype --preset --force",
    "doctor": "",
    "bench": f"{MODEL} --seq-len --task --batch --baseline --full --seconds --plot --force",
}


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_the_listed_ones(run: Run, command: str) -> None:
    options = run(command, "--help").out.split("Options:")[1]
    # an option stands at the start of its row, perhaps after its short twin or before its opposite
    rows = re.findall(r"^ {2}(?:-\w, )?(--[\w-]+)(?: / |/)?(--[\w-]+)?", options, re.MULTILINE)
    assert {flag for row in rows for flag in row if flag} == set(f"{FLAGS[command]} {COMMON}".split())


SHORT = {"-o": "--output", "-n": "--count", "-p": "--prompt", "-q": "--quiet", "-v": "--verbose", "-h": "--help"}


@pytest.mark.parametrize("command", FLAGS)
def test_a_letter_means_the_same_everywhere(run: Run, command: str) -> None:
    for letter, name in re.findall(r"^ {2}(-\w), (--[\w-]+)", run(command, "--help").out, re.MULTILINE):
        assert {**SHORT, "-m": "--model", "-H": "--with-filename"}[letter] == name
