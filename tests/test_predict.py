"""Submissions are right or are not there."""

import csv
import os
import pathlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetnet.errors import DataError
from budgetnet.evaluate import score_labels
from budgetnet.files import atomic_write, replacing
from budgetnet.predict import read_submission, true_labels, write_probabilities, write_submission


@given(st.dictionaries(st.integers(-(10**12), 10**12), st.integers(0, 9), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_submission_reads_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("round") / "submission.csv"
    write_submission(path, list(rows), list(rows.values()), 10)
    assert read_submission(path, 10) == (list(rows), list(rows.values()))


def test_a_submission_is_these_bytes(tmp_path):
    path = tmp_path / "s.csv"
    write_submission(path, [7, 3], torch.tensor([0, 9]), 10)
    assert path.read_bytes() == b"ID,Labels\n7,0\n3,9\n"


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        ([0, 1], [0], "2 IDs and 1 labels"),
        ([0, 0], [1, 1], "ID 0 is there more than once"),
        ([0, 1], [0, 10], "label of ID 1 is 10, expected 0 to 9"),
        ([0, 1], [-1, 0], "label of ID 0 is -1"),
        ([0], [1.0], "label 1.0 is no integer"),
        ([0], [True], "label True is no integer"),
        (["0"], [1], "ID '0' is no integer"),
        ([], [], "no images"),
    ],
)
def test_a_wrong_submission_is_refused_and_the_old_file_stays(tmp_path, ids, labels, message):
    path = tmp_path / "s.csv"
    path.write_text("old")
    with pytest.raises(DataError, match=message) as caught:
        write_submission(path, ids, labels, 10)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]
    assert path.read_text() == "old"


def test_a_submission_into_a_missing_folder_is_refused_and_makes_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*gone"):
        write_submission(tmp_path / "gone" / "s.csv", [0], [0], 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header is ''"),
        ("id,label\n0,1\n", "line 1: the header is 'id,label', expected 'ID,Labels'"),
        ("\ufeff\ufeffID,Labels\n0,1\n", "line 1"),
        ('"ID,Labels"\n0,1\n', "line 1"),
        ("ID;Labels\n0;1\n", "line 1: the header is 'ID;Labels', expected 'ID,Labels'"),
        ('"","ID","Labels"\n"1",0,1\n', "line 1"),
        ('ID,Labels\n0,"1\n', "line 2"),
        ('ID,Labels\n0,"1\n"\n', "line 2"),
        ('ID,Labels\n"0"0,1\n', "line 2"),
        ('ID,Labels\n0,""\n', "line 2"),
        ("ID,Labels\n0 ,1\n", "line 2"),
        ("ID,Labels\n" + "9" * 200_000 + ",1\n", "line 2"),
        ("ID,Labels\n", "no rows"),
        ("ID,Labels\n0,1\n0,2\n", "line 3: ID 0 is there a second time"),
        ("ID,Labels\n0,1\n1,10\n", "line 3: the label is 10, expected 0 to 9"),
        ("ID,Labels\n0,-1\n", "line 2: the label is -1"),
        ("ID,Labels\n0,1.0\n", "line 2: found '0,1.0', expected two integers, an ID and a label"),
        ("ID,Labels\n0,1_0\n", "line 2"),
        ("ID,Labels\n0,٣\n", "line 2"),
        ("ID,Labels\n0,1,2\n", "line 2"),
        ("ID,Labels\n0,1\n\n1,2\n", "line 3: found ''"),
        ("ID,Labels\n" + "9" * 5000 + ",1\n", "line 2"),
    ],
)
def test_reading_names_the_line_of_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "s.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_submission(path, 10)
    assert len(str(caught.value)) < len(str(path)) + 200
    assert "\n" not in str(caught.value)


def test_reading_takes_windows_line_ends_and_a_last_line_without_one(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"ID,Labels\r\n4,1\r\n2,0")
    assert read_submission(path) == ([4, 2], [1, 0])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffID,Labels\r\n4,1\r\n2,0\r\n",  # Excel
        '"ID","Labels"\n4,1\n2,0\n',  # R
        '"ID","Labels"\n"4","1"\n"2","0"\n',
        '\ufeff"ID", "Labels"\n4, 1\n 2,  0\n',
    ],
)
def test_reading_takes_what_spreadsheets_and_r_write(tmp_path, text):
    path = tmp_path / "s.csv"
    path.write_bytes(text.encode())
    assert read_submission(path) == ([4, 2], [1, 0])


def test_reading_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (tmp_path / "noise", "not text"),
        (tmp_path / "gone", "No such file"),
        (tmp_path, "director"),
    ):
        with pytest.raises(DataError, match=message):
            read_submission(path)


