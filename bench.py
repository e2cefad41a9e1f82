"""How fast is each part? Every figure is a median (ceilings and steps: the best of some) beside what it is compared
with in the same run.

    python bench.py                            one thread of a CPU, or a GPU; a few minutes
    python bench.py --only load embed          some parts of it
    python bench.py --only step --preset ssast-tiny-patch --batch-size 16 --amp bf16 --compile off --device cuda
    torchrun --nproc_per_node=2 bench.py --only train       scaling over processes

The ceiling is a large matrix product on the same device, threads and precision: the share of it says how much of the
machine a step uses (arithmetic of recomputed activations is not counted). What fails is one line, and the rest goes on.
"""
import gc
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import repeat
from pathlib import Path

from wren import cli
from wren.recipes import PRESETS, RECIPES
from wren.recipes.arithmetic import forward_flops

PUBLISHED = (("ssast", "ssast-base-patch"), ("gpm-bt", "gpm-bt-patch"), ("atst-frame", "atst-frame-base"),
             ("audiomae", "audiomae-base"), ("dasheng", "dasheng-base"), ("dasheng", "dasheng-1.2b"),
             ("animal2vec", "animal2vec-large"), ("eat", "eat-base"), ("atst", "atst-small"), ("contrast", "wren-base"))
CHUNK = 10.0  # s of the recordings and clips that are read


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="bench.py")
    p.add_argument("--only", nargs="+", metavar="GROUP", choices=list(GROUPS),
                   help=f"{', '.join(GROUPS)} (default: all, but on a GPU without load)")
    p.add_argument("--recipe", choices=RECIPES, metavar="NAME", help="for step: this one only")
    p.add_argument("--preset", choices=PRESETS, metavar="NAME", help="for step, train, embed: this encoder (default: "
                   "step: those of all recipes; else ssast-base-patch and, on a GPU, dasheng-base and eat-base)")
    p.add_argument("--batch-size", type=batch_size, default="auto", metavar="N", help="clips; auto: on a GPU the power "
                   "of two from which on a step is no faster for a clip, or that fills 80%% of the memory; on a CPU "
                   "the recipe's at laptop size, else 4, of clones 1")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    p.add_argument("--amp", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="auto: bf16 or fp16 on GPU, "
                   "fp32 on CPU")
    p.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on a GPU steps with and "
                   "without, on a CPU without")
    p.add_argument("--threads", type=cli.positive_int, default=1, help="of the CPU")
    p.add_argument("--repeat", type=cli.positive_int, default=5, help="timed runs of each row")
    p.add_argument("--minutes", type=cli.positive, default=6.0, help="on a GPU: no step is begun when so much time is "
                   "nearly over")
    p.add_argument("--json", metavar="FILE", help="also write the rows to a file")
    return p.parse_args(argv)


def batch_size(text):
    return text if text == "auto" else cli.positive_int(text)


class Bench:
    """Times functions and keeps rows."""

    def __init__(self, args):
        import torch

        from wren.training.engine import precision
        from wren.training.processes import start_processes
        from wren.training.runlog import device_name
        torch.set_num_threads(args.threads)
        self.args, self.rows, self.procs = args, [], start_processes(args.device)
        self.device, self.gpu, self.began = self.procs.device, self.procs.device.type == "cuda", time.perf_counter()
        self.batches = {}  # preset: the batch that a step was found to like
        self.autocast, _, self.amp = precision(args.amp, self.device)
        print(f"{device_name(self.device)}, {args.threads} thread{'s' * (args.threads > 1)}, {self.amp}, "
              f"torch {torch.__version__}\n{'':<44}{'median':>10} {'':<10} compared with")

    def seconds(self, function, repeat=None, pick=statistics.median):
        """Median (or `pick`) of the seconds of a call, after one warm-up."""
        import torch
        times = []
        for _ in range(1 + (repeat or self.args.repeat)):
            began = time.perf_counter()
            function()
            if self.gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return pick(times[1:])

    def row(self, name, value, unit, ratio=None, to=""):
        """Print and keep one row; ratio is value over the value of row `to`, or a share of a ceiling."""
        self.rows.append({"row": name, "value": value, "unit": unit, "ratio": ratio, "to": to})
        if self.procs.main:
            compared = f"{ratio:.2f} × {to}" if ratio is not None else to
            print(f"{name:<44}{value:>10.4g} {unit:<10} {compared}", flush=True)

    def attempt(self, name, function, *arguments):
        """function(bench, …), or one line that says why not."""
        try:
            return function(self, *arguments)
        except Exception as error:  # whatever it is, the other rows are worth having
            lines = str(error).strip().splitlines() or [""]
            print(f"{name}: {type(error).__name__}: {lines[0][:160]}", flush=True)
        finally:
            gc.collect()
            if self.gpu:
                import torch
                torch.cuda.empty_cache()

    def presets(self):
        on_gpu = ("dasheng-base", "eat-base") if self.gpu else ()
        return (self.args.preset,) if self.args.preset else ("ssast-base-patch", *on_gpu)

    def batch(self, preset, otherwise=4):
        given = self.args.batch_size
        return self.batches.get(preset, otherwise) if given == "auto" else given


