#!/usr/bin/env bash
# Restore a video on many machines: a Slurm job array makes the shares, a dependent job joins them.
#   slurm_array.sh IN OUT SHARES [OPTION...]
# Every machine must see IN and the folder of OUT under these paths. Choose partition, time and GPUs with sbatch's own
# variables: SBATCH_PARTITION=gpu SBATCH_GPUS=1 SBATCH_TIMELIMIT=60 slurm_array.sh in.mp4 out.mp4 16 -m dstnet
set -euo pipefail

in=$1 out=$2 shares=$3
shift 3
in=$(cd -- "$(dirname -- "$in")" && pwd)/$(basename -- "$in")
out=$(cd -- "$(dirname -- "$out")" && pwd)/$(basename -- "$out")
printf -v restore '%q ' vdeblur run "$in" "$out" "$@"

array=$(
    sbatch --parsable --job-name=vdeblur --array="1-$shares" <<END
#!/usr/bin/env bash
$restore--share "\$SLURM_ARRAY_TASK_ID/$shares"
END
)
# afterany: the joining job makes the shares of machines that failed.
sbatch --parsable --job-name=vdeblur-join --dependency="afterany:${array%%;*}" <<END
#!/usr/bin/env bash
$restore
END
