"""Python packages as texts: a file for each, in which its modules stand one after another, each behind its path.

    python recipes/source_texts.py --output code peft trl accelerate

writes `code/peft.txt` and so on, of the packages as they are installed, and `code/packages.json` with their versions.
"cross_file_line" of an evaluation asks for lines of them, and perplexity is measured on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from lib.command_line import parser_of, sentences
from lib.result_files import check_new, write_json

from focus_peft.tasks.code.uses import file_text


def modules(package: str) -> Iterator[tuple[str, str]]:
    """Path and source of every module of an installed package.

    Raises:
        ValueError: if there is no such package.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"There is no package {package!r} in this environment; install it, or leave it out.")
    folder = Path(spec.submodule_search_locations[0])
    for file in sorted(folder.rglob("*.py")):
        yield f"{package}/{file.relative_to(folder).as_posix()}", file.read_text(encoding="utf-8", errors="replace")


def main(output: Path, packages: list[str]) -> None:
    check_new(output)
    texts = {package: [(path, code) for path, code in modules(package) if code.strip()] for package in packages}
    output.mkdir(parents=True, exist_ok=True)
    found, distributions = {}, packages_distributions()
    for package, files in texts.items():
        text = "".join(file_text(path, code) for path, code in files)
        (output / f"{package}.txt").write_text(text, encoding="utf-8")
        (name, *_) = distributions.get(package, [package])
        found[package] = {"version": version(name), "files": len(files), "characters": len(text)}
        print(f"{package} {found[package]['version']}: {len(files)} files, {len(text):,} characters")
    write_json(output / "packages.json", found)


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE", help="names under which they are imported")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args()
    with sentences():
        main(arguments.output, arguments.packages)
