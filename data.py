"""Prepare corpora: index folders, take subsets, pack shards, check what is there, make the demo corpus.

    python data.py index FOLDER… --out data/pretrain.csv      a manifest of everything below some folders
    python data.py subset data/pretrain.csv --subset 0.12M --out small.csv
    python data.py pack data/pretrain.csv SHARDS/             tar shards for fast random access
    python data.py check data/pretrain.csv --task FOLDER      unusable, silent, clipped or duplicated audio, overlap
    python data.py demo                                       the synthetic demo corpus

Manifests themselves are in manifest.py, decoding in audio.py, shards in shards.py, labelled data in wren/tasks, the
commands' work in corpus.py.
"""
import os
from textwrap import fill

from wren import cli
from wren.cli import UserError


def _add_index(add):
    p = add("index",
            "Write or extend a manifest of everything below some folders. All of it is decoded, long recordings become "
            "rows of --segment seconds. Run again, it adds what is new. Files that can't be used are listed in "
            "NAME.unusable.csv.\n\n"
            "  python data.py index /media/recorders /media/xeno-canto --domain bio --out data/pretrain.csv")
    p.add_argument("folders", nargs="+", metavar="FOLDER", help="searched deeply, suffixes in either case")
    p.add_argument("--out", default="data/pretrain.csv", help="manifest to write or extend")
    p.add_argument("--segment", type=cli.not_negative, default=10.0, help="length of a row, s; 0: whole recordings")
    p.add_argument("--min-seconds", type=cli.positive, default=0.05, help="shorter recordings are skipped, s")
    p.add_argument("--domain", choices=("bio", "gen"), help="of these recordings; rows without one count as bio")
    p.add_argument("--source", help="a name for where they come from")


def _add_subset(add):
    p = add("subset",
            "Write the rows of a subset. The paper's sizes are nested, and the same whatever the order of the rows."
            "\n\n  python data.py subset data/pretrain.csv --subset 0.12M --out data/small.csv")
    p.add_argument("manifest", help="CSV, TSV or JSON")
    p.add_argument("--subset", required=True, help="0.12M 0.46M 0.80M 1.23M (bio), 2.23M (general), a count "
                   "such as 50k, or all")
    p.add_argument("--domain", choices=("bio", "gen", "any"), help="for counts and all")
    p.add_argument("--out", help="manifest to write, in the same folder (default: MANIFEST-SUBSET.csv)")


def _add_pack(add):
    p = add("pack",
            "Copy clips into tar shards that are read by offset. Few large files, 16-bit FLAC or WAV at one rate. A "
            "killed call goes on where it stopped. Ends with python pretrain.py --data SHARDS.\n\n"
            "  python data.py pack data/pretrain.csv shards/ --rate 16000 --jobs 8")
    p.add_argument("manifest", help="manifest, or folder of audio")
    p.add_argument("out", metavar="SHARDS", help="folder to write")
    p.add_argument("--rate", type=cli.positive_int, help="sampling rate, Hz (default: as recorded)")
    p.add_argument("--format", choices=("flac", "wav"), default="flac", help="flac: lossless, about two thirds of "
                   "the size; wav: read faster, without decoding")
    p.add_argument("--clips", type=cli.positive_int, default=2048, help="clips in a shard")
    p.add_argument("--jobs", type=cli.positive_int, default=max(1, (os.cpu_count() or 1) // 2), help="threads")
    _add_source(p)


def _add_check(add):
    p = add("check",
            "Find unusable, silent, clipped, duplicated or overlapping audio. Everything is decoded, what is wrong is "
            "counted and listed in MANIFEST.check.csv; shards are compared with their checksums. With --task, test "
            "clips that the manifest holds too (by content or Xeno-canto number) are listed.\n\n"
            "  python data.py check data/pretrain.csv --data beans --task cbi watkins --clean data/clean.csv")
    p.add_argument("manifest", help="manifest, folder of audio or of shards")
    p.add_argument("--task", nargs="+", default=(), help="tasks whose test splits must not overlap with the manifest")
    p.add_argument("--out", help="list of problems (default: beside the manifest)")
    p.add_argument("--clean", metavar="FILE", help="write the sound rows as a manifest, in the same folder")
    p.add_argument("--jobs", type=cli.positive_int, default=os.cpu_count() or 1, help="threads")
    _add_source(p)


def _add_demo(add):
    p = add("demo",
            "Make the synthetic demo corpus (100 MB, under a minute).\n\n  python data.py demo")
    p.add_argument("--out", default=cli.DEMO, help="folder to write")
    p.add_argument("--seed", type=int, default=0, help="of voices and recordings")
    p.add_argument("--scale", type=cli.positive, default=1.0, help="size, a share of the usual")
    p.add_argument("--jobs", type=cli.positive_int, help="processes")


def _add_source(p):
    p.add_argument("--data", metavar="FOLDER", help="second folder in which relative paths, and tasks, are looked up")
    p.add_argument("--segment", type=cli.not_negative, default=10.0, help="row length where a folder is named, s")


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="data.py")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=cli.Parser)

    def add(name, description):
        text, example = description.split("\n\n")
        return commands.add_parser(name, help=text.partition(".")[0], prog=f"data.py {name}",
                                   description=f"{fill(text, 116)}\n\n{example}")
    for register in (_add_index, _add_subset, _add_pack, _add_check, _add_demo):
        register(add)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        run(args)
    except OSError as error:  # no space, no permission
        raise UserError(f"{error.filename or args.out}: {error.strerror or error}; nothing is lost, the "
                        "same command can be run again") from None


def run(args):
    """One command."""
    if args.command == "demo":
        from wren.sound import demo
        demo.make(args.out, args.seed, args.jobs, scale=args.scale)
        return
    from wren.sound import corpus
    from wren.tasks import load_task, task_names
    if args.command == "index":
        print(corpus.index(args.folders, args.out, args.segment, args.min_seconds, args.domain, args.source))
    elif args.command == "subset":
        print(corpus.write_subset(args.manifest, args.subset, args.domain, args.out))
    elif args.command == "pack":
        print(corpus.pack(args.manifest, args.out, args.data, args.rate, args.format, args.clips, args.jobs,
                          args.segment))
    else:
        tasks = [load_task(task, args.data) for task in task_names(args.task, args.data)]
        print(corpus.check(args.manifest, args.data, tasks, args.jobs, args.segment, args.out, args.clean))


if __name__ == "__main__":
    cli.run(main)
