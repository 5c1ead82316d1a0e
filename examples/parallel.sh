#!/usr/bin/env bash
# Restore a video in shares, or the videos of a folder, several at a time, with GNU parallel or else xargs.
#   parallel.sh IN OUT [JOBS [OPTION...]]      IN and OUT are both files or both folders; JOBS defaults to 2
set -euo pipefail

in=$1 out=$2 jobs=${3:-2}
shift $(($# < 3 ? $# : 3))
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores + jobs - 1) / jobs))} # divide the cores among the jobs

# Run a command for each NUL-terminated item of standard input; {} in the command stands for the item.
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
        echo "some shares failed; making the missing parts now" >&2
    vdeblur run "$in" "$out" "$@"
fi