def test_a_score_matches_rows_by_id_and_counts_as_a_loop_does(tmp_path):
    rng = torch.Generator().manual_seed(0)
    true, predicted = torch.randint(0, 4, (2, 50), generator=rng).tolist()
    order = torch.randperm(50, generator=rng).tolist()
    write_submission(tmp_path / "s.csv", order, [predicted[i] for i in order], 4)
    write_submission(tmp_path / "labels.csv", range(50), true, 4)
    ids, labels = read_submission(tmp_path / "s.csv")
    scores = score_labels(torch.tensor(labels), true_labels(ids, tmp_path / "labels.csv", 4), 4)
    confusion = [[0] * 4 for _ in range(4)]
    for t, p in zip(true, predicted, strict=True):
        confusion[t][p] += 1
    assert scores.to_dict()["confusion"] == confusion
    assert scores.accuracy == sum(t == p for t, p in zip(true, predicted, strict=True)) / 50


def test_a_score_needs_the_same_ids_in_both_files_and_says_which_differ(tmp_path):
    few, many = tmp_path / "few.csv", tmp_path / "many.csv"
    write_submission(few, [0, 1], [0, 0], 2)
    write_submission(many, [0, 1, 8, 9], [0, 0, 0, 0], 2)
    with pytest.raises(DataError, match=r"lacks 2 of the 4 IDs .* first is 8"):
        true_labels(read_submission(few)[0], many, 10)
    with pytest.raises(DataError, match=r"has 2 IDs that are not in .* first is 8"):
        true_labels(read_submission(many)[0], few, 10)


def test_a_score_refuses_labels_too_large_to_be_classes(tmp_path):
    path = tmp_path / "s.csv"
    write_submission(path, [0], [10**15], 10**16)
    with pytest.raises(DataError, match=r"line 2: the label is 1000000000000000, expected 0 to 9"):
        true_labels([0], path, 10)


@pytest.mark.real_data
def test_the_practice_labels_score_all_right_against_themselves(real_data, tmp_path):
    known = real_data / "contest" / "practice_labels.csv"
    ids, labels = read_submission(known, 10)
    write_submission(tmp_path / "s.csv", ids[::-1], labels[::-1], 10)
    assert true_labels(read_submission(tmp_path / "s.csv")[0], known, 10).tolist() == labels[::-1]


def test_probabilities_read_back_as_the_same_float32_and_file_names_stay_whole(tmp_path):
    probabilities = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    files = ['a,b "c".png', "line\nbreak.png", *(f"{i}.png" for i in range(38))]
    path = tmp_path / "p.csv"
    write_probabilities(path, range(40), probabilities, ["cat", "dog", "a,b"], files=files)
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ID", "File", "cat", "dog", "a,b"]
    assert [int(row[0]) for row in rows] == list(range(40))
    assert [row[1] for row in rows] == files
    assert torch.equal(torch.tensor([[float(x) for x in row[2:]] for row in rows]), probabilities)
    assert b"\r" not in path.read_bytes()


def test_probabilities_without_files_have_no_file_column(tmp_path):
    write_probabilities(tmp_path / "p.csv", [5], torch.tensor([[0.25, 0.75]]), ["cat", "dog"])
    assert (tmp_path / "p.csv").read_text() == "ID,cat,dog\n5,0.25,0.75\n"


@pytest.mark.skipif(os.name != "posix", reason="file names are text elsewhere")
def test_a_file_name_that_is_no_text_is_written_byte_for_byte(tmp_path):
    name = os.fsdecode(b"\xff.png")
    write_probabilities(tmp_path / "p.csv", [0], torch.ones(1, 1), ["cat"], files=[name])
    assert (tmp_path / "p.csv").read_bytes() == b"ID,File,cat\n0,\xff.png,1\n"


@pytest.mark.parametrize(
    ("rows", "classes", "files", "message"),
    [
        ([[0.5, 0.4]], ["a", "b"], None, "row of ID 3 sums to 0.9"),
        ([[1.5, -0.5]], ["a", "b"], None, "row of ID 3"),
        ([[float("nan"), 0.5]], ["a", "b"], None, "sums to nan"),
        ([[0.5, 0.5]], ["a"], None, "expected \\(n, 1\\)"),
        ([[0.5, 0.5]], ["a", "a"], None, "two columns would be called 'a'"),
        ([[0.5, 0.5]], ["a", "ID"], None, "two columns would be called 'ID'"),
        ([[0.5, 0.5]], ["a", "b"], [], "0 file names for 1 images"),
        ([[0.5, 0.5]] * 2, ["a", "b"], None, "1 IDs and 2 rows"),
    ],
)
def test_wrong_probabilities_are_refused_and_nothing_is_written(tmp_path, rows, classes, files, message):
    with pytest.raises(DataError, match=message):
        write_probabilities(tmp_path / "p.csv", [3], torch.tensor(rows), classes, files=files)
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_file_is_the_new_one_and_keeps_the_link_to_it(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "target"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_write_that_is_broken_off_leaves_the_old_file_and_nothing_beside(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def break_off() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise error

    with pytest.raises(error):
        break_off()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_about_another_file_is_not_taken_for_a_failed_write(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        (tmp_path / "source").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_writing_over_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, pathlib.Path(os.devnull)):
        with pytest.raises(DataError, match="is no file"):
            atomic_write(path, b"data")


def test_a_write_the_system_cuts_short_is_one_error_with_the_reason_and_keeps_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "file"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*file: File too large") as caught:
            atomic_write(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
