"""The specification of a run's times: what counts as work, what as the run, and that a stop costs nothing."""

import pytest

from budgetnet.position import Clock, Position


@pytest.fixture
def wait(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_work_counts_for_the_epoch_and_everything_for_the_run(wait):
    at = Position()
    clock = Clock(at)
    with clock.working():
        wait(2)
    wait(5)  # to validate, or to save
    with clock.working():
        wait(3)
    assert (at.epoch_seconds, at.seconds) == (5, 10)
    wait(1)
    assert clock.read() == at.seconds == 11
    assert at.epoch_seconds == 5


def test_a_run_that_goes_on_has_never_stopped(wait):
    at = Position(seconds=60, epoch_seconds=20)
    wait(1_000_000)
    clock = Clock(at)
    assert clock.since_save == clock.since_look == 0
    with clock.working():
        wait(4)
    assert (at.epoch_seconds, at.seconds) == (24, 64)


def test_saving_and_looking_have_times_of_their_own(wait):
    clock = Clock(Position())
    with clock.working():
        wait(2)
    clock.saved()
    with clock.working():
        wait(3)
    assert (clock.since_save, clock.since_look) == (3, 5)
    clock.looked()
    with clock.working():
        wait(4)
    assert (clock.since_save, clock.since_look) == (7, 4)


def test_work_that_fails_is_not_counted(wait):
    at = Position()
    clock = Clock(at)

    def work():
        with clock.working():
            wait(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert at == Position()