def ceiling(bench):
    """Matrix product and copy: what the device can do."""
    import torch
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(bench.amp, torch.float32)
    bench.flops = 0.0
    sizes = ((8192,) * 3, (16384, 4096, 4096)) if bench.gpu else ((2048,) * 3, (2048, 768, 3072))
    for m, k, n in sizes:
        a, b = (torch.randn(*s, device=bench.device, dtype=dtype) for s in ((m, k), (k, n)))
        rate = 2 * m * k * n / bench.seconds(lambda: a @ b, 20, min)  # the best of 20: a ceiling, not a typical speed
        bench.row(f"matmul {m} × {k} × {n}", rate / 1e9, "GFLOP/s")
        bench.flops = max(bench.flops, rate)
    big = torch.randn(1 << 26, device=bench.device)
    bench.row("copy 256 MB", 2 * big.nbytes / bench.seconds(big.clone) / 1e9, "GB/s")


def recordings(folder, n, rate, suffix="wav"):
    """Write n files of 10 s that a lossless coder treats like quiet recordings: low-passed noise 30 dB below full
    scale."""
    import numpy as np
    import soundfile
    noise = np.random.default_rng(0).standard_normal(round(CHUNK * rate) + 7)
    sound = 0.03 * np.convolve(noise, np.hanning(8) / 4.5, "valid")
    Path(folder).mkdir(exist_ok=True)
    for k in range(n):
        soundfile.write(Path(folder) / f"{k:03}.{suffix}", np.roll(sound, k), rate)
    return folder


def load(bench):
    """10 s clips a second from files and from shards of them through a loader with one worker, and 2 s crops."""
    from wren.sound import shards
    from wren.sound.opening import open_manifest
    with tempfile.TemporaryDirectory() as temporary:
        for suffix, rate in (("wav", 16000), ("flac", 44100)):
            name = f"{suffix} {rate / 1000:g} kHz"
            files = open_manifest(recordings(Path(temporary) / name, 128, rate, suffix))
            shards.pack(files, Path(temporary) / f"shards {name}", format=suffix, clips_per_shard=64)
            packed = open_manifest(Path(temporary) / f"shards {name}")
            for seconds in (CHUNK, 2.0):
                separate, value = (clips_per_second(rows, seconds) for rows in (files, packed))
                bench.row(f"load {name}, {seconds:g} s", separate, "clips/s")
                bench.row(f"load {name}, {seconds:g} s, shards", value, "clips/s", value / separate, "files")


def clips_per_second(rows, seconds, batch=16):
    """Through a Loader with one worker, after its start."""
    from wren.sound import loading
    times = []
    for _ in range(3):
        crop = loading.Cropper(loading.Sampling(16000), seconds)
        batches = iter(loading.Loader(rows, crop, batch, workers=1))
        for _ in range(4):  # the worker's start and what it prefetches
            next(batches)
        began = time.perf_counter()
        for _ in range(12):
            next(batches)
        times.append((time.perf_counter() - began) / 12 / batch)
    return 1 / statistics.median(times)


