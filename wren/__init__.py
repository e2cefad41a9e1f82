"""wren's rooms: what the stages at the root share. `from wren import load_encoder` opens any encoder."""


def __getattr__(name):
    """model.py stands at the root, beside the stages, and brings torch: it is imported when it is asked for."""
    if name in ("load_encoder", "save_encoder", "Encoder", "EncoderConfig", "PRESETS"):
        import model
        return getattr(model, name)
    raise AttributeError(f"module 'wren' has no attribute {name!r}")
