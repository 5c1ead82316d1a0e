#!/bin/sh
# Restore every video of a folder into another folder; skip outputs that exist:  batch.sh IN_DIR OUT_DIR
mkdir -p "$2" || exit
for file in "$1"/*.[mM][pP]4 "$1"/*.[mM][oO][vV] "$1"/*.[mM][kK][vV] "$1"/*.[wW][eE][bB][mM]; do
    [ -e "$file" ] || continue
    output="$2/$(basename "$file")"
    [ -e "$output" ] || vdeblur run "$file" "$output" || echo "failed: $file" >&2
done
