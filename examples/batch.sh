#!/bin/sh
# Restore every video of a folder into another; files that are there already are left alone:  batch.sh IN_DIR OUT_DIR
for file in "$1"/*.mp4 "$1"/*.mov "$1"/*.mkv; do
    [ -e "$file" ] || continue
    output="$2/$(basename "$file")"
    [ -e "$output" ] || vdeblur run "$file" "$output" || echo "failed: $file" >&2
done
