#!/usr/bin/env bash
# Pre-training on nodes of GPUs that requeues itself until it is done, and exits as training does.
#   sbatch examples/slurm.sh --subset 1.23M                     runs/slurm-JOBID
#   sbatch examples/slurm.sh --subset 1.23M --out runs/big      another submission with this folder goes on with it
#SBATCH --job-name=wren
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -uo pipefail
cd "$SLURM_SUBMIT_DIR" || exit 1
# The environment, if sbatch did not take it over from your shell:
#   module load python; source .venv/bin/activate
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # torchrun 2.11 needs it to let a restarted node rejoin

out=runs/slurm-$SLURM_JOB_ID  # a requeued job keeps its number
previous=
for word in "$@"; do
    if [[ $previous == --out ]]; then out=$word; fi
    if [[ $word == --out=* ]]; then out=${word#--out=}; fi
    previous=$word
done
rm -f "$out/PREEMPTED"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# Two minutes before the time is up Slurm sends USR1 to srun's tasks, which are the torchrun agents; when a job is
# preempted or cancelled, TERM. Agents forward the signals that they are told to; then every process saves at its next
# step and leaves. Slurm 22.05 and later give srun's tasks one CPU unless it is told how many.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
     torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" --rdzv-backend=c10d \
     --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$port" --max-restarts=3 \
     --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
     pretrain.py --out "$out" "$@" &
step=$!
trap 'kill -TERM "$step" 2>/dev/null' TERM  # of the batch script alone; srun passes it on
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done  # the trap ended the first wait

# torchrun's exit code does not tell being stopped from being broken; the file does. The job comes back when it runs
# still, for its time is up or it is asked to make room. One that somebody cancelled is not RUNNING any more and stays
# away; one that was preempted with PreemptMode=REQUEUE is not either, and Slurm itself brings it back.
if [[ -e $out/PREEMPTED && ! -e $out/DONE ]] &&
        scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
