"""Recordings in, embeddings, predictions or detections out; of any length, at any sample rate.

    python extract.py                                             the newest run on the demo's soundscapes, to emb/
    python extract.py FOLDER a.wav 'b/*.flac' --checkpoint runs/NAME --out emb
    python extract.py FOLDER --window 2 --hop 1 --store --dtype float16 --out emb      a store of many windows
    python extract.py --search CLIP.wav --in emb --top 20                              what sounds like this clip
    python extract.py a.wav --predict --checkpoint runs/NAME/finetune/TASK/finetuned.pt
    python extract.py FOLDER --events raven --checkpoint FINETUNED --against annotations.csv

Recordings are read as windows, a few at a time, and no sound is left out: a last window that reaches beyond the end
is masked there. Embeddings: OUT/STEM.npy for each recording, or one OUT/embeddings.npy with --store, and
OUT/index.csv with file, start and end of each row (see store.py). Interrupted, the same command goes on with the
recording that it was in, from its beginning, so name hours-long ones as rows of some minutes (python data.py index
FOLDER --segment 600 --out rows.csv, then python extract.py rows.csv). Predictions and events begin anew.
"""
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError, warn, write_table
from wren.recipes.encoder import CHOICES


def batch_size(text):
    """An argparse type: a number of windows, or None for "auto"."""
    return None if text == "auto" else cli.positive_int(text)


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="extract.py")
    p.add_argument("audio", nargs="*", metavar="AUDIO", help="files, folders (searched deeply), globs in quotes, "
                   "manifests (CSV, TSV, JSON), folders of shards (default: the demo's soundscapes)")
    g = p.add_argument_group("model and windows")
    g.add_argument("--checkpoint", help="file, run folder or preset's name (default: the newest run below runs/)")
    g.add_argument("--format", help="layout of a published checkpoint where its keys can't decide: ssast, gpm-bt, …")
    g.add_argument("--window", type=cli.positive, help="seconds that the model hears at a time; with --granularity "
                   "clip there is then a row a window (default: what it was trained on, and a row a recording)")
    g.add_argument("--hop", type=cli.positive, help="seconds from one window to the next, at most --window (default: "
                   "the window, or what a detector was trained with)")

    g = p.add_argument_group("embeddings")
    g.add_argument("--granularity", choices=("clip", "frame", "patch", "all"), default="clip",
                   help="clip (D): the mean over a recording's windows, weighted by their length, or a row a window. "
                        "frame (T', D): one a token column. patch (T', F', D): tokens. all (windows, K + T' F', D): "
                        "special tokens, then patches; 0 beyond the end")
    g.add_argument("--layers", type=cli.positive_int, nargs="+", metavar="N", help="outputs of these blocks, side by "
                   "side; each costs a pass as far as it (default: the last)")
    g.add_argument("--pool", choices=CHOICES["pool"], help="clip vector from patch tokens (rows: each "
                   "frequency row apart), special tokens or both (default: the encoder's own)")
    g.add_argument("--store", action="store_true", help="one array for all recordings, OUT/embeddings.npy")
    g.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the arrays")

    g = p.add_argument_group("search")
    g.add_argument("--search", metavar="CLIP", help="find what is most like this recording among embeddings "
                   "of other files (cosine of features brought to mean 0 and deviation 1 over the folder)")
    g.add_argument("--in", dest="folder", metavar="OUT", default="emb", help="folder of embeddings to search")
    g.add_argument("--top", type=cli.positive_int, default=20, help="how many to list")
    _add_scores(p)

    g = p.add_argument_group("run")
    g.add_argument("--out", default="emb", help="folder to write")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    g.add_argument("--amp", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="precision; auto: bf16 or "
                   "fp16 on a GPU, fp32 on a CPU")
    g.add_argument("--batch-size", type=batch_size, default="auto", metavar="N", help="windows a forward pass, of "
                   "several recordings; auto: about 4096 tokens on a CPU, 32768 on a GPU")
    g.add_argument("--workers", type=cli.natural, default=1, help="processes that decode while the model runs")
    args = p.parse_args(argv)
    for flag in ("against", "resolution"):
        if getattr(args, flag) and not args.events:
            raise UserError(f"--{flag} is of events: say --events raven, audacity or csv too")
    if args.label and not args.against:
        raise UserError("--label is of the tables of --against: name them too")
    return args


