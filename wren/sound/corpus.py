"""The work behind `python data.py index|subset|pack|check`: what a corpus holds and whether it is sound."""
import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from wren.cli import UserError, warn, write_table
from wren.sound import audio, shards
from wren.sound.manifest import build, coded, join, write_manifest
from wren.sound.opening import open_manifest
from wren.sound.quality import SILENT, USED, judge_row, list_problems, summary
from wren.sound.scan import in_threads, scan, scan_folder
from wren.sound.subsets import subset


def index(folders, out, segment, min_seconds, domain, source):
    """Add everything below some folders to the manifest `out` -> a sentence about it."""
    out = Path(out)
    home = out.parent
    old = open_manifest(out) if out.exists() else None
    known = {os.path.realpath(os.path.join(home, p)) for p in set(map(old.path, range(len(old))))} if old else set()
    rows, problems = scan(folders, home, segment, min_seconds, known)
    recordings = {rows.path(i) for i in range(len(rows))}
    found = summary(problems, len(recordings) + sum(not verdict.usable for _, verdict in problems))
    if not len(rows) and not old:
        raise UserError(f"nothing to index: {found}" if problems else
                        f"no audio files ({' '.join(audio.AUDIO_SUFFIXES[:4])} …) under {' '.join(map(str, folders))}")
    listed = out.with_suffix(".unusable.csv")
    list_problems(listed, problems)
    if len(rows):
        rows.texts = {"domain": coded([domain or ""] * len(rows)), "source": coded([source or ""] * len(rows))}
        write_manifest(join(old, rows) if old else rows, out)
    hours = (rows.frames / rows.sample_rate).sum() / 3600
    return (f"{out}: {len(rows)} new rows of {f'up to {segment:g} s' if segment else 'any length'} from "
            f"{len(recordings)} recordings ({hours:.2f} h), {len(old) if old else 0} were there already"
            + (f"; {found}; all are listed with the reason in {listed}" if problems else "") + ".")


# ---------------------------------------------------------------------------------------------------------- subset

def write_subset(source, spec, domain, out):
    """Write the rows of a subset as a manifest -> a sentence about it."""
    rows = open_manifest(source)
    if rows.entry is not None or Path(source).is_dir():
        raise UserError(f"{source} is a folder: python pretrain.py --data {source} --subset {spec} draws from it "
                        "directly, python data.py subset wants a manifest file")
    chosen = subset(rows, spec, domain)
    out = Path(out or Path(source).with_name(f"{Path(source).stem}-{spec}{f'-{domain}' if domain else ''}.csv"))
    if out.resolve() == Path(source).resolve():
        raise UserError(f"--out {out} is the manifest itself: choose another name")
    if out.parent.resolve() != Path(source).parent.resolve() and not all(
            os.path.isabs(chosen.path(i)) for i in range(len(chosen))):
        raise UserError(f"--out {out}: the paths in {source} are relative to its folder: write the subset beside it, "
                        f"for example to {Path(source).with_name(out.name)}")
    write_manifest(chosen, out)
    seconds = chosen.frames[chosen.sample_rate > 0] / chosen.sample_rate[chosen.sample_rate > 0]
    return (f"{out}: {len(chosen)} of {len(rows)} rows ({seconds[seconds > 0].sum() / 3600:.2f} h where known), "
            f"fingerprint {chosen.fingerprint()}.")


# ------------------------------------------------------------------------------------------------------------ pack

def pack(source, out, root, rate, format, clips_per_shard, jobs, segment):
    """Write shards -> a sentence about them."""
    rows = open_manifest(source, root, segment)
    if rows.streams:
        warn(f"{source} has streams ({', '.join(rows.streams)}): shards hold sound alone, train on the manifest to use "
             "them")
    done = shards.pack(rows, out, rate, format, clips_per_shard, jobs)
    if not done["clips"]:
        raise UserError(f"none of the {len(rows)} clips of {source} could be read, for example "
                        f"{done['skipped'][0]['path']}: {done['skipped'][0]['reason']}")
    text = (f"{out}: {done['clips']} clips in {done['shards']} shards, {done['bytes'] / 1e6:.1f} MB of {format} at "
            f"{f'{rate} Hz' if rate else 'the recorded rates'}; {done['new']} shards were written now")
    if done["scaled"]:
        text += f"; {done['scaled']} clips went beyond full scale and were made quieter to fit into 16 bits"
    if done["skipped"]:
        write_table(Path(out) / "unusable.csv", ("path", "start", "reason"),
                    [tuple(row.values()) for row in done["skipped"]])
        text += f"; {len(done['skipped'])} clips can't be read and are listed in {Path(out) / 'unusable.csv'}"
    return f"{text}. Train on them with python pretrain.py --data {out}."


# ----------------------------------------------------------------------------------------------------------- check

CLIPPED_SHARE = 1e-3  # of all samples, at full scale for several samples on end


