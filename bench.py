"""How fast is each part? Every figure is a median (ceilings and steps of recipes: the best of some) beside what it is
compared with in the same run.

    python bench.py                            all rows, one thread (about three minutes)
    python bench.py --only frontend mask       some of them
    python bench.py --only step --preset ssast-tiny-patch --batch-size 16 --amp bf16 --compile off --device cuda
    torchrun --nproc_per_node=2 bench.py --only train       scaling over processes

A row is a name, a median, its unit, and a ratio to a reference row. The ceiling is a large matrix product on the same
device, threads and precision: the share of it says how much of the machine a step uses.
"""
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from wren import cli
from wren.recipes import PRESETS, RECIPES
from wren.recipes.arithmetic import forward_flops


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="bench.py")
    g = p.add_argument_group("what is measured")
    g.add_argument("--only", nargs="+", metavar="GROUP", choices=list(GROUPS),
                   help=f"{', '.join(GROUPS)} (default: all)")
    g.add_argument("--preset", choices=PRESETS, metavar="NAME", default="ssast-base-patch", help="for forward and step")
    g.add_argument("--batch-size", type=cli.positive_int, default=4, help="clips, for forward, step and recipes "
                   "of published size without clones")
    g.add_argument("--recipe", choices=RECIPES, metavar="NAME", help="for recipes: this one only")

    g = p.add_argument_group("run")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    g.add_argument("--amp", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="auto: bf16 or fp16 on GPU, "
                   "fp32 on CPU")
    g.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="blocks and losses; auto: on a GPU")
    g.add_argument("--threads", type=cli.positive_int, default=1, help="of the CPU")
    g.add_argument("--repeat", type=cli.positive_int, default=5, help="timed runs of each row")
    g.add_argument("--json", metavar="FILE", help="also write the rows to a file")
    return p.parse_args(argv)


class Bench:
    """Times functions and keeps rows."""

    def __init__(self, args):
        import torch

        from wren.training.engine import precision
        from wren.training.processes import start_processes
        from wren.training.runlog import device_name
        torch.set_num_threads(args.threads)
        self.args, self.rows, self.procs = args, [], start_processes(args.device)
        self.device = self.procs.device
        self.autocast, _, self.amp = precision(args.amp, self.device)
        print(f"{device_name(self.device)}, {args.threads} thread{'s' * (args.threads > 1)}, {self.amp}, "
              f"torch {torch.__version__}\n{'':<44}{'median':>10} {'':<10} compared with")

    def seconds(self, function, repeat=None, pick=statistics.median, clock=time.perf_counter):
        """Median (or `pick`) of the seconds of a call by `clock`, after one warm-up."""
        import torch
        times = []
        for _ in range(1 + (repeat or self.args.repeat)):
            began = clock()
            function()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - began)
        return pick(times[1:])

    def row(self, name, value, unit, ratio=None, to=""):
        """Print and keep one row; ratio is value over the value of row `to`, or a share of a ceiling."""
        self.rows.append({"row": name, "value": value, "unit": unit, "ratio": ratio, "to": to})
        if self.procs.main:
            compared = f"{ratio:.2f} × {to}" if ratio is not None else to
            print(f"{name:<44}{value:>10.4g} {unit:<10} {compared}", flush=True)
        return value


def ceiling(bench):
    """Matrix product and copy: what the device can do."""
    import torch
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(bench.amp, torch.float32)
    bench.flops = 0.0
    sizes = ((8192,) * 3, (16384, 4096, 4096)) if bench.device.type == "cuda" else ((2048,) * 3, (2048, 768, 3072))
    for m, k, n in sizes:
        a, b = (torch.randn(*s, device=bench.device, dtype=dtype) for s in ((m, k), (k, n)))
        rate = 2 * m * k * n / bench.seconds(lambda: a @ b, 20, min)  # the best of 20: a ceiling, not a typical speed
        bench.row(f"matmul {m} × {k} × {n}", rate / 1e9, "GFLOP/s")
        bench.flops = max(bench.flops, rate)
    big = torch.randn(1 << 26, device=bench.device)
    bench.row("copy 256 MB", 2 * big.nbytes / bench.seconds(big.clone) / 1e9, "GB/s")


