"""How good is a representation, compared with what, and how sure are we? Probes on frozen embeddings.

    python evaluate.py --knn                                            the newest run on the demo's tasks
    python evaluate.py --probes all --checkpoint runs/A runs/B          every probe, several encoders side by side
    python evaluate.py --linear --data BEANS --task beans --checkpoint SSAST-Base-Patch-400.pth --format ssast
    python evaluate.py --knn --task FOLDER                              an own task
    python evaluate.py --knn --linear --pool all --layers all           which pooling and which layer wins on validation

Each encoder stands beside the same one untrained and beside mel statistics. Audio passes through the encoders once;
what comes out is kept in --cache. Probes are fitted on the training split, choose on validation, and look at the test
split once.
"""
import json
import time
from dataclasses import replace
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError
from wren.recipes.encoder import CHOICES


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="evaluate.py")
    g = p.add_argument_group("what is evaluated")
    g.add_argument("--checkpoint", nargs="+", help="files, run folders or presets' names (default: the newest run "
                                                   "below runs/)")
    g.add_argument("--format", help="layout of a published checkpoint where its keys can't decide: ssast, gpm-bt, …")
    g.add_argument("--data", default=DEMO, help="folder that holds the tasks; for BEANS the one that holds its data/")
    g.add_argument("--label", metavar="NAME", help="what the calls are in own tables that have no label column")
    g.add_argument("--task", nargs="+", help="beans (those of the twelve that are there), names below --data, or "
                                             "folders (default: the demo's species, individual)")
    g.add_argument("--fit", metavar="TASK", help="take the training and validation clips from this task, which has the "
                   "same labels, and only the test clips from --task")
    g.add_argument("--pool", choices=(*CHOICES["pool"], "all"), help="clip vectors (default: the checkpoint's); "
                   "all: the checkpoint's and, in a table of their own, all that fit, by kNN and with --linear ridge "
                   "on validation")
    g.add_argument("--inputs", choices=("all", "sound", "streams"), help="of an encoder that knows streams: sound and "
                   "streams, or one of them (default: all)")
    g.add_argument("--low", action="store_true", help="train on BEANS's low-data lists (train-low)")
    g.add_argument("--depth", type=cli.positive_int, help="use the output of this many blocks (default: all)")
    g.add_argument("--layers", type=_layers, default="last", help="vectors of the last block, or of the last N side by "
                   "side (tokens: the last); all: the last and, in a table of their own, each, as with --pool all")

    g = p.add_argument_group("probes")
    g.add_argument("--probes", choices=("all",), help="all: kNN, linear, attentive and prototype")
    g.add_argument("--knn", action="store_true", help="k nearest neighbours, the default when no probe is named")
    g.add_argument("--linear", action="store_true", help="the best on validation of ridge, logistic regression "
                   "(L-BFGS) and AdamW, each over a grid")
    g.add_argument("--attentive", action="store_true", help="one learned query attends to the patch tokens")
    g.add_argument("--prototype", action="store_true", help="20 learned prototypes a class, compared with every token")
    g.add_argument("--k", type=cli.positive_int, nargs="+", default=[10], help="neighbours; of several the best on "
                   "validation (DINO: 10 20 100 200; XARES: 10)")
    g.add_argument("--seeds", type=cli.positive_int, default=1, help="trainings of each probe that is trained by "
                   "gradient descent; the score is their mean")

    g = p.add_argument_group("run")
    g.add_argument("--max-bad", type=cli.share, default=0.01, help="largest share of a test split that may be left "
                   "out because it can't be read")
    g.add_argument("--json", metavar="FILE", help="results as JSON (default: evaluate.json in the run folder, or "
                   "FILE.evaluate.json beside a checkpoint file)")
    g.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    g.add_argument("--cache", default="runs/cache", help="folder of embeddings (float16); may be deleted at any "
                   "time")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    g.add_argument("--batch-size", type=cli.positive_int, default=32, help="clips a forward pass")
    g.add_argument("--workers", type=cli.natural, default=1, help="processes that read audio")
    g.add_argument("--seed", type=int, default=0, help="of untrained encoders, probes and the bootstrap")
    args = p.parse_args(argv)
    for name in ("knn", "linear", "attentive", "prototype"):
        setattr(args, name, getattr(args, name) or args.probes == "all")
    args.knn = args.knn or not any((args.linear, args.attentive, args.prototype))
    return args


