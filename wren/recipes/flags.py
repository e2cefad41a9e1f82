"""Settings that are fields of a dataclass and flags of a stage at once."""
import argparse
from dataclasses import field, fields

from wren import cli


def flag(default, help, **parse):
    """A field that is also a flag; parse: what argparse is to know of it."""
    return field(default=default, metadata=parse | {"help": help})


def name_of(setting):
    """--weight-decay of weight_decay."""
    return "--" + setting.replace("_", "-")


def add_fields(group, part):
    """A flag for each field of a dataclass. One that is not given is None; its help says what it is then."""
    for setting in fields(part):
        parse = dict(setting.metadata)
        if setting.default not in (None, False, ()) and "default: " not in parse["help"]:
            parse["help"] += f" (default: {setting.default})"
        group.add_argument(name_of(setting.name), **parse | {"default": None})


def add_settings(group, settings):
    """A flag for each keyword of the objectives: {objective: {keyword: Setting}}. Objectives that share a keyword share
    its flag, and the help says what it is in each."""
    for name in dict.fromkeys(name for own in settings.values() for name in own):
        having = {objective: own[name] for objective, own in settings.items() if name in own}
        kinds = {setting.type for setting in having.values()}
        if len(kinds) > 1:
            raise ValueError(f"{name} is {' in one and '.join(sorted(kinds))} in another of {', '.join(having)}")
        texts = {}
        for objective, setting in having.items():
            texts.setdefault(setting.help, []).append(objective)
        help = "; ".join(f"{', '.join(objectives)}: {text}" for text, objectives in texts.items())
        choices = tuple(dict.fromkeys(choice for setting in having.values() for choice in setting.choices))
        group.add_argument(name_of(name), help=help.replace("%", "%%"), **_parse(kinds.pop(), choices))


def _parse(kind, choices):
    if kind == "Literal":
        return {"choices": choices}
    if kind == "bool":
        return {"action": argparse.BooleanOptionalAction}
    if kind == "Pair":
        return {"type": cli.positive, "nargs": 2, "metavar": ("FIRST", "LAST")}
    return {"type": {"int": int, "float": float, "Count": cli.positive_int, "Positive": cli.positive,
                     "Share": cli.share, "CountOrShare": count_or_share}[kind]}


def count_or_share(text):
    """An argparse type: a whole number, or a number from 0 to 1."""
    return int(text) if text.isdigit() else cli.share(text)
