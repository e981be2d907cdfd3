"""The settings of pytest in pyproject.toml: a warning that our own lines raise or cause fails the test."""

import sys
import types
import warnings

import pytest

from gated_prompt.images import InexactDataWarning

CODE = """
import warnings, library
def own(category): warnings.warn("own", category)
def caused(): library.old()
"""
LIBRARY = """
import warnings
def old(): warnings.warn("old", DeprecationWarning, stacklevel=2)
def noisy(): warnings.warn("noise", UserWarning)
"""


def module(name: str, code: str) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(code, made.__dict__)
    return made


@pytest.mark.parametrize("name", ["gated_prompt.fit", "gated_prompt", "train_vtab", "paper.tasks"])
def test_ours_are_errors(monkeypatch, name: str) -> None:
    library = module("library", LIBRARY)
    monkeypatch.setitem(sys.modules, "library", library)
    ours = module(name, CODE)
    for category in (UserWarning, DeprecationWarning, FutureWarning):
        with pytest.raises(category, match="own"):
            ours.own(category)
    with pytest.raises(DeprecationWarning, match="old"):
        ours.caused()
    with pytest.raises(InexactDataWarning):
        warnings.warn("from anywhere", InexactDataWarning, stacklevel=1)


def test_those_of_libraries_are_not() -> None:
    library = module("a_library", LIBRARY)
    with pytest.warns(UserWarning, match="noise"):
        library.noisy()
    with warnings.catch_warnings(record=True) as seen:
        library.noisy()  # raises, were it an error
        library.old()
    assert len(seen) >= 1
