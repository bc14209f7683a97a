#!/usr/bin/env bash
# omnimamba among other programs: results on stdout, talk on stderr, "-" for stdin and stdout, exit codes that mean
# something. Run: examples/pipelines.sh [FOLDER]. OMNIMAMBA_MODEL names another model than the bundled one.
set -euo pipefail
mkdir -p "${1:-pictures}"
cd "${1:-pictures}"

# A prompt a line in, a file each out; their paths are printed.
printf '%s\n' "a red fox" "two cats" "a blue car" |
  omnimamba generate - --seed 7 --force -o '{prompt-slug}-{seed}.png' > drawn.txt

# Many pictures, one start of the model: NAME<TAB>CAPTION a line, for cut, sort, grep and awk.
omnimamba caption ./*.png "what is here?" | sort > captions.tsv

# From words to a picture and back to words, without a file.
omnimamba generate "a red fox" --seed 7 -o - | omnimamba caption - "what is here?" > said.txt

# Every file that find finds, whatever its name, as JSON lines for jq or Python. One that is no picture does not stop
# the others: its error goes to stderr, and the exit code is 6.
echo "not a picture" > "my notes.txt"
code=0
find . -name '*.png' -print0 -o -name '*notes.txt' -print0 | sort -z |
  omnimamba caption --from - -0 --json -p "what color is the background?" > grounds.jsonl 2> errors.txt || code=$?
echo "exit code $code, $(grep -c . grounds.jsonl) answers"
