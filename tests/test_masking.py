"""What is hidden in whatever is written or printed."""

import pytest

from budgetnet.masking import mask, masked


@pytest.mark.parametrize(
    ("uri", "masked"),
    [
        ("http://h:1/a@b", "http://***@b"),  # hides too much rather than too little
        ("postgresql://u:p/w@h/db", "postgresql://***@h/db"),
        ("postgresql://h/db?user=u&password=p&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("file:///home/a@b", "file:///home/a@b"),
        ("https://h/?access_token=t", "https://h/?access_token=***"),
    ],
)
def test_secrets_are_hidden_in_any_kind_of_store(uri, masked):
    assert mask(uri) == masked
    assert mask(f"cannot reach {uri} now") == f"cannot reach {masked} now"


def test_mlflows_own_password_and_token_are_hidden_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "tr0ub4dor")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "eyJh")
    assert mask("Basic tr0ub4dor, Bearer eyJh: refused") == "Basic ***, Bearer ***: refused"


def test_every_text_in_nested_values_is_masked_and_all_else_is_as_it_was():
    uri = "http://ann:secret@host/x"
    given = {"a": [uri, 1, None], "b": {"c": (uri, 0.5)}, "d": True}
    assert masked(given) == {"a": ["http://***@host/x", 1, None], "b": {"c": ("http://***@host/x", 0.5)}, "d": True}
    assert given["a"][0] == uri
    assert masked(masked(given)) == masked(given)
