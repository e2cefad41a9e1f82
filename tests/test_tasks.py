"""Tasks: BEANS's twelve in miniature, own folders in every layout, the window rule, and what can be wrong."""
import csv
import json

import beans_miniature
import numpy as np
import pytest
import soundfile
from test_audio import noise
from test_manifest import fails, recordings, table

import data
from wren.tasks.annotations import Event, read_annotations, write_annotations
from wren.tasks.beans import BEANS
from wren.tasks.windows import count_windows, label_windows
from wren.tasks import load_task, task_names

COUNTS = {"train": 12, "valid": 6, "test": 6}
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def beans(tmp_path_factory):
    return beans_miniature.make(tmp_path_factory.mktemp("beans"))


# --------------------------------------------------------------------------------------------------------- BEANS

def test_the_twelve_are_found_from_the_folder_above_data_and_from_data_itself(beans, tmp_path, monkeypatch):
    assert task_names(["beans"], beans) == task_names(["beans"], beans / "data") == list(BEANS)
    groups = [settings.group for settings in BEANS.values()]
    assert [groups.count(g) for g in ("classification", "detection", "auxiliary")] == [5, 5, 2]
    (tmp_path / "renamed").symlink_to(beans / "data")  # data/ under another name
    for name in BEANS:
        tasks = [load_task(name, root) for root in (beans, beans / "data", tmp_path / "renamed")]
        for task in tasks:
            assert (task.name, task.group, task.sample_rate) == (name, BEANS[name].group, BEANS[name].sample_rate)
            assert all(np.array_equal(task.splits[s].targets, tasks[0].splits[s].targets) for s in SPLITS)
            assert len(task.splits["test"].read(0, 16000)) > 0
    monkeypatch.chdir(beans)
    assert task_names(["dogs", "beans", "own"])[:2] == ["dogs", "watkins"] and len(load_task("dogs").labels) == 10


def test_only_sets_that_are_present_are_named(beans, tmp_path):
    (tmp_path / "data").mkdir()
    assert "none of the twelve" in fails(task_names, ["beans"], tmp_path)
    for name in ("dcase", "bats"):
        folder = BEANS[name].lists.split("/")[0]
        (tmp_path / "data" / folder).symlink_to(beans / "data" / folder)
    assert task_names(["beans"], tmp_path) == ["bats", "dcase"]
    assert "annotations.train.csv" in fails(load_task, "watkins", tmp_path)


@pytest.mark.parametrize("name", beans_miniature.CLIPS)
def test_clips_of_beans_have_the_labels_of_the_lists(beans, name):
    task, labels = load_task(name, beans), beans_miniature.CLIPS[name][0]
    assert (task.kind, task.metric) == ("classification", "accuracy")
    assert task.labels == BEANS[name].labels.split(";") and len(set(task.labels)) == len(task.labels)
    for split, rows in task.splits.items():
        with open(beans / "data" / BEANS[name].lists.format(split), newline="") as file:
            wanted = [(row["path"], row["label"]) for row in csv.DictReader(file)]
        assert [("data/" + rows.rows.path(i), task.labels[k]) for i, k in enumerate(rows.targets)] == wanted
        assert rows.targets.dtype == np.int32 and {label for _, label in wanted} == set(labels)
    assert [len(set(task.splits[s].targets.tolist())) for s in SPLITS] == [3, 3, 3]


def test_beans_has_as_many_classes_as_published():
    assert [len(s.labels.split(";")) for s in BEANS.values()] == [31, 10, 264, 10, 14, 18, 34, 1, 24, 3, 50, 35]


