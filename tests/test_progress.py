"""What a person sees of a training and of a download."""

import io
import re

from budgetnet.config import Config, ModelConfig
from budgetnet.position import Position
from budgetnet.progress import LiveProgress, PlainProgress, Progress, duration
from budgetnet.train import train

TINY = Config(
    dataset="digits",
    val_size=100,
    train_size=238,
    model=ModelConfig(name="whitened_cnn", width=4),
    epochs=2,
    batch_size=64,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_plain_account_has_a_header_and_a_row_an_epoch_as_wide_as_the_header(tmp_path):
    out = io.StringIO()
    train(TINY, tmp_path / "run", track=False, progress=PlainProgress(out))
    lines = out.getvalue().splitlines()
    header = next(i for i, line in enumerate(lines) if line.strip().startswith("epoch"))
    rows = [line.removesuffix(" *") for line in lines[header + 1 : header + 3]]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert {len(row) for row in rows} == {len(lines[header])}
    assert len(lines[header]) + len(" *") <= 80


def test_without_validation_its_columns_are_left_out(tmp_path):
    out = io.StringIO()
    config = Config(dataset="digits", val_size=0, model=TINY.model, epochs=1, batch_size=256)
    train(config, tmp_path / "run", track=False, progress=PlainProgress(out))
    assert "val" not in out.getvalue().split("epoch", 1)[1]


def test_a_live_line_shows_where_a_training_stands_and_goes_away(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    out = Terminal()
    progress = LiveProgress(out)
    progress.epochs = 2
    progress.step(
        Position(epoch=0, step=5, images=320, loss_sum=640.0, correct=80, epoch_seconds=4.0, seconds=4.0), 5, 0.1
    )
    shown = plain(out.getvalue())
    line = "epoch 1/2  ━━━━━━━━━━━━  step 5/5  loss 2.000  acc 25.0%  lr 0.1           80 img/s  0:04 left"
    assert line in shown
    progress.end()
    assert "\x1b[?25h" in out.getvalue(), "the cursor is shown again"


def test_silence_is_silent_but_for_warnings(tmp_path, capsys):
    train(TINY, tmp_path / "run", track=False, progress=Progress())
    Progress().warn("mind the gap")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "budgetnet: warning: mind the gap\n"


def test_a_download_is_told_of_in_tenths_in_a_file_and_by_a_bar_in_a_terminal(monkeypatch):
    out = io.StringIO()
    progress = PlainProgress(out)
    for done in range(0, 170_000_001, 1_000_000):
        progress.download(done, 170_000_000)
    assert len(out.getvalue().splitlines()) == 10
    assert out.getvalue().splitlines()[-1] == "downloaded 170 MB of 170 MB"
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    LiveProgress(terminal).download(170_000_000, 170_000_000)
    assert "━" * 30 + " 170 of 170 MB" in plain(terminal.getvalue())


def test_a_download_of_a_few_bytes_or_of_unknown_length_is_told_of_too():
    out = io.StringIO()
    PlainProgress(out).download(3, 3)
    PlainProgress(out).download(200_000_000, None)
    assert out.getvalue().splitlines() == ["downloaded 0 MB of 0 MB", "downloaded 200 MB"]


def test_decoding_is_told_of_in_tenths_in_a_file_and_by_a_bar_in_a_terminal(monkeypatch):
    out = io.StringIO()
    progress = PlainProgress(out)
    for split in (950, 300):
        for done in range(10, split + 1, 10):
            progress.decode(done, split)
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["decoded 100 of 950 images", "decoded 190 of 950 images"]
    assert len(lines) == 18, "nine before the end of each"
    PlainProgress(out).decode(40, 40)
    assert len(out.getvalue().splitlines()) == 18, "what is done at once is not worth a line"
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    LiveProgress(terminal).decode(300, 300)
    assert "decoding " + "━" * 30 + " 300 of 300 images" in plain(terminal.getvalue())


def test_durations_read_like_a_clock():
    assert [duration(s) for s in (0, 59.6, 61, 3600, 36_061)] == ["0:00", "1:00", "1:01", "1:00:00", "10:01:01"]


def test_scoring_many_sets_of_images_says_a_line_every_tenth_of_the_way():
    out = io.StringIO()
    progress = PlainProgress(out)
    for done in range(1, 97):
        progress.score(done, 96)
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1] == "scored 96 of 96 sets of images"
    progress.score(6, 6)
    Progress().score(1, 96)
    assert len(out.getvalue().splitlines()) == 10


def test_scoring_on_a_terminal_draws_a_bar_that_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    progress = LiveProgress(out)
    progress.score(48, 96)
    assert "scoring ━━━━━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 48 of 96 sets of images" in plain(out.getvalue())
    progress.score(96, 96)
    assert not progress.live.is_started
