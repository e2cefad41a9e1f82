"""What a run writes down: log.jsonl, rates, memory, and from which code and on which device it came."""
import json
import resource
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from wren.cli import write_text

PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "V100": 125}  # dense, bf16 or fp16


class Log:
    """log.jsonl of a run: one row per interval, appended at once; rows beyond a restored step are dropped."""

    def __init__(self, path, from_step=0):
        kept = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError):  # a line cut by a kill
                if json.loads(line).get("step", 0) <= from_step:
                    kept.append(f"{line}\n")
        write_text(path, "".join(kept))
        self.file = open(path, "a", buffering=1)

    def write(self, row):
        """row: plain values; floats keep six digits."""
        short = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        self.file.write(json.dumps(short) + "\n")


class Meter:
    """What happened since the last row of the log."""

    def __init__(self, procs, batch_size, objective):
        self.procs, self.batch_size, self.flops = procs, batch_size, objective.flops()
        self.clip_seconds = objective.encoder.config.clip_seconds
        self.rows, self.waited, self.began = [], 0.0, time.perf_counter()

    @contextmanager
    def waiting(self):
        """Time spent in here is time without work for the device."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    def add(self, row):
        self.rows.append(row)

    def entry(self, step, clips, skips):
        """Means over the interval, rates, the slowest process's share of waiting for data, memory, MFU."""
        took = time.perf_counter() - self.began
        good = [r for r in self.rows if r["finite"]] or self.rows
        rate = len(self.rows) * self.batch_size / took
        entry = {"step": step, "clips": step * self.batch_size, "epoch": step * self.batch_size / clips}
        entry |= {k: sum(r[k] for r in good) / len(good) for k in good[0] if k not in ("finite", "count", "flags")}
        entry |= {"clips_per_second": rate, "audio_per_second": rate * self.clip_seconds,
                  "data_wait": max(self.procs.gather(self.waited / took)), "skips": skips}
        if self.procs.device.type == "cuda":
            entry["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            peak = peak_flops(self.procs.device)
            entry["mfu"] = self.flops * rate / (peak * self.procs.world) if peak else None
        else:
            entry["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        self.rows, self.waited, self.began = [], 0.0, time.perf_counter()
        return entry


class Collapse:
    """Held-out clips that all get nearly the same features: `spread` below `bound`, `patience` times running."""

    def __init__(self, bound=0.01, patience=3):  # healthy ones lie at 0.03 to 0.6, collapsed ones at 0.000
        self.bound, self.patience, self.low = bound, patience, 0

    def update(self, scores, step):
        """scores: of an evaluation on the held-out clips, or {}. -> what to say when it has collapsed, else None."""
        self.low = self.low + 1 if scores.get("spread", 1.0) < self.bound else 0
        if self.low < self.patience:
            return None
        return (f"step {step}: the encoder has collapsed: {self.patience} times in a row its features of the held-out "
                f"clips were all alike (spread {scores['spread']:.4f}, below {self.bound:g}). Lower --lr, or raise the "
                "--ema of a recipe with a teacher, and start another run; --allow-collapse goes on regardless")


def first_row(trainer, settings):
    """The first line of the log: what ran, where, from which code. settings: {name: value}."""
    encoder = trainer.objective.encoder
    return {"step": 0, "commit": commit(), "processes": trainer.procs.world, "amp": trainer.amp,
            "device": device_name(trainer.procs.device), "parameters": sum(p.numel() for p in encoder.parameters()),
            "flops_per_clip": trainer.objective.flops(), "flags": settings, "encoder": encoder.config.to_dict()}


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def commit():
    """The commit of this checkout, with a + if it was changed, or "unknown"."""
    try:
        run = lambda *a: subprocess.run(["git", "-C", str(Path(__file__).parent), *a], capture_output=True, text=True,
                                        check=True, timeout=10).stdout.strip()
        return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def peak_flops(device):
    """Dense half-precision peak of a known GPU in FLOP/s, else None: a share of an unknown peak is no number."""
    return next((peak * 1e12 for key, peak in PEAK_TFLOPS.items() if key in device_name(device)), None)
