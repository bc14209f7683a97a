#!/bin/sh
# A batch for cron: says what is on the pictures that are new since the last run, in FOLDER/captions.tsv.
#   PATH=/usr/local/bin:/usr/bin:/bin
#   15 3 * * *  /opt/omnimamba/examples/shell/nightly.sh /srv/photos
# Silent unless something is wrong, so cron sends a mail only then. Exit code 6: some pictures could not be read.
set -eu
cd "$1"

# One run at a time: noclobber makes looking and taking one step. A number without a process is left from a crash.
lock=.captions.lock
if [ -f "$lock" ] && ! kill -0 "$(cat "$lock")" 2> /dev/null; then rm -f "$lock"; fi
(set -C && echo $$ > "$lock") 2> /dev/null || exit 0
trap 'rm -f "$lock" .captions.todo' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A last line that a crash or a full disk cut off goes, and its picture is done again.
touch captions.tsv
if [ -n "$(tail -c 1 captions.tsv)" ]; then sed '$d' captions.tsv > .captions.todo && mv .captions.todo captions.tsv; fi

# What is there, less what is done; names with line ends are left out.
find . -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' \) | sort |
  awk -F '\t' 'FILENAME == "captions.tsv" { done[$1]; next } !($0 in done)' captions.tsv - > .captions.todo
[ -s .captions.todo ] || exit 0

# Every line is whole when it is written, so whatever stops this run, the next one goes on behind it.
omnimamba caption -q --with-filename --from .captions.todo >> captions.tsv