def _add_scores(p):
    g = p.add_argument_group("predictions and events (need a checkpoint of finetune.py)")
    g.add_argument("--predict", action="store_true", help="a table of the best labels of a recording; for several, "
                   "or with --window, OUT/predictions.csv (file, start, end, rank, label, score). A recording's "
                   "score is the mean over its windows where classes exclude each other, else the highest")
    g.add_argument("--top-k", type=cli.positive_int, default=12, help="labels a recording (EAT: 12)")
    g.add_argument("--events", choices=("raven", "raven-combined", "audacity", "csv"), help="write a Raven table for "
                   "each recording, OUT/STEM.Table.1.selections.txt, one for all, OUT/events.txt (times cumulative "
                   "over the recordings), Audacity labels OUT/STEM.txt, or OUT/events.csv")
    g.add_argument("--resolution", type=cli.positive, metavar="S", help="seconds from one score to the next, with a "
                   "detector of --head query (default: what it was trained with)")
    g.add_argument("--smooth", type=cli.not_negative, default=0.0, metavar="S", help="seconds over which scores are "
                   "smoothed, centred (animal2vec: 0.1)")
    g.add_argument("--threshold", type=cli.share, help="score from which on there is an event (default: the "
                   "checkpoint's, a class each, chosen on validation; without them 0.5)")
    g.add_argument("--minimum", type=cli.not_negative, metavar="S", help="seconds; shorter events are dropped "
                   "(default: the checkpoint's, the shortest call that it was trained on)")
    g.add_argument("--merge", type=cli.not_negative, default=0.2, metavar="S", help="seconds; events of a class at "
                   "most this far apart become one (thresholds were chosen with 0.2)")
    g.add_argument("--against", metavar="FILE", help="annotations (Raven, Audacity, CSV, BEANS's JSON lines; "
                   "a folder: all tables below it, such as REC.Table.1.selections.txt of REC.wav) that the events "
                   "are compared with: F1 by intersection over union")
    g.add_argument("--label", metavar="NAME", help="what the calls of --against are where a table has no label column")
    g.add_argument("--iou", type=cli.share, default=0.3, help="least intersection over union of a match (DCASE: 0.3)")


def main(argv=None):
    args = parse_args(argv)
    import torch

    from wren.recordings.store import read_settings
    from wren.recordings.windows import Recordings, Run
    from wren.sound import demo
    from wren.training.engine import precision
    from wren.training.processes import start_processes

    device = start_processes(args.device).device
    autocast, _, _ = precision(args.amp, device)
    old = read_settings(args.folder) if args.search else {}
    torch.manual_seed(0)  # a preset's weights are random, but the same each time
    audio = [args.search] if args.search else args.audio
    if not audio:
        audio = [demo.ensure(DEMO) / "detection/audio"]
    recordings = Recordings(audio)
    model, source = open_model(args, old)
    run = Run(model, recordings, device, autocast, args.window or old.get("window"), args.hop or old.get("hop"),
              args.batch_size, args.workers)
    print(f"{source}: {run.config.name}, {run.config.sample_rate} Hz, windows of {run.cut.window:g} s every "
          f"{run.cut.hop:g} s, {run.batch_size} a batch, {device.type}", flush=True)
    try:
        if args.search:
            search(args, run, old)
        elif args.events:
            detect(args, run)
        elif args.predict:
            predict(args, run)
        else:
            embed(args, run, source)
    except torch.OutOfMemoryError:
        raise UserError(f"out of GPU memory with {run.batch_size} windows a batch; give a smaller --batch-size"
                        ) from None
    except OSError as error:  # no space, no permission
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"{error.filename or args.out}: {error.strerror or error}; nothing is lost, the same command "
                        "can be run again") from None


