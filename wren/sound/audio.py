"""Reading sound: any file that libsndfile opens, as mono float32, only the part that is asked for.

soundfile (libsndfile) decodes, torchaudio's windowed sinc changes the rate. Measured in libsndfile 1.2.2 and worked
around here: a seek into the last page of an Ogg stream gives other samples than a straight read; the first frames
after a seek in an MP3 are wrong; the length of an MP3 without a Xing header is a guess. With this, a read from
anywhere agrees with a straight read from the beginning.
"""
import os
import re
import threading
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from math import ceil

import numpy as np

from wren.cli import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aif", ".aiff", ".aifc", ".au", ".w64", ".rf64",
                  ".caf")
# An Ogg page holds at most 255 packets of, in practice, 1024 new frames: a seek to this far before the end does not
# enter the last page.
_OGG_TAIL = 1 << 18
_MP3_PREROLL = 8 * 1152  # frames that the decoder needs to find its state again (4 sufficed at every rate and mode)
_MP3 = ("MPEG_LAYER_III", "MPEG_LAYER_II", "MPEG_LAYER_I")
_BLOCK = 1 << 20  # samples decoded at a time where a file is counted or judged
# what libsndfile notes of a WAV or AIFF that ends before its data chunk does; 4 GB: a recorder that streamed
_CUT_OFF = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFFF000


class BadAudio(UserError):
    """Sound that can't be used. `reason` is without the file's name, the message has both."""

    def __init__(self, reason, path=""):
        self.reason, self.path = reason, path
        super().__init__(f"{path}: {reason}" if path else reason)

    def __reduce__(self):  # crosses process borders with its fields
        return BadAudio, (self.reason, self.path)


