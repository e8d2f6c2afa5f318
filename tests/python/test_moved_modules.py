"""Code that imports modules under their earlier names goes on working, with the same classes."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

from bee_integrations.moved_modules import _MOVED


@pytest.mark.parametrize("name", sorted(_MOVED))
def test_an_earlier_name_is_the_same_module(name: str) -> None:
    module = importlib.import_module(f"bee_integrations.{name}")
    assert module is importlib.import_module(f"bee_integrations.{_MOVED[name]}")
    assert module.__name__ == module.__spec__.name == f"bee_integrations.{_MOVED[name]}"


def test_what_was_stored_under_an_earlier_name() -> None:
    from bee_integrations.text.stop_strings import StopStrings

    stored = pickle.dumps(StopStrings, 0).replace(
        b"bee_integrations.text.stop_strings", b"bee_integrations.stop_strings"
    )
    assert pickle.loads(stored) is StopStrings


def test_other_names_are_missing_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("bee_integrations.nothing")


def test_importing_the_package_stays_cheap() -> None:
    program = "import sys, bee_integrations; print({'numpy', 'cffi', 'jinja2', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "set()\n"
