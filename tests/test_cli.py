"""The command line as a whole: quick help, one error line, and the package behind it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import captum_mllm
from captum_mllm.cli import COMMANDS, main

HEAVY = ("torch", "transformers", "captum", "numpy", "matplotlib", "PIL")


def run(*arguments: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


@pytest.mark.parametrize("option", ["--help", "--version", "explain --help"])
def test_help_does_not_wait_for_torch(option: str) -> None:
    code = f"""if True:
        import sys
        from captum_mllm.cli import main
        try:
            main({option.split()!r})
        except SystemExit:
            print([name for name in {HEAVY!r} if name in sys.modules])
    """
    assert run("-c", code)[1].splitlines()[-1] == "[]"


def test_help_takes_at_most_a_second() -> None:
    bare = min(run("-c", "import argparse")[0] for _ in range(3))
    assert min(run("-m", "captum_mllm", "--help")[0] for _ in range(3)) < bare + 1


def test_the_module_is_the_command() -> None:
    (_, version), (_, by_file) = (
        run("-m", "captum_mllm", "--version"),
        run("-m", "captum_mllm.cli", "--version"),
    )
    assert version == by_file == f"captum-mllm {captum_mllm.__version__}\n"


def test_every_command_is_named_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "examples:" in shown or "methods:" in shown
        if not arguments:
            assert all(name in shown for name in COMMANDS)


def test_the_package_has_all_its_names_when_they_are_asked_for() -> None:
    code = """if True:
        import captum_mllm, sys
        assert "torch" not in sys.modules
        assert set(captum_mllm.__all__) <= set(dir(captum_mllm))
        assert captum_mllm.attr.ARC is captum_mllm.ARC is captum_mllm.__dict__["ARC"]
        assert not hasattr(captum_mllm, "Absent")
        names = {}
        exec("from captum_mllm import *", names)
        assert set(captum_mllm.__all__) <= set(names)
        print("all")
    """
    assert run("-c", code)[1] == "all\n"
