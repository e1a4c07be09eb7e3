"""metrics.csv under crashes and damage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetnet.errors import DataError, TrainingError
from budgetnet.metrics import Metrics, read_epochs, read_metrics


def test_metrics_read_back_bit_for_bit(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = [
        {"epoch": 1, "loss": 0.1 + 0.2, "lr": 1e-300},
        {"loss": math.inf, "lr": np.float32(0.1), "epoch": np.int64(2)},
    ]
    metrics = Metrics(path)
    for row in rows:
        metrics.append(row)
    assert read_metrics(path) == [{name: float(value) for name, value in row.items()} for row in rows]
    assert path.read_text().startswith("epoch,loss,lr\n1,0.30000000000000004,1e-300\n2,inf,")


def test_a_row_is_in_the_file_when_append_returns(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    for epoch in range(3):
        metrics.append({"epoch": epoch, "loss": 0.5})
        assert len(read_metrics(tmp_path / "metrics.csv")) == epoch + 1


def test_a_run_without_a_finished_epoch_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []
    Metrics(tmp_path / "metrics.csv").truncate(0)
    assert not (tmp_path / "metrics.csv").exists()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_file_torn_at_any_byte_loses_its_last_row_at_most_and_can_be_continued(tmp_path_factory, values, data):
    path = tmp_path_factory.mktemp("run") / "metrics.csv"
    rows = [{"epoch": epoch, "loss": value} for epoch, value in enumerate(values)]
    for row in rows:
        Metrics(path).append(row)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = max(content[:cut].count(b"\n") - 1, 0)
    assert read_metrics(path) == rows[:whole]
    Metrics(path).append({"epoch": 99, "loss": 0.5})
    assert read_metrics(path) == [*rows[:whole], {"epoch": 99.0, "loss": 0.5}]


@pytest.mark.parametrize("epoch", [0, 1, 2, 5])
def test_truncate_keeps_the_epochs_up_to_the_given_one(tmp_path, epoch):
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path)
    for e in range(1, 4):
        metrics.append({"epoch": e, "loss": 1 / e})
    before = read_metrics(path)
    metrics.truncate(epoch)
    assert read_metrics(path) == [row for row in before if row["epoch"] <= epoch]


def test_truncate_removes_a_torn_line(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"epoch,loss\n1,0.5\n2,0.")
    Metrics(path).truncate(10)
    assert path.read_bytes() == b"epoch,loss\n1,0.5\n"


def test_where_rows_may_vary_what_one_lacks_is_nan_and_what_is_new_is_a_column(tmp_path):
    path = tmp_path / "system.csv"
    Metrics(path, vary=True).append({"epoch": 1, "cpu": 0.5})
    resumed = Metrics(path, vary=True)
    resumed.append({"epoch": 2, "cpu": 0.25, "gpu": 7.0})
    resumed.append({"epoch": 3, "cpu": 0.75})
    Metrics(path, vary=True).append({"epoch": 4})
    assert path.read_text() == "epoch,cpu,gpu\n1,0.5,nan\n2,0.25,7.0\n3,0.75,nan\n4,nan,nan\n"
    Metrics(tmp_path / "metrics.csv").append({"epoch": 3, "loss": 1.0})
    assert read_epochs(tmp_path) == [{"epoch": 3.0, "loss": 1.0, "system/cpu": 0.75}]


def test_other_columns_than_the_files_are_refused_and_leave_it_as_it_was(tmp_path):
    path = tmp_path / "metrics.csv"
    Metrics(path).append({"epoch": 1, "loss": 0.5})
    with pytest.raises(TrainingError, match=r"columns are epoch, loss and the new row has epoch, accuracy"):
        Metrics(path).append({"epoch": 2, "accuracy": 0.5})
    assert path.read_text() == "epoch,loss\n1,0.5\n"


@pytest.mark.parametrize(
    "line",
    ["2,x", "2", "2,0.5,1", "nan,0.5", "1e999,0.5", "2.5,0.5", "-1,0.5", "9" * 30 + ",0.5", '2,"' + "0" * 200_000],
)
def test_a_line_damaged_before_the_end_is_named(tmp_path, line):
    path = tmp_path / "metrics.csv"
    path.write_text(f"epoch,loss\n1,0.5\n{line}\n3,0.5\n")
    with pytest.raises(DataError, match=r"metrics\.csv: line 3 is damaged"):
        read_metrics(path)


def test_metrics_that_cannot_be_written_are_the_users_error(tmp_path):
    with pytest.raises(DataError, match="cannot write"):
        Metrics(tmp_path / "missing" / "metrics.csv").append({"epoch": 1})


def test_the_epochs_of_a_run_have_what_both_files_say_of_them(tmp_path):
    learnt, used = Metrics(tmp_path / "metrics.csv"), Metrics(tmp_path / "system.csv")
    for epoch in (1, 2, 3):
        learnt.append({"epoch": epoch, "loss": 1 / epoch})
    assert read_epochs(tmp_path) == read_metrics(tmp_path / "metrics.csv"), "of a run that is older than system.csv"
    for epoch in (2, 3, 4):  # the last is of an epoch that was killed before the row of its checkpoint
        used.append({"epoch": epoch, "memory": 10.0 * epoch})
    assert read_epochs(tmp_path) == [
        {"epoch": 1, "loss": 1.0},
        {"epoch": 2, "loss": 0.5, "system/memory": 20.0},
        {"epoch": 3, "loss": 1 / 3, "system/memory": 30.0},
    ]
    (tmp_path / "system.csv").write_text("epoch,memory\n1\n2,3\n")
    with pytest.raises(DataError, match=r"system.csv: line 2 is damaged"):
        read_epochs(tmp_path)