def frontend(bench):
    """Log-mel of 10 s at 16 kHz: ours in a batch of 32, torchaudio's Kaldi function clip by clip."""
    import torch
    import torchaudio

    from wren.nets.spectrograms import KaldiFbank
    wave = 0.1 * torch.randn(32, 160000, device=bench.device)
    batched = KaldiFbank(PRESETS["ssast-base-patch"]).to(bench.device)

    def kaldi():
        for clip in wave:
            torchaudio.compliance.kaldi.fbank(clip[None], htk_compat=True, sample_frequency=16000, use_energy=False,
                                              window_type="hanning", num_mel_bins=128, dither=0.0)
    theirs, ours = (bench.seconds(function) / 32 * 1e3 for function in (kaldi, lambda: batched(wave)))
    bench.row("front end, torchaudio", theirs, "ms/clip")
    bench.row("front end, batch 32", ours, "ms/clip", ours / theirs, "torchaudio")


def step(bench):
    """Every recipe's whole training step, wave to updated weights and teacher: on a GPU at published size, in a batch
    that fills it, without and with compiling; on a CPU at laptop and published size."""
    args = bench.args
    rows = [row for row in trained(args.preset) if args.recipe in (None, row[0]) and (
        args.preset or (row[2] == "paper" if bench.gpu else "1.2b" not in row[1]))]
    how = {"auto": ("off", "on") if bench.gpu else ("off",)}.get(args.compile, (args.compile,))
    print(f"{'whole step':<34}{'batch':>6}{'ms':>9}{'clips/s':>10}{'of ceiling':>12}{'GB':>7}{'launches':>10}")
    for name, preset, scale in rows:
        for compile in how:
            label = f"{name}, {preset}{', compiled' * (compile == 'on')}"
            if bench.gpu and time.perf_counter() - bench.began > 60 * args.minutes - 100:
                print(f"{label}: left out, --minutes {args.minutes:g} are nearly over")
            else:
                bench.attempt(label, one_step, label, RECIPES[name][scale], preset, compile)


def trained(preset=None):
    """[(recipe, preset, scale)] of all recipes, or of those that train this preset (where none does, SSAST's). Left out
    is what differs from another in nothing that takes time."""
    rows = [*((name, RECIPES[name]["laptop"]["preset"], "laptop") for name in RECIPES if name not in ("mae", "gpm-bt")),
            *((name, other, "paper") for name, other in PUBLISHED)]
    if preset is None:
        return rows
    scale = "laptop" if "laptop" in preset else "paper"
    return [row for row in rows if row[1] == preset] or [("ssast", preset, scale)]


def one_step(bench, label, recipe, preset, compile):
    """A row of `step`."""
    import torch
    trainer, clips = prepared(bench, recipe, preset, compile)
    batch = bench.batch(preset, None)
    if batch is None and bench.gpu:
        batch = bench.batches[preset] = filling(bench, trainer, clips)
    elif batch is None:
        clones = hasattr(trainer.objective, "clones")
        batch = recipe["batch_size"] if "laptop" in preset else 1 if clones else 4
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats()
    took = step_seconds(bench, trainer, clips(batch), 10 if bench.gpu else 9 if "laptop" in preset else 2)
    share = trainer.objective.flops() * batch / took / bench.flops
    memory = torch.cuda.max_memory_allocated() / 1e9 if bench.gpu else float("nan")
    launches = bench.attempt("launches", launched, trainer, clips(batch)) if bench.gpu else None
    bench.rows.append({"row": label, "value": took, "unit": "s", "ratio": share, "to": "matmul ceiling", "batch": batch,
                       "memory_gb": memory, "launches": launches})
    if bench.procs.main:
        print(f"{label:<34}{batch:>6}{took * 1e3:>9.1f}{batch / took:>10.1f}{share:>12.3f}{memory:>7.1f}"
              f"{launches or float('nan'):>10.0f}", flush=True)


