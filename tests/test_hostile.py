"""A few hundred mutations of what each reader reads, and that the campaign which tries them would notice."""

import faulthandler
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from budgetnet.errors import DataError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "reliability"))

import hostile  # noqa: E402
import mutations  # noqa: E402
from hostile import READERS  # noqa: E402
from trials import Trial  # noqa: E402

MUTATIONS = 100
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="readers are tried in processes that are forked")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("campaign")
    command = [sys.executable, str(ROOT / "reliability" / "hostile.py"), "--mutations", str(MUTATIONS), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert found.stdout, found.stderr
    return json.loads(found.stdout)


@needs_fork
@pytest.mark.parametrize("name", READERS)
def test_a_reader_survives_what_is_damaged_and_hostile(outcomes, name):
    assert outcomes[name] == {"tried": MUTATIONS, "survived": MUTATIONS, "failures": []}


@pytest.mark.parametrize("name", READERS)
def test_mutations_are_a_function_of_the_seed_and_differ(name, tmp_path):
    trials = []
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        trials.append(READERS[name](tmp_path / part))

    def contents(trial: Trial) -> list[bytes]:
        return [trial.damaged(random.Random(f"0 {name} {number}")) for number in range(20)]

    first, second = (
        [content.replace(os.fsencode(trial.place.parent), b"") for content in contents(trial)] for trial in trials
    )
    if name != "decoded images":  # whose seal is over the name of the folder
        assert first == second
    assert len(set(first)) > 12


# That it would notice


def _bomb(folder: Path) -> None:
    bytearray(1 << 33)


def _caught_bomb(folder: Path) -> None:
    try:
        bytearray(1 << 33)
    except MemoryError as error:
        raise DataError("found too much, expected less") from error


def _crash(folder: Path) -> None:
    faulthandler.disable()  # as it would tell where, which is known
    os.kill(os.getpid(), 11)


def _outside(folder: Path) -> None:
    Path("escaped").write_text("")


def _link(folder: Path) -> None:
    (folder / "out").unlink(missing_ok=True)
    (folder / "out").symlink_to(Path.cwd())
    (folder / "out" / "escaped").write_text("")


def _run(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def _connect(folder: Path) -> None:
    import socket

    socket.create_connection(("127.0.0.1", 9), timeout=0.1)


def _loop(folder: Path) -> None:
    while True:
        pass


def _raw(message: str):
    def raised(folder: Path) -> None:
        error = DataError("")
        error.args = (message,)
        raise error

    return raised


def _stray(folder: Path) -> None:
    raise KeyError("a")


def _imported(folder: Path) -> None:
    sys.modules.pop("this", None)
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        import this  # noqa: F401


def _evaluated(folder: Path) -> None:
    exec("1 + 1")


def _wrong(folder: Path) -> None:
    raise AssertionError("labels that are none")


WRONG = {
    "memory": (_bomb, "MemoryError at test_hostile.py"),
    "memory that is not there": (_caught_bomb, "asked for more than 64 MiB"),
    "a crash": (_crash, "killed by SIGSEGV"),
    "a file elsewhere": (_outside, "written elsewhere: open"),
    "a file through a link": (_link, "written elsewhere: open"),
    "a process": (_run, "executed: subprocess.Popen"),
    "a connection": (_connect, "connected: socket."),
    "no end": (_loop, "no end after 1 s"),
    "two lines": (_raw("a\nb"), "a message that is no printable line"),
    "a colour": (_raw("\x1b[31m"), "a message that is no printable line"),
    "a book": (_raw("a" * 10_000), "a message that is no printable line"),
    "another exception": (_stray, "KeyError at test_hostile.py"),
    "an import": (_imported, "imported: this"),
    "code": (_evaluated, "executed: code of <string>"),
    "a wrong result": (_wrong, "AssertionError at test_hostile.py"),
}


@needs_fork
@pytest.mark.parametrize("kind", WRONG)
def test_the_campaign_notices_and_reduces(kind, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hostile, "_SILENCE", 1.0)
    wrong, expected = WRONG[kind]

    def prepare(folder: Path) -> Trial:
        place = folder / "file"

        def read() -> None:
            if b"!" in place.read_bytes():
                wrong(folder)

        def damaged(rng: random.Random) -> bytes:
            return b"some text!" if rng.random() < 0.2 else b"some text"

        return Trial(place=place, sound=[b"some"], damaged=damaged, read=read, memory=64 << 20)

    # Mutations of which the last one alone is wrong, so that slow failures are few.
    numbers = [n for n in range(200) if random.Random(f"0 {kind} {n}").random() < 0.2]
    monkeypatch.setitem(READERS, kind, prepare)
    monkeypatch.setattr(hostile, "_WARMING", 0)
    found = hostile.campaign(kind, 1, 0, first=numbers[0])
    assert (found.tried, found.survived) == (1, 0)
    (failure,) = found.failures
    assert failure.what.startswith(expected)
    died = kind in ("a crash", "no end")
    assert Path(failure.path).read_bytes() == (b"some text!" if died else b"!")
    sound = next(n for n in range(200) if n not in numbers)
    assert hostile.campaign(kind, 1, 0, first=sound) == hostile.Outcome(1, 1, [])


@needs_fork
def test_the_campaign_goes_on_behind_a_mutation_that_kills_the_reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def prepare(folder: Path) -> Trial:
        place = folder / "file"

        def read() -> None:
            if place.read_bytes() == b"3":
                os.kill(os.getpid(), 9)

        return Trial(place=place, sound=[b"0"], damaged=lambda rng: b"%d" % rng.randrange(6), read=read)

    monkeypatch.setitem(READERS, "one", prepare)
    monkeypatch.setattr(hostile, "_WARMING", 0)
    deadly = sum(random.Random(f"0 one {number}").randrange(6) == 3 for number in range(40))
    found = hostile.campaign("one", 40, 0)
    assert 0 < deadly < 40
    assert (found.tried, found.survived) == (40, 40 - deadly)
    assert {failure.what for failure in found.failures} == {"killed by SIGKILL"}


@needs_fork
def test_a_reader_that_refuses_a_sound_file_is_no_campaign(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def prepare(folder: Path) -> Trial:
        def read() -> None:
            raise DataError("found a file, expected none")

        return Trial(place=folder / "file", sound=[b"0"], damaged=lambda rng: b"", read=read)

    monkeypatch.setitem(READERS, "none", prepare)
    with pytest.raises(RuntimeError, match="the campaign itself failed"):
        hostile.campaign("none", 5, 0)


def test_what_is_made_of_an_archive_is_one():
    members = [("a", b"one"), ("b/c", b"")]
    made = [mutations.zipped(members, random.Random(seed)) for seed in range(30)]
    readable = 0
    for raw in made:
        try:
            readable += mutations.unzipped(raw) == members
        except Exception:  # one that lies
            continue
    assert 15 < readable < 30
