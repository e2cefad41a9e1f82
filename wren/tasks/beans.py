"""BEANS's twelve sets: where their lists lie, at what rate and length they are read, what their classes are.

Facts from github.com/earthspecies/beans (MIT): datasets.yml, beans/datasets.py and scripts/. Clips are cut from their
start; recordings are scored by windows. Classes are in beans.json.
"""
import json
from dataclasses import dataclass, replace
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


_MINUTE = r"([^/]+)\.\d{3}\.wav$"  # recordings are cut into minutes NAME.000.wav, NAME.001.wav, …
BEANS = {
    "watkins": Beans("classification", "watkins/annotations.{}.csv", 44100, 3),
    "bats": Beans("classification", "egyptian_fruit_bats/annotations.{}.csv", 250000, 5),
    "cbi": Beans("classification", "cbi/annotations.{}.csv", 44100, 10),
    "dogs": Beans("classification", "dogs/annotations.{}.csv", 44100, 10),
    "humbugdb": Beans("classification", "HumBugDB/data/metadata/{}.csv", 44100, 3),
    "dcase": Beans("detection", "dcase/{}.jsonl", 16000, 2, 1, None, _MINUTE),
    "enabirds": Beans("detection", "enabirds/{}.jsonl", 32000, 2, 1, "OTHR", _MINUTE),
    "hiceas": Beans("detection", "hiceas/{}.jsonl", 22050, 10, 5),
    "rfcx": Beans("detection", "rfcx/{}.jsonl", 48000, 10, 5),
    "hainan-gibbons": Beans("detection", "hainan_gibbons/{}.jsonl", 9600, 4, 2, "1", _MINUTE),
    "esc50": Beans("auxiliary", "esc50/meta/esc50.{}.csv", 44100, 5, None, None,
                   r"(\d+-\d+)-[^/]+$"),  # fold-recording-take-class.wav
    "speech-commands": Beans("auxiliary", "speech_commands/{}.csv", 16000, 1, None, None,
                             r"([^/]+)_nohash_"),  # the speaker
}
BEANS |= {name: replace(BEANS[name], labels=";".join(labels))
          for name, labels in json.loads(Path(__file__).with_name("beans.json").read_text()).items()}
