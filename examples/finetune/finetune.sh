#!/usr/bin/env bash
# nano learns to name and to draw your own pictures, on a laptop, by the public commands.
#
#   examples/finetune/finetune.sh PICTURES OUT      PICTURES holds the pictures and captions.jsonl
#
# Run it again after an interruption: every step continues where it was. MODEL is another model to start from;
# TOKENIZER_OPTIONS and STAGE2_OPTIONS are further options of the two trainings, such as "--steps 120".
set -euo pipefail

pictures=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
omnimamba=${OMNIMAMBA:-omnimamba}
model=${MODEL:-$here/../../weights/nano}
mkdir -p "$out"

echo "== 1 of 4: the image tokenizer sees your pictures" >&2
$omnimamba train-tokenizer image --config "$here/tokenizer.toml" --init "$model" --data "$pictures" \
  -o "$out/vq" --resume ${TOKENIZER_OPTIONS:-}

echo "== 2 of 4: pictures become codes" >&2
[ -e "$out/codes.jsonl" ] || $omnimamba tokenize --data "$pictures/captions.jsonl" --vq "$out/vq" -o "$out/codes.jsonl"

echo "== 3 of 4: the model learns to name and to draw them" >&2
$omnimamba train-stage2 --config "$here/stage2.toml" --init "$model" --vq "$out/vq" \
  --data-mmu "$pictures/captions.jsonl" --data-t2i "$out/codes.jsonl" -o "$out/model" --resume ${STAGE2_OPTIONS:-}

echo "== 4 of 4: what it says of the first picture, and what it draws for its words" >&2
first=$(find "$pictures" \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' -o -iname '*.webp' \) | sort | head -n 1)
words=$($omnimamba caption -m "$out/model" "$first")
echo "$first: $words"
$omnimamba generate -m "$out/model" "$words" -o "$out/drawn.png" --seed 1 --force