def _layers(text):
    return text if text in ("last", "all") else cli.positive_int(text)


def main(argv=None):
    args = parse_args(argv)
    from wren.sound import demo
    from wren.probing import report
    from wren.probing.embeddings import device_of
    from wren.tasks import load_task, task_names, without_broken
    if args.data == DEMO and (args.task is None or not all(Path(t).is_dir() for t in args.task)):
        demo.ensure(DEMO)

    def readable(name, low=False):
        task = load_task(name, root=args.data, low=low, label=args.label)
        return without_broken(task, args.cache, args.max_bad, args.cache)
    tasks = [readable(name, args.low) for name in task_names(args.task or ("species", "individual"), args.data)]
    fit = readable(args.fit) if args.fit else None
    tasks = [refitted(task, fit) for task in tasks] if fit else tasks
    device = device_of(args.device)
    encoders = contestants(args)

    found = {"results": [], "differences": []}
    for task in tasks:
        sets = embed(task, encoders, device, args)
        rows, scores = probe(task, sets, device, args)
        found["results"] += rows
        differences = cli.plain(report.compare(task, scores, encoders, args.seed))
        found["differences"] += differences
        print(report.task_table(task, rows, differences, args.markdown), flush=True)
        if fit and task.name != fit.name:
            print(report.copies(task, fit, sets, embed(fit, encoders, device, args)))
        for setting in ("pool", "layers"):
            for name, encoder in encoders.items() if getattr(args, setting) == "all" else ():
                if not name.startswith("untrained") and name != "mel statistics":
                    choices = choose(task, setting, name, encoder, device, args)
                    found.setdefault("choices", []).extend(cli.plain(choices))
                    print(report.choice_table(choices, args.markdown), flush=True)
    if len(tasks) > 1:
        print(report.summary(found["results"], args.markdown))
    path = Path(args.json) if args.json else results_path(next(iter(encoders)))
    cli.write_text(path, json.dumps(found, indent=1))
    print(f"\nwritten to {path}")


def results_path(source):
    """evaluate.json in the run folder, or beside a checkpoint file under its name; of a preset in runs/."""
    source = Path(source)
    if source.is_dir():
        return source / "evaluate.json"
    path = source.with_suffix(".evaluate.json") if source.is_file() else Path("runs") / f"{source.name}.evaluate.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def refitted(task, other):
    """A task with the training and validation clips of another one: the same sounds recorded in another way."""
    if task.labels != other.labels or task.kind != other.kind:
        raise UserError(f"--fit {other.name}: its labels are not those of {task.name}")
    splits = task.splits | {name: other.splits[name] for name in ("train", "valid")}
    name = task.name if task.name == other.name else f"{task.name}, fitted on {other.name}"
    return replace(task, name=name, splits=splits)


# -------------------------------------------------------------------------------------------- encoders, embeddings

