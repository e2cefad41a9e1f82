"""How each method is trained, at two scales: plain tables, without torch, so that `--help` answers at once."""

from wren.recipes.settings import read_settings

SETTINGS = read_settings()  # {objective: {keyword: Setting}}
OBJECTIVES = tuple(dict.fromkeys(name for settings in SETTINGS.values() for name in settings))  # of all objectives

# What each recipe trains with, at two scales. "paper" holds the published values (of the paper and its code); "laptop"
# what learns fast on a few CPU cores and small data, with steps for three minutes on one core. Every value is also a
# flag of pretrain.py. "differs" names what the paper column does otherwise than the published code.
_TRAINING = dict(optimizer="adamw", betas=(0.9, 0.999), eps=1e-8, schedule="cosine", floor=0.0, clip=0.0,
                 normalise="preset", valid=2000, eval_every=4000)
_LAPTOP = dict(normalise="corpus", batch_size=32, steps=600, optimizer="adamw", lr=2e-3, betas=(0.9, 0.98), eps=1e-6,
               weight_decay=0.01, schedule="cosine", warmup=50, floor=0.0, clip=1.0, valid=48, eval_every=100)

_SSAST_PAPER = _TRAINING | dict(
    objective="SSAST", preset="ssast-base-patch", masking="patch", hidden=400, loss="joint", nce_axis="released",
    batch_size=24, epochs=10, optimizer="adam", lr=1e-4, betas=(0.95, 0.999), weight_decay=5e-7, schedule="plateau",
    warmup=1000, differs="one mask a clip for both terms, not two; blocks without the sampler's bias")
_SSAST = {"paper": _SSAST_PAPER, "laptop": _LAPTOP | dict(
    objective="SSAST", preset="ssast-laptop-frame", masking="frame", hidden=0.8, loss="joint", nce_axis="released")}
_DASHENG = {
    "paper": _TRAINING | dict(
        objective="MAE", preset="dasheng-base", clip_seconds=10.0, masking="group", hidden=0.75, decoder_dim=512,
        decoder_depth=8, decoder_heads=16, var_floor=1e-6, batch_size=256, steps=1_500_000, lr=3e-4,
        weight_decay=0.01, warmup=45_000, floor=0.1,
        differs="batch of one process; AdamW in 32 bits, no decay of biases and norms; floor of the decibels a clip, "
                "not a batch; the decoder's linears Xavier's, too"),
    "laptop": _LAPTOP | dict(
        objective="MAE", preset="dasheng-laptop", batch_size=64, steps=250, lr=1e-3, masking="frame", hidden=0.75,
        decoder_dim=256, decoder_depth=1, decoder_heads=4, var_floor=0.1)}
_AUDIOMAE = {
    "paper": _TRAINING | dict(
        objective="MAE", preset="audiomae-base", masking="frame", hidden=0.8, decoder_dim=512, decoder_depth=8,
        decoder_heads=16, var_floor=1e-6, batch_size=512, epochs=33, lr=4e-4, betas=(0.9, 0.95), weight_decay=1e-4,
        warmup=11_400, differs="plain decoder instead of shifted windows; no random gain"),
    "laptop": _LAPTOP | dict(
        objective="MAE", preset="audiomae-laptop", batch_size=64, steps=250, lr=1e-3, masking="frame", hidden=0.75,
        decoder_dim=256, decoder_depth=1, decoder_heads=4, var_floor=0.1)}
_EAT = {
    "paper": _TRAINING | dict(
        objective="EAT", preset="eat-base", masking="block", hidden=410, clones=16, cls_weight=192.0, noise=0.01,
        target_norm="clip", decoder_dim=768, decoder_depth=6, decoder_groups=16, ema=(0.9998, 0.99999),
        ema_steps=100_000, batch_size=48, steps=400_000,
        lr=5e-4, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.05, warmup=53_333, clip=4.0,
        differs="uniform noise in hidden places; utterance loss weighted as on 4 GPUs of 12 clips"),
    "laptop": _LAPTOP | dict(
        objective="EAT", preset="eat-laptop", steps=300, lr=5e-4, masking="frame", hidden=0.75, clones=4,
        cls_weight=0.1, noise=0.01, target_norm="patch", decoder_dim=192, decoder_depth=2, decoder_groups=4,
        ema=(0.9995, 0.9999))}