def load(bench):
    """Clips a second through the loader with one worker: 10 s clips from files and from shards."""
    import numpy as np
    import soundfile

    from wren.sound import shards
    from wren.sound.opening import open_manifest
    rng, n = np.random.default_rng(0), 128
    with tempfile.TemporaryDirectory() as folder:
        rates = {}
        for name, rate in (("wav", 16000), ("flac", 16000), ("ogg", 16000), ("wav", 44100), ("flac", 44100)):
            place = Path(folder) / f"{name} {rate / 1000:g} kHz"
            place.mkdir()
            for k in range(n):
                with soundfile.SoundFile(place / f"{k}.{name}", "w", rate, 1) as file:
                    for _ in range(10):  # in pieces: libsndfile's Vorbis encoder overflows its stack on long blocks
                        file.write(field_noise(rng, rate))
            rates[place.name] = place
        files = open_manifest(rates["wav 16 kHz"])
        for format in ("flac", "wav"):
            place = Path(folder) / f"shard-{'pcm' if format == 'wav' else format} 16 kHz"
            shards.pack(files, place, format=format, clips_per_shard=64)
            rates[place.name] = place
        for name, place in rates.items():
            rows, seconds = open_manifest(place), 10
            value = loading(bench, rows, seconds)
            beside = name.replace("shard-pcm", "wav").replace("shard-flac", "flac")
            rates[name] = value
            ratio = (value / rates[beside], "separate files") if beside != name else ()
            bench.row(f"load {name}, 10 s", value, "clips/s", *ratio)
            if name.startswith("shard"):
                bench.row(f"load {name}, 2 s crops", loading(bench, rows, 2), "clips/s")
                ours = bench.row(f"read {name}, this process", reading(rows, seconds), "clips/s")
                if (theirs := webdataset_rate(place)) is not None:
                    bench.row(f"read {name}, webdataset, this process", theirs, "clips/s", theirs / ours, "ours")


def reading(rows, seconds):
    """Clips a second without a loader process: what `webdataset_rate` is compared with."""
    from wren.sound import loading
    crop, times = loading.Cropper(loading.Sampling(16000), seconds), []
    for seed in range(3):
        began = time.perf_counter()
        for i in range(len(rows)):
            crop(rows, i, seed)
        times.append((time.perf_counter() - began) / len(rows))
    return 1 / statistics.median(times)


def field_noise(rng, n):
    """n samples that a lossless coder treats like a quiet recording: low-passed noise, 30 dB below full scale."""
    import numpy as np
    return 0.03 * np.convolve(rng.standard_normal(n + 7), np.hanning(8) / 4.5, "valid")


def loading(bench, rows, seconds, batch=16):
    """Clips a second through loading.Loader with one worker, after its start."""
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


def webdataset_rate(folder):
    """The same shards streamed by webdataset, decoded with soundfile, in this process; None if it isn't installed."""
    try:
        import webdataset
    except ImportError:
        return None
    import io

    import soundfile
    urls, times = sorted(map(str, folder.glob("*.tar"))), []
    suffix = "wav" if "pcm" in folder.name else "flac"
    for _ in range(3):
        began, count = time.perf_counter(), 0
        for sample in webdataset.WebDataset(urls, shardshuffle=False):
            soundfile.read(io.BytesIO(sample[suffix]), dtype="float32")
            count += 1
        times.append((time.perf_counter() - began) / count)
    return 1 / statistics.median(times)


def frontend(bench):
    """Log-mel of 10 s at 16 kHz: ours in a batch of 32, torchaudio's Kaldi function clip by clip."""
    import torch
    import torchaudio

    from wren.nets.spectrograms import KaldiFbank
    wave = 0.1 * torch.randn(32, 160000, device=bench.device)
    for window in (0.025, 0.050):
        def kaldi():
            for clip in wave:
                torchaudio.compliance.kaldi.fbank(
                    clip[None], htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning",
                    num_mel_bins=128, dither=0.0, frame_shift=10, frame_length=window * 1000)
        batched = KaldiFbank(replace(PRESETS["ssast-base-patch"], window=window)).to(bench.device)
        label = f"{window * 1000:.0f} ms window"
        theirs = bench.row(f"front end, torchaudio, {label}", bench.seconds(kaldi) / 32 * 1e3, "ms/clip")
        ours = bench.seconds(lambda: batched(wave)) / 32 * 1e3
        bench.row(f"front end, batch 32, {label}", ours, "ms/clip", ours / theirs, "torchaudio")


def mask(bench):
    """64 masks of 400 among 512 tokens."""
    import torch

    from masking import patch_mask
    seeds = torch.arange(64, device=bench.device)
    bench.row("mask, batch 64", bench.seconds(lambda: patch_mask(seeds, (64, 8), 400)) / 64 * 1e3, "ms/clip")


def forward(bench):
    """The encoder alone on spectrograms of the training length."""
    import torch

    from model import Encoder
    config, batch = PRESETS[bench.args.preset], bench.args.batch_size
    encoder = Encoder(config).eval().to(bench.device)
    spec = torch.randn(batch, config.n_mels, config.frames, device=bench.device)

    def once():
        with torch.inference_mode(), bench.autocast():
            encoder.tokens(spec)
    took = bench.seconds(once)
    share = forward_flops(config) * batch / took / bench.flops
    bench.row(f"forward, {config.name}, batch {batch}", took / batch * 1e3, "ms/clip", share, "matmul ceiling")


