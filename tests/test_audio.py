"""Reading sound: exact seeks, rates, channels, and everything that can be wrong with a file."""
import io

import numpy as np
import pytest
import soundfile

from wren.sound import audio, loading
from wren.sound.audio import BadAudio


def write(path, wave, rate=16000, **kwargs):
    """Write in pieces: libsndfile's Vorbis encoder overflows its stack on long blocks."""
    with soundfile.SoundFile(path, "w", rate, 1 if wave.ndim == 1 else wave.shape[1], **kwargs) as file:
        for start in range(0, len(wave), 4096):
            file.write(wave[start:start + 4096])
    return path


def noise(n, seed=0, channels=None):
    shape = n if channels is None else (n, channels)
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def cropper(seconds, rate=16000, crop="random", **sampling):
    """What a loader takes of each row."""
    return loading.Cropper(loading.Sampling(rate, **sampling), seconds, crop)


@pytest.mark.parametrize("name, rate", [("a.wav", 22050), ("a.flac", 22050), ("a.ogg", 22050), ("a.ogg", 48000),
                                        ("a.mp3", 8000), ("a.mp3", 22050), ("a.mp3", 44100), ("a.aiff", 22050),
                                        ("a.WAV", 8000), ("a.opus", 48000)])
def test_a_part_is_what_a_straight_read_gives_there(tmp_path, name, rate):
    kwargs = dict(format="OGG", subtype="OPUS") if name.endswith("opus") else {}
    path = write(tmp_path / name, noise(rate * 4 + 1234), rate, **kwargs)
    whole, n = audio.read(path), rate * 4 + 1234
    assert audio.info(path) == (n, rate, 1) and len(whole) == n
    for start in np.linspace(0, n - 600, 40).astype(int).tolist():  # the last ones lie in an Ogg stream's last page
        assert np.abs(audio.read(path, start, 500) - whole[start:start + 500]).max() < 1e-6, start
    with audio.Sound(path) as sound:  # several reads of one open file, backwards too
        for start in (n // 2, 100, n - 600):
            assert np.abs(sound.read(start, 500) - whole[start:start + 500]).max() < 1e-6, start


def test_a_part_of_an_mp3_does_not_make_the_decoder_talk(tmp_path, capfd):
    path = write(tmp_path / "a.mp3", noise(64000))
    for start in range(1000, 60000, 5000):
        audio.read(path, start, 1000)
    assert capfd.readouterr().err == ""


def test_an_mp3_that_does_not_say_its_length_is_counted(tmp_path):
    rate = 16000
    loud = np.concatenate([0.01 * noise(rate * 10), noise(rate * 10)])  # a guess from the bytes is wrong
    data = write(tmp_path / "whole.mp3", loud, rate, bitrate_mode="VARIABLE").read_bytes()
    cut = tmp_path / "cut.mp3"
    cut.write_bytes(data[4321:])
    frames, _, _ = audio.info(cut)
    assert frames == len(audio.read(cut)) and frames != soundfile.info(cut).frames
    assert audio.read(cut, frames - 100, 100).shape == (100,)


def test_channels_are_averaged(tmp_path):
    wave = noise(4000, channels=8)
    path = write(tmp_path / "eight.wav", wave, subtype="FLOAT")
    assert audio.info(path) == (4000, 16000, 8)
    np.testing.assert_allclose(audio.read(path), wave.mean(1), atol=1e-7)


@pytest.mark.parametrize("rate", [2000, 8000, 44100, 47999, 250000])
def test_a_tone_keeps_its_pitch_level_and_length_at_any_rate(tmp_path, rate):
    time = np.arange(rate * 2) / rate
    path = write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate, subtype="FLOAT")
    wave = audio.read(path, rate=16000)
    assert wave.dtype == np.float32 and len(wave) == 32000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)
    # the filter's ripple; 47 999 Hz is taken as 48 000, which moves the tone by 2e-5: 0.11 rad after 2 s
    assert np.abs(wave - expected)[1000:-1000].max() < (0.06 if rate == 47999 else 5e-3)


def test_what_lies_above_the_new_nyquist_frequency_is_gone():
    wave = np.sin(2 * np.pi * 20000 * np.arange(96000) / 96000).astype(np.float32)
    assert np.abs(audio.resample(wave, 96000, 16000)[100:-100]).max() < 0.01


def test_a_file_object_is_read_like_a_path(tmp_path):
    path = write(tmp_path / "a.flac", noise(3000))
    assert np.array_equal(audio.read(io.BytesIO(path.read_bytes()), 100, 200), audio.read(path, 100, 200))


def broken(folder, kind):
    """A file of each kind that goes wrong."""
    path = folder / f"{kind}.wav"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no sound\n" * 100)
    elif kind == "truncated":
        data = write(path, noise(16000)).read_bytes()
        path.write_bytes(data[:len(data) // 3])
    elif kind == "header":
        path.write_bytes(write(path, noise(16000)).read_bytes()[:44])
    elif kind == "zero-samples":
        write(path, noise(0))
    elif kind in ("nan", "inf"):
        wave = noise(16000)
        wave[5000] = float(kind)
        write(path, wave, subtype="FLOAT")
    elif kind == "flipped":
        path = folder / "flipped.flac"
        data = bytearray(write(path, noise(16000)).read_bytes())
        data[len(data) // 2] ^= 0x55
        path.write_bytes(data)
    elif kind == "cut-flac":
        path = folder / "cut.flac"
        path.write_bytes(write(path, noise(16000)).read_bytes()[:5000])
    return path


BROKEN = {"empty": "empty file", "text": "not readable as sound", "truncated": "16000 frames from 0 wanted",
          "header": "wanted, 0 there", "zero-samples": "wanted, 0 there", "nan": "NaN or infinite",
          "inf": "NaN or infinite", "flipped": "", "cut-flac": "", "missing": "no such file"}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_the_reason(tmp_path, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(BadAudio) as caught:
        audio.read(path, 0, 16000)
    assert BROKEN[kind] in caught.value.reason and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_sample_is_sound_and_more_than_there_is_is_an_error(tmp_path):
    path = write(tmp_path / "one.wav", noise(1))
    assert audio.read(path).shape == (1,)
    for start, frames in ((0, 2), (1, 1), (5, -1)):
        with pytest.raises(BadAudio):
            audio.read(path, start, frames)


def test_a_name_that_is_not_utf8_works(tmp_path):
    raw = bytes(tmp_path) + b"/caf\xe9.wav"
    soundfile.write(raw, noise(100), 8000)
    import os
    assert audio.info(os.fsdecode(raw)) == (100, 8000, 1)
    os.truncate(raw, 0)
    with pytest.raises(BadAudio) as caught:
        audio.read(os.fsdecode(raw))
    str(caught.value).encode()  # can be printed
