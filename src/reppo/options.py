"""Options of the command line: tyro makes them from the fields, types, defaults and docstrings of frozen dataclasses.

What is ours: how numbers are written, the sections of `Config`, and complaints of one line.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import math
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, StructConstructorSpec, StructFieldSpec

from reppo.config import Config, nearest
from reppo.errors import ConfigError

T = TypeVar("T")

HELP = frozenset(["-h", "--help"])  #: words that ask for help
INLINE = tyro.conf.arg(name="")  #: for a field that holds options of its own: theirs stand beside the others


def unset(metavar: str) -> object:
    """Marks an option whose meaning says what happens without it; ``metavar`` stands for its value."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


class Option(NamedTuple):
    """A field of a dataclass as its source has it: with a section, a ``# ---- name`` comment, and a docstring."""

    name: str
    hint: Any  #: its type
    section: str
    meaning: str


@functools.cache
def options_of(cls: type) -> tuple[Option, ...]:
    """The fields of a dataclass in their order."""
    found = []
    source = textwrap.dedent(inspect.getsource(cls))
    lines, hints = source.splitlines(), typing.get_type_hints(cls)
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    for node, following in itertools.pairwise(definition.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(following, ast.Expr):
            sections = [line.strip("#- ") for line in lines[: node.lineno] if line.strip().startswith("# ----")]
            meaning = " ".join(ast.literal_eval(following.value).split())
            found.append(Option(node.target.id, hints[node.target.id], sections[-1] if sections else "", meaning))
    return tuple(found)


def flag(name: str) -> str:
    """How a field is written: ``--total-steps``, ``--lambda``."""
    return f"--{name.rstrip('_').replace('_', '-')}"


# ------------------------------------------------------------------------------------------- rules for tyro


def without_commas(word: str) -> str:
    """A number without the commas between its thousands; others make none: 1,2,3 is not 123."""
    return word.replace(",", "") if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", word) else word


def whole_number(word: str) -> int:
    """400000, 400_000, 400,000 or 4e5."""
    word = without_commas(word)
    try:
        return int(word)
    except ValueError:
        if not float(word).is_integer():
            raise
        return int(float(word))


def finite_number(word: str) -> float:
    """0.1, 1e-3 or 1,000.5."""
    number = float(without_commas(word))
    if not math.isfinite(number):
        raise ValueError(word)
    return number


def switch(word: str) -> bool:
    return {"true": True, "false": False}[word.lower()]


#: Of values that are one word: how they are called, and how they are read.
KINDS: dict[type, tuple[str, Callable[[str], Any]]] = {
    int: ("a whole number", whole_number),
    float: ("a finite number", finite_number),
    bool: ("true or false", switch),
}
PATTERNS = {int: "{:_}", float: "{:g}"}  #: how numbers are shown


def read_value(word: str, hint: Any) -> Any:
    """The value of an option of this type, from its word; the entries of a tuple have commas between them.

    Raises:
        ValueError: which says what it must be.
    """
    if typing.get_origin(hint) is tuple:
        return tuple(read_value(part, typing.get_args(hint)[0]) for part in word.split(",") if part)
    kind = next((kind for kind in KINDS if hint in (kind, kind | None)), None)
    if kind is None:
        return word
    optional = hint != kind
    if optional and word.lower() == "none":
        return None
    name, read = KINDS[kind]
    with contextlib.suppress(ValueError, OverflowError, KeyError):
        return read(word)
    raise ValueError(f"must be {name}{' or None' * optional}, got {word!r}")


def number_rule(info: tyro.constructors.PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Our way to write numbers, and numbers that may be None."""
    kind = next((kind for kind in PATTERNS if info.type in (kind, kind | None)), None)
    if kind is None:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="N" if kind is int else "X",
        instance_from_str=lambda words: read_value(words[0], info.type),
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["None" if value is None else PATTERNS[kind].format(value)],
    )


def config_rule(shown: Collection[str]) -> Callable[[tyro.constructors.StructTypeInfo], StructConstructorSpec | None]:
    """`Config` as a group of options per section; of the fields that are ``shown``, their defaults unsaid, if any are."""

    def rule(info: tyro.constructors.StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is not Config:
            return None
        groups: list[StructFieldSpec] = []
        chosen = [option for option in options_of(Config) if not shown or option.name in shown]
        for section, members in itertools.groupby(chosen, key=lambda option: option.section):
            fields = []
            for option in members:
                default = getattr(info.default, option.name)
                hint = "" if shown or default in (None, ()) else None
                argument = tyro.conf.arg(name=flag(option.name)[2:], help=option.meaning, help_behavior_hint=hint)
                fields.append((option.name, Annotated[option.hint, argument], dataclasses.field(default=default)))
            group = dataclasses.make_dataclass("Group", fields, namespace={"__doc__": ""})
            title: Any = Annotated[group, tyro.conf.arg(name=section)]
            groups.append(StructFieldSpec(section.replace(" ", "_"), title, group()))

        def merge(**values: Any) -> Config:
            return Config(**{name: value for group in values.values() for name, value in vars(group).items()})

        return StructConstructorSpec(merge, tuple(groups))

    return rule


# ------------------------------------------------------------------------------------------- parsing


def parse(cls: type[T], argv: Sequence[str], command: str, default: T | None = None, shown: Collection[str] = ()) -> T:
    """The arguments of a command. Where ``--help`` is among them it prints the help and raises `SystemExit`.

    Args:
        cls: a dataclass.
        argv: the words after the command.
        command: its name.
        default: what holds where a word does not say otherwise.
        shown: the fields of `Config` that are options, whose defaults are not known; unset, all are.

    Raises:
        ConfigError: for arguments that are none, lack a value, or have one that cannot be.
    """
    refuse_switches_with_values(cls, argv)
    refuse_names_of_positionals(cls, argv, command)
    registry = ConstructorRegistry()
    registry.primitive_rule(number_rule)
    registry.struct_rule(config_rule(shown))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args, unknown = tyro.cli(
                cls,
                prog=f"reppo {command}",
                description=inspect.getdoc(cls),
                args=argv,
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalMetavarFromFieldName),
                registry=registry,
            )
    except SystemExit as end:
        if not end.code:
            raise
        line = unboxed(complaint.getvalue())
        hint = ": how many; --seed is the first" * (line.startswith("--seeds must") and "--seed" in flags_of(cls))
        raise ConfigError(line + hint) from None
    if unknown:
        raise ConfigError(unknown_argument(unknown, cls, command))
    return args


def unboxed(text: str) -> str:
    """The first paragraph of what tyro says, on one line and without the frame around it."""

    def is_rule(line: str) -> bool:
        return not line.strip("─-")

    lines = [line.strip("│╰╯ ") for line in text.splitlines()[1:]]  # without the title
    paragraph = itertools.takewhile(lambda line: not is_rule(line), itertools.dropwhile(is_rule, lines))
    line = " ".join(" ".join(paragraph).split())
    line = line.removeprefix("Error parsing ").replace(": must be", " must be")
    return line[:1].lower() + line[1:]


def flags_of(cls: type) -> dict[str, Any]:
    """The options of a command and their types, those of its `Config` included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    named = {name: hint for name, hint in hints.items() if tyro.conf.Positional not in getattr(hint, "__metadata__", ())}
    config = typing.get_type_hints(Config) if "config" in hints else {}
    return {flag(name): hint for name, hint in {**named, **config}.items()}


def refuse_names_of_positionals(cls: type, argv: Sequence[str], command: str) -> None:
    """``--env`` where the environment is an argument by itself: tyro would miss a value, or find one too many."""
    fields = typing.get_type_hints(cls)
    positional = {flag(name) for name in fields if name != "config"} - flags_of(cls).keys()
    for word in argv:
        if (name := word.partition("=")[0]) in positional:
            raise ConfigError(
                f"unknown option {name}: it is an argument without a name, `reppo {command} {name[2:].upper()}`"
            )


def refuse_switches_with_values(cls: type, argv: Sequence[str]) -> None:
    """``--switch false`` would be a switch and an argument; people mean something else by it."""
    switches = [name for name, hint in flags_of(cls).items() if hint is bool]
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        on, off = name.replace("--no-", "--"), name.replace("--no-", "--").replace("--", "--no-")
        if on in switches and (equals or following.lower() in ("true", "false", "yes", "no", "on", "off")):
            raise ConfigError(f"{name} takes no value, got {value or following!r}; write {on} or {off}")


def unknown_argument(words: Sequence[str], cls: type, command: str) -> str:
    """What is wrong with words that no option takes."""
    word = next((word for word in words if word.startswith("-")), words[0])
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; see `reppo {command} --help`"
    known = [name.replace("--", "--no-" if word.startswith("--no-") else "--") for name in flags_of(cls)]
    close = nearest(word.partition("=")[0].replace("_", "-"), known)
    return f"unknown option {word}{close}; `reppo {command} --help` lists them"
