"""Files as text."""

from __future__ import annotations


def decode_text(data: bytes, where: str) -> str:
    """The text in the bytes of a file; `where` they are from is for the errors.

    Raises:
        ValueError: if they are no text, or an empty one.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text: {error}.") from error
    if "\0" in text:
        raise ValueError(f"{where} is not text; it contains NUL characters.")
    if not text.strip():
        raise ValueError(f"{where} is empty; give a document with some text in it.")
    return text
