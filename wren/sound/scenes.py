"""Synthetic scenes: how species call, each individual in its own voice, in wind, rain, hum and insects, near or far.

What tells species apart is the shape of their calls in time and frequency; their frequency ranges overlap.
"""
import numpy as np
import scipy.fft

# name, family, parameters. `pitch` in Hz, times in seconds, rates in 1/s; the others are ratios of the pitch.
SPECIES = [
    ("seesaw",   "whistle", dict(pitch=1350, notes=((1, 1, .13), (1.32, 1.32, .13), (1, 1, .13)), gap=.05)),
    ("valley",   "whistle", dict(pitch=1900, notes=((1.32, 1.32, .13), (1, 1, .13), (1.32, 1.32, .13)), gap=.05)),
    ("uptrill",  "trill",   dict(pitch=1700, count=8, every=.085, duty=.75, slope=1.5)),
    ("downtrill", "trill",  dict(pitch=1350, count=8, every=.085, duty=.75, slope=1 / 1.5)),
    ("rattler",  "trill",   dict(pitch=2200, count=16, every=.042, duty=.6, slope=1.15)),
    ("riser",    "sweep",   dict(pitch=1050, seconds=.55, bends=(1, 1.25, 1.9))),
    ("faller",   "sweep",   dict(pitch=1450, seconds=.55, bends=(1.9, 1.25, 1))),
    ("arch",     "sweep",   dict(pitch=1250, seconds=.60, bends=(1, 1.9, 1))),
    ("barker",   "stack",   dict(pitch=350, formant=1300, seconds=.12, count=3, gap=.10, arch=.25, vibrato=0)),
    ("moaner",   "stack",   dict(pitch=520, formant=1900, seconds=.75, count=1, gap=0, arch=.05, vibrato=.07)),
    ("starter",  "pulses",  dict(pitch=1500, seconds=.9, first=6, last=32)),
    ("stopper",  "pulses",  dict(pitch=2300, seconds=.9, first=32, last=6)),
    ("buzzer",   "buzz",    dict(pitch=1900, seconds=.6, rate=30)),
    ("duettist", "duet",    dict(pitch=1600, seconds=.5, spread=(1.08, 1.45))),
]
EXTRA_SPECIES = [  # in the unlabelled recordings only
    ("hooter",   "whistle", dict(pitch=750, notes=((1, .95, .35), (1, .9, .5)), gap=.15)),
    ("wobbler",  "stack",   dict(pitch=1100, formant=1500, seconds=.8, count=1, gap=0, arch=.1, vibrato=.12)),
    ("ticker",   "pulses",  dict(pitch=2300, seconds=.8, first=14, last=14)),
    ("crosser",  "duet",    dict(pitch=1700, seconds=.4, spread=(1.5, 0.9))),
]
NAMES = [name for name, _, _ in SPECIES]


# ---- call families: (parameters, rate in Hz, rng) -> wave [n]

def tone(track, partials, rate, rng):
    """A harmonic tone: frequency track [n] in Hz, partial weights -> wave [n]; nothing above 0.45 of the rate."""
    n = len(track)
    wobble = np.interp(np.arange(n), np.linspace(0, n, 6), rng.normal(0, 0.008, 6))  # no two renditions are the same
    track = track * (1 + wobble)
    phase = 2 * np.pi * np.cumsum(track) / rate + rng.uniform(0, 2 * np.pi)
    wave = np.zeros(n)
    for k, weight in enumerate(partials, 1):
        if k * track.min() < 0.45 * rate:
            wave += weight * np.sin(k * phase) * (k * track < 0.45 * rate)
    return wave


def edges(n, share=0.2):
    """An envelope [n] with raised-cosine edges, each `share` of the length."""
    ramp = np.minimum(np.arange(n), np.arange(n)[::-1]) / max(1, share * n)
    return np.sin(np.pi / 2 * np.minimum(ramp, 1)) ** 2


