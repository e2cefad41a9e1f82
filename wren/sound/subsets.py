"""Which rows of a corpus a run learns from: the paper's nested draws, counts, domains, and a held-out part."""
import re

import numpy as np

from wren.cli import UserError, warn
from wren.sound.manifest import GEN
from wren.sound.quality import judge_row

BIO_DRAWS = {"0.12M": 120_000, "0.46M": 460_000, "0.80M": 800_000, "1.23M": 1_230_000}
GENERAL = {"2.23M": 2_230_000}


def subset(manifest, spec="all", domain=None):
    """The rows that `--subset` names, in an order that depends on the rows alone, never on their order in the file.

    spec: 0.12M 0.46M 0.80M 1.23M (nested draws of bio rows), 2.23M (the general domain), a count such as 400, 50k or
    1.5M, or all. domain: bio, gen or any, for counts and all.
    """
    if spec in BIO_DRAWS or spec in GENERAL:
        wanted = "bio" if spec in BIO_DRAWS else "gen"
        if domain not in (None, wanted):
            raise UserError(f"--subset {spec} is a draw of the {wanted} domain: leave --domain out, or give a count "
                            f"({(BIO_DRAWS | GENERAL)[spec] // 1000}k)")
        domain, count = wanted, (BIO_DRAWS | GENERAL)[spec]
    else:
        count = _count(spec)
    general = manifest.domain == GEN
    rows = manifest.select({"bio": ~general, "gen": general}.get(domain, slice(None)))
    if count is None:
        count = len(rows)
    if spec in GENERAL and 0.9 * count <= len(rows) < count:
        warn(f"--subset {spec}: the manifest holds {len(rows)} clips of the general domain, all are used")
        count = len(rows)
    if count > len(rows) or not count:
        kind = f" of domain {domain}" if domain in ("bio", "gen") else ""
        raise UserError(f"--subset {spec}: {count} clips wanted, {manifest.origin or 'the manifest'} holds "
                        f"{len(rows)}{kind}" + (f" (of {len(manifest)} in all)" if kind else "")
                        + ": add recordings, or ask for fewer")
    return rows.select(np.argsort(rows.keys(), kind="stable")[:count])


def _count(spec):
    """'50k' -> 50000; 'all' -> None."""
    if spec == "all":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", spec)
    count = round(float(match[1]) * {"": 1, "k": 1000, "M": 1_000_000}[match[2]]) if match else 0
    if not count or (match[2] == "" and "." in spec):
        raise UserError(f"--subset {spec}: give one of {' '.join(BIO_DRAWS | GENERAL)}, a count such as 400, 50k or "
                        "1.5M, or all")
    return count


def holdout(manifest, count, problems=None):
    """(train, valid): about `count` rows for valid, whole recordings, in the order of a hash of their paths.

    All rows of one recording stay on one side. Recordings that would overshoot the count are passed over, and those
    of which a drawn row is not quite in order (see quality.py): (path, Verdict) of such rows is added to `problems`, a
    list; None: nothing is decoded.
    """
    def sound(rows):
        verdicts = [] if problems is None else [(manifest.path(i), judge_row(manifest, i)) for i in rows.tolist()]
        found = [(path, verdict) for path, verdict in verdicts if verdict.problem]
        if found:
            problems.extend(found)
        return not found

    if not count:
        return manifest, manifest.select(slice(0, 0))
    keys, of_row, sizes = np.unique(manifest.recording_keys(seed=1), return_inverse=True, return_counts=True)
    chosen, total = np.zeros(len(keys), bool), 0
    order, rank = np.argsort(of_row, kind="stable"), manifest.keys(seed=1)
    rows_of = np.split(order, np.cumsum(sizes)[:-1])  # rows of each recording
    for k, size in enumerate(sizes.tolist()):  # np.unique has sorted the keys: this is the order of the hash
        if total + size <= count and sound(rows_of[k]):
            chosen[k], total = True, total + size
        if total == count:
            break
    for k in np.argsort(sizes, kind="stable").tolist() if not total else ():
        # long recordings: some rows of one, none of it in training
        drawn = rows_of[k][np.argsort(rank[rows_of[k]], kind="stable")[:count]]
        if sizes[k] > count and 2 * sizes[k] <= len(manifest) and sound(drawn):
            chosen[k] = True
            break
    if not chosen.any():
        warn(f"nothing is held out: {manifest.origin or 'the data'} is all, or nearly all, one recording"
             + " that can be used" * bool(problems))
    valid = np.flatnonzero(chosen[of_row])
    valid = manifest.select(valid[np.argsort(rank[valid], kind="stable")[:count]])
    return manifest.select(~chosen[of_row]), valid
