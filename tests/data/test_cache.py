"""Where the cache is."""

from pathlib import Path

import pytest

from afintro.data.cache import cache_directory


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("AFINTRO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "afintro"