def extract(bench):
    """Embedding a 48 kHz recording, from the file to vectors, in CPU time where it runs on the CPU; and the shares of
    decoding with resampling and of the front end."""
    import numpy as np
    import soundfile
    import torch

    from model import Encoder
    from wren.recordings.windows import Recordings, Run, batches
    config, batch = PRESETS[bench.args.preset], bench.args.batch_size
    clock = time.process_time if bench.device.type == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        path, seconds = Path(folder) / "long.wav", 2 * batch * config.clip_seconds
        soundfile.write(path, field_noise(np.random.default_rng(0), round(48000 * seconds)), 48000)
        run = Run(Encoder(config).eval(), Recordings([path]), bench.device, bench.autocast, batch_size=batch,
                  workers=0)
        wave = torch.cat([wave for wave, _, _ in batches(run.recordings, run.cut, batch, 0)]).to(bench.device)

        def front():
            with torch.inference_mode():
                [run.model.frontend(part) for part in wave.split(batch)]
        a, b = torch.randn(2048, 768, device=bench.device), torch.randn(768, 3072, device=bench.device)
        with bench.autocast():
            limit = 2 * 2048 * 768 * 3072 / bench.seconds(lambda: a @ b, 20, min, clock)
        took = bench.seconds(lambda: list(run(Encoder.embed)), 3, clock=clock)
        reading = bench.seconds(lambda: list(batches(run.recordings, run.cut, batch, 0)), clock=clock)
        name, front = f"embed, {config.name}", bench.seconds(front, clock=clock)
    share = forward_flops(config) * len(wave) / took / limit
    bench.row(f"{name}, 48 kHz file", seconds / took, "s/s", share,
              f"matmul ceiling, {limit / 1e9:.0f} GFLOP/s by the same clock")
    bench.row(f"{name}, 10 s of sound", 10 * took / seconds, "CPU s" if clock is time.process_time else "s")
    bench.row(f"{name}, reading", 100 * reading / took, "%", to="of it")
    bench.row(f"{name}, front end", 100 * front / took, "%", to="of it")


def step(bench):
    """The full SSAST step: wave to updated weights."""
    import torch

    from wren.training.engine import Trainer, make_optimizer
    from model import Encoder
    from wren.objectives import SSAST
    config, batch = PRESETS[bench.args.preset], bench.args.batch_size
    torch.manual_seed(0)
    objective = SSAST(Encoder(config), hidden=400 / 512).to(bench.device)
    trainer = Trainer(objective, make_optimizer(objective), bench.procs, batch_size=batch * bench.procs.world,
                      micro_batch=batch, steps=1000, warmup=10, amp=bench.args.amp, compile=bench.args.compile)
    clips = {"wave": 0.1 * torch.randn(batch, config.clip_samples), "seed": torch.arange(batch),
             "lengths": torch.full((batch,), config.clip_samples)}
    took = bench.seconds(lambda: trainer.train(clips))
    flops = 3 * forward_flops(config)
    name = f"step, {config.name}, batch {batch}"
    bench.row(name, took, "s", flops * batch / took / bench.flops, "matmul ceiling")
    bench.row(f"{name}, arithmetic", flops * batch / 1e9, "GFLOP")
    if bench.device.type == "cuda":
        bench.row(f"{name}, memory", torch.cuda.max_memory_allocated() / 1e9, "GB")


def recipes(bench):
    """Every recipe's full training step, wave to updated weights and teacher, at laptop and at published size."""
    import torch

    from wren.training.engine import Trainer, make_optimizer
    from model import Encoder
    from wren.objectives import objective_of
    seen = []
    for name, scales in RECIPES.items():
        if name == "ssast" or scales in seen or bench.args.recipe not in (None, name):
            continue  # mae is dasheng; SSAST has a group of its own
        seen.append(scales)
        for scale in ("laptop", "paper"):
            recipe = scales[scale]
            config = PRESETS[recipe["preset"]]
            if "clip_seconds" in recipe:
                config = replace(config, frames=round(recipe["clip_seconds"] / config.hop))
            torch.manual_seed(0)
            objective = objective_of(recipe, Encoder(config)).to(bench.device)
            paper = 1 if hasattr(objective, "clones") else bench.args.batch_size
            batch = recipe["batch_size"] if scale == "laptop" else paper
            trainer = Trainer(objective, make_optimizer(objective), bench.procs, batch_size=batch * bench.procs.world,
                              micro_batch=batch, steps=1000, warmup=10, amp=bench.args.amp, compile=bench.args.compile)
            full = torch.full((batch,), config.clip_samples)
            clips = {"wave": 0.1 * torch.randn(batch, config.clip_samples), "seed": torch.arange(batch),
                     "lengths": full, "partner": 0.1 * torch.randn(batch, config.clip_samples), "partner_lengths": full}
            took = bench.seconds(lambda: trainer.train(clips), 9 if scale == "laptop" else 2, min)  # as the ceiling's
            flops = objective.flops() * batch
            bench.row(f"{name}, {config.name}, {config.dim} wide, batch {batch}", took, "s",
                      flops / took / bench.flops, "matmul ceiling")
            bench.row("  arithmetic", flops / 1e9, "GFLOP")


