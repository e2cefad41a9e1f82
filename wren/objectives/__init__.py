"""Pre-training objectives: one method a file, waves in, (loss, metrics) out.

    SSAST       tell hidden patches apart and reconstruct them (also GPM-BT)
    MAE         encode what is visible, reconstruct the rest (Dasheng, Bird-MAE, AudioMAE's encoder)
    EAT         predict a mean teacher's features of hidden patches, and of the clip (data2vec 2.0)
    Animal2Vec  the same on the raw wave
    Contrast    tell two views of a clip from those of all other clips (SimCLR)
    ATST        agree with a mean teacher on two views of a clip, or with `frames` on what is hidden in both

The loss is a mean over what it counts; `metrics["count"]` says over how many, so that a trainer can weight
micro-batches and processes by it and divide by the global count. `metrics["spread"]` shows collapse. `exported` is
the encoder that others load, `flops()` the arithmetic and `kept()` the bytes kept for the backward pass of one clip's
training step; `after_step(step)` moves a teacher.

Each keyword of a constructor is a flag of pretrain.py: its annotation is the flag's type, the line under "Settings:"
in the class's docstring its help.
"""
from wren.objectives.atst import ATST
from wren.objectives.common import MASKS, draw_mask, spread
from wren.objectives.contrast import Contrast
from wren.objectives.data2vec import EAT, Animal2Vec
from wren.objectives.mae import MAE
from wren.objectives.ssast import SSAST
from wren.recipes import SETTINGS

__all__ = ["ATST", "Animal2Vec", "Contrast", "EAT", "MAE", "MASKS", "SSAST", "draw_mask", "objective_of", "spread"]


def objective_of(recipe, encoder, **defaults):
    """The objective that a recipe (or a dict like one) asks for; `defaults` are for settings that it leaves open."""
    settings = defaults | {k: recipe[k] for k in SETTINGS[recipe["objective"]] if recipe.get(k) is not None}
    return globals()[recipe["objective"]](encoder, **settings)