def contestants(args):
    """{name: encoder}: those asked for, then each architecture untrained, and mel statistics. None stands there twice:
    a preset's name is its own untrained encoder."""
    import torch

    from wren.probing.embeddings import MelStatistics
    from model import Encoder, fingerprint, load_encoder
    from wren.formats import newest_encoder
    found, names = {}, {}
    for source in args.checkpoint or [newest_encoder("runs")]:
        name = str(Path(source).parent if Path(source).name == "encoder.pt" else source)
        torch.manual_seed(args.seed)  # for a preset's name, which is an untrained encoder
        encoder = load_encoder(source, args.format, **{k: getattr(args, k) for k in ("inputs", "pool")
                                                       if getattr(args, k) not in (None, "all")})
        depth = encoder.config.depth
        for flag, wanted in (("depth", args.depth), ("layers", args.layers)):
            if isinstance(wanted, int) and wanted > depth:
                raise UserError(f"--{flag} {wanted}: this encoder has {depth} blocks")
        first = names.setdefault(fingerprint(encoder), name)
        if first == name:
            found[name] = encoder
        print(f"{name}: {encoder.config.name}, {encoder.config.sample_rate} Hz, "
              f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters"
              + ("" if first == name else f": the same encoder as {first}, shown once"))
    configs = {encoder.config.name: encoder.config for encoder in found.values()}
    for name, config in configs.items():
        torch.manual_seed(args.seed)
        encoder, name = Encoder(config).eval(), "untrained" if len(configs) == 1 else f"untrained {name}"
        first = names.get(fingerprint(encoder))
        if first is None:
            found[name] = encoder
        else:
            print(f"{first} is untrained")
    return found | {"mel statistics": MelStatistics(next(iter(configs.values())).sample_rate)}


def embed(task, encoders, device, args, layers=None):
    """{encoder: {split: Embeddings}}, from the cache as far as it has them; layers: of all blocks."""
    from wren.probing.embeddings import embed_split
    layers = isinstance(args.layers, int) if layers is None else layers
    began, out = time.perf_counter(), {name: {} for name in encoders}
    for split in ("train", "valid", "test"):
        found = embed_split(encoders, task.splits[split], args.cache, depth=args.depth, layers=layers,
                            tokens=args.attentive or args.prototype, device=device, batch_size=args.batch_size,
                            workers=args.workers)
        for name in encoders:
            out[name][split] = found[name]
    print(f"{task.name}: {sum(map(len, task.splits.values()))} clips × {len(encoders)} encoders in "
          f"{time.perf_counter() - began:.1f} s, kept in {args.cache}", flush=True)
    return out


# --------------------------------------------------------------------------------------------------------- probes

def probe(task, sets, device, args):
    """(result rows, {(probe, encoder): test scores (n, C), one a seed}) of one task."""
    from wren.probing import report
    rows, scores_of = [], {}
    for name, splits in sets.items():
        vectors = {split: e.vectors(args.layers if isinstance(args.layers, int) else 1) for split, e in splits.items()}
        for kind, fit, runs in probes(task, splits, vectors, device, args):
            fits = [fit(**run) for run in runs]
            valid = [metric_of(task)(fit.valid, task.splits["valid"].targets) for fit in fits]
            scores_of[kind, name] = [masked(task, fit.test) for fit in fits]
            row = report.row(task, kind, name, scores_of[kind, name], args.seed)
            row |= {"choice": fits[0].choice, "valid": sum(valid) / len(valid)}
            rows.append(cli.plain(row | (report.detection_scores(task, fits[0]) if task.kind == "detection" else {})))
        if args.linear:
            parts = [r for r in rows if r["encoder"] == name and r["probe"].startswith("linear-")]
            best = max(parts, key=lambda r: r["valid"])
            scores_of["linear", name] = scores_of[best["probe"], name]
            rows.append(best | {"probe": "linear", "choice": {"by": best["probe"][7:]} | best["choice"]})
    return rows, scores_of


def metric_of(task):
    """What choices maximise: a function of (scores (n, C), targets)."""
    from functools import partial

    from wren.probing import scoring
    return partial(scoring.metric_of, task.metric)


def data_of(task, vectors):
    """What a probe on clip vectors {split: (n, D)} takes."""
    train, valid = (task.splits[name].targets for name in ("train", "valid"))
    return vectors["train"], train, vectors["valid"], valid, vectors["test"], len(task.labels), metric_of(task)


