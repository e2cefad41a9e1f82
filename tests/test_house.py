"""The house: which room may know which, how many doors there are, and how large a room may grow."""
import ast

from conftest import ROOT

# from the top; what stands lower may import what stands higher, never the other way
ORDER = ("masking", "wren.cli", "wren.recipes", "wren.sound", "wren.nets", "wren.formats", "model", "wren.tasks",
         "wren.objectives", "wren.recordings", "wren.probing", "wren.training", "wren.figures")
STAGES = ("pretrain", "finetune", "evaluate", "extract", "plot_tsne", "data", "convert", "bench", "hubconf")
LAZY = {"wren"}  # wren/__init__.py gives model.load_encoder when it is asked for


def modules():
    """{module name: path} of all code but the tests."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("wren/**/*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return dict(zip(names, paths))


def imports(name, path, known):
    """The modules of ours that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = [part for part in whole if part in known]
            yield from parts
            if len(parts) < len(whole):
                yield node.module


def floor(name):
    found = [k for k, room in enumerate(ORDER) if name == room or name.startswith(room + ".")]
    return found[0] if found else len(ORDER) if name in STAGES else None


def test_arrows_point_up_and_no_stage_imports_another():
    known = modules()
    assert all(floor(name) is not None for name in known if name not in LAZY), "a file outside of all rooms"
    wrong = [f"{name} imports {other}" for name, path in known.items() if name not in LAZY
             for other in imports(name, path, known)
             if other != name and other not in LAZY and (floor(other) > floor(name) or other in STAGES)]
    assert not wrong


def test_there_is_no_circle():
    known = modules()
    arrows = {name: set(imports(name, path, known)) - {name} for name, path in known.items() if name not in LAZY}
    # a package's own __init__ gathers what its files define
    arrows = {name: {other for other in others if not name.startswith(other + ".")} for name, others in arrows.items()}
    while free := [name for name, others in arrows.items() if not others & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert not arrows, "each of these needs another of them"


def test_there_are_few_doors():
    doors = sorted(path.stem for path in ROOT.glob("*.py"))
    assert len(doors) <= 12 and {"model", "masking", *STAGES} == set(doors)


def test_rooms_stay_small():
    large = []
    for name, path in modules().items():
        text = path.read_text()
        if len(text.splitlines()) > 500:
            large.append(f"{name}: {len(text.splitlines())} lines")
        large += [f"{name}: a line of {len(line)}" for line in text.splitlines() if len(line) > 120]
        for node in ast.walk(ast.parse(text)):
            lines = node.end_lineno - node.lineno + 1 if hasattr(node, "end_lineno") else 0
            if isinstance(node, ast.FunctionDef) and lines > 60 or isinstance(node, ast.ClassDef) and lines > 200:
                large.append(f"{name}.{node.name}: {lines} lines")
    assert not large