def bent(points, n):
    """Ratios `points` evenly spaced in time, joined smoothly on a logarithmic axis -> [n]."""
    position = np.linspace(0, len(points) - 1, n)
    eased = np.floor(position) + (1 - np.cos(np.pi * (position % 1))) / 2
    return np.exp(np.interp(eased, np.arange(len(points)), np.log(points)))


def whistle(p, rate, rng):
    """Separate notes, each a glide (from, to, seconds)."""
    parts = []
    for start, end, seconds in p["notes"]:
        n = int(seconds * p["tempo"] * rng.uniform(0.9, 1.1) * rate)
        parts += [tone(p["pitch"] * bent((start, end), n), p["partials"], rate, rng) * edges(n),
                  np.zeros(int(p["gap"] * p["tempo"] * rate))]
    return np.concatenate(parts[:-1])


def trill(p, rate, rng):
    """The same short swept note, many times."""
    count = max(3, p["count"] + rng.integers(-2, 3))
    every = int(p["every"] * p["tempo"] * rate)
    n = int(every * p["duty"])
    track = p["pitch"] * bent((1, p["slope"]), n) / np.sqrt(p["slope"]) * 1.2
    wave = np.zeros((count, every))
    for i in range(count):
        swell = 0.6 + 0.4 * np.sin(np.pi * (i + 1) / (count + 1))
        wave[i, :n] = swell * tone(track, p["partials"], rate, rng) * edges(n)
    return wave.ravel()


def sweep(p, rate, rng):
    """One long glide through `bends`."""
    n = int(p["seconds"] * p["tempo"] * rate)
    return tone(p["pitch"] * bent(p["bends"], n), p["partials"], rate, rng) * edges(n)


def stack(p, rate, rng):
    """Harmonics of a low voice through one resonance; arched or with vibrato."""
    parts = []
    for _ in range(p["count"]):
        n = int(p["seconds"] * p["tempo"] * rng.uniform(0.9, 1.1) * rate)
        t = np.arange(n) / rate
        vibrato = p["vibrato"] * np.sin(2 * np.pi * 7 / p["tempo"] * t + rng.uniform(0, 2 * np.pi))
        track = p["pitch"] * (1 + p["arch"] * (np.sin(np.pi * np.arange(n) / n) - 0.5) + vibrato)
        k = np.arange(1, 1 + int(6000 / p["pitch"]))
        resonance = 1 / (1 + ((k * p["pitch"] / p["formant"] - 1) / 0.45) ** 2)
        parts += [tone(track, resonance * p["timbre"][:len(k)], rate, rng) * edges(n),
                  np.zeros(int(p["gap"] * p["tempo"] * rate))]
    return np.concatenate(parts[:-1])


def pulses(p, rate, rng):
    """Damped clicks whose rate goes from `first` to `last` per second."""
    wave = np.zeros(int(p["seconds"] * p["tempo"] * rate))
    t = np.arange(int(0.03 * rate)) / rate
    at = 0.0  # share of the call that has passed
    while at < 1 - 0.03 / (p["seconds"] * p["tempo"]):
        start = int(at * len(wave))
        ring = rng.uniform(0.7, 1) * np.exp(-t / p["ring"])
        click = ring * tone(np.full(len(t), p["pitch"]), p["partials"], rate, rng)
        wave[start:start + len(t)] += click[:len(wave) - start]
        at += rng.uniform(0.92, 1.08) / (p["first"] * (p["last"] / p["first"]) ** at * p["seconds"])
    return wave


def buzz(p, rate, rng):
    """A rough carrier under a fast tremolo."""
    n = int(p["seconds"] * p["tempo"] * rate)
    t = np.arange(n) / rate
    knots = rng.normal(0, 0.06, int(t[-1] / 0.002) + 2)  # a new pitch each 2 ms
    rough = np.interp(t / 0.002, np.arange(len(knots)), knots)
    tremolo = (0.5 + 0.5 * np.cos(2 * np.pi * p["rate"] / p["tempo"] * t)) ** 2
    return tone(p["pitch"] * (1 + rough), p["partials"], rate, rng) * tremolo * edges(n, 0.1)


