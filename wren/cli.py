"""What every command line of wren shares. No torch in here, so that `--help` is instant.

A user's error is one line that says what is wrong, where, and the remedy; it ends the program with exit code 2.
Raise `UserError` anywhere; `run(main)` at the bottom of a script prints it. Programmer errors keep their traceback.
"""
import argparse
import csv
import os
import signal
import sys
import time
from contextlib import contextmanager
from functools import partial
from math import inf, isfinite, nan
from pathlib import Path

PULSE_SECONDS = 60.0  # between signs of life where there is no terminal
DEMO = "data/demo"  # the synthetic corpus that every stage falls back on


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, remedy."""


class Parser(argparse.ArgumentParser):
    """argparse with defaults shown, the docstring's example kept as typed, and one-line errors."""

    def __init__(self, description, **kwargs):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=partial(_Help, max_help_position=30, width=118), **kwargs)

    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Raw description; `(default: …)` after each help line whose option has one."""

    def _get_help_string(self, action):
        hidden = any(action.default is value for value in (None, False, True, argparse.SUPPRESS, "", ()))  # 0 is shown
        return action.help + ("" if hidden or "default: " in action.help else " (default: %(default)s)")


def run(main):
    """Run a script's `main()`: user errors become one line on stderr and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            sys.stdout.flush()
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `python evaluate.py | head`: the reader left, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def warn(text):
    """A line on stderr, from the first process only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _number(kind, least, most, wanted):
    """An argparse type: a number from `least` to `most`."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value
    return parse


positive_int = _number(int, 1, inf, "a whole number of at least 1")
natural = _number(int, 0, inf, "a whole number of at least 0")
positive = _number(float, sys.float_info.min, sys.float_info.max, "a number above 0")
not_negative = _number(float, 0, sys.float_info.max, "a number of at least 0")
share = _number(float, 0, 1, "a number from 0 to 1")


def plain(value):
    """What JSON can hold: None in place of numbers that are not finite (an interval of one group, an empty class)."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value


@contextmanager
def replacing(path, mode="w", **options):
    """A file that is written beside `path` and takes its place when it is whole: nobody ever sees half of it."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, mode, **options) as file:
        yield file
    os.replace(temporary, path)


def write_text(path, text):
    """Write a small text file, whole or not at all."""
    with replacing(path, encoding="utf-8", errors="surrogateescape") as file:  # as paths of any bytes are read
        file.write(text)


def write_table(path, header, rows):
    """A CSV, whole or not at all."""
    with replacing(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(header)
        out.writerows(rows)


class StopSignals:
    """SIGTERM and SIGUSR1 set a flag that the training loop reads at the next step.

    Install before torch is imported: that import takes seconds, and a signal without a handler ends the process.
    """

    def __init__(self):
        self.received = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number, frame):
        self.received = signal.Signals(number).name

    def __str__(self):
        return self.received or "a signal to another process"


class Pulse:
    """A sign of life where there is no terminal (nohup, Slurm, notebooks): a line on stderr at least every minute.

    what: the work, of `total` units (None: nobody knows how many); first: how many of them were done before; speaks:
    not on every process.
    """

    def __init__(self, what, total, unit, first=0, speaks=True):
        self.what, self.total, self.unit, self.first = what, total, unit, first
        self.speaks = speaks and not sys.stderr.isatty()
        self.began = self.said = time.monotonic()

    def beat(self, done, more=""):
        """Call it often: after each batch. more: what else the line says."""
        now = time.monotonic()
        if self.speaks and now - self.said >= PULSE_SECONDS:
            self.said, took, of, left = now, now - self.began, "", ""
            if self.total is not None:
                of = f" of {self.total}"
                left = f", about {took * (self.total - done) / max(done - self.first, 1) / 60:.1f} min left"
            print(f"  {self.what}: {done}{of} {self.unit} in {took / 60:.1f} min{left}{more}", file=sys.stderr,
                  flush=True)