def content(wave):
    """What decoded sound is recognised by: a hash of its samples rounded to 16 bits."""
    samples = np.rint(wave * 32768).clip(-32768, 32767).astype(np.int16)
    return hashlib.blake2b(samples.tobytes(), digest_size=8).digest()


def examine(rows, i):
    """Read row i whole -> (problems [(kind, detail)], content hash, hash of the recording's first second)."""
    blocks = []
    verdict = judge_row(rows, i, keep=blocks)
    problems = [(verdict.problem, verdict.detail)] if verdict.problem else []
    if not verdict.usable:
        return problems, None, None
    wave, rate = np.concatenate(blocks).mean(1), verdict.rate
    peak = np.abs(wave).max()
    at_limit = np.abs(wave) >= 0.999 * peak
    runs = at_limit[:-2] & at_limit[1:-1] & at_limit[2:]
    if len(runs) and runs.mean() > CLIPPED_SHARE and peak > 0.1:
        problems.append(("clipped", f"{runs.mean():.2%} of the samples lie in runs at the limit {peak:.3f}"))
    head = wave[:rate] if rows.start[i] == 0 and len(wave) >= rate and np.ptp(wave[:rate]) > 2 * SILENT else None
    return problems, content(wave), None if head is None else content(head)


def check(source, root, tasks, jobs, segment, out, clean):
    """Decode everything a manifest names -> a paragraph; problems go to the CSV `out`, sound rows to `clean`.

    tasks: whose test splits must not overlap with it."""
    folder = os.path.isdir(source) and not any(Path(source).glob("*.tar"))
    rows, files = scan_folder(source, segment) if folder else (open_manifest(source, root, segment), [])
    found = [(audio.printable(path), 0, verdict.problem, verdict.detail) for path, verdict in files
             if verdict.problem != "dead channels"]  # that is found in its rows
    lost, first, heads, unusable = sum(not v.usable for _, v in files), {}, {}, np.zeros(len(rows), bool)
    for i, (problems, whole, head) in enumerate(in_threads(
            lambda i: examine(rows, i), range(len(rows)), jobs, "decoding")):
        if whole is not None and (twin := first.setdefault(whole, i)) != i:
            problems = [*problems, ("duplicate", f"same samples as {name(rows, twin)}")]
        heads.setdefault(head, i)
        unusable[i] = any(kind not in ("clipped", *USED) for kind, _ in problems)
        found += [(audio.printable(rows.path(i)), int(rows.start[i]), kind, detail) for kind, detail in problems]
    counts = Counter(row[2] for row in found)
    overlaps = []
    out = out or (Path(source) / "check.csv" if Path(source).is_dir() else Path(source).with_suffix(".check.csv"))
    text = (f"{source}: {len(rows) + lost} rows, {len(rows) - unusable.sum()} of them sound; "
            + (", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "no problems") + ".")
    for task in tasks:
        hits, total = overlap(rows, first, heads, task, jobs)
        overlaps += hits
        text += f" {len(hits)} of the {total} test clips of {task.name} overlap with it."
    if found or overlaps:
        write_table(out, ("path", "start", "problem", "detail"), found + [row[:4] for row in overlaps])
        text += f" Listed in {out}."
    if clean:
        drop = unusable.copy()
        drop[[row[4] for row in overlaps]] = True
        write_manifest(rows, clean, np.flatnonzero(~drop))
        text += f" {clean} holds the {np.sum(~drop)} rows that are left."
    return text


def name(rows, i):
    """A row for people."""
    return audio.printable(rows.path(i)) + (f" from sample {rows.start[i]}" if rows.start[i] else "")


def xeno_canto(path):
    """The Xeno-canto number in a path, or None."""
    match = re.search(r"(?i)(?<![a-z0-9])XC[ _-]?(\d{3,})", path)
    return match and int(match[1])


def overlap(rows, whole, heads, task, jobs):
    """Test clips of a task that the manifest holds too: by decoded content (whole, or the recording's first second)
    or Xeno-canto number, each sound once: clips, or the recordings of which windows are scored. whole, heads: hash ->
    row. -> [(path, 0, "overlap", detail, row of the manifest)], number of test clips."""
    split, found = task.splits["test"], []
    test = build([path for path, _, _ in split.files], bases=split.rows.bases) if split.files else split.rows
    numbers = {xeno_canto(rows.path(i)): i for i in range(len(rows) - 1, -1, -1)}
    for i, (_, content_hash, head) in enumerate(in_threads(
            lambda i: examine(test, i), range(len(test)), jobs, f"test split of {task.name}")):
        for why, table, key in (("same content", whole, content_hash), ("same first second", heads, head),
                                ("same Xeno-canto number", numbers, xeno_canto(test.path(i)))):
            if key is not None and key in table:
                found.append((audio.printable(test.path(i)), 0, "overlap",
                              f"{why} as {name(rows, table[key])}: test clip of {task.name}", table[key]))
                break
    return found, len(test)