def train(bench):
    """Training as it is: the demo's clips through a loader process and the whole step; time spent without data."""
    from wren.sound import demo
    from wren.sound.loading import Cropper, Loader, Sampling
    from wren.sound.opening import open_manifest
    from wren.training.engine import Trainer, make_optimizer
    from model import Encoder
    from wren.objectives import SSAST
    from wren.training.runlog import Meter
    demo.ensure()
    args, config, world = bench.args, PRESETS[bench.args.preset], bench.procs.world
    rows, batch = open_manifest("data/demo/pretrain.csv"), bench.args.batch_size * world
    objective = SSAST(Encoder(config)).to(bench.device)
    trainer = Trainer(objective, make_optimizer(objective), bench.procs, batch_size=batch, micro_batch=args.batch_size,
                      steps=1000, warmup=10, amp=args.amp, compile=args.compile)
    batches = iter(Loader(rows, Cropper(Sampling.of(config), config.clip_seconds), batch, workers=1,
                          rank=bench.procs.rank, world=world))
    for steps in (2, 2 * args.repeat):  # the first two pay for the loader's start and the first allocations
        meter = Meter(bench.procs, batch, objective)
        for _ in range(steps):
            with meter.waiting():
                clips = next(batches)
            meter.add(trainer.train(clips))
    entry = meter.entry(steps, len(rows), 0)
    name = f"train, {config.name}, {world} × {args.batch_size}"
    bench.row(name, entry["clips_per_second"], "clips/s", world, "processes")
    bench.row(f"{name}, waiting for data", 100 * entry["data_wait"], "%")
    bench.row(f"{name}, memory", entry["memory_gb"], "GB")
    if entry.get("mfu"):
        bench.row(f"{name}, MFU", 100 * entry["mfu"], "%", to="the device's stated dense peak")


def probes(bench):
    """Probes at the size of BEANS's largest set, 14,000 × 768 vectors of 264 classes; kNN beside scikit-learn's."""
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    from wren.probing import probes as p
    rng, classes = np.random.default_rng(0), 264
    y = rng.integers(classes, size=14000)
    centres = rng.standard_normal((classes, 768), np.float32)
    x = (centres[y] + 4 * rng.standard_normal((14000, 768), np.float32)).astype(np.float16)
    data = x, y, x[:1000], y[:1000], x[:3620], classes, lambda scores, truth: float((scores.argmax(1) == truth).mean())

    def sklearn():
        """Standardise, fit, predict: what a probe does, at one setting."""
        model = make_pipeline(StandardScaler(), KNeighborsClassifier(10, metric="cosine", algorithm="brute"))
        model.fit(x.astype(np.float32), y)
        return [model.predict(part.astype(np.float32)) for part in (x[:1000], x[:3620])]
    with threadpool_limits(bench.args.threads):
        took = {name: bench.seconds(function, min(3, bench.args.repeat), min) for name, function in (
            ("scikit-learn", sklearn), ("kNN probe", lambda: p.knn_probe(*data)), ("ridge", lambda: p.ridge(*data)),
            ("logistic", lambda: p.logistic(*data)))}
    theirs = bench.row("kNN, scikit-learn", took.pop("scikit-learn"), "s")
    for name, seconds in took.items():
        bench.row(name, seconds, "s", *((seconds / theirs, "scikit-learn") if name == "kNN probe" else ()))


GROUPS = {f.__name__: f for f in (ceiling, load, frontend, mask, forward, extract, step, recipes, train, probes)}


def main(argv=None):
    args = parse_args(argv)
    bench = Bench(args)
    groups = dict.fromkeys(["ceiling", *(args.only or GROUPS)])  # the ceiling is always measured: shares refer to it
    for name in groups:
        GROUPS[name](bench)
    if args.json and bench.procs.main:
        cli.write_text(args.json, json.dumps({"rows": bench.rows}, indent=1))
    bench.procs.stop()


if __name__ == "__main__":
    cli.run(main)
