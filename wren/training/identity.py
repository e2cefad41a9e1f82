"""config.json: what a run is, fixed before its first step and the same until its last."""
import json

from wren import cli
from wren.cli import UserError
from wren.recipes import EncoderConfig


def identity_of(settings, train):
    """Everything that may not change within a run, as config.json holds it; the data by their fingerprint."""
    return json.loads(json.dumps(settings.identity() | {"data": train.fingerprint()}))


def check_unchanged(settings, out, identity):
    """Refuse to go on with the run in folder `out` under other settings, or to call it finished. False: there is no
    run yet."""
    path, run = out / "config.json", settings.run
    if not path.exists():
        return False
    saved = json.loads(path.read_text())["identity"]
    finished = (out / "DONE").exists() and not run.extend
    changed = [k for k in identity if saved.get(k) != identity[k] and not (k in ("steps", "ema_steps") and run.extend)]
    if changed and (finished or not run.override):
        key = changed[0]
        flag = "--extend" if key == "steps" else "" if finished else "--override"
        remedy = f", or go on regardless with {flag}" if flag else ""
        raise UserError(f"{out} was {'made' if finished else 'started'} with {key} {saved.get(key)}, now it is "
                        f"{identity[key]}: start another run with --out{remedy}")
    return True


def fix_config(settings, out, train, valid, identity, encoder_config, procs):
    """Write config.json unless it is there already; -> the encoder's settings, as all processes read them.

    encoder_config: a function that makes and checks them; one process calls it and the others read, so that all train
    the same encoder to the last digit of its normalisation."""
    path = out / "config.json"
    procs.barrier()  # all have looked before the first process writes
    if procs.main and (not path.exists() or settings.run.extend):
        saved = json.loads(path.read_text()) if path.exists() else None
        config = encoder_config(EncoderConfig.from_dict(saved["encoder"]) if saved else None)
        out.mkdir(parents=True, exist_ok=True)  # from here on there is a run; mistakes have been found before
        cli.write_text(path, json.dumps({
            "identity": identity, "encoder": config.to_dict(), "flags": settings.flat(),
            "data": {"source": settings.data.data, "subset": settings.data.subset, "clips": len(train),
                     "held_out": len(valid), "fingerprint": train.fingerprint()}}, indent=1))
    procs.barrier()
    return EncoderConfig.from_dict(json.loads(path.read_text())["encoder"])
