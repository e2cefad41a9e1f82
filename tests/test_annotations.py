"""Annotation tables: what is written is read back, other programs' tables are understood, errors are named."""
import numpy as np
import pytest
from test_manifest import fails

from wren.tasks.annotations import Event, read_annotations, read_recordings, write_annotations

FILES = [("a/one.wav", 10.1234565, 16000), ("b, c.wav", 3600.0000004, 44100), ("bat.wav", 5.0, 250000)]


def events(n=200, seed=0):
    """Random calls in FILES, times in microseconds, in order of file and time."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        file, seconds, rate = FILES[rng.integers(len(FILES))]
        start, end = (round(float(t), 6) for t in np.sort(rng.uniform(0, seconds, 2)))
        low, high = (float(f) for f in np.sort(rng.uniform(0, rate / 2, 2)))
        out.append(Event(file, start, end, str(rng.choice(["wren", 'a "b", c', "Zaunkönig; ♂"])), float(rng.random()),
                         low, high))
    order = [file for file, _, _ in FILES]
    return sorted(out, key=lambda event: (order.index(event.file), event.start))


@pytest.mark.parametrize("format", ["raven", "csv"])
def test_what_is_written_is_read_back_exactly(tmp_path, format):
    write_annotations(tmp_path / "t", events(), format, FILES)
    assert read_annotations(tmp_path / "t") == events()


def test_audacity_labels_are_read_back_but_for_file_and_score(tmp_path):
    wanted = [Event("", e.start, e.end, e.label, None, e.low, e.high) for e in events() if e.file == "bat.wav"]
    wanted.append(Event("", 5.0, 5.0, "no frequencies"))
    write_annotations(tmp_path / "t.txt", wanted, "audacity")
    assert read_annotations(tmp_path / "t.txt") == wanted


def test_raven_tables_count_time_over_files_and_stay_below_nyquist(tmp_path):
    some = [Event("two.wav", 1.5, 2.0, "x"), Event("one.wav", 0.25, 1.0, "y", 0.5, 100.0, 20000.0)]
    write_annotations(tmp_path / "t.txt", some, "raven", [("one.wav", 10.5, 16000), ("two.wav", 4, 8000)])
    header, first, second = (line.split("\t") for line in (tmp_path / "t.txt").read_text().splitlines())
    assert header == ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)",
                      "High Freq (Hz)", "Begin Path", "File Offset (s)", "Annotation", "Score"]
    assert first == ["1", "Spectrogram 1", "1", "0.250000", "1.000000", "100.0", "8000.0", "one.wav", "0.250000", "y",
                     "0.5"]
    assert second == ["2", "Spectrogram 1", "1", "12.000000", "12.500000", "0.0", "4000.0", "two.wav", "1.500000",
                      "x", ""]


def test_ravens_own_tables_are_understood(tmp_path):
    """Two views a selection, a species column, no file column, Windows line ends and code page."""
    (tmp_path / "t.txt").write_bytes(
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\r\n"
        "1\tWaveform 1\t1\t1.5\t2.5\t\t\tZaunkönig\r\n1\tSpectrogram 1\t1\t1.5\t2.5\t2000\t8000\tZaunkönig\r\n"
        "2\tSpectrogram 1\t1\t3.0\t3.25\t500\t900\t\r\n".encode("cp1252"))
    assert read_annotations(tmp_path / "t.txt") == [Event("", 1.5, 2.5, "Zaunkönig", None, 2000, 8000)]


def test_a_raven_table_over_files_needs_their_offsets(tmp_path):
    head = "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tSpecies"
    path = tmp_path / "t.txt"
    path.write_text(f"{head}\n1\t1\t2\ta.wav\tx\n2\t61\t62\tb.wav\tx\n")
    assert "no column File Offset (s)" in fails(read_annotations, path)
    path.write_text(f"{head}\tFile Offset (s)\n1\t1\t2\ta.wav\tx\t1\n2\t61\t62.5\tb.wav\tx\t1\n")
    assert read_annotations(path) == [Event("a.wav", 1, 2, "x"), Event("b.wav", 1, 2.5, "x")]


@pytest.mark.parametrize("text, found", [
    ("file,start,end,label\na.wav,1,2,x\nb.wav,,,\n", [Event("a.wav", 1, 2, "x")]),
    ("audiofilename,start,end,label:species\na.wav,1,2,x\n", [Event("a.wav", 1, 2, "x")]),  # whombat and others
    ("Start (s),End (s),Scientific name,Common name,Confidence,File\n0.0,3.0,T. t.,wren,0.9,a.wav\n",  # BirdNET
     [Event("a.wav", 0, 3, "wren", 0.9)]),
    ("\ufefffilename,start_time,end_time,label,low_hz,high_hz\na.wav,0,3,\"x, y\",10,20\n",
     [Event("a.wav", 0, 3, "x, y", None, 10, 20)]),
    ("0.5\t1.5\tcall\n\\\t-1.0\t4000\n2\t2\tpoint label\n",
     [Event("", 0.5, 1.5, "call", None, None, 4000), Event("", 2, 2, "point label")]),
    ('{"path": "a.wav", "length": 9, "annotations": [{"st": 1, "ed": 2, "label": 3.0}]}\n'
     '{"path": "b.wav", "length": 9, "annotations": []}\n', [Event("a.wav", 1, 2, "3")]),
    ("", []), ("file,start,end,label\n", [])])
def test_formats_are_recognised_by_content(tmp_path, text, found):
    (tmp_path / "t").write_text(text, encoding="utf-8")
    assert read_annotations(tmp_path / "t") == found


def test_recordings_without_annotations_are_not_lost(tmp_path):
    (tmp_path / "t").write_text("file,start,end,label\nb.wav,,,\na.wav,1,2,x\nb.wav,4,5,y\nc.wav\n")
    assert read_recordings(tmp_path / "t") == [("b.wav", None, [Event("b.wav", 4, 5, "y")]),
                                               ("a.wav", None, [Event("a.wav", 1, 2, "x")]), ("c.wav", None, [])]
    (tmp_path / "t").write_text('{"path": "c.wav", "length": 60, "annotations": []}\n')
    assert read_recordings(tmp_path / "t") == [("c.wav", 60.0, [])]


@pytest.mark.parametrize("text, said", [
    ("file,start,label\na.wav,1,x\n", "has no column for end"),
    ("hello\nworld\n", "has no column for start and end and label"),
    ("file,start,end,label\na.wav,1,two,x\n", "line 2: end 'two' is no number"),
    ("file,start,end,label\na.wav,1,,x\n", "line 2: end is empty"),
    ("file,start,end,label\na.wav,3,2,x\n", "line 2: 'x' from 3 to 2 s"),
    ("file,start,end,label\na.wav,-1,2,x\n", "line 2: 'x' from -1 to 2 s"),
    ("1.0\t2.0\tx\n3.0\tfour\ty\n", "line 2 is no Audacity label"),
    ("1.0\tnan\tx\n", "is no stretch"),
    ("\\\t100\t200\n1\t2\tx", "has no column"),
    ('{"path": "a.wav"}\n', "line 1 is not"),
    ('{"path": "a.wav", "annotations": [{"st": 1, "ed": 2}]}\n', "KeyError: 'label'"),
    ("\0\0", "is no text")])
def test_errors_are_one_line_with_the_place(tmp_path, text, said):
    (tmp_path / "t").write_text(text)
    message = fails(read_annotations, tmp_path / "t")
    assert said in message and str(tmp_path / "t") in message and "\n" not in message


def raven(path, *rows, header="Selection\tView\tBegin Time (s)\tEnd Time (s)\tAnnotation"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_selection_without_a_label_is_left_out_and_named(tmp_path, capsys):
    path = raven(tmp_path / "t.txt", "1\tSpectrogram 1\t1\t2\tx", "2\tSpectrogram 1\t3\t4\t")
    assert read_annotations(path) == [Event("", 1, 2, "x")]
    assert f"1 selection without a label in {path}, row 3: left out" in capsys.readouterr().err
    assert read_annotations(path, label="wren") == [Event("", 1, 2, "x"), Event("", 3, 4, "wren")]
    assert not capsys.readouterr().err
    (tmp_path / "a.txt").write_text("1\t2\tx\n3\t4\t\n5\t6\n")
    assert read_annotations(tmp_path / "a.txt") == [Event("", 1, 2, "x")]
    assert "2 selections without a label" in capsys.readouterr().err


def test_a_table_without_annotation_column_says_what_helps_and_takes_a_label(tmp_path):
    path = raven(tmp_path / "t.txt", "1\tSpectrogram 1\t1\t2", "2\tSpectrogram 1\t3\t4",
                 header="Selection\tView\tBegin Time (s)\tEnd Time (s)")
    assert "add an annotation column in Raven and save the table again" in (said := fails(read_annotations, path))
    assert "--label NAME" in said and str(path) in said
    assert [event.label for event in read_annotations(path, label="wren")] == ["wren", "wren"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_tables_in_utf16_are_read(tmp_path, encoding):
    text = "file,start,end,label\r\nZaunkönig.wav,1,2,♂\r\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (tmp_path / "t.csv").write_bytes(mark + text.encode(encoding))
    assert read_annotations(tmp_path / "t.csv") == [Event("Zaunkönig.wav", 1, 2, "♂")]


def test_a_generic_seq_table_of_crowsetta_names_its_recordings(tmp_path):
    (tmp_path / "t.csv").write_text(
        "label,onset_s,offset_s,onset_sample,offset_sample,notated_path,annot_path,sequence,annotation\n"
        "x,1.0,2.0,,,a.wav,a.txt,0,0\ny,0.5,1.0,,,b.wav,b.txt,0,1\n")
    assert read_recordings(tmp_path / "t.csv") == [("a.wav", None, [Event("a.wav", 1, 2, "x")]),
                                                   ("b.wav", None, [Event("b.wav", 0.5, 1, "y")])]


def test_frequencies_of_opensoundscape_are_read(tmp_path):
    (tmp_path / "t.csv").write_text("audio_file,annotation_file,annotation,start_time,end_time,low_f,high_f\n"
                                    "a.wav,a.txt,x,1,2,500.5,9000\n")
    assert [(e.label, e.low, e.high) for e in read_annotations(tmp_path / "t.csv")] == [("x", 500.5, 9000)]
