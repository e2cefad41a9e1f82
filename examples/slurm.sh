#!/usr/bin/env bash
# Pre-training on two nodes of eight GPUs that requeues itself until it is done.
#   sbatch examples/slurm.sh --subset 1.23M
#SBATCH --job-name=wren
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # torchrun 2.11 needs it to let a restarted node rejoin
out=${OUT:-runs/slurm-${SLURM_JOB_NAME}}
rm -f "$out/PREEMPTED"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Two minutes before the time is up Slurm sends USR1 to srun's tasks, which are the torchrun agents. Agents forward only
# the signals that they are told to; then every process saves at its next step and leaves.
srun --kill-on-bad-exit=0 torchrun --nnodes="$SLURM_NNODES" --nproc_per_node=8 --rdzv-backend=c10d \
     --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:29500" --max-restarts=3 \
     --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
     pretrain.py --out "$out" "$@"

# torchrun's exit code does not tell being stopped from being broken; the file does.
if [[ -e $out/PREEMPTED && ! -e $out/DONE ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
