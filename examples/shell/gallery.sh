#!/bin/sh
# Says what is on the photos of a folder: as a table (captions.csv) and as a page to look at (index.html).
# Run: examples/shell/gallery.sh [FOLDER]
set -eu
cd "${1:-photos}"

# NAME<TAB>CAPTION a line, one start of the model for all. A file that is no picture is named on stderr, the others
# are done: that is exit code 6.
find . -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' -o -iname '*.webp' \) | sort |
  omnimamba caption --with-filename --from - > captions.tsv || [ $? -eq 6 ]

awk -F '\t' '
  function quoted(s) { gsub(/"/, "\"\"", s); return "\"" s "\"" }
  BEGIN { print "file,caption" }
  { print quoted($1) "," quoted($2) }
' captions.tsv > captions.csv

awk -F '\t' '
  function text(s) { gsub(/&/, "\\&amp;", s); gsub(/</, "\\&lt;", s); gsub(/"/, "\\&quot;", s); return s }
  function link(s) { gsub(/%/, "%25", s); gsub(/#/, "%23", s); gsub(/\?/, "%3F", s); return text(s) }
  BEGIN {
    print "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Photos</title>"
    print "<style>body { display: grid; grid-template-columns: repeat(auto-fill, minmax(14em, 1fr)) }"
    print "img { width: 100% }</style>"
  }
  { printf "<figure><img src=\"%s\" alt=\"%s\"><figcaption>%s</figcaption></figure>\n", link($1), text($2), text($2) }
' captions.tsv > index.html
