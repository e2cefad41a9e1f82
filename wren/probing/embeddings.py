"""One pass of frozen encoders over a task's audio, kept on disk: every probe starts from what is here.

    clips [n, L, D]    a vector a clip (or window) and layer
    tokens [N, D]      the valid patch tokens of all clips, one clip after another, time-major; offsets [n + 1]

Both are float16 and memory-mapped. A folder of the cache is named by a hash of everything that its numbers depend on:
weights and front end, the rows and the size and time of their files, the set of layers.
"""
import hashlib
import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model import fingerprint
from wren.cli import Pulse, UserError
from wren.nets.lengths import valid_until
from wren.nets.spectrograms import KaldiFbank, without_mean
from wren.recipes import EncoderConfig
from wren.sound.ahead import ahead, sent
from wren.sound.loading import Sampling
from wren.tasks.batches import InOrder

VERSION = 3  # of the cache's files; part of their key


# ------------------------------------------------------------------------------------------------------ the pass

def batches(split, config, device="cpu", batch_size=32, workers=0, rank=0, world=1, what="embedding"):
    """Clips of a split in order, or this process's share of them, a batch as `in_order` takes it: its parts of one
    sample rate, [(rows, rate or None, streams, wave (B, S), lengths (B,) or None when all are full)], on the device."""
    unit = "windows" if split.files else "clips"
    pulse, done = Pulse(what, -(-len(split) // world), unit, speaks=rank == 0), 0
    device = torch.device(device)

    def there(batch):
        out = []
        for part in batch.get("parts", [batch]):
            streams = {name: sent(x, device) for name, x in part.get("streams", {}).items()}
            full = bool((part["lengths"] == part["wave"].shape[1]).all())
            out.append((part["index"].tolist(), part.get("rate"), streams, sent(part["wave"], device),
                        None if full else sent(part["lengths"], device)))
        return out

    clips = InOrder(split, Sampling.of(config), batch_size, rank=rank, world=world, workers=workers)
    for batch in ahead(clips, there, device):
        pulse.beat(done)
        done += sum(len(rows) for rows, *_ in batch)
        yield batch


def in_order(batch, function):
    """function (rate, streams, wave, lengths) -> something for each clip; that of the whole batch, in its order."""
    found = {}
    for rows, *clips in batch:
        found |= zip(rows, function(*clips))
    return [found[row] for row in sorted(found)]


def hearing_alike(encoders):
    """{name: encoder} in groups that hear a clip alike, and so can share a pass over the audio: (config, group)."""
    groups = {}
    for name, encoder in encoders.items():
        c = encoder.config
        groups.setdefault((c.rate, c.sample_rate, c.streams), (c, {}))[1][name] = encoder
    return groups.values()


@torch.inference_mode()
def vectors(encoders, split, device="cpu", batch_size=32, workers=0):
    """{name: encoder} -> {name: float32 array (n, D)} of a split's clips."""
    out = {name: [] for name in encoders}
    for config, alike in hearing_alike(encoders):
        for batch in batches(split, config, device, batch_size, workers):
            for name, encoder in alike.items():
                out[name] += in_order(batch, lambda rate, streams, *clips: encoder.to(device)(
                    *clips, rate=rate, streams=streams).float().cpu().numpy())
    return {name: np.stack(rows) for name, rows in out.items()}


def device_of(name):
    """--device auto, cpu or cuda."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU found; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class MelStatistics(torch.nn.Module):
    """The baseline of every table: mean and deviation over time of each of 128 log-mel bands (25 / 10 ms)."""

    def __init__(self, sample_rate):
        super().__init__()
        self.config = EncoderConfig(name="mel statistics", sample_rate=sample_rate)
        self.fbank = KaldiFbank(self.config)

    def forward(self, wave, lengths=None, rate=None, streams=None):
        """wave (B, S), lengths (B,) -> (B, 256)."""
        if lengths is None:
            lengths = torch.full((len(wave),), wave.shape[1], device=wave.device)
        valid = valid_until(lengths, wave.shape[1])
        wave = without_mean(wave.masked_fill(~valid, 0), valid)
        spec = self.fbank(torch.nn.functional.pad(wave, (0, max(0, self.config.window_samples - wave.shape[1]))))
        keep = valid_until(self.config.n_frames(lengths), spec.shape[2])
        count = keep.sum(1)[:, None]
        mean = (spec * keep[:, None]).sum(2) / count
        square = ((spec - mean[..., None]).square() * keep[:, None]).sum(2) / count
        return torch.cat([mean, square.sqrt()], dim=1)


def describe(encoder, wave, lengths=None, depth=None, layers=False, rate=None, streams=None):
    """(clip vectors (B, L, D'), tokens: a list of B tensors (N_i, D), or None for an encoder without tokens).

    Without `layers` L is 1: `encoder.embed` of the first `depth` blocks. With it there is a vector for each of these
    blocks: its output through the encoder's final norm, pooled in the same way. Tokens are those of the last block.
    """
    if not hasattr(encoder, "embed"):
        return encoder(wave, lengths)[:, None], None
    outputs = []
    with ExitStack() as stack:
        if layers:
            for module, register in _outputs_of_blocks(encoder, depth):
                handle = register(module, lambda *call: outputs.append(call[-1][0] if len(call) == 2 else call[-1]))
                stack.callback(handle.remove)
        last = encoder.encode_windows(encoder.cut(wave, lengths, rate, streams), depth, rate)
    each = [*(last.with_tokens(encoder.norm(x)) for x in outputs), last]
    clips = torch.stack([encoder.pool(encoded) for encoded in each], dim=1)
    rows = [[] for _ in range(len(wave))]
    for x, valid, i in zip(last.grid, last.valid, last.windows.clip.tolist()):  # windows of a clip are in order
        rows[i].append(x[valid])
    return clips, [torch.cat(r) for r in rows]


def _outputs_of_blocks(encoder, depth):
    """Where the outputs of all blocks but the last can be overheard: [(module, how to register a hook)]. Pre-norm:
    what enters the next block's first norm; post-norm: what leaves the block's second."""
    blocks = list(encoder.blocks[:depth])
    if encoder.config.norm == "pre":
        return [(b.norm1, torch.nn.Module.register_forward_pre_hook) for b in blocks[1:]]
    return [(b.norm2, torch.nn.Module.register_forward_hook) for b in blocks[:-1]]


# ----------------------------------------------------------------------------------------------------- the cache

@dataclass
class Embeddings:
    """What one encoder made of one split; arrays are memory-mapped."""
    clips: np.ndarray  # float16 (n, L, D)
    tokens: np.ndarray | None = None  # float16 (N, D)
    offsets: np.ndarray | None = None  # int64 (n + 1): clip i has tokens offsets[i] … offsets[i + 1]
    key: str = ""  # names all that the numbers depend on

    def __len__(self):
        return len(self.clips)

    def vectors(self, last=None):
        """Vectors of the last layers side by side (n, last · D); None: of all that there are."""
        return self.clips[:, -(last or self.clips.shape[1]):].reshape(len(self.clips), -1)


class _Rows:
    """A file of float16 rows; their shape is in its name's .json when all are written."""

    def __init__(self, path):
        self.path, self.file, self.count, self.shape = path, open(path, "wb"), 0, ()

    def append(self, rows):
        rows = np.ascontiguousarray(rows.float().cpu().numpy(), dtype=np.float16)
        if not np.isfinite(rows).all():
            raise UserError("the encoder gives embeddings that are not finite (or beyond float16, 65504): is the "
                            "checkpoint whole, and was it loaded with the right --format?")
        self.file.write(rows.data)
        self.count, self.shape = self.count + len(rows), rows.shape[1:]

    def close(self):
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.path.with_suffix(".json").write_text(json.dumps([self.count, *self.shape]))


def rows_hash(split):
    """A hash of what a split's rows are: paths, stretches, and the size and time of change of each file."""
    rows = getattr(split, "rows", split)
    digest = hashlib.sha256(f"{rows.fingerprint()} {getattr(split, 'clip_seconds', None)}".encode())
    digest.update(rows.frames.tobytes())
    if rows.entry is None:
        for path in dict.fromkeys(rows.locate(i) for i in range(len(rows))):
            about = os.stat(path)
            digest.update(f"{about.st_size} {about.st_mtime_ns} ".encode())
    return digest.hexdigest()


def embed_split(encoders, split, folder, *, depth=None, layers=False, tokens=False, device="cpu", batch_size=32,
                workers=0):
    """Embeddings of a split by several encoders, {name: Embeddings}; only what the cache lacks is computed.

    encoders {name: encoder with .config}; folder: the cache. Audio is read once for all encoders of one sample rate.
    """
    rows, places, missing = rows_hash(split), {}, {}
    for name, encoder in encoders.items():
        key = hashlib.sha256(f"{VERSION} {fingerprint(encoder)} {rows} {depth} {layers}".encode()).hexdigest()[:24]
        places[name] = place = Path(folder) / key
        wanted = "tokens.json" if tokens and hasattr(encoder, "embed") else "clips.json"
        if not (place / wanted).exists():
            missing[place] = encoder.to(device)  # two of the same are computed once
    for config, alike in hearing_alike(missing):
        _write(alike, batches(split, config, device, batch_size, workers), depth, layers, tokens)
    return {name: _open(place) for name, place in places.items()}


@torch.inference_mode()
def _write(missing, read, depth, layers, tokens):
    """One pass; {place: encoder} -> a folder each, under a temporary name until it is whole."""
    with ExitStack() as stack:
        writers = []
        for place, encoder in missing.items():
            temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            temporary.mkdir(parents=True, exist_ok=True)
            names = ["clips", "tokens"] if tokens and hasattr(encoder, "embed") else ["clips"]
            writers.append((place, temporary, encoder, [_Rows(temporary / f"{name}.f16") for name in names], [0]))
        for batch in read:
            for _, _, encoder, files, offsets in writers:
                def described(rate, streams, wave, lengths):
                    clips, tokens = describe(encoder, wave, lengths, depth, layers, rate, streams)
                    return zip(clips, tokens or [None] * len(clips))
                clips, tokens_of = zip(*in_order(batch, described))
                files[0].append(torch.stack(clips))
                if len(files) > 1:
                    files[1].append(torch.cat(tokens_of))
                    offsets.extend(offsets[-1] + np.cumsum([len(rows) for rows in tokens_of]))
        for place, temporary, _, files, offsets in writers:
            for file in files:
                file.close()
            np.save(temporary / "offsets.npy", np.array(offsets, dtype=np.int64))
            shutil.rmtree(place, ignore_errors=True)  # one without tokens
            try:
                os.rename(temporary, place)
            except OSError:  # another process was faster
                if not (place / "clips.json").exists():
                    raise


def _open(place):
    """The folder's arrays, memory-mapped."""
    arrays = {path.stem: np.memmap(path.with_suffix(".f16"), np.float16, "r", shape=tuple(json.loads(path.read_text())))
              for path in place.glob("*.json")}
    return Embeddings(**arrays, offsets=np.load(place / "offsets.npy"), key=place.name)
