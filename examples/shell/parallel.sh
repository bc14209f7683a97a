#!/bin/sh
# Draws many prompts with several processes; run it again and it goes on where it stopped.
# Run: examples/shell/parallel.sh [PROMPTS.txt [FOLDER]]. PROCESSES=4 for four of them; one is enough on a GPU.
set -eu
prompts=${1:-prompts.txt}
folder=${2:-pictures}
mkdir -p "$folder"

# Each process takes eight prompts: starting the model costs a few seconds. One thread each, so that they do not wait
# for each other. The paths of the pictures come out as they are written.
tr '\n' '\0' < "$prompts" |
  OMP_NUM_THREADS=1 xargs -0 -n "${PROMPTS_EACH:-8}" -P "${PROCESSES:-2}" sh -c '
    folder=$1; shift
    printf "%s\n" "$@" | omnimamba generate - -q --skip-existing --seed 7 -o "$folder/{prompt-slug}-{seed}.png"
  ' sh "$folder"