def probes(task, splits, vectors, device, args):
    """Every probe that was asked for: (name, a function that gives a `Scored`, the arguments of its calls, one a seed
    where there is chance in it)."""
    from functools import cache, partial

    from wren.probing import probes as p
    once, seeds = [{}], [{"seed": seed} for seed in range(args.seed, args.seed + args.seeds)]
    data = data_of(task, vectors)

    @cache  # statistics of all tokens are worth keeping, and not worth computing when nothing is fitted
    def rows(kind):
        source = {name: (e.tokens, e.offsets) if kind is p.Tokens else (vectors[name],) for name, e in splits.items()}
        shape = [part.to(device) for part in p.standardiser(source["train"][0])]
        return data_of(task, {name: kind(*parts, *shape) for name, parts in source.items()})

    def descend(heads, source, seed, **settings):
        return p.train_heads(heads, *rows(source), seed=seed, **settings)
    if args.knn:
        yield "knn", partial(p.knn_probe, *data, args.k), once
    if args.linear:
        yield "linear-ridge", partial(p.ridge, *data), once
        yield "linear-logistic", partial(p.logistic, *data), once
        yield "linear-adam", partial(descend, p.LinearHead, p.Vectors), seeds
    if splits["train"].tokens is None:  # mel statistics have none
        return
    for name, kind, rates, decay in (("attentive", p.AttentiveHead, (3e-4, 1.3e-3, 5e-3), 7e-3),
                                     ("prototype", p.PrototypeHead, (1e-2, 3e-2), 0.0)):
        if getattr(args, name):
            yield name, partial(descend, kind, p.Tokens, rates=rates, decay=decay), seeds


def choose(task, setting, name, encoder, device, args):
    """Every pooling that fits an encoder (setting "pool"), or each of its layers ("layers"), by kNN and, with
    --linear, ridge on the validation split -> rows, the default first; the winner by their mean and the default have
    test scores, too."""
    import copy

    from wren.probing import probes as p
    candidates = {}  # {pooling or layer: clip vectors of the splits}
    if setting == "pool":
        variants = {}
        for pool in dict.fromkeys((encoder.config.pool, *CHOICES["pool"])):
            try:
                config = replace(encoder.config, pool=pool)
            except ValueError:  # it has no special tokens, for example
                continue
            variants[pool] = copy.copy(encoder)
            variants[pool].config = config
        for pool, splits in embed(task, variants, device, args, layers=False).items():
            candidates[pool] = {split: e.vectors() for split, e in splits.items()}
    else:
        splits = embed(task, {name: encoder}, device, args, layers=True)[name]
        for k in reversed(range(splits["train"].clips.shape[1])):
            candidates[k + 1] = {split: e.clips[:, k] for split, e in splits.items()}
    functions = {"knn": lambda *data: p.knn_probe(*data, args.k)}
    functions |= {"ridge": p.ridge} if args.linear else {}
    rows, metric = [], metric_of(task)
    for value, vectors in candidates.items():
        fits = {kind: fit(*data_of(task, vectors)) for kind, fit in functions.items()}
        valid, test = ({kind: metric(scores(fit), task.splits[split].targets) for kind, fit in fits.items()}
                       for split, scores in (("valid", lambda fit: fit.valid),
                                             ("test", lambda fit: masked(task, fit.test))))
        rows.append({"task": task.name, "encoder": name, "setting": setting, "choice": value, "default": not rows,
                     "valid": valid, "test": test})
    best = max(rows, key=lambda row: sum(row["valid"].values()))
    return [row | {"won": row is best, "test": row["test"] if row["default"] or row is best else None} for row in rows]


def masked(task, scores):
    """Scores in which a class that the training split lacks is never chosen: its test clips count as wrong."""
    import numpy as np

    from wren.probing.probes import LOWEST
    if task.kind == "classification":
        scores = scores.copy()
        scores[:, np.bincount(task.splits["train"].targets, minlength=len(task.labels)) == 0] = LOWEST
    return scores


if __name__ == "__main__":
    cli.run(main)
