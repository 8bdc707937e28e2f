#!/bin/bash
# A run that goes on by itself under SLURM: sbatch docs/clusters/slurm.sh, from the project's folder.
# The names below may be given to sbatch too: MODEL=... DATA=... RUN=... sbatch docs/clusters/slurm.sh
#SBATCH --job-name=lora
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

MODEL=${MODEL:-/shared/MODEL}
DATA=${DATA:-/shared/ROWS.jsonl}
RUN=${RUN:-/shared/run-1}   # the same at every start: this is what goes on
SETTINGS=${SETTINGS:-ds_configs/lora.json}
STARTS=4                    # of the ranks within one job
REQUEUES=20                 # of the job
PAUSE=${PAUSE:-30}          # seconds for ranks that outlive the others to let go of the folder

source .venv/bin/activate

# Each node by itself, once a job: a broken one is found before it costs a start.
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
    python launcher/doctor.py --model "$MODEL" --data "$DATA" || exit

for ((start = 1; ; start++)); do
    # A rank that dies ends the others, which say so: a minute for it, then srun ends them.
    srun --kill-on-bad-exit=0 --wait=60 python launcher/train.py \
        --deepspeed "$SETTINGS" --model "$MODEL" --data "$DATA" --output_dir "$RUN"
    status=$?
    case $status in
    0 | 2)  # finished; a mistake in the options or the data, which no restart mends
        exit $status ;;
    143)    # told to stop, by the time limit or for another job, and saved: the queue has it again
        ((${SLURM_RESTART_COUNT:-0} < REQUEUES)) && scontrol requeue "$SLURM_JOB_ID"
        exit $status ;;
    esac
    ((start < STARTS)) || exit $status
    echo "start $start of $STARTS ended with $status; the next in $PAUSE s" >&2
    sleep "$PAUSE"
done
