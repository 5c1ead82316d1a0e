#!/usr/bin/env bash
# Restore a video in shares, or the videos of a folder, several at a time: by GNU parallel, else by xargs.
#   parallel.sh IN OUT [JOBS [OPTION...]]      IN and OUT are both files or both folders; JOBS is 2 by itself
set -euo pipefail

in=$1 out=$2 jobs=${3:-2}
shift $(($# < 3 ? $# : 3))
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores + jobs - 1) / jobs))} # so that they share the cores

# Run a command for each item of standard input (they end with NUL), which takes the place of {} in it.
for_each() {
    if parallel --version 2>/dev/null | grep -q GNU; then
        parallel --quote --null --max-procs "$jobs" "$@"
    else
        xargs -0 -P "$jobs" -I '{}' "$@"
    fi
}

if [ -d "$in" ]; then
    mkdir -p "$out"
    shopt -s nullglob nocaseglob
    for file in "$in"/*.{mp4,mov,mkv,webm}; do
        printf '%s\0' "${file##*/}"
    done | for_each vdeblur run "$in/{}" "$out/{}" --skip-existing "$@"
else
    seq "$jobs" | tr '\n' '\0' | for_each vdeblur run "$in" "$out" --share "{}/$jobs" "$@" ||
        echo "not every share is done; what is missing is made now" >&2
    vdeblur run "$in" "$out" "$@"
fi