@pytest.mark.parametrize("name", beans_miniature.EVENTS)
def test_detection_sets_of_beans_have_windows_events_and_recordings(beans, name):
    task, settings = load_task(name, beans), BEANS[name]
    assert (task.kind, task.metric) == ("detection", "map")
    assert (task.window_seconds, task.hop_seconds) == (settings.seconds, settings.hop)
    for split in SPLITS:
        rows = task.splits[split]
        assert rows.targets.shape == (len(rows), len(task.labels)) and rows.targets.dtype == bool
        starts, ends = rows.times()
        assert np.allclose(ends - starts, settings.seconds)
        assert np.allclose(starts, np.tile([0, settings.hop, 2 * settings.hop], len(rows) // 3))
        assert len(rows.read(1, 16000)) == 16000 * settings.seconds
        assert {event.file for event in rows.events} <= {file for file, _, _ in rows.files}
        assert [rows.rows.path(i) for i in range(len(rows))] == [rows.files[k][0] for k in rows.file_index]
        assert {event.label for event in rows.events} <= set(task.labels)
    assert len(task.splits["test"].files) == 2, "a recording too short for a window stays among the files"


def test_unknown_labels_follow_each_sets_rule(beans, tmp_path):
    birds = load_task("enabirds", beans).splits["test"]
    assert [event.label for event in birds.events] == ["AMCR", "OTHR", "OTHR"]  # XXXX
    assert [e.label for e in load_task("hainan-gibbons", beans).splits["test"].events] == ["1", "2", "1"]  # 1.0, 2, 9
    for name, lists, old, new in (("dcase", "{}.jsonl", "WTSP", "AGGM"),
                                  ("dogs", "annotations.{}.csv", "Luke", "Lucky")):
        source, copy = beans / "data" / name, tmp_path / name
        copy.mkdir()
        (copy / "wav").symlink_to(source / "wav")
        for split in SPLITS:
            (copy / lists.format(split)).write_text((source / lists.format(split)).read_text().replace(old, new))
        assert f"unknown label {new!r}" in fails(load_task, name, tmp_path)


def test_recordings_are_known_where_file_names_tell(beans):
    minutes = load_task("dcase", beans).splits["train"]  # recorder0.000.wav, recorder1.001.wav, recorder0.002.wav
    assert minutes.groups.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0] and len(minutes.files) == 3
    sounds = load_task("esc50", beans).splits["test"]  # 5-112-A-0.wav and 5-112-B-10.wav are one recording's
    assert len(np.unique(sounds.groups)) < len(sounds)
    speakers = load_task("speech-commands", beans).splits["test"]
    assert speakers.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(np.unique(load_task("bats", beans).splits["test"].groups)) == 6


def test_low_data_lists_replace_the_training_split_only(beans):
    for name in BEANS:
        if name == "cbi":  # BEANS's script makes none
            assert "no low-data list" in fails(load_task, name, beans, low=True)
            continue
        low, full = load_task(name, beans, low=True), load_task(name, beans)
        assert len(low.splits["train"]) < len(full.splits["train"]) and low.labels == full.labels
        assert all(np.array_equal(low.splits[s].targets, full.splits[s].targets) for s in ("valid", "test"))


def test_esc50_has_five_folds_of_which_the_fifth_is_beans_test(beans):
    task = load_task("esc50", beans)
    assert task.folds == ["1", "2", "3", "4", "5"]
    same = load_task("esc50", beans, fold=5)
    paths = lambda split: sorted(split.rows.path(i) for i in range(len(split)))
    assert [paths(same.splits[s]) for s in SPLITS] == [paths(task.splits[s]) for s in SPLITS]
    first = load_task("esc50", beans, fold=1)
    folds = [{path.split("/")[-1][0] for path in paths(first.splits[s])} for s in SPLITS]
    assert folds == [{"2", "3", "4"}, {"5"}, {"1"}]
    assert all(len(s.read(0)) and s.targets.dtype == np.int32 for s in first.splits.values())
    assert "no fold 6" in fails(load_task, "esc50", beans, fold=6)
    assert "no column" in fails(load_task, "dogs", beans, fold=1)


def test_clips_are_cut_from_their_start_and_not_padded(tmp_path):
    beans_miniature.make_clips(tmp_path, "speech-commands", 1.5, np.random.default_rng(0))
    split = load_task("speech-commands", tmp_path).splits["test"]
    whole = split.rows.read(0)
    assert len(whole) == 24000 and np.array_equal(split.read(0), whole[:16000]) and len(split.read(0, 8000)) == 8000
    beans_miniature.make_clips(tmp_path, "dogs", 0.2, np.random.default_rng(0))
    assert len(load_task("dogs", tmp_path).splits["test"].read(0)) == round(0.2 * 44100)


# -------------------------------------------------------------------------------------------------------- windows

def on(start, end, window, width=2.0):
    """BEANS's rule for one annotation and one window from `window` on, spelled out."""
    right = window + width
    if start <= window and right <= end:
        return end > start
    if not (window <= start <= right or window <= end <= right) or end == start:
        return False
    return (min(right, end) - max(window, start)) / min(right - window, end - start) > 0.2


def labelled(events, count=10, width=2.0, hop=1.0):
    start, end = np.array(events, float).reshape(-1, 2).T
    zeros = np.zeros(len(start), int)
    return np.flatnonzero(label_windows(start, end, zeros, zeros, np.array([count]), width, hop, 1)[:, 0]).tolist()


@pytest.mark.parametrize("event, windows", [
    ((0, 0.5), [0]),  # all of it
    ((3.0, 3.0), []), ((0, 0), []),  # without length
    ((2.0, 5.0), [1, 2, 3, 4]),  # windows that end or start inside
    ((2.6, 2.9), [1, 2]),
    ((0.0, 2.0), [0, 1]),  # exactly covers window 0
    ((1.5, 9.0), [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # covers 2 … 7; half a second in windows 0 and 8: 0.25 or more
    ((3.6, 20.0), [3, 4, 5, 6, 7, 8, 9]),  # 0.4 of 2 s in window 2: 0.2, not more
    ((3.59, 20.0), [2, 3, 4, 5, 6, 7, 8, 9]),
    ((1.9, 2.4), [1, 2]),  # 0.1 of 0.5 s in window 0: exactly 0.2 by paper, see below
    ((11.0, 11.5), []),  # after the last window
    ((10.5, 11.5), [9]),
])
def test_windows_are_labelled_by_beans_rule(event, windows):
    assert labelled([event]) == [k for k in range(10) if on(*event, k)]
    if event != (1.9, 2.4):  # floating-point numbers decide there, and decide as in the rule spelled out
        assert labelled([event]) == windows


def test_a_fifth_of_the_shorter_is_not_enough():
    """1 of 5 s, in numbers that are exact: the window is the shorter, then the annotation."""
    assert labelled([(4, 12)], 1, 5, 5) == [] and labelled([(3.9, 12)], 1, 5, 5) == [0]
    assert labelled([(7, 12)], 1, 8, 8) == [] and labelled([(6.9, 12)], 1, 8, 8) == [0]


def test_windows_of_random_annotations_equal_the_rule_spelled_out():
    rng = np.random.default_rng(0)
    for width, hop in ((2, 1), (10, 5), (4, 2), (0.5, 0.2), (1, 1)):
        seconds = [0.3 * width, 7.3 * hop + width, 60]
        count = np.array([count_windows(s, width, hop) for s in seconds])
        recording, start = rng.integers(0, 3, 80), rng.uniform(0, 20, 80)
        start[::2] = np.round(start[::2], 1)  # borders that coincide
        end = start + np.round(rng.exponential(2, 80), 1)
        code = rng.integers(0, 4, 80)
        table = label_windows(start, end, code, recording, count, width, hop, 4)
        wanted = np.zeros_like(table)
        for a, b, k, r in zip(start, end, code, recording):
            for w in range(count[r]):
                wanted[count[:r].sum() + w, k] |= on(a, b, w * hop, width)
        assert np.array_equal(table, wanted) and wanted.any()


@pytest.mark.parametrize("seconds, width, hop, count", [
    (60, 2, 1, 59), (60, 10, 5, 11), (60, 4, 2, 29), (2, 2, 1, 1), (1.5, 2, 1, 1), (1.01, 2, 1, 1), (1.0, 2, 1, 0),
    (0.3, 2, 1, 0), (2.99, 2, 1, 1), (3, 2, 1, 2), (5.1, 10, 5, 1), (5, 10, 5, 0)])
def test_the_number_of_windows_truncates_towards_zero(seconds, width, hop, count):
    assert count_windows(seconds, width, hop) == count


def test_a_million_windows_are_labelled_at_once():
    rng, recordings_, events = np.random.default_rng(0), 17000, 40000
    count = np.full(recordings_, 59)
    start, recording = rng.uniform(0, 58, events), rng.integers(0, recordings_, events)
    code = rng.integers(0, 18, events)
    table = label_windows(start, start + 2.0, code, recording, count, 2, 1, 18)
    assert table.shape == (1003000, 18)
    for r in rng.integers(0, recordings_, 100):
        wanted = np.zeros((59, 18), bool)
        for a, k in zip(start[recording == r], code[recording == r]):
            wanted[[w for w in range(59) if on(a, a + 2.0, w)], k] = True
        assert np.array_equal(table[59 * r:59 * r + 59], wanted)


def test_a_window_past_the_end_of_a_short_recording_is_what_is_there(tmp_path):
    own(tmp_path, {s: [(f"{s}.wav", 1.5, [(0.2, 0.6, "x")])] for s in SPLITS})
    split = load_task(tmp_path / "own").splits["test"]
    assert len(split) == 1 and len(split.read(0)) == 24000 and split.targets.tolist() == [[True]]
    assert split.times()[1].tolist() == [1.5]
    folder = own(tmp_path, {s: [(f"{s}.wav", 3.95, [(0.2, 4.0, "x")])] for s in SPLITS})
    for split in SPLITS:  # a list that rounds
        (folder / f"{split}.jsonl").write_text((folder / f"{split}.jsonl").read_text().replace("3.95", "4.0"))
    split = load_task(folder).splits["test"]
    assert [len(split.read(i)) for i in range(3)] == [32000, 32000, 31200] and split.targets.all()


# ---------------------------------------------------------------------------------------------------- own detection

def own(root, lists, layout="jsonl", rate=16000):
    """A detection task root/own; lists: {split: [(file name, seconds, [(start, end, label)])]}."""
    for split, files in lists.items():
        folder = root / "own" / (split if layout in ("raven", "audacity", "tables") else "audio")
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for name, seconds, events in files:
            soundfile.write(folder / name, noise(round(seconds * rate), len(rows)), rate)
            rows.append([Event(name, *event) for event in events])
            if layout in ("raven", "audacity") and events:
                write_annotations(folder / f"{name.split('.')[0]}{'.Table.1.selections' * (layout == 'raven')}.txt",
                                  rows[-1], layout, [(name, seconds, rate)])
        flat = [event for some in rows for event in some]
        if layout == "jsonl":
            (root / "own" / f"{split}.jsonl").write_text("".join(json.dumps(
                {"path": f"audio/{name}", "length": seconds,
                 "annotations": [{"st": a, "ed": b, "label": label} for a, b, label in events]}) + "\n"
                for name, seconds, events in files))
        elif layout == "csv":
            table(root / "own" / f"{split}.csv", ["file", "start", "end", "label"],
                  [[f"audio/{e.file}", e.start, e.end, e.label] for e in flat]
                  + [[f"audio/{name}", "", "", ""] for name, _, events in files if not events])
        elif layout == "tables":
            write_annotations(folder / "all.txt", flat, "raven", [(name, s, rate) for name, s, _ in files])
    return root / "own"


CALLS = {split: [("a.b.wav", 5.0, [(0.5, 1.5, "x"), (2.0, 2.25, "y")]), ("c.wav", 4.0, []),
                 ("d.wav", 3.0, [(0.0, 3.0, "y")])] for split in SPLITS}


@pytest.mark.parametrize("layout", ["jsonl", "csv", "raven", "audacity", "tables"])
def test_own_recordings_come_with_any_table(tmp_path, layout):
    calls = CALLS if layout in ("jsonl", "csv", "tables") else {
        s: [(name.replace("a.b", "a"), *rest) for name, *rest in files] for s, files in CALLS.items()}
    task = load_task("own", own(tmp_path, calls, layout).parent)
    split = task.splits["valid"]
    assert (task.kind, task.labels, task.group) == ("detection", ["x", "y"], None)
    assert (task.window_seconds, task.hop_seconds) == (2.0, 1.0)
    counts = {name.split("/")[-1]: int((split.file_index == k).sum()) for k, (name, _, _) in enumerate(split.files)}
    assert sorted(counts.values()) == [2, 3, 4] and counts["c.wav"] == 3
    events = {(e.file.split("/")[-1], e.start, e.end, e.label) for e in split.events}
    assert events == {(name, *event) for name, _, some in calls["valid"] for event in some}
    first = {name.split("/")[-1]: int(np.flatnonzero(split.file_index == k)[0])
             for k, (name, _, _) in enumerate(split.files)}
    assert split.targets[first["d.wav"]:first["d.wav"] + 2].tolist() == [[False, True]] * 2
    assert not split.targets[first["c.wav"]:first["c.wav"] + 3].any() and split.groups.max() == 2


def test_a_task_of_recordings_has_no_folds(tmp_path):
    assert "folds are for clips" in fails(load_task, own(tmp_path, CALLS), fold=1)


def test_the_demos_recordings_are_a_detection_task(tiny):
    task = load_task("detection", tiny)
    assert task.kind == "detection" and len(task.labels) == 5
    assert [len(s.events) for s in task.splits.values()] == [
        len(read_annotations(tiny / "detection" / f"{s}.jsonl")) for s in SPLITS]


@pytest.mark.parametrize("change, said", [
    (lambda lists: lists["test"].clear(), "holds no recordings"),
    (lambda lists: lists["test"].__setitem__(0, ("e.wav", 2.0, [(1.0, 2.5, "x")])), "lies outside audio/e.wav"),
    (lambda lists: lists["test"].__setitem__(0, ("e.wav", 2.0, [(3.0, 4.0, "x")])), "ends at 2 s"),
    (lambda lists: [lists.__setitem__(s, [("e.wav", 0.5, [(0.1, 0.2, "x")])]) for s in SPLITS],
     "too short for a window"),
    (lambda lists: [lists.__setitem__(s, [("e.wav", 3.5, [])]) for s in SPLITS], "holds no annotation"),
])
def test_what_can_be_wrong_with_recordings_is_said_in_one_line(tmp_path, change, said):
    lists = {split: list(files) for split, files in CALLS.items()}
    change(lists)
    assert said in fails(load_task, own(tmp_path, lists))


def test_tables_of_one_species_take_their_label_from_the_caller(tmp_path):
    folder = own(tmp_path, CALLS, "audacity")
    for split in SPLITS:
        for path in (folder / split).glob("*.txt"):
            path.unlink()
        (folder / split / "d.txt").write_text("Selection\tBegin Time (s)\tEnd Time (s)\n1\t0.5\t1.5\n")
    assert "--label NAME" in fails(load_task, folder)
    task = load_task(folder, label="wren")
    assert task.labels == ["wren"] and [event.label for event in task.splits["test"].events] == ["wren"]


def test_lists_of_recordings_that_contradict_the_files_are_refused(tmp_path, capsys):
    folder = own(tmp_path, CALLS)
    text = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text(text.replace('"length": 5.0', '"length": 60'))
    assert "lasts 60 s, the file has 5 s" in fails(load_task, folder)
    (folder / "test.jsonl").write_text(text.replace("c.wav", "gone.wav"))
    assert "names audio/gone.wav" in fails(load_task, folder)
    (folder / "audio" / "c.wav").write_text("no sound")
    (folder / "test.jsonl").write_text(text)
    task = load_task(folder)
    assert [path for path, _, _ in task.splits["test"].files] == ["audio/a.b.wav", "audio/d.wav"]
    assert "1 of 3 recordings can't be read, for example audio/c.wav: not readable as sound" in capsys.readouterr().err
    for name in ("a.b", "d"):
        (folder / "audio" / f"{name}.wav").write_text("no sound")
    assert "none of its 3 recordings can be read" in fails(load_task, folder)
    (folder / "test.jsonl").unlink()
    assert "test.jsonl is missing" in fails(load_task, folder)


def test_a_table_without_its_recording_is_refused(tmp_path):
    folder = own(tmp_path, {s: [(n.replace("a.b", "a"), *r) for n, *r in f] for s, f in CALLS.items()}, "audacity")
    (folder / "train" / "other.txt").write_text("1\t2\tx\n")
    assert "other.txt: its recording (not named) is not in" in fails(load_task, folder)
    (folder / "train" / "other.txt").write_text("")  # no labels: nothing is lost
    assert len(load_task(folder).splits["train"].events) == 3
    (folder / "train" / "._a.txt").write_bytes(b"a Mac's shadow file\0")
    for site in ("north", "south"):  # recorders number their files alike
        (folder / "train" / site).mkdir()
        soundfile.write(folder / "train" / site / "same.wav", noise(48000), 16000)
        (folder / "train" / site / "same.txt").write_text("1\t2\tx\n" + "0.5\t0.6\tsouth\n" * (site == "south"))
    events = [(e.file, e.label) for e in load_task(folder).splits["train"].events if "same" in e.file]
    assert events == [("train/north/same.wav", "x"), ("train/south/same.wav", "x"), ("train/south/same.wav", "south")]
    (folder / "train" / "same.txt").write_text("1\t2\tx\n")
    assert "one of several: train/north/same.wav, train/south/same.wav" in fails(load_task, folder)
    for split in SPLITS:
        table(tmp_path / "flat" / f"{split}.csv", ["start", "end", "label"], [[1, 2, "x"]])
    assert "wants a column file" in fails(load_task, tmp_path / "flat")


# ------------------------------------------------------------------------------------------------------- own clips

def clips(root, labels, name="own", header=("path", "label"), more=((),) * 9):
    """A task of one clip a label in each split."""
    names = recordings(root / "audio", [0.2] * len(labels))
    for split in SPLITS:
        table(root / name / f"{split}.csv", header, [[f"audio/{n}", *row] for n, *row in zip(names, labels)])
    return root / name


def test_labels_by_semicolons_make_a_multilabel_task(tmp_path):
    folder = clips(tmp_path, ["b;a", "a", "", "c ; b;"])
    task = load_task(folder, tmp_path)
    assert (task.kind, task.metric, task.labels) == ("multilabel", "map", ["a", "b", "c"])
    assert task.splits["test"].targets.astype(int).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert len(task.splits["test"].read(2)) == 3200


def test_one_list_with_folds_is_a_task(tmp_path):
    names = recordings(tmp_path / "own" / "audio", [0.1] * 8)
    rows = [[f"audio/{n}", "ab"[k % 2], 1 + k // 2, f"site{k // 4}"] for k, n in enumerate(names)]
    table(tmp_path / "own" / "annotations.csv", ["path", "label", "fold", "recording"], rows)
    task = load_task("own", tmp_path)
    assert task.folds == ["1", "2", "3", "4"] and [len(task.splits[s]) for s in SPLITS] == [4, 2, 2]
    first = load_task("own", tmp_path, fold=1).splits
    paths = {s: [first[s].rows.path(i) for i in range(len(first[s]))] for s in SPLITS}
    assert paths == {"train": [f"audio/r{k}.flac" for k in (2, 3, 4, 5)],
                     "valid": ["audio/r6.flac", "audio/r7.flac"], "test": ["audio/r0.flac", "audio/r1.flac"]}
    assert first["train"].groups.tolist() == [0, 0, 1, 1], "a column recording says what belongs together"
    assert "no low-data list" in fails(load_task, "own", tmp_path, low=True)
    assert "exclude each other" in fails(load_task, "own", tmp_path, low=True, fold=1)
    table(tmp_path / "own" / "annotations.csv", ["file", "start", "end", "label"], [["audio/r0.flac", 0, 1, "a"]])
    assert "wants train, valid and test" in fails(load_task, "own", tmp_path)
    table(tmp_path / "own" / "annotations.csv", ["path", "label"], [row[:2] for row in rows])
    assert "no column fold" in fails(load_task, "own", tmp_path)


def test_what_can_be_wrong_with_clips_is_said_in_one_line(tmp_path):
    assert "single class 'a'" in fails(load_task, clips(tmp_path, ["a", "a"]), tmp_path)
    assert "a row with an empty label" in fails(load_task, clips(tmp_path, ["a", "", "b"]), tmp_path)
    folder = clips(tmp_path, ["a", "b"])
    table(folder / "test.csv", ["path", "label"], [])
    assert "test.csv has a header but no rows" in fails(load_task, folder, tmp_path)
    assert "no low-data list" in fails(load_task, folder, tmp_path, low=True)
    (folder / "test.csv").unlink()
    assert "test.csv is missing" in fails(load_task, folder, tmp_path)
    (tmp_path / "bare").mkdir()
    assert "train.csv is missing" in fails(load_task, "bare", tmp_path)


def test_a_label_in_the_test_split_only_is_reported_and_kept(tmp_path, capsys):
    folder = clips(tmp_path, ["a", "b"])
    table(folder / "test.csv", ["path", "label"], [["audio/r0.flac", "a"], ["audio/r1.flac", "new"]])
    task = load_task(folder, tmp_path)
    assert task.labels == ["a", "b", "new"] and task.splits["test"].targets.tolist() == [0, 2]
    said = capsys.readouterr().err
    assert "test split has labels that the training split lacks: new" in said and said.count("\n") == 1


def test_a_selection_of_rows_keeps_clips_targets_and_groups_together(beans):
    for name in ("watkins", "rfcx"):
        split = load_task(name, beans).splits["train"]
        some = split.select([4, 1])
        assert len(some) == 2 and np.array_equal(some.read(1, 8000), split.read(1, 8000))
        assert np.array_equal(some.targets, split.targets[[4, 1]])
        assert np.array_equal(some.groups, split.groups[[4, 1]])


def test_check_compares_recordings_rather_than_windows(tmp_path, capsys):
    folder = own(tmp_path, CALLS)
    (tmp_path / "pre").mkdir()
    soundfile.write(tmp_path / "pre" / "copy.wav", soundfile.read(folder / "audio" / "d.wav")[0], 16000)
    data.main(["check", str(tmp_path / "pre"), "--task", str(folder), "--out", str(tmp_path / "c.csv")])
    assert "1 of the 3 test clips of own overlap" in capsys.readouterr().out
