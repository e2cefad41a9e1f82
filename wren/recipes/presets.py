"""The encoders' sizes by name: published ones, and one a family for laptops. `any_rate` makes one hear every rate."""
from dataclasses import replace

from wren.recipes.encoder import AUDIOSET_MEAN, AUDIOSET_STD, SEMITONES, EncoderConfig, octave_rows

WAVE_CONVS = ((127, 63, 1), (512, 10, 5), *3 * ((512, 3, 2),), (512, 3, 1), *2 * ((512, 2, 1),))  # animal2vec's


def any_rate(config, top):
    """A preset that hears every rate up to `top` Hz: bands at fixed hertz, positions in seconds and octaves.

    An octave is a row of tokens, so halving the rate takes one row away and changes nothing else; a mel axis, however
    far it reaches, would cut through its rows at each Nyquist frequency.
    """
    shared = dict(rate="any", positions="physical")
    if config.frontend == "wave":
        return replace(replace(config, **shared).at_rate(top), name=f"{config.name}-any")
    level = dict(mean=AUDIOSET_MEAN, scale=2 * AUDIOSET_STD) if config.frontend == "mel-db" else {}
    return replace(config, **shared, **level, name=f"{config.name}-any", frontend="octave", sample_rate=top,
                   n_mels=octave_rows(top) * SEMITONES, patch=(SEMITONES, 16), stride=(SEMITONES, 16), window=0.025,
                   floor_db=0.0, input_norm=False, pad="masked")


def _sizes():
    """Width, depth and heads: SSAST's published sizes, and two more that Dasheng has shown to train."""
    return {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "0.6b": (1280, 32, 16),
            "1.2b": (1536, 40, 24)}


def _presets():
    kinds = {"patch": (16, 16), "frame": (128, 2)}
    table = {}
    for size, (dim, depth, heads) in _sizes().items():
        for kind, patch in kinds.items():
            name = f"ssast-{size}-{kind}"
            table[name] = EncoderConfig(name=name, dim=dim, depth=depth, heads=heads, patch=patch, stride=patch)
    for kind, patch in kinds.items():
        # GPM-BT: SSAST's base with a 50 ms window and no normalisation (as its fine-tuning code computes it)
        name = f"gpm-bt-{kind}"
        table[name] = replace(table[f"ssast-base-{kind}"], name=name, window=0.050, mean=0.0, scale=1.0)
    table["ast-base"] = replace(table["ssast-base-patch"], name="ast-base", stride=(10, 10), pad="published",
                                pool="specials")
    # ours: whole columns as tokens, positions for any length
    columns = dict(frames=400, pool="rows", init="xavier")
    wren = dict(n_mels=64, specials=0, mask_token=False, positions="sincos", position_scale=0.1, patch=(64, 8),
                stride=(64, 8), **columns)
    table["wren-base"] = EncoderConfig(name="wren-base", **wren)
    table["wren-laptop"] = EncoderConfig(name="wren-laptop", **wren, dim=192, depth=4, heads=4)
    # for a laptop: 4 s clips of 64 mel bands
    for kind, patch in {"patch": (16, 16), "frame": (64, 4)}.items():
        name = f"ssast-laptop-{kind}"
        table[name] = EncoderConfig(name=name, n_mels=64, patch=patch, stride=patch, dim=192, depth=4, heads=4,
                                    **columns)
    return table | _mel_presets() | _wave_presets()


def _sized(table, shared, sizes):
    """Add a preset for each name of `sizes`: the family's shared settings, then its own."""
    for name, own in sizes.items():
        table[name] = EncoderConfig(name=name, **shared | own)


def _mel_presets():
    """Dasheng, AudioMAE, EAT and ATST. The laptop sizes are 4 deep and hear 4 s; masked autoencoders are 256 wide,
    since few of their tokens pass the encoder, EAT and ATST 192, and ATST, whose step has most passes, has columns of
    80 ms, not 40. Deviations of 0.02, made for 768 channels, are small for so few (ATST-Frame alone learned no better
    from larger ones), and so are EAT's features beside sine-cosine positions of 1."""
    small, base = dict(dim=384, heads=6), dict(dim=768, heads=12)
    large = dict(dim=1024, depth=24, heads=16)
    laptop = dict(dim=256, depth=4, heads=4, frames=400, init="xavier", pool="rows")
    columns = laptop | dict(n_mels=64, patch=(64, 4), stride=(64, 4))
    table = {}
    mel_db = dict(frontend="mel-db", n_mels=64, patch=(64, 4), stride=(64, 4))
    dasheng = mel_db | dict(window=0.032, f_min=0.0, floor_db=120.0, mean=0.0, scale=1.0, frames=1008, specials=0,
                            mask_token=False, input_norm=True, positions="factorised", init="xavier")
    _sized(table, dasheng, {"dasheng-base": base, "dasheng-0.6b": dict(dim=1280, depth=32, heads=16),
                            "dasheng-1.2b": dict(dim=1536, depth=40, heads=24), "dasheng-laptop": laptop})
    audiomae = dict(specials=1, mask_token=False, positions="fixed", init="xavier")
    _sized(table, audiomae, {"audiomae-base": base, "audiomae-laptop": columns})
    eat = dict(mean=-4.268, scale=2 * 4.569, specials=1, mask_token=False, positions="sincos", norm="post",
               pool="specials")
    _sized(table, eat, {"eat-base": base, "eat-large": large,
                        "eat-laptop": columns | dict(dim=192, heads=6, position_scale=0.1)})
    # ATST scales decibels to [-1, 1]: (dB + 79.6482) / 130.3324 · 2 - 1
    atst = mel_db | dict(window=0.064, f_min=60.0, f_max=7800.0, floor_db=80.0, mean=130.3324 / 2 - 79.6482,
                         scale=130.3324 / 2, frames=1000, qkv_bias=False)
    narrow = dict(window=0.032, mean=-20.0, scale=20.0, dim=192, patch=(64, 8), stride=(64, 8))
    clip = atst | dict(specials=1, mask_token=False, chunk=600, pool="specials")
    frame = atst | dict(specials=0)
    _sized(table, clip, {"atst-small": small, "atst-base": base,
                         "atst-laptop": laptop | narrow | dict(chunk=0)})
    _sized(table, frame, {"atst-frame-small": small, "atst-frame-base": base,
                          "atst-frame-laptop": laptop | narrow})
    return table


def _wave_presets():
    """animal2vec: 8 kHz waves, 200 tokens a second. The laptop size hears 4 s at 50 tokens a second, keeps every fourth
    sample of its filters, and convolves groups of 32 channels, as many as CPUs handle well."""
    table = {}
    shared = dict(sample_rate=8000, frontend="wave", n_mels=1, patch=(1, 1), stride=(1, 1), specials=0,
                  mask_token=False, positions="conv", alibi=True, norm="post", eps=1e-5, features="ffn")
    narrow = ((16, 63, 4), (32, 10, 5)) + 3 * ((64, 3, 2),)
    _sized(table, shared, {
        "animal2vec-large": dict(convs=WAVE_CONVS, hop=0.005, frames=2000, dim=1024, depth=24, prenet=8, heads=16),
        "animal2vec-laptop": dict(convs=narrow, hop=0.020, frames=200, position_groups=4, dim=128, depth=4, prenet=1,
                                  heads=4)})
    return table


PRESETS = _presets()
