#!/bin/sh
# JSON lines in and out, through jq. Run: examples/shell/jsonl.sh [FOLDER], where FOLDER holds pictures.
set -eu
cd "${1:-photos}"

# Three questions of each picture, which is looked at once.
omnimamba caption ./*.png -p "what is here?" -p "how many?" -p "what color is the background?" --json > answers.jsonl

# A table: the answers of a picture side by side.
jq -rs 'group_by(.image)[] | [.[0].image, .[].caption] | @csv' answers.jsonl > answers.csv

# The pictures with something to say about "what is here?", by the length of the answer.
jq -rs '[.[] | select(.question == "what is here?" and .tokens > 1)] | sort_by(-.tokens)[] | .image' answers.jsonl

# Draw two of the answers again, and keep which picture came from which words with which seed.
mkdir -p again
jq -r 'select(.question == "what is here?") | .caption | gsub("\\s+"; " ")' answers.jsonl | head -n 2 |
  omnimamba generate - --force --seed 1 -o 'again/{n}.png' --json |
  jq -c '{path, prompt, seed}' > drawn.jsonl
