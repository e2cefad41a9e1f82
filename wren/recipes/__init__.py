"""The tables of wren: what an encoder is, the sizes, and how each is trained. Plain values, no torch: a table can be
printed, compared and saved as JSON, and `--help` answers at once."""
from wren.recipes.encoder import EncoderConfig, octave_band, octave_hertz, octave_rows
from wren.recipes.presets import PRESETS, any_rate
from wren.recipes.pretraining import OBJECTIVES, RECIPES, SETTINGS

__all__ = ["EncoderConfig", "OBJECTIVES", "PRESETS", "RECIPES", "SETTINGS", "any_rate", "octave_band", "octave_hertz",
           "octave_rows"]
