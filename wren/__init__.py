"""wren's rooms: what the stages at the root share. `from wren import load_encoder` opens any encoder."""


def __getattr__(name):
    """model.py stands at the root, beside the stages, and brings torch: it is imported when it is asked for."""
    if name not in ("load_encoder", "save_encoder", "Encoder", "EncoderConfig", "PRESETS"):
        raise AttributeError(f"module 'wren' has no attribute {name!r}")
    import model
    if not hasattr(model, name):
        raise ImportError(f"wren needs its own model.py, but {getattr(model, '__file__', 'another model')} comes "
                          "before it: rename that one, or put wren's folder first in PYTHONPATH")
    return getattr(model, name)