def prepared(bench, recipe, preset, compile="auto"):
    """(trainer, a function of a number of clips that makes a batch) of a recipe with this encoder."""
    import torch

    from model import Encoder
    from wren.objectives import objective_of
    from wren.training.engine import Trainer, make_optimizer
    config = PRESETS[preset]
    if "clip_seconds" in recipe:
        config = replace(config, frames=round(recipe["clip_seconds"] / config.hop))
    torch.manual_seed(0)
    with bench.device:
        objective = objective_of(recipe, Encoder(config)).to(bench.device)
    objective.encoder.checkpoint_activations = "1.2b" in preset
    trainer = Trainer(objective, make_optimizer(objective), bench.procs, batch_size=bench.procs.world, micro_batch=1,
                      steps=10000, warmup=10, amp=bench.args.amp, compile=compile)

    def clips(n):
        full = torch.full((n,), config.clip_samples)
        wave = 0.1 * torch.randn(1, config.clip_samples).repeat(n, 1)
        batch = {"wave": wave, "seed": torch.arange(n), "lengths": full}
        batch |= {"partner": wave.roll(1, 1), "partner_lengths": full} if "partner" in trainer.takes else {}
        return {key: x.pin_memory() if bench.gpu else x for key, x in batch.items()}
    return trainer, clips


def step_seconds(bench, trainer, clips, steps):
    """Seconds of a step on these clips after two others: on a GPU the mean of `steps` of them in a row, the next batch
    on its way as in training, on a CPU the best."""
    import torch
    trainer.micro_batch = len(clips["seed"])
    batches, times = trainer.ahead(repeat(clips)), []
    for n in (2, steps) if bench.gpu else [1] * (1 + steps):
        began = time.perf_counter()
        for _ in range(n):
            trainer.launch(next(batches))
        if bench.gpu:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / n)
    return min(times[1:])


def filling(bench, trainer, clips):
    """The power of two from which on a step is less than 3 % faster for a clip, or that fills 80 % of the memory."""
    import torch
    best, size, used = (0.0, 4), 4, []
    room = 0.8 * torch.cuda.get_device_properties(bench.device).total_memory
    while len(used) < 2 or used[-1] + 2 * (used[-1] - used[-2]) < room:  # twice the clips are twice the last increase
        torch.cuda.reset_peak_memory_stats()
        try:
            rate = size / step_seconds(bench, trainer, clips(size), 3)
        except torch.OutOfMemoryError:
            break
        used.append(torch.cuda.max_memory_allocated())
        if rate < 1.03 * best[0]:
            break
        best, size = (rate, size), 2 * size
    torch.cuda.empty_cache()
    return best[1]