_ATST_PAPER = _TRAINING | dict(
    objective="ATST", frames=False, preset="atst-small", view_seconds=6.0, mix=0.4, stretch=(0.6, 1.5),
    canvas="published", head_dim=4096, ema=(0.99, 1.0), drop_path=0.1, batch_size=1536, steps=39_100, lr=3e-3,
    weight_decay=0.04, weight_decay_end=0.4, warmup=1300, floor=3.3e-4,
    differs="one mixing partner a clip, from the corpus, not from a memory; class token, positions and mask token are "
            "not decayed")
_ATST_LAPTOP = _LAPTOP | dict(
    objective="ATST", frames=False, preset="atst-laptop", batch_size=64, steps=500, lr=1e-3, view_seconds=2.0, mix=0.4,
    mix_scale="power", stretch=(1.0, 1.0), pitch=(0.06, 0.1), colour=4.0, canvas="floor", head_dim=1024,
    ema=(0.99, 1.0))
_ATST = {"paper": _ATST_PAPER, "laptop": _ATST_LAPTOP}
_ATST_FRAME = {
    "paper": _ATST_PAPER | dict(
        frames=True, preset="atst-frame-base", view_seconds=10.0, masking="span", hidden=0.5, span=5, ema=(0.9996, 1.0),
        batch_size=864, steps=398_000, lr=2.7e-4, warmup=19_900, floor=3.7e-3,
        differs=_ATST_PAPER["differs"] + "; hides the 0.50 that the code really hides, not the nominal 0.65, and all "
                                         "frames alike"),
    "laptop": _ATST_LAPTOP | dict(
        frames=True, preset="atst-frame-laptop", steps=250, lr=3e-4, masking="span", hidden=0.5, span=3)}
_ANIMAL2VEC = {
    "paper": _TRAINING | dict(
        objective="Animal2Vec", preset="animal2vec-large", masking="span", hidden=0.93, span=2, clones=12, noise=0.01,
        mix=1.0, target_norm="clip", decoder_dim=768, decoder_depth=4, decoder_groups=16, ema=(0.9997, 1.0),
        ema_steps=300_000, batch_size=102, steps=384_000, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01,
        warmup=10_000, clip=1.0,
        differs="uniform noise in hidden places; spans hide the ends as often as the middle; no dropout"),
    "laptop": _LAPTOP | dict(
        objective="Animal2Vec", preset="animal2vec-laptop", normalise="preset", batch_size=16, steps=170, lr=1e-4,
        masking="span", hidden=0.8, span=5, clones=4, noise=0.01, mix=1.0, target_norm="clip", decoder_dim=128,
        decoder_depth=2, decoder_groups=4, ema=(0.9995, 0.9999))}

_CONTRAST = {
    "paper": _TRAINING | dict(
        objective="Contrast", preset="wren-base", view_seconds=4.0, shortest=0.6, mix=0.15, pitch=(0.06, 0.1),
        colour=4.0, temperature=0.2, head_dim=4096, batch_size=1024, steps=100_000, lr=1e-3, weight_decay=0.04,
        warmup=5000,
        differs="no paper: SimCLR's loss on the views that learn most from real sound (docs/results.md), at base size "
                "not tried"),
    "laptop": _LAPTOP | dict(
        objective="Contrast", preset="wren-laptop", batch_size=64, steps=300, lr=1e-3, view_seconds=4.0, shortest=0.6,
        mix=0.15, pitch=(0.06, 0.1), colour=4.0, temperature=0.2, head_dim=1024)}

RECIPES = {
    "contrast": _CONTRAST,
    "ssast": _SSAST,
    # GPM-BT publishes no pre-training settings: SSAST's, with the front end of its fine-tuning code
    "gpm-bt": _SSAST | {"paper": _SSAST_PAPER | dict(preset="gpm-bt-patch")},
    "mae": _DASHENG, "dasheng": _DASHENG, "audiomae": _AUDIOMAE, "eat": _EAT, "atst": _ATST, "atst-frame": _ATST_FRAME,
    "animal2vec": _ANIMAL2VEC,
}
