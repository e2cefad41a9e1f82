"""A second synthetic stand-in: sound at 8 to 250 kHz, each at its own rate, and collars that feel how they are moved.

    ultrasound                      task: five callers between 20 and 90 kHz, recorded at 192 and 250 kHz
    rates-48k rates-16k rates-8k    one task at three rates: the same events of eight species, all below 3.5 kHz
    behaviour                       task: what an animal does, by its collar's microphone and accelerometer
    pretrain.csv                    unlabelled recordings of all of these, by other animals

Calls and backgrounds are those of scenes.py, files demo.py's. What the label must not be read from (in ultrasound all
that is below 15 kHz, levels, lengths, rates) is drawn without it. Every file is a pure function of (seed, part, split,
number).

    demo_rates.ensure()           # data/demo-rates, made if it isn't there
"""
import numpy as np
import scipy.fft
import scipy.signal

from wren.sound import demo, scenes

BAT_RATES, CALLER_RATES, COLLAR_RATE = (192000, 250000), (8000, 16000, 48000), 8000
DECIMATED = {"rates-48k": 1, "rates-16k": 3, "rates-8k": 6}  # one sample in so many
MOTION_RATE = 50  # Hz of the accelerometer
AUDIBLE_TOP, ULTRASOUND_BOTTOM = 3500, 15000  # Hz: no call reaches beyond
CLIPS = {"train": 20, "valid": 6, "test": 16}  # of a class, in each task
RECORDINGS = {"callers": 42, "bats": 25, "collars": 20}  # unlabelled
BEHAVIOUR_SECONDS, COLLAR_SECONDS, BAT_SECONDS = 4, 20, 4

AUDIBLE = ("seesaw", "valley", "uptrill", "downtrill", "riser", "faller", "barker", "moaner")
ULTRASONIC = [  # as scenes.SPECIES
    ("sweeper", "trill",   dict(pitch=36000, count=8, every=.06, duty=.10, slope=.45)),
    ("looper",  "trill",   dict(pitch=21500, count=5, every=.11, duty=.11, slope=.75)),
    ("steady",  "whistle", dict(pitch=70000, notes=((1, 1, .035),) * 4, gap=.03)),
    ("squeak",  "whistle", dict(pitch=52000, notes=((.9, 1.2, .05), (1.25, 1, .06), (.95, 1.1, .04)), gap=.03)),
    ("sigh",    "sweep",   dict(pitch=24500, seconds=.25, bends=(1.1, 1, 1))),
]
# What a collar hears and feels: (sound, motion, cycles of the motion per second, its strength in g). Three sound
# alike, two pairs move alike, so that either sense alone tells four of the seven apart at most.
BEHAVIOURS = {
    "resting": ("", "still", .35, .012), "calling": ("calls", "still", .35, .012),
    "walking": ("", "gait", 1.7, .22), "walking-calling": ("calls", "gait", 1.7, .22),
    "grooming": ("", "bouts", 4.5, .30), "digging": ("scrapes", "bouts", 4.5, .30),
    "running": ("steps", "gait", 3.0, .75)}


# ---- ultrasound, and the same calls at several rates

def limited(wave, rate, low=0, high=np.inf):
    """A wave [n] without what lies below `low` or above `high` Hz, faded out over a tenth of them -> [n]."""
    size = scipy.fft.next_fast_len(len(wave), real=True)
    f = np.fft.rfftfreq(size, 1 / rate)
    gain = np.clip((f - low) / max(low / 10, 1), 0, 1) if low else np.ones_like(f)
    if high < np.inf:
        gain = gain * np.clip((high - f) / (high / 10), 0, 1)
    return scipy.fft.irfft(scipy.fft.rfft(wave, size) * gain, size)[:len(wave)]


def bat(seed, species, use, rng):
    """One of the individuals of an ultrasonic species (index) set aside for `use` -> (number, voice)."""
    number = int(rng.integers(*demo.INDIVIDUALS[use]))
    return number, scenes.voiced(ULTRASONIC[species], np.random.default_rng([seed, 98, species, number]))


def bat_scene(voices, seconds, rate, rng):
    """Bouts of ultrasonic voices over a background that reaches from 20 Hz up -> scene [n] at a drawn level.

    The level is the background's: calls of much energy would else lower what is heard beside them.
    """
    place = scenes.background(int(seconds * rate), rate, rng)
    scene = place.copy()
    for voice in voices:
        dry = limited(scenes.bout(voice, rate, len(scene), rng), rate, ULTRASOUND_BOTTOM)
        scenes.add_call(scene, place, dry, rate, rng.random(), scenes.signal_to_noise(rng), rng)
    return scenes.levelled(place + limited(scene - place, rate, ULTRASOUND_BOTTOM), place, rng)


