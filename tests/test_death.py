"""What campaigns of kills and bad disks do by the hundred (reliability/), done a few times."""

import hashlib
import io
import os
import random
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "reliability"))

import death  # noqa: E402
import killed  # noqa: E402
import storage  # noqa: E402
from powercut import Disk, restore  # noqa: E402

from budgetnet.cli import main  # noqa: E402
from budgetnet.config import to_yaml  # noqa: E402
from budgetnet.download import download  # noqa: E402
from budgetnet.errors import DataError  # noqa: E402
from budgetnet.metrics import read_metrics  # noqa: E402
from budgetnet.recipe import load_recipe  # noqa: E402
from budgetnet.train import train  # noqa: E402


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_as_one_that_nobody_disturbed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        death, "OPTIONS", [*death.OPTIONS[:-2], "--val-size", "100", "--train-size", "438", *death.OPTIONS[-2:]]
    )
    config = load_recipe(Path(death.OPTIONS[0]), death.OPTIONS[1:-2])
    train(config, tmp_path / "whole" / "run", track=False)
    chain = death.Chain(tmp_path / "killed", track=False)
    chain.folder.mkdir()
    assert chain.go_on("half", 5)[0]  # of config.yaml, three checkpoints and a fourth
    assert list(chain.run.glob(".*.part"))
    chain.track = True
    assert chain.go_on("sql", 200)[0]  # in the middle of MLflow's database
    assert not (chain.folder / "mlflow.db").exists()
    died, said = chain.go_on()
    assert not died
    assert "warning" not in said, "neither is a checkpoint lost, nor MLflow given up"
    copy = death.mlflow_copy(chain.folder)
    assert copy["runs"] == [("run", "FINISHED", "active")]
    assert (len(copy["models"]), copy["outputs"]) == (1, 1)
    assert copy["description is the run's"]
    assert [each[0] for each in copy["inputs"]] == ["test", "training", "validation"]
    sent = [metric for metric in copy["metrics"] if not metric[0].startswith("final/")]
    rows = read_metrics(chain.run / "metrics.csv")
    names = rows[0].keys() - {"epoch", *death.CLOCKS}
    assert sent == sorted((name, int(row["epoch"]), row[name]) for row in rows for name in names)
    columns, epochs = death.used(chain.run)
    assert copy["system"] == sorted((f"system/{name}", int(epoch)) for name in columns[1:] for epoch in epochs)
    chain.track = False
    assert death.differences(chain, tmp_path / "whole") == []
    assert chain.kills == ["half", "sql"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    storage.run(run)
    return run


def test_a_run_that_is_not_as_the_undisturbed_one_is_told_from_it(whole, tmp_path):
    place = tmp_path / "run"
    storage.run(place)
    assert storage.is_same(place, whole)
    text = (place / "metrics.csv").read_text()
    (place / "metrics.csv").write_text(text + text.splitlines()[-1] + "\n")
    assert not storage.is_same(place, whole)
    (place / "metrics.csv").write_text(text)
    (place / "last.ckpt").write_bytes((place / "previous.ckpt").read_bytes())
    assert not storage.is_same(place, whole)


def test_whatever_a_power_cut_leaves_of_a_run_all_that_was_saved_is_there(whole, tmp_path):
    states = list(storage.power_cuts(tmp_path / "run").states.items())
    assert storage.is_same(tmp_path / "run", whole)
    assert len(states) > 50
    assert [state for state, _ in states if "previous.ckpt" in dict(state) and "last.ckpt" not in dict(state)] == []
    wrong = [
        storage.lost(restore(state, tmp_path / str(number) / "run"), saved)
        for number, (state, saved) in enumerate(states)
    ]
    assert [text for text in wrong if text] == []
    for number, (state, _) in enumerate(random.Random(0).sample(states, 4)):
        place = restore(state, tmp_path / f"again{number}" / "run")
        storage.run(place, resume=True)
        assert storage.is_same(place, whole)


def disk_after(folder, work):
    disk = Disk(folder, lambda: 0)
    with disk.listening():
        work()
    return [dict(state) for state in disk.states]


def test_a_file_that_is_renamed_before_it_is_synced_may_come_out_empty_torn_or_as_zeros(tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def careless():
        (tmp_path / "new").write_bytes(b"12")
        os.replace(tmp_path / "new", tmp_path / "file")

    found = [state["file"] for state in disk_after(tmp_path, careless)]
    assert set(found) == {b"old", b"", b"1", b"12", b"\0\0"}


def test_a_new_name_may_be_lost_until_its_folder_is_synced(tmp_path):
    def synced(handle_of):
        handle = os.open(handle_of, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    def careless():
        (tmp_path / "file").write_bytes(b"12")
        synced(tmp_path / "file")
        (tmp_path / "other").write_bytes(b"")

    assert {} in disk_after(tmp_path, careless)
    disk = Disk(tmp_path, lambda: 0)
    with disk.listening():
        synced(tmp_path)
    assert [dict(state) for state in disk.states] == [{"file": b"12", "other": b""}]


def test_a_second_name_of_a_file_may_be_lost_and_so_may_the_first_once_it_is_given_up(tmp_path):
    (tmp_path / "file").write_bytes(b"12")

    def careless():
        os.link(tmp_path / "file", tmp_path / "new")
        os.replace(tmp_path / "new", tmp_path / "other")
        os.replace(tmp_path / "file", tmp_path / "other")  # two names of one file: nothing is done
        (tmp_path / "file").unlink()

    found = [{name for name in state if name != "new"} for state in disk_after(tmp_path, careless)]
    assert {frozenset(names) for names in found} == {
        frozenset(names) for names in ({"file"}, {"other"}, {"file", "other"}, ())
    }


@pytest.mark.parametrize("size", [4096, 28 * 1024, 60 * 1024])
def test_a_run_that_fills_its_disk_goes_on_when_there_is_room(size, whole, tmp_path):
    assert storage.survives_full_disk(tmp_path / "disk", whole, size)


def test_an_export_that_fills_the_disk_leaves_the_old_file(tmp_path):
    assert storage.survives_full_export(tmp_path / "disk", 8192)


def test_an_archive_that_does_not_fit_when_it_is_unpacked_is_kept_and_no_data_set_appears(tmp_path):
    folder = tmp_path / "disk"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        entry.size = 300_000
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    md5 = hashlib.md5(packed.getvalue()).hexdigest()
    with storage.small_disk(folder, 100 * 1024) as make_room:
        (folder / "cifar10.tar.gz.part").write_bytes(packed.getvalue())  # as a download leaves it
        with pytest.raises(DataError, match=rf"^{folder}: .* while downloading cifar10: ") as caught:
            download("cifar10", folder, url="no network is needed", md5=md5)
        assert "\n" not in str(caught.value)
        assert [path.name for path in folder.iterdir()] == ["cifar10.tar.gz.part"]
        make_room()
        unpacked = download("cifar10", folder, url="no network is needed", md5=md5)
        assert [path.stat().st_size for path in unpacked.iterdir()] == [300_000]


@pytest.mark.parametrize("after", range(1, 9))  # steps of two epochs, with a checkpoint after each second one
def test_a_folder_that_goes_away_or_is_replaced_during_the_run_is_told_in_one_line(after, tmp_path):
    assert storage.survives_removal(tmp_path / "run", after)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_that_cannot_be_written_ends_the_command_in_one_line_and_the_run_can_go_on(tmp_path, monkeypatch, capfd):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(storage.SMALL))
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        assert main(["models"]) == 1
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        assert main(["train", str(recipe), "--no-track", "--output", str(tmp_path / "run")]) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first == "budgetnet: error: cannot write the output: No space left on device; free some space where it goes"
    assert second == f"{first}, then go on by --resume"
    storage.run(tmp_path / "run", resume=True)


def test_every_moment_has_a_name_in_the_table():
    assert death.NAMES.keys() == {"time", "database", *killed.MOMENTS}
