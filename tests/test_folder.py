"""One process has a run's folder; of its two checkpoints one is whole, and is found."""

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from budgetnet import checkpoint, metrics, store
from budgetnet.config import Config, ModelConfig, OptimizerConfig, StageConfig
from budgetnet.errors import (
    CheckpointError,
    DamagedError,
    DataError,
    FolderError,
    Interrupted,
    TrainingError,
    WriteError,
)
from budgetnet.folder import RunFolder, hold, is_empty
from budgetnet.progress import Progress
from budgetnet.train import train

SMALL = Config(
    dataset="digits",
    val_size=100,
    train_size=238,
    model=ModelConfig(name="residual", stages=[StageConfig(width=4, depth=1, stride=4)]),
    epochs=2,
    batch_size=64,
    optimizer=OptimizerConfig(lr=0.05),
    checkpoint_minutes=None,
)


def no_warning(text):
    raise AssertionError(f"unexpected warning: {text}")


@pytest.fixture
def place(tmp_path):
    """A run folder with the checkpoints 1 and 2."""
    with hold(tmp_path / "run", no_warning) as found:
        for number in (1, 2):
            found.save({"number": number, "tensor": torch.full((3,), float(number))})
        yield found


def numbers(path: Path) -> dict[str, int]:
    return {file.name: checkpoint.load_state(file)["number"] for file in path.glob("*.ckpt")}


# ------------------------------------------------------------------------------------------------------- whose it is


def test_a_folder_is_made_and_held_by_one_at_a_time_and_no_lock_stays_in_it(tmp_path):
    run = tmp_path / "a" / "run"
    with hold(run, no_warning):
        assert is_empty(run)
        told = rf"{run} is in use by process {os.getpid()} on .*: wait until"
        with pytest.raises(FolderError, match=told), hold(run, no_warning):
            raise AssertionError("held by two")
    assert list(run.iterdir()) == []
    with hold(run, no_warning):
        pass


OWNER = "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        owner.stdout.readline()
        with pytest.raises(FolderError, match="in use by another process"), hold(tmp_path, no_warning):
            pass
        owner.send_signal(signal.SIGKILL)
    assert (tmp_path / ".lock").exists()
    with hold(tmp_path, no_warning):
        pass


def test_a_lock_on_a_file_that_its_owner_has_removed_meanwhile_is_none(tmp_path, monkeypatch):
    real, tries = fcntl.flock, []

    def slow(handle, how):
        real(handle, how)
        tries.append(handle)
        if len(tries) == 1:
            (tmp_path / ".lock").unlink()  # as the owner before does, between our opening and our locking of it

    monkeypatch.setattr(fcntl, "flock", slow)
    with hold(tmp_path, no_warning):
        monkeypatch.undo()
        with pytest.raises(FolderError), hold(tmp_path, no_warning):
            pass
    assert len(tries) == 2


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    told = []
    with hold(tmp_path, told.append):
        pass
    assert told == [f"{tmp_path} cannot be locked (No locks available): see that no second process trains into it"]


def test_what_dead_writers_left_in_the_folder_is_removed(tmp_path):
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"half")
    assert is_empty(tmp_path)
    with hold(tmp_path, no_warning):
        assert not (tmp_path / ".0123456789abcdef.part").exists()


def test_a_file_of_the_users_is_no_leftover_though_it_is_called_part(tmp_path):
    (tmp_path / "chapter.part").write_text("mine")
    assert not is_empty(tmp_path)