def launched(bench, trainer, clips):
    """How many kernels and copies a step starts on the GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CUDA]) as run:
        trainer.train(clips)
        torch.cuda.synchronize()
    return sum(event.device_type() == torch.autograd.DeviceType.CUDA
               for event in run.profiler.kineto_results.events())


def train(bench):
    """Training as it is: 10 s WAV files through loader processes and the whole step; time spent without data."""
    for preset in bench.presets():
        bench.attempt(f"train, {preset}", one_training, preset)


def one_training(bench, preset):
    from wren.sound.loading import Cropper, Loader, Sampling
    from wren.sound.opening import open_manifest
    from wren.training.runlog import Meter
    world, config, batch = bench.procs.world, PRESETS[preset], bench.batch(preset)
    workers = max(1, (os.cpu_count() - 1) // world) if bench.gpu else 1
    recipe, _, scale = trained(preset)[0]
    trainer, _ = prepared(bench, RECIPES[recipe][scale], preset, bench.args.compile)
    trainer.micro_batch = batch
    with tempfile.TemporaryDirectory() as folder:
        rows = open_manifest(recordings(folder, 512 if bench.gpu else 64, 16000))
        lengths = 3, 30 if bench.gpu else 2 * bench.args.repeat  # the first pay for workers and graphs
        batches = trainer.ahead(Loader(rows, Cropper(Sampling.of(config), config.clip_seconds), batch * world,
                                       steps=sum(lengths), workers=workers, rank=bench.procs.rank, world=world))
        for steps in lengths:
            meter, waiting = Meter(bench.procs, batch * world, trainer.objective), []
            for _ in range(steps):
                with meter.waiting():
                    clips = next(batches)
                waiting.append(trainer.launch(clips))
                if len(waiting) > 1:
                    meter.add(waiting.pop(0)())
            meter.add(waiting.pop()())
        entry = meter.entry(steps, len(rows), 0)
    name = f"train, {preset}, {world} × {batch}, {workers} workers"
    bench.row(name, entry["clips_per_second"], "clips/s", world, "processes")
    bench.row("  waiting for data", 100 * entry["data_wait"], "%")
    bench.row("  memory", entry["memory_gb"], "GB")


def embed(bench):
    """Seconds of sound a second that become clip vectors: waves in memory; from 48 kHz files, decoded and resampled."""
    for preset in bench.presets():
        bench.attempt(f"embed, {preset}", one_embedding, preset)


def one_embedding(bench, preset):
    import torch

    from model import Encoder
    from wren.recordings.windows import Recordings, Run
    from wren.sound.ahead import ahead, sent
    config, batch = PRESETS[preset], bench.batch(preset, 128 if bench.gpu else 4)
    with bench.device:
        encoder = Encoder(config).eval().to(bench.device)
    waves = [0.1 * torch.randn(1, config.clip_samples).repeat(batch, 1)] * (8 if bench.gpu else 2)
    waves = [wave.pin_memory() if bench.gpu else wave for wave in waves]

    def once():
        with torch.inference_mode(), bench.autocast():
            moved = ahead(waves, lambda wave: sent(wave, bench.device), bench.device)
            torch.cat([encoder(wave) for wave in moved]).float().cpu()

    def row(name, seconds, took):
        share = forward_flops(config) * seconds / config.clip_seconds / took / bench.flops
        bench.row(name, seconds / took, "s/s", share, "matmul ceiling")
    row(f"embed, {preset}, batch {batch}", batch * len(waves) * config.clip_seconds, bench.seconds(once))
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(Path(recordings(folder, batch * len(waves), 48000)).iterdir())
        run = Run(encoder, Recordings(files), bench.device, bench.autocast, batch_size=batch,
                  workers=os.cpu_count() - 1 if bench.gpu else 0)
        row("  from 48 kHz files", CHUNK * len(files), bench.seconds(lambda: list(run(Encoder.embed)), 3))


def knn(bench):
    """The kNN probe at the size of BEANS's largest set, 14,000 × 768 vectors of 264 classes, beside scikit-learn's."""
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    from wren.probing.probes import knn_probe
    rng, classes = np.random.default_rng(0), 264
    y = rng.integers(classes, size=14000)
    centres = rng.standard_normal((classes, 768), np.float32)
    x = (centres[y] + 4 * rng.standard_normal((14000, 768), np.float32)).astype(np.float16)
    data = x, y, x[:1000], y[:1000], x[:3620], classes, lambda scores, truth: float((scores.argmax(1) == truth).mean())

    def sklearn():
        """Standardise, fit, predict: what the probe does, at one setting."""
        mean, scale = x.mean(0, dtype=np.float32), x.std(0, dtype=np.float32)
        model = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit((x - mean) / scale, y)
        return [model.predict((part - mean) / scale) for part in (x[:1000], x[:3620])]
    with threadpool_limits(bench.args.threads):
        theirs, ours = (bench.seconds(function, 3, min) for function in (sklearn, lambda: knn_probe(*data)))
    bench.row("kNN, scikit-learn", theirs, "s")
    bench.row("kNN probe", ours, "s", ours / theirs, "scikit-learn")


GROUPS = {f.__name__: f for f in (ceiling, load, frontend, step, train, embed, knn)}


def main(argv=None):
    args = parse_args(argv)
    bench = Bench(args)
    default = [name for name in GROUPS if name != "load" or not bench.gpu]
    for name in dict.fromkeys(["ceiling", *(args.only or default)]):  # the ceiling always: shares refer to it
        bench.attempt(name, GROUPS[name])
    if args.json and bench.procs.main:
        cli.write_text(args.json, json.dumps({"rows": bench.rows}, indent=1))
    bench.procs.stop()


if __name__ == "__main__":
    cli.run(main)
