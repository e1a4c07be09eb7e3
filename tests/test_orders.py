"""The campaign of orders runs all tests in orders that differ, records which failed, and goes on where it stopped."""

import json
import subprocess

import faults
import orders
import pytest

TESTS = """
seen = []


def test_one():
    pass


def test_two():
    assert seen == []


def test_three():
    seen.append(3)
"""


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(orders, "RECORD", tmp_path / "records" / "orders.json")
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "0")  # which take longer to start than these tests
    return orders.RECORD


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_order.py").write_text(TESTS)
    return folder


def test_a_test_that_fails_after_another_fails_in_some_order_and_is_named(record, project):
    found = orders.campaign(project, 2)
    assert [one["seed"] for one in found] == [1, 2]
    assert {tuple(one["failed"]) for one in found} == {(), ("test_order.py::test_two",)}
    assert all(one["passed"] + len(one["failed"]) == 3 for one in found)
    (fault,) = json.loads(record.read_text())["faults"]
    assert (fault["tried"], fault["survived"]) == (2, 1)


def test_what_the_record_has_is_not_run_again(record, project):
    first = orders.campaign(project, 1)
    (project / "test_order.py").write_text("def test_it():\n    pass\n")
    both = orders.campaign(project, 2)
    assert both[:1] == list(first)
    assert [one["passed"] for one in both[1:]] == [1]
    assert json.loads(record.read_text())["runs"] == both


def test_a_run_that_came_to_nothing_is_an_error_and_no_failure(record, project):
    (project / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        orders.campaign(project, 1)
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / "conftest.py").write_text("def pytest_sessionfinish(session):\n    session.exitstatus = 1\n")
    (project / "test_order.py").write_text("def test_it():\n    pass\n")
    with pytest.raises(RuntimeError, match="ended with 1, but names 0 tests that failed"):
        orders.campaign(project, 1)
    assert not record.exists()


def test_a_campaigns_commit_is_dirty_where_what_it_tries_was_changed_and_not_for_another_record(tmp_path):
    def git(*arguments):
        subprocess.run(
            [
                "git",
                "-C",
                tmp_path,
                "-c",
                "user.name=n",
                "-c",
                "user.email=e",
                "-c",
                "commit.gpgsign=false",
                *arguments,
            ],
            check=True,
        )

    assert faults.commit(tmp_path) is None
    files = [tmp_path / "src" / "a.py", tmp_path / "results" / "reliability" / "load.json", tmp_path / "docs" / "a.md"]
    git("init", "--quiet")
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("1")
    git("add", "--all")
    git("commit", "--quiet", "--message=all")
    clean = faults.commit(tmp_path)
    for file in files[1:]:
        file.write_text("2")
    assert faults.commit(tmp_path) == clean
    files[0].write_text("2")
    assert faults.commit(tmp_path) == f"{clean}-dirty"