def duet(p, rate, rng):
    """Two voices at once that drift apart or together; `spread` is their ratio at the start and the end."""
    n = int(p["seconds"] * p["tempo"] * rate)
    half = np.sqrt(bent(p["spread"], n))
    return sum(tone(p["pitch"] * ratio, p["partials"], rate, rng) for ratio in (half, 1 / half)) * edges(n)


FAMILIES = {f.__name__: f for f in (whistle, trill, sweep, stack, pulses, buzz, duet)}


def individual(seed, species, number):
    """One animal: the parameters of its species (an index into SPECIES + EXTRA_SPECIES), its own voice in them."""
    return voiced((SPECIES + EXTRA_SPECIES)[species], np.random.default_rng([seed, 99, species, number]))


def voiced(species, rng):
    """One animal's parameters, from its species' (name, family, parameters)."""
    _, family, table = species
    voice = dict(table, family=family, tempo=np.exp(rng.normal(0, 0.14)), ring=rng.uniform(0.003, 0.007))
    voice["pitch"] = table["pitch"] * np.exp(np.clip(rng.normal(0, 0.06), -0.15, 0.15))
    voice["partials"] = rng.uniform(0.1, 0.45) ** np.arange(4) * rng.uniform(0.3, 1, 4)
    voice["timbre"] = rng.uniform(0.3, 1, 40)
    if "formant" in table:
        voice["formant"] = table["formant"] * np.exp(rng.normal(0, 0.12))
    return voice


def call(voice, rate, rng):
    """One rendition, a little different each time, at RMS 1 -> wave [n] (0.1–1.2 s)."""
    pitch, tempo = voice["pitch"] * np.exp(rng.normal(0, 0.02)), voice["tempo"] * np.exp(rng.normal(0, 0.05))
    voice = dict(voice, pitch=pitch, tempo=tempo)
    wave = FAMILIES[voice["family"]](voice, rate, rng)[:int(1.2 * rate)]
    return wave / np.sqrt(np.mean(wave ** 2))


def bout(voice, rate, room, rng):
    """One to three renditions with pauses between them, as many as go into `room` samples -> wave [n]."""
    wave = call(voice, rate, rng)
    for _ in range(rng.integers(0, 3)):
        longer = np.concatenate([wave, np.zeros(int(rng.uniform(0.1, 0.5) * rate)), call(voice, rate, rng)])
        wave = longer if len(longer) <= room else wave
    return wave


# ---- the place: background, distance, recordings

def shaped(noise, rate, gain):
    """Filter noise [n] by gain(frequencies in Hz [m]) [m], to RMS 1."""
    n = len(noise)
    size = scipy.fft.next_fast_len(n, real=True)
    spectrum = scipy.fft.rfft(noise, size)
    spectrum *= gain(np.fft.rfftfreq(size, 1 / rate)).astype(np.float32)
    wave = scipy.fft.irfft(spectrum, size)[:n]
    return wave / (np.sqrt(np.mean(wave ** 2)) + 1e-9)


def slow(n, rate, every, rng, depth):
    """A slowly varying gain [n]: a new random value each `every` seconds, within e^±depth or so."""
    knots = rng.normal(0, depth, int(n / rate / every) + 3)
    return np.exp(np.interp(np.arange(n) / (rate * every), np.arange(len(knots)), knots)).astype(np.float32)


