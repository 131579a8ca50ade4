"""Every command that the pages show is one that its program understands. None of them is run."""

import argparse
import importlib
import re
import runpy
import sys
from collections.abc import Callable, Sequence

import pytest

from afintro.cli import ExplainerCLI
from afintro.explain.command import parser as explain_parser
from tests.docs.commands import PAGES, ROOT, Command, block_commands, inline_commands

OTHER_PROGRAMS = {".", "mkdir", "tensorboard"}
SKIPPED_WORDS = {"...", "SUBCOMMAND"}  # a command that is shown in part


class Parsed(BaseException):
    """A program has read its arguments, and goes no further."""


class Parser(ExplainerCLI):
    """The command line that stops when its parser is made."""

    def parse_arguments(self, parser: object, args: object) -> None:
        """Hand out the parser."""
        raise Parsed(parser)


def commands() -> list[Command]:
    """Return every command once."""
    found = [command for page in PAGES for of in (block_commands, inline_commands) for command in of(page)]
    return list({command.text + str(command.script): command for command in found}.values())


@pytest.fixture(scope="module")
def parse_fit() -> Callable[[Sequence[str]], object]:
    """Parse arguments of ``python -m afintro`` with a parser that is made once."""
    with pytest.raises(Parsed) as stopped:
        Parser([])
    parser = stopped.value.args[0]
    return lambda arguments: parser.parse_args(list(arguments))


def parse_script(words: Sequence[str], start: Callable[[], object]) -> None:
    """Start a program that uses argparse, until it has parsed its arguments.

    Raises:
        AssertionError: The arguments are wrong, or the program ended without parsing any.
    """
    real, real_known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    strict: list[
        argparse.ArgumentParser
    ] = []  # parsers that take known arguments alone, for which argparse asks the other

    def parse(parser: argparse.ArgumentParser, *given: object, **named: object) -> None:
        strict.append(parser)
        real(parser, *given, **named)  # type: ignore[call-overload]
        raise Parsed

    def parse_known(parser: argparse.ArgumentParser, *given: object, **named: object) -> object:
        found = real_known(parser, *given, **named)  # type: ignore[call-overload]
        if parser in strict:
            return found
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known)
        patch.setattr(sys, "argv", list(words))
        patch.syspath_prepend(str(ROOT / "scripts"))
        with pytest.raises((Parsed, SystemExit)) as stopped:
            start()
    assert stopped.type is Parsed, f"{' '.join(words)} is refused"


def check(command: Command, parse_fit: Callable[[Sequence[str]], object]) -> None:
    """Check one command; raises whatever its program raises."""
    program, *arguments = command.words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
        given = [word.split("=")[0] for word in arguments if "=" in word]
        assert all(f"$({name})" in makefile for name in given), command
        wanted = [word for word in arguments if "=" not in word]
        assert wanted, command
        assert set(wanted) <= set(targets), command
    elif program == "torchrun":
        check(Command(command.page, " ".join(["python", *arguments[2:]])), parse_fit)
    elif program == "sbatch":
        assert (ROOT / arguments[0]).is_file(), command
    elif program == "afintro" or arguments[:2] == ["-m", "afintro"]:
        words = arguments if program == "afintro" else arguments[2:]
        if words[:1] == ["explain"]:
            known, settings = explain_parser().parse_known_args(words[1:])
            words = ["predict", *(word for path in known.config for word in ("--config", path)), *settings]
        parse_fit(words)
    elif program == "python" and arguments[0] == "-":
        assert command.script
        compile(command.script, command.page, "exec")
    elif program == "python" and arguments[0] == "-m":
        name = arguments[1]
        if (ROOT / name.replace(".", "/")).is_dir():
            name += ".__main__"
        module = importlib.import_module(name)
        parse_script([arguments[1], *arguments[2:]], module.main)
    elif program == "python":
        script = ROOT / arguments[0]
        assert script.is_file(), command
        parse_script(arguments, lambda: runpy.run_path(str(script), run_name="__main__"))
    else:
        assert program in OTHER_PROGRAMS, command


def test_all_commands_parse(parse_fit: Callable[[Sequence[str]], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = [command for command in commands() if not SKIPPED_WORDS & set(command.text.split())]
    assert len(shown) > 40
    wrong = []
    for command in shown:
        try:
            check(command, parse_fit)
        except (Exception, AssertionError) as error:
            wrong.append(f"{command.page}: {command.text}\n  {str(error).splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    ["python -m afintro fit --config configs/steering.yaml --data.no_such 1", "make no-such", "make demo NO_SUCH=1",
     "python scripts/build_af_activations.py --no_such 1", "python -m afintro.study walk --config x", "no-such"],
)  # fmt: skip
def test_a_wrong_command_is_noticed(
    text: str, parse_fit: Callable[[Sequence[str]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, AssertionError)):
        check(Command("page", text), parse_fit)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) <= 1000
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "PROGRESS.md"):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (ROOT / link).exists(), f"{page.name}: {link}"
    assert len((ROOT / "PROGRESS.md").read_text().splitlines()) <= 150


def test_files_that_the_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|yaml|ipynb))`", page.read_text()):
            assert (ROOT / name).exists() or (ROOT / "afintro" / name).exists(), f"{page.name}: {name}"