def ultrasound(root, name, seed, split, number, rng):
    """A clip of one ultrasonic caller in 0.5–1 s; each species as often at either rate."""
    species, rate = number % len(ULTRASONIC), BAT_RATES[number // len(ULTRASONIC) % 2]
    animal, voice = bat(seed, species, split, rng)
    scene = bat_scene([voice], rng.uniform(0.5, 1), rate, rng)
    path = demo.save(root / "ultrasound/audio" / f"{name}.flac", scene, rate)
    label = ULTRASONIC[species][0]
    return [row(path, label, f"{label}-{animal:02d}")], len(scene) / rate


def row(path, label, animal):
    return {"path": f"audio/{path.name}", "label": label, "recording": animal}


def rates(root, name, seed, split, number, rng):
    """demo.py's clip of one animal, calls bounded, written at 48 kHz and decimated under the same name."""
    label, full = AUDIBLE[number % len(AUDIBLE)], max(CALLER_RATES)
    species = scenes.NAMES.index(label)
    animal, voice = demo.draw(seed, species, split, rng)
    scene, place = demo.clip(seed, split, species, voice, full, rng)
    scene = scenes.levelled(place + limited(scene - place, full, high=AUDIBLE_TOP), scene, rng)
    for folder, factor in DECIMATED.items():
        path = demo.save(root / folder / "audio" / f"{name}.flac",
                         scipy.signal.resample_poly(scene, 1, factor), full // factor)
    return [row(path, label, f"{label}-{animal:02d}")], len(scene) / full


# ---- collars

def wearer(seed, number):
    """One collared animal: its voice, its pace and strength, and how its collar sits (a rotation)."""
    rng = np.random.default_rng([seed, 97, number])
    axes, triangle = np.linalg.qr(np.eye(3) + rng.normal(0, 0.25, (3, 3)))
    barker = scenes.SPECIES[scenes.NAMES.index("barker")]
    return {"voice": scenes.voiced(barker, rng), "pace": np.exp(rng.normal(0, 0.08)),
            "strength": np.exp(rng.normal(0, 0.15)), "rotation": axes * np.sign(np.diag(triangle))}  # near upright


def motion(behaviour, seconds, animal, rng):
    """What the accelerometer measures -> (n, 3) in g, and the times in seconds at which a cycle of it begins."""
    _, kind, pace, strength = BEHAVIOURS[behaviour]
    t = np.arange(round(seconds * MOTION_RATE)) / MOTION_RATE
    wobble = scenes.slow(len(t), MOTION_RATE, 0.5, rng, 0.05)
    cycles = np.cumsum(pace * animal["pace"] * wobble) / MOTION_RATE + rng.random()
    amplitude = strength * animal["strength"] * np.exp(rng.normal(0, 0.15)) * np.ones(len(t))
    if kind == "bouts":  # on and off, about a second each
        on = np.sin(2 * np.pi * (rng.uniform(0.4, 0.7) * t + rng.random())) > -0.4
        amplitude *= np.convolve(on, np.ones(7) / 7, "same")
    phase, turn = 2 * np.pi * cycles, rng.uniform(0, 2 * np.pi, 3)
    swing = np.stack([0.6 * np.sin(phase + turn[0]), 0.4 * np.sin(phase / 2 + turn[1]),
                      np.sin(phase) + 0.4 * np.sin(2 * phase + turn[2])], 1)
    posture = np.array([0, 0, 1]) + rng.normal(0, 0.15, 3)  # of the neck: gravity
    body = posture / np.linalg.norm(posture) + amplitude[:, None] * swing
    felt = body @ animal["rotation"].T + rng.normal(0, 0.02, (len(t), 3))
    begins = np.flatnonzero((np.diff(np.floor(cycles)) > 0) & (amplitude[1:] > 0.4 * amplitude.max()))
    return felt, begins / MOTION_RATE


def thump(rate, rng):
    """A footfall -> wave [n]."""
    t = np.arange(int(0.12 * rate)) / rate
    return np.sin(2 * np.pi * rng.uniform(90, 150) * t) * np.exp(-t / 0.025) * scenes.edges(len(t), 0.02)


def scrape(rate, rng):
    """A stroke of digging -> wave [n]."""
    n = int(rng.uniform(0.08, 0.13) * rate)
    low, high = rng.uniform(500, 800), rng.uniform(1800, 2800)
    return scenes.shaped(rng.standard_normal(n), rate, lambda f: (f > low) / (1 + (f / high) ** 4)) * scenes.edges(n)


def collar(behaviours, seconds, animal, rng):
    """`seconds` of each behaviour, one after another -> scene [n] at COLLAR_RATE, accelerometer (m, 3)."""
    rate = COLLAR_RATE
    place = scenes.background(len(behaviours) * seconds * rate, rate, rng)
    scene, felt = place.copy(), []
    for k, behaviour in enumerate(behaviours):
        part = slice(k * seconds * rate, (k + 1) * seconds * rate)
        moved, begins = motion(behaviour, seconds, animal, rng)
        felt.append(moved)
        sound, snr = BEHAVIOURS[behaviour][0], rng.uniform(4, 18)
        if sound == "calls":
            for _ in range(rng.integers(1, 3)):
                dry = scenes.bout(animal["voice"], rate, seconds * rate, rng)
                scenes.add_call(scene[part], place[part], dry, rate, rng.random(), snr, rng)
        for at in begins if sound in ("steps", "scrapes") else ():
            dry = (thump if sound == "steps" else scrape)(rate, rng)
            where = min(1, at * rate / (seconds * rate - len(dry)))
            scenes.add_call(scene[part], place[part], dry, rate, where, snr + rng.uniform(-2, 2), rng)
    return scene, np.concatenate(felt)


def timed(felt):
    """A stream (n, channels) with its times in seconds before it -> (n, 1 + channels)."""
    return np.column_stack([np.arange(len(felt)) / MOTION_RATE, felt])


def behaviour(root, name, seed, split, number, rng):
    """A labelled clip of a collar; one in ten has no accelerometer."""
    label = list(BEHAVIOURS)[number % len(BEHAVIOURS)]
    animal = int(rng.integers(*demo.INDIVIDUALS[split]))
    scene, felt = collar([label], BEHAVIOUR_SECONDS, wearer(seed, animal), rng)
    path = demo.save(root / "behaviour/audio" / f"{name}.flac", scenes.levelled(scene, scene, rng), COLLAR_RATE)
    stream = ""
    if number % 10 != 9:
        stream = f"accelerometer/{name}.csv"
        (root / "behaviour/accelerometer").mkdir(parents=True, exist_ok=True)
        np.savetxt(root / "behaviour" / stream, timed(felt), "%.2f,%.3f,%.3f,%.3f", header="time,x,y,z", comments="")
    return [row(path, label, f"collar-{animal:02d}") | {"stream:accelerometer": stream}], len(scene) / COLLAR_RATE


# ---- unlabelled recordings

def callers(root, name, seed, split, number, rng):
    """demo.py's recording, of its species, at one of three rates."""
    rate = CALLER_RATES[number % len(CALLER_RATES)]
    scene, _ = demo.recording(seed, split, number, rate, rng)
    return unlabelled(root, name, scene, scene, rate, 4, rng)


def bats(root, name, seed, split, number, rng):
    """One or two ultrasonic callers nearby."""
    rate = BAT_RATES[number % 2]
    nearby = [bat(seed, int(rng.integers(len(ULTRASONIC))), "recordings", rng)[1] for _ in range(rng.integers(1, 3))]
    voices = [nearby[k] for k in rng.integers(0, len(nearby), 3 + rng.poisson(3))]
    scene = bat_scene(voices, BAT_SECONDS, rate, rng)
    return unlabelled(root, name, scene, None, rate, 1, rng)


def collars(root, name, seed, split, number, rng):
    """A collar for some time, with its accelerometer."""
    animal = wearer(seed, int(rng.integers(*demo.INDIVIDUALS["recordings"])))
    doing = rng.choice(list(BEHAVIOURS), COLLAR_SECONDS // BEHAVIOUR_SECONDS)
    scene, felt = collar(doing, BEHAVIOUR_SECONDS, animal, rng)
    rows, seconds = unlabelled(root, name, scene, scene, COLLAR_RATE, 4, rng)
    np.save(root / f"recordings/{name}.npy", timed(felt))
    return [one | {"stream:accelerometer": f"recordings/{name}.npy"} for one in rows], seconds


def unlabelled(root, name, scene, reference, rate, seconds, rng):
    """Write a recording, at the level that `reference` is brought to if there is one -> its rows, its length in s."""
    scene = scene if reference is None else scenes.levelled(scene, reference, rng)
    rows = demo.segments(demo.save(root / f"recordings/{name}.flac", scene, rate), len(scene), rate, seconds)
    return [one | {"stream:accelerometer": ""} for one in rows], len(scene) / rate


# ---- the corpus: each part is a function (root, name, seed, split, number, rng) -> (rows of its table, seconds)

PARTS = {part.__name__: part for part in (ultrasound, rates, behaviour, callers, bats, collars)}


def build(job):
    """Make one file, or one at three rates -> (part, split, rows of its table, seconds)."""
    root, seed, part, split, number = job
    name, rng = demo.name_and_rng(seed, 100 + list(PARTS).index(part), split, number)
    rows, seconds = PARTS[part](root, name, seed, split, number, rng)
    return part, split, rows, seconds


CORPUS = demo.Corpus("data/demo-rates", "rates-1", {
    **{part: ({"train": count}, 1, {"train": 3}) for part, count in RECORDINGS.items()},
    "ultrasound": (CLIPS, len(ULTRASONIC), demo.AT_LEAST), "rates": (CLIPS, len(AUDIBLE), demo.AT_LEAST),
    "behaviour": (CLIPS, len(BEHAVIOURS), demo.AT_LEAST)},
    build, {"rates": DECIMATED} | dict.fromkeys(RECORDINGS, ("recordings",)))
make, ensure = CORPUS.make, CORPUS.ensure
