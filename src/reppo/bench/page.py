"""Parts of a report, and the two pages that are made of them: HTML in one file, and Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from reppo.bench.figures import escaped


@dataclasses.dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """An SVG image with a caption; ``small`` ones stand beside each other."""

    id: str
    title: str
    svg: str
    caption: str = ""
    small: bool = False

    @property
    def standalone(self) -> str:
        """As a file of its own, which has no page to take its ink from."""
        ink = "<style>svg{color:#222}@media (prefers-color-scheme:dark){svg{color:#ddd}}</style>"
        head, _, rest = self.svg.partition(">")
        return f"{head}>{ink}{rest}\n"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text; ``folded`` ones are opened by who wants to see them."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Missing:
    """Something that there are no results of, and the command that would make them."""

    what: str
    why: str
    command: str  #: empty where there is none


Block = Note | Figure | Table | Missing


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


def anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


# ------------------------------------------------------------------------------------------------ HTML

CSS = """
:root { color-scheme: light dark; --ink: #1c1f23; --faint: #5c6570; --paper: #fff; --line: #d9dde2; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --faint: #9aa4af; --paper: #14171a; --line: #343a41; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; } a { color: var(--accent); }
.figures { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.figures.small { gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
figure { margin: 0; } figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figcaption, caption, .caption { color: var(--faint); font-size: .85rem; text-align: left; }
figcaption b { color: var(--ink); display: block; }
.table { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
td { white-space: nowrap; } td.prose { white-space: normal; min-width: min(16rem, 45vw); }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; } h3 { margin-bottom: .2rem; font-size: 1rem; }
code { font-size: .85rem; } td code { white-space: nowrap; }
"""


def html(sections: Sequence[Section]) -> str:
    """A page of one file that needs nothing else."""
    title = escaped(sections[0].title)
    links = "".join(f'<a href="#{anchor(s.title)}">{escaped(s.title)}</a>' for s in sections[1:])
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<nav>{links}</nav>\n"
    ]
    for number, section in enumerate(sections):
        if number:
            parts.append(f'<section id="{anchor(section.title)}">\n<h2>{escaped(section.title)}</h2>\n')
        parts += html_blocks(section.blocks)
        parts.append("</section>\n" if number else "")
    return "".join(parts) + "</body>\n</html>\n"


def html_blocks(blocks: Sequence[Block]) -> list[str]:
    """Blocks in their order; figures that follow each other share a grid, and what is missing a table."""
    parts: list[str] = []
    i = 0
    while i < len(blocks):
        block = blocks[i]
        alike = [block]
        while i + len(alike) < len(blocks) and kind(blocks[i + len(alike)]) == kind(block) and not isinstance(block, Table):
            alike.append(blocks[i + len(alike)])
        i += len(alike)
        if isinstance(block, Figure):
            inner = "".join(html_figure(figure) for figure in alike if isinstance(figure, Figure))
            parts.append(f'<div class="figures{" small" if block.small else ""}">\n{inner}</div>\n')
        elif isinstance(block, Table):
            parts.append(html_table(block))
        elif isinstance(block, Missing):
            rows = [[m.what, m.why, m.command or "-"] for m in alike if isinstance(m, Missing)]
            parts.append(html_table(Table("", ["what", "why", "the command that would make it"], rows, id="missing-parts")))
        else:
            parts += [f"<p>{prose(note.text)}</p>\n" for note in alike if isinstance(note, Note)]
    return parts


def prose(text: str) -> str:
    """Words with code between backticks."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escaped(text))


def kind(block: Block) -> tuple[type, bool]:
    return type(block), isinstance(block, Figure) and block.small


def html_figure(figure: Figure) -> str:
    caption = "" if figure.small else f"<figcaption><b>{escaped(figure.title)}</b>{escaped(figure.caption)}</figcaption>\n"
    return f'<figure id="{figure.id}">\n{figure.svg}\n{caption}</figure>\n'


def is_command(table: Table) -> list[bool]:
    """Which of its columns are of commands."""
    return [cell.startswith("the command") for cell in table.header]


LONG = 40  #: characters of a cell that is wrapped; shorter ones are numbers and names


def html_table(table: Table) -> str:
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in table.header)
    rows = ""
    for row in table.rows:
        pairs = zip(map(escaped, row), is_command(table), strict=True)
        cells = (f"<code>{cell}</code>" if command and cell != "-" else cell for cell, command in pairs)
        rows += "<tr>" + "".join(f"<td{' class=prose' * (len(cell) > LONG)}>{cell}</td>" for cell in cells) + "</tr>\n"
    name = f' id="{table.id}"' if table.id else ""
    inner = f'<div class="table"><table{name}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n'
    inner += f'<p class="caption">{escaped(table.caption)}</p>\n' if table.caption else ""
    if table.folded:
        return f"<details><summary>{escaped(table.title)} ({len(table.rows)})</summary>\n{inner}</details>\n"
    return (f"<h3>{escaped(table.title)}</h3>\n" if table.title else "") + inner


# ------------------------------------------------------------------------------------------------ Markdown


def markdown(sections: Sequence[Section]) -> str:
    """The same as Markdown; figures are files beside it."""
    parts = ["<!-- Written by `reppo report`. Do not edit. -->\n"]
    for number, section in enumerate(sections):
        parts.append(f"{'##' if number else '#'} {section.title}\n")
        gone = [block for block in section.blocks if isinstance(block, Missing)]
        for block in section.blocks:
            if isinstance(block, Figure):
                parts.append(
                    f"![{block.title}](figures/{block.id}.svg)\n\n**{block.title}.** {block.caption}".rstrip() + "\n"
                )
            elif isinstance(block, Table):
                parts.append(markdown_table(block))
            elif isinstance(block, Note):
                parts.append(block.text + "\n")
        if gone:
            rows = [[m.what, m.why, m.command or "-"] for m in gone]
            parts.append(markdown_table(Table("", ["what", "why", "the command that would make it"], rows)))
    return "\n".join(parts)


def markdown_table(table: Table) -> str:
    rows = [
        [f"`{cell}`" if command and cell != "-" else cell for command, cell in zip(is_command(table), row, strict=True)]
        for row in table.rows
    ]
    lines = [table.header, ["---"] * len(table.header), *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    title = f"**{table.title}.** {table.caption}".rstrip() + "\n\n" if table.title else ""
    return f"{title}{text}\n"
