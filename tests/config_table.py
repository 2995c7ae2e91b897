"""The table of fields in docs/configuration.md, as `FocusConfig` declares them. This writes it:

python tests/config_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from focus_peft.config import OPTIONS


PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN = "<!-- The table: written by `make config-table` -->"
END = "<!-- The table ends -->"


def table() -> str:
    """A row for each field: its name, its default, whether a call may change it, and what it means."""
    lines = ["| field | default | for one call | meaning |", "|---|---|:-:|---|"]
    for option in OPTIONS:
        default = json.dumps(option.default) if isinstance(option.default, str) else repr(option.default)
        per_call = "✓" if option.metadata["per_call"] else ""
        lines.append(f"| `{option.name}` | `{default}` | {per_call} | {option.metadata['help']} |")
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
