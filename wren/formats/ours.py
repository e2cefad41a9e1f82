"""Our own files: an encoder's, a fine-tuned model's, a run's training checkpoint, and the same as .safetensors."""
import json
from pathlib import Path

from wren.cli import UserError
from wren.formats.common import Checkpoint
from wren.recipes import EncoderConfig

VERSION = 1  # of all of them


def read(content, path):
    """What a file of ours holds -> Checkpoint, or None where the file is not ours."""
    if not isinstance(content, dict) or "version" not in content:
        return None
    if {"objective", "optimizer"} <= content.keys():
        content = _of_run(content, path)
    elif not {"config", "model"} <= content.keys():
        return None
    if content["version"] != VERSION:
        raise UserError(f"{path}: written by another version of wren (file version {content['version']}, here "
                        f"{VERSION})")
    try:
        return Checkpoint("wren", EncoderConfig.from_dict(content["config"]), content["model"],
                          content.get("heads", {}), labels=content.get("labels", []))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def _of_run(content, path):
    """A training checkpoint, its config from the run folder: the encoder that the run exports, for ATST its
    teacher's, and the objective's heads."""
    settings = Path(path).parent / "config.json"
    if not settings.exists():
        raise UserError(f"{path}: a training checkpoint, but its run's config.json is not beside it")
    state = content["objective"]
    encoder = "teacher.encoder." if any(k.startswith("teacher.projector.") for k in state) else "encoder."
    return {"version": content["version"], "config": json.loads(settings.read_text())["encoder"],
            "model": {k.removeprefix(encoder): v for k, v in state.items() if k.startswith(encoder)},
            "heads": {"objective": {k: v for k, v in state.items() if not k.startswith(("encoder.", "teacher."))}}}


def content(found):
    """A Checkpoint as what `model.save_encoder` writes."""
    return {"version": VERSION, "config": found.config.to_dict(), "labels": found.labels, "model": found.state,
            "heads": found.heads}
