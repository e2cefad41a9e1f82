"""Scripts for clusters, with stand-ins for srun and scontrol."""
import os
import re
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def batch(folder, *arguments, ends="true", state="RUNNING", job=41):
    """Run the batch script as Slurm would. ends: what srun does when its command ends -> (exit code, [calls])."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "srun").write_text(f'#!/bin/bash\necho "srun $*" >> {folder}/calls\n{ends}\n')
    (tools / "scontrol").write_text(f'#!/bin/bash\necho "scontrol $*" >> {folder}/calls\n'
                                    '[[ $2 == hostnames ]] && echo node1\n'
                                    f'[[ $2 == job ]] && echo "JobState={state} "\n'
                                    'exit 0\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (folder / "calls").unlink(missing_ok=True)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": str(job), "SLURM_NNODES": "2",
                   "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_SUBMIT_DIR": str(folder), "SLURM_CPUS_PER_TASK": "24",
                   "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NAME": "wren"}
    done = subprocess.run(["bash", str(EXAMPLES / "slurm.sh"), *arguments], cwd="/", env=environment, timeout=60,
                          capture_output=True, text=True)
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_the_batch_script_exits_as_training_did(tmp_path):
    assert batch(tmp_path, ends="exit 3")[0] == 3
    assert batch(tmp_path, ends="exit 0")[0] == 0


def test_the_batch_script_asks_for_what_the_job_has(tmp_path):
    line = next(call for call in batch(tmp_path, "--subset", "1.23M")[1] if call.startswith("srun"))
    assert "--cpus-per-task=24" in line and "--nproc_per_node=4" in line and "--nnodes=2" in line
    assert "node1:20041" in line and line.endswith("pretrain.py --out runs/slurm-41 --subset 1.23M")


def test_two_submissions_have_folders_and_ports_of_their_own(tmp_path):
    one, other = (re.findall(r"--out \S+|node1:\d+", " ".join(batch(tmp_path, job=job)[1])) for job in (41, 42))
    assert len(one) == len(other) == 2 and not set(one) & set(other)


@pytest.mark.parametrize("given", [["--out", "runs/big"], ["--out=runs/big"]])
@pytest.mark.parametrize("state, back", [("RUNNING", True), ("CANCELLED", False), ("COMPLETING", False)])
def test_a_stopped_job_comes_back_unless_somebody_cancelled_it(tmp_path, given, state, back):
    code, calls = batch(tmp_path, *given, ends="mkdir -p runs/big; touch runs/big/PREEMPTED; exit 1", state=state)
    assert ("scontrol requeue 41" in calls) == back
    assert code == (0 if back else 1)


def test_a_crash_is_no_reason_to_come_back(tmp_path):
    code, calls = batch(tmp_path, ends="exit 1")
    assert code == 1 and "scontrol requeue 41" not in calls


def test_kubernetes_and_slurm_start_the_same_torchrun():
    flags = lambda text: set(re.findall(r"--(nnodes|nproc_per_node|rdzv-\w+|max-restarts=\d|signals-to-handle=\S+)",
                                        text))
    slurm, manifest = ((EXAMPLES / name).read_text() for name in ("slurm.sh", "kubernetes.yaml"))
    assert flags(slurm) == flags(manifest) and len(flags(slurm)) == 7
    assert "completionMode: Indexed" in manifest and "clusterIP: None" in manifest
