"""Qwen2.5-Coder-0.5B-Instruct under its name on the Hub, for machines that cannot reach the Hub.

    pip install gguf
    python recipes/qwen_coder.py qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
    python recipes/qwen_coder.py qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --output models/qwen_coder

The file is the model's published GGUF, Q4_K_M, of 491,400,064 bytes. The script writes it to the folder
`Qwen/Qwen2.5-Coder-0.5B-Instruct` as transformers saves a model, in bfloat16, with tokenizer and chat template.
transformers takes a local folder of that name before it asks the Hub, so recipes that name the Hub's model run in this
directory. The weights were rounded to 4 bits, and the generation configuration has the published ends of an answer,
but none of the published sampling: answers may differ from those of the Hub's model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub.utils.sha import sha_fileobj
from lib.command_line import parser_of, sentences
from lib.packaged_model import save_unpacked


FOLDER = Path("Qwen/Qwen2.5-Coder-0.5B-Instruct")
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
# <|im_end|> and <|endoftext|>: the file names the first only
ENDS, PADDING = [151645, 151643], 151643


def main(args: argparse.Namespace) -> None:
    file, folder = Path(args.file), Path(args.output)
    if folder.exists():
        raise SystemExit(f"{folder} is there already.")
    if not file.is_file():
        raise SystemExit(f"error: `file` is {args.file!r}, which is no file; give the model's published GGUF, Q4_K_M.")
    with file.open("rb") as opened:
        digest = sha_fileobj(opened).hex()
    if digest != SHA256:
        raise SystemExit(
            f"error: `file` is {args.file!r}, whose sha256 is {digest}, and that of the published GGUF, "
            f"Q4_K_M, is {SHA256}; it is another file, or a damaged one."
        )
    save_unpacked(file, folder, "bfloat16", eos_token_id=ENDS, pad_token_id=PADDING)
    print(folder)


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("file", help="the model's published GGUF, Q4_K_M")
    parser.add_argument("--output", default=FOLDER, help=f"the folder that is written; defaults to {FOLDER}")
    with sentences():
        main(parser.parse_args())