def open_model(args, old):
    """(encoder, or fine-tuned model where scores are wanted; its name). old: settings of a searched folder."""
    from model import load_encoder
    from wren.formats import newest_encoder
    if args.predict or args.events:
        from wren.training import heads
        if args.checkpoint is None:
            raise UserError("--predict and --events need --checkpoint: the finetuned.pt of python finetune.py, or a "
                            "published fine-tuned file")
        path = Path(args.checkpoint) / "finetuned.pt" if Path(args.checkpoint).is_dir() else Path(args.checkpoint)
        model = heads.load(path, args.format)
        if args.resolution and model.kind != "query":
            raise UserError(f"--resolution: {args.checkpoint} scores every {model.frame_seconds:g} s; only a model of "
                            "finetune.py --head query can be asked at other times")
        if args.resolution:
            model.resolution = args.resolution
        return model, str(args.checkpoint)
    source = args.checkpoint or old.get("source") or newest_encoder("runs")
    pool = args.pool or old.get("pool")
    return load_encoder(source, args.format or old.get("format"), **({"pool": pool} if pool else {})), str(source)


# ---------------------------------------------------------------------------------------------------- embeddings

def embed(args, run, source):
    """Write the embeddings that are not there yet."""
    from model import fingerprint
    from wren.recordings.store import Output
    from wren.recordings.windows import embeddings
    by_window = args.window is not None
    settings = {"checkpoint": fingerprint(run.model), "source": source, "format": args.format,
                "encoder": run.config.name, "granularity": args.granularity, "window": run.cut.window,
                "hop": run.cut.hop, "by_window": by_window, "layers": args.layers, "pool": args.pool}
    keys = [(run.recordings.path(k), run.recordings.start(k)) for k in range(len(run.recordings))]
    names, current, done = output_names(run.recordings), None, {}
    rows = embeddings(run, args.granularity, args.layers, by_window, skip=lambda k: keys[k] in done)
    out = Output(args.out, settings, args.dtype, args.store)
    done |= out.done
    already = sum(key in done for key in keys)
    try:
        for stretch, block, starts, ends, last in rows:
            if current not in (None, stretch):
                out.discard()  # what was begun has turned out to be broken
            if current != stretch:
                out.begin(run.path(stretch), stretch.rate, names[stretch.index])
            out.add(block, starts, ends)
            current = None if last else stretch
            if last:
                out.commit()
                shape = " × ".join(map(str, block.shape[1:]))
    finally:
        out.close()
    run.finish(args.out, already)
    if run.done:
        print(f"{args.out}: {counted(run.done)}, {run.seconds:.2f} s, rows of {shape} {args.dtype}; "
              f"{args.out}/index.csv says where each is from")
    if already:
        print(f"{args.out}: {counted(already)} done before")


def counted(count, what="recording"):
    """A number and its noun."""
    return f"{count} {what}{'s' * (count != 1)}"


def output_names(recordings):
    """What each recording's array is called: its stem; where several share it, its path below what was named; where
    they share that too, with the suffix."""
    paths = []
    for k, name in enumerate(recordings.names):
        start, (stem, suffix) = recordings.start(k), os.path.splitext(os.path.normpath(name).lstrip("./\\"))
        paths.append((stem + (f"-{start:g}s" if start else ""), suffix))
    shared, twice = Counter(os.path.basename(stem) for stem, _ in paths), Counter(stem for stem, _ in paths)
    return [stem + suffix if twice[stem] > 1 else stem if shared[os.path.basename(stem)] > 1 else
            os.path.basename(stem) for stem, suffix in paths]


def search(args, run, settings):
    """Print the rows of a folder that are most like a recording."""
    import numpy as np

    from model import fingerprint
    from wren.recordings.store import nearest
    from wren.recordings.windows import embeddings
    if (own := fingerprint(run.model)) != settings["checkpoint"]:
        raise UserError(f"{args.folder} was made with another checkpoint ({settings['source']}, "
                        f"{settings['checkpoint']}; this one is {own}): say which with --checkpoint")
    query = [rows for _, rows, *_ in embeddings(run, settings["granularity"], settings["layers"],
                                                settings["by_window"])]
    if not query:
        raise UserError(f"--search {args.search}: {next(iter(run.bad.values())).detail}")
    found = nearest(args.folder, np.concatenate(query), args.top, without=run.recordings.path(0))
    print(f"{'cosine':>7} {'start':>10} {'end':>10}  file (times in s)")
    for likeness, row in found:
        print(f"{likeness:7.3f} {row['start']:10.2f} {row['end']:10.2f}  {row['file']}")


