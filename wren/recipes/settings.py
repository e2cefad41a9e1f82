"""The settings of the objectives, read from their source: each keyword of a constructor is a flag of pretrain.py.

The source is parsed, not imported, so that `--help` needs no torch. An objective is a class of wren/objectives whose
docstring has a block "Settings:" with a line for each keyword; its annotation is the type.
"""
import ast
import re
from dataclasses import dataclass
from pathlib import Path

OBJECTIVES_FOLDER = Path(__file__).parent.parent / "objectives"
TYPES = ("bool", "int", "float", "Count", "Positive", "Share", "Pair", "CountOrShare")  # see objectives/common.py


@dataclass(frozen=True)
class Setting:
    """One keyword of an objective."""
    type: str  # of TYPES, or "Literal"
    choices: tuple  # of a Literal
    default: object
    help: str


def read_settings(folder=OBJECTIVES_FOLDER):
    """{class: {keyword: Setting}} of the objectives in a folder. ValueError: a keyword lacks its type, default or help,
    or a line of help lacks its keyword."""
    modules = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(Path(folder).glob("*.py"))]
    literals = {}  # names given to choices: Masking = Literal[…]
    for _, module in modules:
        for node in module.body:
            if isinstance(node, ast.Assign) and _is_literal(node.value):
                literals[node.targets[0].id] = node.value
    found = {}
    for path, module in modules:
        for node in module.body:
            if isinstance(node, ast.ClassDef) and "\nSettings:" in (ast.get_docstring(node) or ""):
                found[node.name] = _of_class(node, literals, f"{path.name}, {node.name}")
    return found


def _of_class(node, literals, where):
    text = ast.get_docstring(node).split("\nSettings:", 1)[1]
    helps = {name: " ".join(line.split()) for name, line in re.findall(r"^ {4}(\w+): (.+(?:\n {6,}.+)*)", text, re.M)}
    start = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    if start is None:
        raise ValueError(f"{where}: it has settings but no constructor")
    keywords = [a for a in start.args.args + start.args.kwonlyargs if a.arg not in ("self", "encoder")]
    if strange := helps.keys() - {a.arg for a in keywords}:
        raise ValueError(f"{where}: {min(strange)} stands under Settings but is no keyword of the constructor")
    defaults = [*start.args.defaults, *start.args.kw_defaults]
    if len(defaults) != len(keywords) or None in defaults:
        raise ValueError(f"{where}: every keyword needs a default")
    return {a.arg: _setting(a, default, helps.get(a.arg), literals, f"{where}: {a.arg}")
            for a, default in zip(keywords, defaults)}


def _setting(keyword, default, help, literals, where):
    if not help:
        raise ValueError(f"{where} has no line under Settings")
    if keyword.annotation is None:
        raise ValueError(f"{where} has no annotation")
    annotation = literals.get(getattr(keyword.annotation, "id", None), keyword.annotation)
    if _is_literal(annotation):
        kind, choices = "Literal", tuple(ast.literal_eval(annotation.slice))
    else:
        kind, choices = ast.unparse(annotation), ()
        if kind not in TYPES:
            raise ValueError(f"{where}: {kind} is neither a Literal nor one of {', '.join(TYPES)}")
    return Setting(kind, choices, _value(default), help)


def _value(node):
    """A default: a literal, or a quotient of two."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _value(node.left) / _value(node.right)
    return ast.literal_eval(node)


def _is_literal(node):
    return isinstance(node, ast.Subscript) and getattr(node.value, "id", None) == "Literal"
