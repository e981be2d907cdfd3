"""The token: in a file that only its owner reads, and in no environment that is passed on."""

import os
import stat
from pathlib import Path

import pytest

from gated_prompt import GatedPromptError
from gated_prompt.serving.settings import TOKEN, Settings, is_authorized, read_token, token_in_file


def test_the_token_of_the_environment_goes_into_a_file_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "open sesame")
    with token_in_file(Settings(adapters=".")) as settings:
        path = Path(str(settings.token_file))
        assert TOKEN not in os.environ
        assert read_token(settings.token_file) == b"open sesame"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert "sesame" not in repr(settings)
    assert not path.exists()
    assert os.environ[TOKEN] == "open sesame"
    assert read_token(None) == b"open sesame"  # replicas that a cluster started have it in their environment
    monkeypatch.delenv(TOKEN)
    with token_in_file(Settings()) as settings:
        assert settings.token_file is None
    assert read_token(None) is None


def test_files_that_are_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    with pytest.raises(GatedPromptError, match="cannot read --token_file"):
        read_token(str(path))
    path.write_text("secret\n")
    path.chmod(0o640)
    with pytest.raises(GatedPromptError, match="chmod 600"):
        read_token(str(path))
    path.chmod(0o600)
    assert read_token(str(path)) == b"secret"
    path.write_text("\n")
    with pytest.raises(GatedPromptError, match="is empty"):
        read_token(str(path))
    monkeypatch.setenv(TOKEN, "x")
    with pytest.raises(GatedPromptError, match="give --token_file"), token_in_file(Settings(address="10.0.0.1:6379")):
        pass


@pytest.mark.parametrize(
    ("header", "right"),
    [
        ("Bearer secret", True), ("bearer secret", True), ("BEARER  secret ", True), ("secret", False), ("", False),
        ("Bearer", False), ("Bearer secre", False), ("Basic secret", False), ("Bearer secret x", False),
        ("Bearer s\xe9cret", False), ("Bearer sécret\u2028", False),
    ],
)  # fmt: skip
def test_headers(header: str, right: bool) -> None:
    assert is_authorized(b"secret", header) is right
    assert is_authorized(None, header)
