"""The documentation says what the program does: options, metrics, commands, links."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import itertools
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import reppo
from reppo import cli, envs, options, same_run
from reppo.cli import training
from reppo.config import Config, preset
from reppo.run import Run

ROOT = Path(__file__).parent.parent
PENDING: set[str] = set()  #: pages that are linked to before they are written
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def generator(page: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"generate_{page}", ROOT / "docs" / f"generate_{page}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_options_are_those_of_the_code() -> None:
    assert (ROOT / "docs" / "options.md").read_text() == generator("options").document(), "run `make options`"


def test_the_proofs_of_reliability_are_those_of_the_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")  # it shares its tables with generate_results.py
    assert (ROOT / "docs" / "reliability.md").read_text() == generator("reliability").document()


def documented_columns() -> dict[str, list[str]]:
    """The columns that docs/metrics.md defines, by the section that it defines them in."""
    columns: dict[str, list[str]] = {}
    section = ""
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").partition(":")[0].strip("`")
        elif line.startswith("| `"):
            columns.setdefault(section, []).extend(re.findall(r"`([^`]+)`", line.split(" | ")[0]))
    return columns


@pytest.mark.parametrize("table", ["metrics.csv", "evaluations.csv"])
def test_every_column_is_documented_and_every_documented_column_exists(trained: Run, table: str) -> None:
    assert trained.directory is not None
    with (trained.directory / table).open() as file:
        emitted = next(csv.reader(file))
    documented = documented_columns()
    for column in ("eval/success_once", "eval/success_at_end"):  # tests/test_torch_env.py knows them
        documented["evaluations.csv"].remove(column)
    documented["metrics.csv"].remove("actor/greedy_prob")  # of discrete actions; tests/test_discrete.py knows it
    assert sorted(emitted) == sorted(documented["Both tables"] + documented[table])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue  # of the web
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists() or target in PENDING, target
        assert not anchor or anchor in anchors(path), target


def commands(page: Path) -> list[list[str]]:
    """The words of every `reppo` command in the shell blocks of a page, fenced or indented."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"^ {4,}(reppo .*)$", text, re.MULTILINE)
    lines = [part for block in blocks for line in block.splitlines() for part in line.split("&&")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["reppo"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_line_that_a_shell_would_run_alone(page: Path) -> None:
    """A long command goes on after a backslash; without one, its second line would be a command of its own."""
    lines = page.read_text().splitlines()
    assert not [after for line, after in itertools.pairwise(lines) if re.match(r" +--\w", after) and not line.endswith("\\")]


SHOWN = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=[" ".join(words) for _, words in SHOWN])
def test_every_command_that_is_shown_is_real(page: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command, *rest = words
    assert command in cli.COMMANDS
    if command == "resume":  # the run of the example is not there
        options.parse(training.ResumeArgs, rest, command, shown=same_run.RESUMABLE)
        return
    args = cli.arguments(command, rest)
    if command == "train":
        args.config.validate()
        suite, _, task = args.env.partition(":")
        assert task
        if suite.endswith(".py"):
            assert Path(suite).exists() or suite.startswith("path/to/"), suite
        elif suite == "my_package.envs":
            assert task == "MyEnv"
        else:
            assert suite in envs.SUITES
            assert envs.missing(envs.SUITES[suite]) or task in envs.SUITES[suite].adapter().names()


def test_every_extra_that_is_shown_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        for group in re.findall(r"(?:reppo|\.)\[([\w,]+)\]'", page.read_text()):
            assert set(group.split(",")) <= extras.keys(), (page, group)
    assert {suite.extra for suite in envs.SUITES.values()} - {None} <= extras.keys()


def test_every_public_name_is_there() -> None:
    for name in reppo.__all__:
        assert getattr(reppo, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        reppo.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_every_preset_is_sound() -> None:
    for name in reppo.PRESETS:
        preset(name).validate()


def test_every_option_has_a_meaning_and_a_section() -> None:
    found = options.options_of(Config)
    assert [option.name for option in found] == [field.name for field in dataclasses.fields(Config)]
    assert all(option.meaning and option.section for option in found)