# ------------------------------------------------------------------------------------------ predictions and events

def predict(args, run):
    """The best labels of recordings: a table for one, a CSV for several or for windows."""
    from wren.recordings.windows import pooled
    windows, labels = run(type(run.model).scores), run.model.labels
    if args.window is not None:
        found = [(stretch, *stretch.span(n), scores) for stretch, n, scores in windows]
    else:
        found = [(stretch, float(stretch.seconds(0)), float(stretch.seconds(stretch.samples)), scores)
                 for stretch, scores in pooled(windows, highest=run.model.activation == "sigmoid")]
    run.finish(args.out)
    found = [(run.path(stretch), *rest) for stretch, *rest in found if not run.unusable(stretch)]
    rows = [(file, f"{start:.6f}", f"{end:.6f}", rank, labels[k], f"{scores[k]:.6f}")
            for file, start, end, scores in found for rank, k in enumerate((-scores).argsort()[:args.top_k], 1)]
    if len(found) == 1:
        print(f"{found[0][0]}, {found[0][1]:.2f} to {found[0][2]:.2f} s")
        for *_, label, score in rows:
            print(f"{label:<30}{float(score):.3f}")
        return
    path = Path(args.out) / "predictions.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, ("file", "start", "end", "rank", "label", "score"), rows)
    print(f"{path}: the {min(args.top_k, len(labels))} best of {len(labels)} labels for "
          f"{counted(len(found), 'window' if args.window else 'recording')}, {run.seconds:.2f} s")


def detect(args, run):
    """Write events, and compare them with annotations."""
    import numpy as np

    from wren.probing.metrics import decode_events
    from wren.probing.scoring import doubt
    # now: hours later is too late for an error in it
    truth = read_truth(args.against, args.label) if args.against else []
    if text := doubt("mAP", run.model.valid, run.model.chance, events=True):
        warn(f"{args.checkpoint}: {text}")
    limits = args.threshold if args.threshold is not None else run.model.thresholds or 0.5
    minimum = args.minimum if args.minimum is not None else run.model.minimum_seconds
    events, files = [], {}
    for stretch, scores, starts, ends in score_tracks(run):
        file, end = run.path(stretch), float(stretch.seconds(stretch.samples))
        files[file] = max(end, files.get(file, (0.0,))[0]), stretch.rate
        events += decode_events(scores, starts, ends, run.model.labels, limits, args.smooth, minimum, args.merge,
                                file)
    events = [replace(event, score=round(event.score, 6)) for event in events]  # digits that a person reads
    run.finish(args.out)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    files = [(file, *about) for file, about in files.items()]
    where = write_events(args, run, events, files)
    counts, limits = Counter(event.label for event in events), np.atleast_1d(limits)
    given = "--threshold" if args.threshold is not None else "chosen on validation; --threshold sets another"
    span = " to ".join(dict.fromkeys(f"{limit:.3g}" for limit in (limits.min(), limits.max())))
    print(f"{where}: {counted(len(events), 'event')} in {counted(len(files))}, {run.seconds:.2f} s, where scores are "
          f"above {span} ({given})" + "".join(f"\n  {label:<28} {counts[label]}" for label in run.model.labels))
    marked = sum(event.end - event.start for event in events)
    if marked > run.seconds * max(1, len(run.model.labels) / 4):
        warn(f"events flood: {counted(len(events), 'event')} mark {marked / 60:.1f} min of {run.seconds / 60:.1f} min "
             "of sound; give a higher --threshold, or look whether the model was trained on sound like this")
    if args.against:
        compare(args, events, truth, [file for file, *_ in files])