def background(n, rate, rng):
    """Wind, rain, hum and insects, each there or not, over a tilted noise floor -> [n] float32, RMS 1."""
    def noise(gain):
        return shaped(rng.standard_normal(n, dtype=np.float32), rate, gain)

    t = np.arange(n, dtype=np.float32) / rate
    tilt, bump, width, height = rng.uniform(0.3, 0.7), rng.uniform(300, 4000), rng.uniform(0.3, 1), rng.uniform(0, 1)

    def floor(f):
        f = np.maximum(f, 20)
        return (f / 1000) ** -tilt * (1 + height * np.exp(-(np.log(f / bump) / width) ** 2))  # a hill: leaves, water

    wave = noise(floor)
    if rng.random() < 0.4:  # wind
        corner, gusts = rng.uniform(60, 300), slow(n, rate, rng.uniform(0.6, 2), rng, 0.6)
        wave += rng.uniform(0.5, 3) * gusts * noise(lambda f: 1 / (1 + (f / corner) ** 2))
    if rng.random() < 0.2:  # rain
        drops, count = np.zeros(n, np.float32), 1 + rng.poisson(n / rate * rng.uniform(4, 60))
        drops[rng.integers(0, n, count)] = rng.exponential(1, count) * rng.choice((-1, 1), count)
        low, high = rng.uniform(300, 900), rng.uniform(2000, 9000)
        patter = shaped(drops, rate, lambda f: (f / low) / (1 + (f / low) ** 2) / (1 + (f / high) ** 2))
        wave += rng.uniform(0.3, 1.5) * patter
    if rng.random() < 0.2:  # mains hum
        base = 2 * np.pi * rng.choice((50, 60))
        hum = sum(rng.uniform(0, 1) / k * np.sin(base * k * t + rng.uniform(0, 2 * np.pi)) for k in range(1, 9))
        wave += (rng.uniform(0.2, 2) * hum).astype(np.float32)
    centre, width = rng.uniform(2300, 7500), rng.uniform(40, 250)
    if rng.random() < 0.3 and centre < 0.45 * rate:  # insects
        chirr = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(4, 60) * t).astype(np.float32)
        wave += rng.uniform(0.2, 1.2) * chirr * noise(lambda f: np.exp(-((f - centre) / width) ** 2))
    return wave / np.sqrt(np.mean(wave ** 2))


def far(wave, rate, distance, rng):
    """A call [n] from a distance (0 near … 1 far): a softer top, an exponentially decaying echo -> [n + tail]."""
    decay = rng.uniform(0.05, 0.15) * (0.3 + distance)  # seconds to fall by 1/e
    tail = int(4 * decay * rate)
    echo = rng.standard_normal(tail) * np.exp(-np.arange(tail) / (decay * rate)) * rng.uniform(0.05, 0.6) * distance
    echo /= np.sqrt(decay * rate / 2)
    echo[0] += 1
    size = scipy.fft.next_fast_len(len(wave) + tail, real=True)
    corner = 12000 * (1 - 0.75 * distance)
    air = 1 / (1 + (np.fft.rfftfreq(size, 1 / rate) / corner) ** 2)
    return scipy.fft.irfft(scipy.fft.rfft(wave, size) * scipy.fft.rfft(echo, size) * air, size)[:len(wave) + tail]


def add_call(scene, place, dry, rate, where, snr, rng):
    """Add a call [m] to scene [n], `snr` dB above its background `place` [n] in the call's band -> samples (from, to)

    `where` is from 0 (the call starts the scene) to 1 (the call ends it).
    """
    start = int(where * max(0, len(scene) - len(dry)))
    wave = far(dry, rate, rng.uniform(0, 1), rng)[:len(scene) - start]
    power = np.abs(scipy.fft.rfft(wave)) ** 2
    share = np.cumsum(power) / power.sum()
    band = slice(*np.searchsorted(share, (0.05, 0.95)) + np.array((0, 1)))
    noise = np.abs(scipy.fft.rfft(place[start:start + len(wave)])) ** 2
    gain = np.sqrt(10 ** (snr / 10) * noise[band].sum() / power[band].sum())
    scene[start:start + len(wave)] += (gain * wave).astype(np.float32)
    return start, min(start + len(dry), len(scene))


def signal_to_noise(rng):
    """−5 to 20 dB, mean 13 dB: most of what people label they hear well."""
    return -5 + 25 * rng.beta(2.4, 1)


def levelled(scene, rng):
    """Scene [n] at a level drawn without regard to its content."""
    rms = 10 ** (rng.uniform(-58, -46) / 20)
    return scene * min(rms / np.sqrt(np.mean(scene ** 2)), 0.95 / np.abs(scene).max())
