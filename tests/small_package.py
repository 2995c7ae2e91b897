"""A small Python package as a text, for tests of code across files."""

from __future__ import annotations

from focus_peft.tasks.code.uses import file_text


FILES = {
    "sea/__init__.py": "from .ships import Ship\n",
    "sea/ships.py": '"""Ships."""\n\n\nclass Ship:\n    def __init__(self, name, masts=3):\n        self.of = name\n',
    "sea/whales.py": (
        "from sea.ships import Ship\nfrom .tools.spears import throw as throw_spear\n\n\n"
        'def hunt(name):\n    """Hunt."""\n    hunter = Ship(name, masts=2)\n    for whale in range(9):\n'
        "        throw_spear(whale, strength=whale + 1)\n    return hunter\n"
    ),
    "sea/tools/spears.py": (
        "from ..ships import Ship\n\n\ndef throw(target, strength):\n    return Ship(\n        target,\n    )\n"
    ),
    "sea/broken.py": "def half(:\n",
}
# Enough other lines for the lengths of the tests
FILES |= {
    f"sea/log{number}.py": "".join(f"day_{number}_{day} = 'calm'\n" for day in range(40)) for number in range(30)
}
PACKAGE = "".join(file_text(path, code) for path, code in FILES.items())
