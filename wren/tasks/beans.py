"""BEANS's twelve sets: where their lists lie, at what rate and length they are read, what their classes are.

Facts from github.com/earthspecies/beans (MIT): datasets.yml, beans/datasets.py and scripts/. Clips are cut from their
start; recordings, some of them in minutes NAME.000.wav, NAME.001.wav, …, are scored by windows. All is in beans.json.
"""
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Beans:
    """One of BEANS's sets, or what is known of an own task. Lists lie below data/ with the split's name for {}."""
    group: str | None = None
    lists: str = ""
    sample_rate: int | None = None  # Hz
    seconds: float | None = None  # of a clip, or of a window
    hop: float | None = None  # seconds between windows
    unknown: str | None = None  # the label that others are counted as; None: an error
    recording: str = ""  # a pattern whose group 1 says which files were one recording (or speaker); "": each its own
    labels: str = ""  # separated by semicolons; "": those of the lists


BEANS = {name: Beans(**about | {"labels": ";".join(about["labels"])})
         for name, about in json.loads(Path(__file__).with_name("beans.json").read_text()).items()}
