"""The specification of messages."""

from budgetnet.errors import ConfigError


def test_an_error_is_one_printable_line_whatever_it_repeats():
    assert str(ConfigError("a\nb\x1b[2J\u202e")) == "a\\nb\\x1b[2J\\u202e"
    assert str(ConfigError("é " + "x" * 10_000)).startswith("é xxx")
    assert len(str(ConfigError("x" * 10_000 + "end"))) < 2_000
    assert str(ConfigError("x" * 10_000 + "end")).endswith("xend")
    assert str(ConfigError()) == ""
