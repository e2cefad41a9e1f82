"""Settings of pre-training: an objective's constructor is where they are said, once."""
import shutil

import pytest

import pretrain
from wren.cli import UserError
from wren.recipes import RECIPES, SETTINGS
from wren.recipes import run as run_settings
from wren.recipes.run import PARTS, settings_for
from wren.recipes.settings import OBJECTIVES_FOLDER, read_settings


@pytest.fixture
def changed(tmp_path):
    """changed(old, new) -> the settings of a copy of the objectives in which mae.py says `new` for `old`."""
    def read(old, new, keyword="tilt: Share"):
        folder = shutil.copytree(OBJECTIVES_FOLDER, tmp_path / "objectives")
        text = (folder / "mae.py").read_text()
        assert old in text
        text = text.replace("self, encoder, masking: Masking", "self, encoder, tilt: Share = 0.25, masking: Masking")
        text = text.replace("def __init__(self, encoder, tilt: Share", f"def __init__(self, encoder, {keyword}")
        (folder / "mae.py").write_text(text.replace(old, new))
        return read_settings(folder)
    return read


def test_what_is_read_from_the_source_is_what_the_constructors_take():
    import inspect

    from wren import objectives
    for name, settings in SETTINGS.items():
        parameters = dict(list(inspect.signature(getattr(objectives, name)).parameters.items())[1:])
        assert {k: p.default for k, p in parameters.items()} == {k: s.default for k, s in settings.items()}


def test_a_term_that_is_added_to_an_objective_is_a_flag_recorded_and_refused_elsewhere(changed, monkeypatch):
    settings = changed("        var_floor: added", "        tilt: of the error\n        var_floor: added")
    monkeypatch.setattr(pretrain, "SETTINGS", settings)
    monkeypatch.setattr(run_settings, "SETTINGS", settings)
    monkeypatch.setattr(run_settings, "OBJECTIVES", tuple({k for own in settings.values() for k in own}))
    identity = pretrain.parse_args(["--recipe", "dasheng", "--tilt", "0.5"])[0].identity()
    assert identity["tilt"] == 0.5 and settings_for("dasheng").identity()["tilt"] == 0.25
    with pytest.raises(UserError, match="--tilt does not belong to recipe ssast"):
        pretrain.parse_args(["--recipe", "ssast", "--tilt", "0.5"])


@pytest.mark.parametrize("old, new, keyword, complaint", [
    ("        var_floor: added", "        var_floor: added", "tilt: Share", "tilt has no line under Settings"),
    ("        var_floor: added", "        tilt: x\n        var_floor: added", "tilt", "tilt has no annotation"),
    ("        var_floor: added", "        tilt: x\n        var_floor: added", "tilt: dict", "dict is neither a"),
    ("        var_floor: added", "        tilt: x\n        tillt: x\n        var_floor: added", "tilt: Share",
     "tillt stands under Settings but is no keyword"),
])
def test_a_setting_without_type_or_help_is_an_error_that_names_it(changed, old, new, keyword, complaint):
    with pytest.raises(ValueError, match=f"mae.py, MAE.*{complaint}"):
        changed(old, new, keyword)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_settings_that_there_are_and_leaves_none_of_a_runs_open(recipe, scale):
    from dataclasses import fields
    table = RECIPES[recipe][scale]
    known = {f.name for part in PARTS.values() for f in fields(part)} | SETTINGS[table["objective"]].keys()
    assert table.keys() - known == {"objective"} | ({"differs"} & table.keys())
    settings = settings_for(recipe, scale)
    assert (settings.optimisation.steps or settings.optimisation.epochs) and settings.encoder.preset
    for name in ("batch_size", "optimizer", "lr", "weight_decay", "schedule", "floor", "warmup", "betas", "eps",
                 "clip"):
        assert getattr(settings.optimisation, name) is not None


@pytest.mark.parametrize("flags", [
    ["--recipe", "eat", "--span", "3"], ["--span", "3"], ["--recipe", "atst", "--hidden", "0.3"],
    ["--loss", "mse", "--nce-axis", "paper"], ["--loss", "nce", "--mse-weight", "2"], ["--lower-rate", "0.2"],
    ["--stream-drop", "0.2"], ["--format", "ssast"], ["--init", "x", "--preset", "ssast-laptop-patch"],
    ["--init", "x", "--normalise", "corpus"], ["--domain", "bio"]])
def test_a_setting_without_effect_is_refused(flags):
    with pytest.raises(UserError, match="has no effect|does not belong"):
        pretrain.parse_args(flags)


def test_default_folders_tell_runs_of_different_settings_apart():
    runs = [[], ["--lr", "5e-4"], ["--lr", "6e-4"], ["--mix", "0.5"], ["--drop-path", "0.1"], ["--seed", "1"],
            ["--recipe", "eat"], ["--betas", "0.9", "0.95"], ["--subset", "50"], ["--init", "ssast-laptop-frame"]]
    folders = [pretrain.parse_args(flags)[0].run.out for flags in runs]
    assert len(set(folders)) == len(runs) and all("/" not in folder[5:] for folder in folders)
    assert folders[1] == folders[0] + "-lr=0.0005"
    assert pretrain.parse_args(["--steps", "9"])[0].run.out == folders[0], "--extend goes on with it"