def write_events(args, run, events, files):
    """One table for all recordings, or one for each, named after it as its array would be; returns where they are."""
    from wren.tasks.annotations import write_annotations
    out, format = Path(args.out), args.events.removesuffix("-combined")
    if args.events in ("csv", "raven-combined"):
        where = out / ("events.csv" if format == "csv" else "events.txt")
        write_annotations(where, events, format, files)
        return where
    names = dict(zip(map(run.recordings.path, range(len(run.recordings))), output_names(run.recordings)))
    suffix = {"raven": ".Table.1.selections.txt", "audacity": ".txt"}[format]
    found = {file: [] for file, *_ in files}
    for event in events:
        found[event.file].append(event)
    for file, *about in files:
        path = out / f"{names[file]}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_annotations(path, found[file], format, [(file, *about)])
    return f"{args.out}/*{suffix}"


def score_tracks(run):
    """Scores along each recording: yields (stretch, scores (T, C), starts (T,), ends (T,) in seconds). A detector's
    frames, averaged where windows overlap, as its thresholds were chosen on them; else the scores of windows."""
    import numpy as np

    from wren.probing.scoring import stitch
    model = run.model
    by_frames = model.window_seconds is not None or model.kind == "frames"
    for stretch, n, scores in run(type(model).frame_scores if by_frames else type(model).scores):
        if n == 0:
            parts = []
        parts.append(scores)
        if n < len(stretch) - 1:
            continue
        starts, ends = np.array([stretch.span(k) for k in range(len(stretch))]).T
        if by_frames:
            longest = max(map(len, parts))
            frames = np.stack([np.pad(part, ((0, longest - len(part)), (0, 0))) for part in parts])
            track, starts, ends = stitch(frames, starts, ends - starts, model.frame_seconds)
            ends = np.minimum(ends, stretch.seconds(stretch.samples))
        else:
            track = np.stack(parts)
        yield stretch, track, starts, ends


def read_truth(path, label=None):
    """Annotations to compare with, of a table or of all below a folder -> [(table, recording that it names or "",
    events)]; an empty table says that its recording has no calls."""
    from wren.tasks.annotations import read_recordings, tables
    found = [(table, name, events) for table in tables(path)
             for name, _, events in read_recordings(table, label) or [("", None, [])]]
    if not found:
        raise UserError(f"--against {path}: no table (.txt, .csv or .tsv) below this folder")
    return found


def compare(args, events, annotations, files):
    """Print how well events agree with annotations, on the recordings that the annotations know."""
    from wren.probing.metrics import match_events
    from wren.tasks.annotations import meant
    truth, known, elsewhere = [], set(), 0
    for table, name, annotated in annotations:
        named = meant(name, table, files)
        if not named and not name and len(files) == len(annotations) == 1:
            named = files  # the only one
        if len(named) != 1:
            elsewhere += len(annotated)
            continue
        known.add(named[0])
        truth += [replace(event, file=named[0]) for event in annotated]
    if not known:
        raise UserError(f"--against {args.against}: none of its annotations is of the {counted(len(files))} here: "
                        "the paths that it names should end like theirs, or a table that names none begin like its "
                        "recording, as REC.Table.1.selections.txt or REC.txt of REC.wav")
    found = match_events([event for event in events if event.file in known], truth, iou=args.iou)
    print(f"against {args.against} in {counted(len(known))}, intersection over union of {args.iou:g} or more"
          + (f" ({counted(len(files) - len(known))} without annotations left out)" if len(known) < len(files) else "")
          + (f" ({counted(elsewhere, 'annotation')} of other recordings left out)" if elsewhere else "")
          + f"\n  {'':<28} precision  recall  F1     found  wrong  missed")
    for label, row in [*found["per_class"].items(), ("all", found)]:
        print(f"  {label:<28} {row['precision']:<9.3f}  {row['recall']:.3f}   {row['f1']:.3f}  {row['tp']:<6} "
              f"{row['fp']:<6} {row['fn']}")


if __name__ == "__main__":
    cli.run(main)
