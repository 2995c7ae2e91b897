"""Long real texts that need no download from the Hub: those of some Debian packages, as plain text.

    apt install python3.11-doc anarchism postgresql-doc-15 debian-reference-en debian-handbook bible-kjv
    python recipes/debian_texts.py --output texts

writes `texts/train/` (manuals, an FAQ and the standard library's sources, a file each) and `texts/test/` (two books
that are not among them). They stand in for the corpora of the paper where these cannot be had; results on them are
results on them only.
"""

from __future__ import annotations

import gzip
import html
import re
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.command_line import parser_of, sentences
from lib.result_files import check_new, write_json


DOC = Path("/usr/share/doc")
# Texts with fewer characters are left out
LEAST = 2000


@dataclass(frozen=True)
class Package:
    """Documents of a package: those files of a folder, joined to one book or not."""

    name: str
    folder: Path
    pattern: str
    is_book: bool = False


TRAIN = (
    Package("python3.11-doc", DOC / "python3.11/html/_sources", "**/*.txt"),
    Package("anarchism", DOC / "anarchism/markdown", "*.md.gz"),
    Package("postgresql-doc-15", DOC / "postgresql-doc-15/html", "*.html"),
    Package("debian-reference-en", Path("/usr/share/debian-reference"), "ch*.en.html"),
)
TEST = (Package("debian-handbook", DOC / "debian-handbook/html/en-US", "*.html", is_book=True),)
BIBLE = ("bible-kjv", ["bible", "-f", "gen1:1-rev22:21"])


def plain_text(page: str) -> str:
    """The text of an HTML page: without head, scripts and tags, at most one empty line at a time."""
    page = re.sub(r"(?is)<(head|script|style)\b.*?</\1>", "", page)
    page = re.sub(r"(?i)</?(p|div|br|li|tr|h\d|pre|table|dt|dd|ul|ol)\b[^>]*>", "\n", page)
    lines = (line.strip() for line in html.unescape(re.sub(r"<[^>]+>", "", page)).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def documents(package: Package) -> Iterator[tuple[str, str]]:
    """Name and text of each document of a package.

    Raises:
        FileNotFoundError: if the package is not installed.
    """
    files = sorted(package.folder.glob(package.pattern))
    if not files:
        raise FileNotFoundError(
            f"The package {package.name!r} has no {package.pattern!r} in {str(package.folder)!r}; install it with "
            f"`apt install {package.name}`."
        )
    texts = []
    for file in files:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = data.decode("utf-8", errors="replace")
        texts.append((file.name.split(".")[0], plain_text(text) if ".html" in file.suffixes else text))
    if package.is_book:
        yield package.name, "\n".join(text for _, text in texts)
    else:
        yield from ((f"{package.name}-{number:04}-{name}", text) for number, (name, text) in enumerate(texts))


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of the standard library's modules."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.glob("*.py")):
        yield f"stdlib-{file.stem}", file.read_text(encoding="utf-8", errors="replace")


def write(folder: Path, texts: Iterable[tuple[str, str]]) -> dict[str, int]:
    folder.mkdir(parents=True, exist_ok=True)
    count = characters = 0
    for name, text in texts:
        if len(text) >= LEAST:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
            count, characters = count + 1, characters + len(text)
    return {"documents": count, "characters": characters}


def version(package: str) -> str:
    command = ["dpkg-query", "--show", "--showformat", "${Version}", package]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(output: Path) -> None:
    check_new(output)
    parts = {package.name: part for part, packages in (("train", TRAIN), ("test", TEST)) for package in packages}
    texts = {package.name: list(documents(package)) for package in (*TRAIN, *TEST)}
    name, command = BIBLE
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise SystemExit(f"error: the program `{command[0]}` is not there; `apt install {name}`.") from None
    parts[name], texts[name] = "test", [(name, text)]
    found: dict[str, dict[str, Any]] = {each: {"part": part, "version": version(each)} for each, part in parts.items()}
    found["standard library"], texts["standard library"] = {"part": "train"}, list(sources())
    for each, facts in found.items():  # all texts are there: what is missing must not leave a part of them behind
        facts.update(write(output / facts["part"], texts[each]))
    write_json(output / "packages.json", found)
    for name, facts in found.items():
        print(f"{name}: {facts['documents']} documents, {facts['characters']:,} characters for {facts['part']}")


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    with sentences():
        main(parser.parse_args().output)
