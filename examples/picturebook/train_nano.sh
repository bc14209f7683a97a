#!/usr/bin/env bash
# nano from rendered pictures to a packed model, by the public commands. Every step that is done is skipped, and
# training continues from its newest snapshot: run it again until it says "nano is ready".
#
#   examples/picturebook/train_nano.sh DATA OUT [STEP...]
#   STEP: pictures images vq (with captions words) codes t2i tower (with talks) mmu both pack
#
# DATA holds the picture sets (fetched by make.py), OUT what is made of them. Minutes are of an H100 and follow the
# clock, 57 in all with what is made between them; variables such as VQ_MINUTES replace them, and variables such as
# BOTH_OPTIONS are further options of a step ("--batch-mmu 320 --batch-t2i 160" for a small GPU). Resuming or starting a
# step again is always safe. A language model from scratch has no pretrained base, so stage 1 opens more than the
# paper's table does.
set -euo pipefail

data=$1 out=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
omnimamba="$python -m omnimamba_cli"
workers=${WORKERS:-$(nproc)}
beside=

# begins a step beside the next command, in a process group of its own: an interrupted script leaves nothing running
begin() {
  set -m
  "$@" &
  beside=$!
  set +m
}

finish() {
  wait "$beside"
  beside=
}

trap '[ -z "$beside" ] || kill -- "-$beside"' EXIT

run_pictures() { $python "$here/make.py" "$data" prepare; }

run_images() {
  [ -e "$out/images/done" ] && return
  $python "$here/make.py" "$data" images --n "${IMAGES:-120000}" --out "$out/images" --seed 1
  touch "$out/images/done"
}

run_captions() {
  [ -e "$out/captions/captions.jsonl" ] && return
  $python "$here/make.py" "$data" captions --n "${CAPTIONS:-400000}" --out "$out/captions" --seed 2
}

# the vocabulary of text, which a few conversations show as well as all of them
run_words() {
  [ -e "$out/tokenizer.json" ] && return
  $python "$here/make.py" "$data" train-mmu --n "${WORDS:-20000}" --out "$out/words" --seed 4
  $omnimamba train-tokenizer text --data "$out/captions/captions.jsonl" --data "$out/words/mmu.json" \
    --vocab-size 2048 -o "$out/tokenizer.json"
}

run_captions_and_words() {
  run_captions
  run_words
}

# its pictures are kept on the GPU: processors are free to make those that drawing is learnt from
run_vq() {
  begin run_captions_and_words
  $omnimamba train-tokenizer image ${VQ_INIT:+--init "$VQ_INIT"} --data "$out/images" --preset nano --batch 128 \
    --lr 8e-4 --warmup 200 --ema 0.999 --steps 200000 --clock-minutes "${VQ_MINUTES:-4.5}" \
    --workers "$workers" -o "$out/vq" --resume ${VQ_OPTIONS---compile}
  finish
}

run_codes() {
  [ -e "$out/codes.jsonl" ] && return
  $omnimamba tokenize --data "$out/captions/captions.jsonl" --vq "$out/vq" --batch-size 512 --workers "$workers" \
    -o "$out/codes.jsonl"
}

# drawing first: it needs the whole backbone
run_t2i() {
  $omnimamba train-stage1 --task t2i --init nano --unfreeze backbone --data "$out/codes.jsonl" \
    --tokenizer "$out/tokenizer.json" --vq "$out/vq" --batch 256 --lr 2e-3 --warmup 200 --ema 0.99 \
    --steps 100000 --clock-minutes "${T2I_MINUTES:-10}" -o "$out/t2i" --resume ${T2I_OPTIONS:-}
}

# processors make conversations while the GPU trains the tower, which needs none of them: its scenes are made on it
run_tower() {
  begin run_talks
  [ -e "$out/tower/tower.json" ] || $python "$here/train_tower.py" "$data" -o "$out/tower" \
    ${TOWER_INIT:+--init "$TOWER_INIT"} --minutes "${TOWER_MINUTES:-11}" ${TOWER_OPTIONS---compile}
  finish
}

run_talks() {
  [ -e "$out/talks/mmu.json" ] && return
  $python "$here/make.py" "$data" train-mmu --n "${TALKS:-900000}" --out "$out/talks" --seed 3 --processes "$workers"
}

# then looking, on that backbone: the paper's parts, and what a fresh model has no pretrained values for
run_mmu() {
  $omnimamba train-stage1 --task mmu --init "$out/t2i" --unfreeze text_embedding --unfreeze mmu_positions \
    --keep-question --data "$out/talks/mmu.json" --vision "$out/tower" --batch 192 --lr 2e-3 --warmup 100 --ema 0.99 \
    --steps 100000 --clock-minutes "${MMU_MINUTES:-1}" --workers "$workers" -o "$out/mmu" --resume ${MMU_OPTIONS:-}
}

# both results are in the last one, since the second run started from the first; few rows keep a GPU waiting for Python
run_both() {
  local launch=
  [ "${PROCESSES:-1}" = 1 ] || launch="-m torch.distributed.run --standalone --nproc-per-node=$PROCESSES"
  $python $launch -m omnimamba_cli train-stage2 --init "${BOTH_INIT:-$out/mmu}" \
    ${BOTH_INIT:+--vision "$out/tower"} --vq "$out/vq" --data-mmu "$out/talks/mmu.json" \
    --data-t2i "$out/codes.jsonl" --batch-mmu 1280 --batch-t2i 640 --accumulate "${ACCUMULATE:-2}" --lr 2e-3 \
    --warmup 150 --ema 0.998 --steps 100000 --clock-minutes "${BOTH_MINUTES:-26}" --max-minutes "${BOTH_STOP:-0}" \
    --workers "$workers" -o "$out/both" --resume ${BOTH_OPTIONS:-}
}

run_pack() { $python "$here/pack.py" "$out/both" "${PACKED:-weights/nano}"; }

for step in "${@:-pictures images vq codes t2i tower mmu both pack}"; do
  for name in $step; do
    echo "== $name" >&2
    "run_$name"
  done
done
echo "nano is ready" >&2