class Sound:
    """An open recording. `rate` in Hz, `frames` at that rate, `channels`; use as a context manager.

    file: a path or a seekable binary file object; name: what messages call it.
    """

    def __init__(self, file, name=None):
        import soundfile
        self.path = os.fspath(file) if isinstance(file, (str, bytes, os.PathLike)) else ""
        self.name = printable(name or self.path)
        try:
            with _quiet(str(self.path).lower().endswith(".mp3")):
                self._file = soundfile.SoundFile(os.fsencode(file) if self.path else file)  # any bytes
        except (OSError, RuntimeError, TypeError) as error:
            raise BadAudio(_why(error, self.path), self.name) from None
        self.rate, self.frames, self.channels = self._file.samplerate, self._file.frames, self._file.channels

    def read(self, start=0, frames=-1):
        """Frames start … start + frames (-1: to the end) -> float32 [frames], the mean over channels."""
        try:
            with _quiet(self._file.subtype in _MP3):
                safe = self._safe(start)
                if start or self._file.tell():
                    self._file.seek(safe)
                # in one call: soundfile seeks again after each read
                wanted = frames if frames < 0 else start - safe + frames
                wave = self._file.read(wanted, dtype="float32", always_2d=True)
            wave = wave[start - safe:]  # [frames, channels]
        except (OSError, RuntimeError, ValueError) as error:
            raise BadAudio(f"can't be decoded at frame {start} ({_why(error, self.path)})", self.name) from None
        if len(wave) < frames or not len(wave):
            wanted = f"{frames} frames from {start}" if frames >= 0 else f"sound from frame {start}"
            raise BadAudio(f"{wanted} wanted, {len(wave)} there (of {self.frames}): truncated or empty file, or a "
                           "wrong manifest; python data.py check lists such files", self.name)
        wave = wave[:, 0] if self.channels == 1 else wave.mean(axis=1)
        if not np.isfinite(wave).all():
            raise BadAudio("holds NaN or infinite samples", self.name)
        return wave

    def blocks(self, start=0, frames=-1):
        """Frames start … start + frames (-1: to the end), or as many as there are, by portions float32 [n, channels].
        In the last page of an Ogg stream samples may be others than `read` gives."""
        left, size = float("inf") if frames < 0 else frames, max(1, _BLOCK // self.channels)
        try:
            self._file.seek(start)
            while left > 0:
                with _quiet(self._file.subtype in _MP3):
                    block = self._file.read(int(min(left, size)), "float32", always_2d=True)
                if not len(block):
                    return
                left -= len(block)
                yield block
        except (OSError, RuntimeError, ValueError) as error:
            raise BadAudio(f"can't be decoded ({_why(error, self.path)})", self.name) from None

    @property
    def declared(self):
        """Frames that the header promises: more than `frames` where a file was cut off; 0 where it doesn't tell."""
        cut = _CUT_OFF.search(self._file.extra_info)
        if cut and int(cut[2]) < int(cut[1]) < _UNKNOWN_SIZE:
            return round(self.frames * int(cut[1]) / max(1, int(cut[2])))
        return 0 if self._file.subtype in _MP3 or self.frames > 1 << 40 else self.frames

    def _safe(self, start):
        """The frame from which decoding gives the right samples at `start`."""
        if self._file.subtype in ("VORBIS", "OPUS"):
            return min(start, max(0, self.frames - _OGG_TAIL))
        return max(0, start - _MP3_PREROLL) if self._file.subtype in _MP3 else start

    def count(self):
        """Frames, exactly: an MP3 whose header doesn't say so is decoded (about a second an hour of sound)."""
        if self._file.subtype in _MP3 and not _says_length(self.path):
            self.frames = sum(map(len, self.blocks()))
        return self.frames

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def info(path):
    """(frames, rate in Hz, channels) of a file, from its header where the header tells."""
    with Sound(path) as sound:
        return sound.count(), sound.rate, sound.channels


def read(file, start=0, frames=-1, rate=None):
    """Part of a recording -> float32 [S], mono.

    file: path or binary file object; start, frames: at the file's own rate, frames -1 to the end; rate: Hz of the
    result (None: the file's own). Raises BadAudio if anything less than what was asked can be had.
    """
    with Sound(file) as sound:
        wave = sound.read(start, frames)
        return resample(wave, sound.rate, rate or sound.rate)


def resample(wave, old, new):
    """wave float32 [S] at `old` Hz -> float32 [ceil(S new / old)] at `new` Hz (windowed sinc, 6 zero crossings)."""
    if old == new:
        return wave
    import torch
    length = ceil(len(wave) * new / old)
    with torch.inference_mode():
        out = _resampler(old, new)(torch.from_numpy(np.ascontiguousarray(wave))).numpy()
    return out[:length] if len(out) >= length else np.pad(out, (0, length - len(out)))


def ratio(old, new):
    """The ratio of two rates as small whole numbers. The filter grows with them: an odd rate is taken as the nearest
    ratio of numbers up to 1000, at most 1e-6 off as a rule, 2e-5 at worst (47 999 Hz is taken as 48 000)."""
    fraction = Fraction(new, old).limit_denominator(1000)
    return fraction.denominator, fraction.numerator


@lru_cache(maxsize=32)
def _resampler(old, new):
    import torchaudio
    return torchaudio.transforms.Resample(*ratio(old, new))


_stderr, _silenced = threading.Lock(), []  # by each thread that decodes an MP3, the descriptor that it found


@contextmanager
def _quiet(wanted):
    """libsndfile's MP3 decoder writes a line to stderr for each frame that it meets without its predecessors, which
    is what a seek does. Nothing is lost by closing its mouth: failures arrive as exceptions or short reads."""
    if not wanted:
        yield
        return
    with _stderr:
        _silenced.append(os.dup(2))
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        with _stderr:
            found = _silenced.pop()
            if not _silenced:
                os.dup2(found, 2)
            os.close(found)


def _says_length(path):
    """Whether an MP3 states its number of frames (Xing, Info or VBRI tag in the first frame)."""
    if not path:
        return False
    with open(path, "rb") as file:
        head, skip = file.read(10), 0
        if head[:3] == b"ID3":  # tags before the sound: their length is four groups of 7 bits
            skip = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
        file.seek(skip)
        first = file.read(4096)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _why(error, path):
    """libsndfile's complaint without its frame."""
    if path:
        if not os.path.exists(path):
            return "no such file"
        if os.path.isdir(path):
            return "is a folder"
        if not os.path.getsize(path):
            return "empty file"
    text = str(getattr(error, "error_string", "") or error).strip()
    return f"not readable as sound: {text.splitlines()[0] if text else type(error).__name__}".rstrip(".")


def printable(path):
    """A path as text that can be printed whatever bytes its name holds."""
    raw = path if isinstance(path, bytes) else str(path).encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")