def test_a_read_only_folder_is_one_line(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", os.fspath(path))

    monkeypatch.setattr(os, "open", refuse)
    told = rf"{tmp_path} cannot be written: Read-only file system; make it writable"
    with pytest.raises(FolderError, match=told), hold(tmp_path, no_warning):
        raise AssertionError("the block was entered")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_removed_or_replaced_is_not_written_to(tmp_path, replaced):
    with hold(tmp_path / "run", no_warning) as found:
        found.save({"number": 1})
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        if replaced:
            (tmp_path / "run").mkdir()
        with pytest.raises(FolderError, match="run was removed during the run, or replaced"):
            found.save({"number": 2})
    assert not replaced or not any((tmp_path / "run").iterdir())


def test_a_second_training_in_the_same_folder_is_refused_and_changes_nothing(tmp_path):
    def stop_at(number):
        steps = iter(range(number + 1))
        return lambda: next(steps) == number

    with pytest.raises(Interrupted):
        train(SMALL, tmp_path / "run", track=False, stop=stop_at(1))
    with hold(tmp_path / "run", no_warning):
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        with pytest.raises(FolderError, match="in use"):
            train(SMALL, tmp_path / "run", track=False, resume=True)
        assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    train(SMALL, tmp_path / "run", track=False, resume=True)


def test_a_new_run_begins_where_one_died_before_it_had_written_anything_and_not_where_anything_is(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".0123456789abcdef.part").touch()
    train(SMALL, run, track=False)
    with pytest.raises(TrainingError, match="exists: choose another --output"):
        train(SMALL, run, track=False)


# ------------------------------------------------------------------------------------------------- which checkpoint


def test_the_last_checkpoint_is_loaded_and_the_one_before_it_kept(place):
    assert numbers(place.path) == {"last.ckpt": 2, "previous.ckpt": 1}
    state, path = place.load(no_warning)
    assert state["number"] == 2
    assert path == place.path / "last.ckpt"


def test_without_any_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    assert RunFolder(tmp_path).load(no_warning) is None


@pytest.mark.parametrize("damaged", [b"", b"PK", bytes(4096)])
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_is_used_and_never_overwritten(place, damaged):
    (place.path / "last.ckpt").write_bytes(damaged)
    told = []
    state, path = place.load(told.append)
    assert state["number"] == 1
    assert path == place.path / "previous.ckpt"
    assert len(told) == 1
    assert told[0].startswith(f"{place.path / 'last.ckpt'} is damaged")
    assert "going on from" in told[0]
    assert (place.path / "damaged.ckpt").read_bytes() == damaged
    place.save({"number": 3})
    (place.path / "damaged.ckpt").unlink()
    assert numbers(place.path) == {"last.ckpt": 3, "previous.ckpt": 1}


def test_where_death_between_two_renamings_left_no_last_checkpoint_the_one_before_is_used(place):
    (place.path / "last.ckpt").rename(place.path / "previous.ckpt")
    told = []
    assert place.load(told.append)[0]["number"] == 2
    assert told == [f"{place.path / 'last.ckpt'} is missing; going on from {place.path / 'previous.ckpt'}"]


def test_where_no_checkpoint_is_whole_all_are_named_and_stay(place):
    (place.path / "last.ckpt").write_bytes(b"x")
    (place.path / "previous.ckpt").write_bytes(b"y")
    with pytest.raises(
        DamagedError, match=r"last\.ckpt is damaged .*; and .*previous\.ckpt is damaged .*: remove them"
    ):
        place.load(no_warning)
    (place.path / "previous.ckpt").unlink()
    with pytest.raises(DamagedError, match=r"last\.ckpt is damaged .*; there is none before it: remove it"):
        place.load(no_warning)
    assert (place.path / "last.ckpt").read_bytes() == b"x"


def test_a_checkpoint_of_another_version_is_no_damage(place):
    checkpoint.save_state(place.path / "last.ckpt", {"format": 9})
    with pytest.raises(CheckpointError, match="has format 9") as caught:
        place.load(no_warning)
    assert not isinstance(caught.value, DamagedError)
    assert (place.path / "last.ckpt").exists()


# ------------------------------------------------------------------------------------------------------------ a run


def test_a_run_whose_summary_is_damaged_makes_it_again(tmp_path):
    summary = train(SMALL, tmp_path / "run", track=False)
    (tmp_path / "run" / "summary.json").write_text('{"final": {')
    assert train(SMALL, tmp_path / "run", track=False, resume=True)["test"] == summary["test"]


def test_a_finished_run_that_was_killed_in_its_last_moments_is_tidied_up_when_it_is_resumed(tmp_path, monkeypatch):
    summary = train(SMALL, tmp_path / "run", track=False)
    before = {path.name for path in (tmp_path / "run").iterdir()}
    for name in (".lock", ".0123456789abcdef.part"):
        (tmp_path / "run" / name).touch()
    assert train(SMALL, tmp_path / "run", track=False, resume=True) == summary
    assert {path.name for path in (tmp_path / "run").iterdir()} == before

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", os.fspath(path))

    monkeypatch.setattr(os, "open", refuse)
    assert train(SMALL, tmp_path / "run", track=False, resume=True) == summary


@pytest.mark.parametrize("name", ["last.ckpt", "metrics.csv", "best.safetensors", "summary.json"])
def test_a_write_that_fails_ends_the_run_with_one_line_that_names_the_file_and_it_can_go_on(
    name, tmp_path, monkeypatch
):
    real = os.replace

    def fail(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FolderError, match=rf"cannot write .*{name}: No space .*free some space .*--resume") as caught:
        train(SMALL, tmp_path / "run", track=False)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert train(SMALL, tmp_path / "run", track=False, resume=True)["final"]["epochs"] == 2
    assert not list((tmp_path / "run").glob(".*"))


def test_a_clock_that_is_set_back_during_a_run_changes_no_duration(tmp_path, monkeypatch):
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr("time.time", lambda: 3600.0 * next(hours))
    train(SMALL, tmp_path / "run", track=False)
    rows = metrics.read_metrics(tmp_path / "run" / "metrics.csv")
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"] < 600
    assert all(row["images_per_second"] > 0 for row in rows)


class Sender:
    """Stands in for the tracker, and may die when the results are to be sent."""

    calls: list[str] = []  # noqa: RUF012  emptied by the test
    dies = False

    def __init__(self, run, *, experiment, warn, enabled=True):
        self.run = run
        if not enabled:
            self.calls = []

    def start(self, name, params, tags):
        self.calls.append("start")
        store.Record(experiment="e").save(self.run)

    def log_epoch(self, row):
        self.calls.append(f"epoch {row['epoch']}")

    def finish(self, status, files, classifier, summary):
        if Sender.dies:
            raise SystemExit
        assert classifier.image_size == 32
        self.calls.append(status)
        store.note_sent(self.run, status)


def test_a_run_that_died_while_its_results_were_sent_sends_them_when_it_is_resumed_and_only_then(tmp_path, monkeypatch):
    for name in ("budgetnet.train", "budgetnet.resume"):
        monkeypatch.setattr(sys.modules[name], "Tracker", Sender)
    monkeypatch.setattr(Sender, "calls", [])
    monkeypatch.setattr(Sender, "dies", True)
    with pytest.raises(SystemExit):
        train(SMALL, tmp_path / "run")
    monkeypatch.setattr(Sender, "dies", False)
    assert Sender.calls == ["start", "epoch 1", "epoch 2"]
    for _ in range(2):
        train(SMALL, tmp_path / "run", resume=True)
        assert Sender.calls[3:] == ["start", "FINISHED"]
    Sender.calls.clear()
    train(SMALL, tmp_path / "plain", track=False)
    train(SMALL, tmp_path / "plain", resume=True)
    assert Sender.calls == [], "a run that was never tracked is not sent by being looked at"


def test_metrics_after_the_epoch_that_a_run_goes_on_from_may_be_damaged(tmp_path):
    path = tmp_path / "metrics.csv"
    for rest in (b"\0\0\0\0\n3,0.5\n", b"3,x\n", b"3,0.5\n4,0.5\n", b"3,"):
        path.write_bytes(b"epoch,loss\n1,0.5\n2,0.25\n" + rest)
        metrics.Metrics(path).truncate(2)
        assert path.read_bytes() == b"epoch,loss\n1,0.5\n2,0.25\n"
    path.write_bytes(b"epoch,loss\n1,x\n2,0.25\n")
    with pytest.raises(DataError, match="line 2 is damaged"):
        metrics.Metrics(path).truncate(2)
    metrics.Metrics(path).truncate(0)
    assert not path.exists()


def test_an_error_of_the_folder_says_nothing_about_the_networks_that_fit_compares(tmp_path, monkeypatch):
    from budgetnet import fit
    from budgetnet.candidates import Request

    def full(*_, **__):
        raise FolderError("cannot write")

    monkeypatch.setattr(fit, "train", full)
    monkeypatch.setattr(fit, "measure_latency", lambda *_: 1.0)
    request = Request(budget=20_000, recipe=replace(SMALL, val_size=200), families=("preact",), epochs=1)
    with pytest.raises(FolderError):
        fit.fit(request, output=tmp_path / "fit")


def test_write_errors_are_data_errors_and_folder_errors_training_errors():
    # Callers that know the former catch the latter.
    assert issubclass(WriteError, DataError)
    assert issubclass(FolderError, TrainingError)
    assert issubclass(DamagedError, CheckpointError)


class Counting(Progress):
    """Keeps what a run warns of."""

    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_whose_last_checkpoint_is_damaged_ends_as_it_would_have(seed, tmp_path):
    config = replace(SMALL, checkpoint_steps=1)
    train(config, tmp_path / "whole", track=False)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", track=False, stop=lambda: next(steps) == 3 + 2 * seed)
    last = tmp_path / "run" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1
    last.write_bytes(content)
    told = Counting()
    train(config, tmp_path / "run", track=False, resume=True, progress=told)
    assert [str(last) in text for text in told.warnings] == [True]
    mine, theirs = (checkpoint.load_state(tmp_path / name / "last.ckpt")["network"] for name in ("run", "whole"))
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    epochs = [row["epoch"] for row in metrics.read_metrics(tmp_path / "run" / "metrics.csv")]
    assert epochs == [1, 2]
