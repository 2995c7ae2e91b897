"""`focus-peft generate`: answers questions about a text file."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .console import DOCUMENT, LOADING, SAVING, USAGE, CommandError, add_command, failing_as, say
from .reading_options import add_reading_options, reading_options


DESCRIPTION = """\
Reads a document once, of any length, and answers questions about it. Answers go to stdout, everything else to stderr.
"""
EXIT_CODES = """\
exit codes:
  0    every question was answered
  1    unexpected failure (see --debug)
  2    wrong usage
  3    the document cannot be read, is empty or is not text
  4    the model, the adapter or the memory cannot be loaded, or not with these sizes
  5    the memory cannot be saved
  130  interrupted with Ctrl-C
"""


def add_generate(commands: Any) -> None:
    """Add the command to the parser's commands."""
    what = "answer questions about a text file or stdin"
    generate = add_command(commands, "generate", what, description=DESCRIPTION, epilog=EXIT_CODES)
    generate.set_defaults(run=run_generate)
    add = generate.add_argument
    add("--model", required=True, help="a model's directory or its name on the Hub")
    add("--gguf-file", metavar="NAME", help="the GGUF file inside --model to load the model from")
    add("--adapter", help="a trained adapter's directory or its name on the Hub (default: untrained twins)")
    add("--document", metavar="FILE", help="the text to ask about (UTF-8), or - for stdin")
    add("--question", action="append", required=True, help="may be given several times; the document is read once")
    memory = "with --document: save the encoded document here; without: use the one saved here"
    add("--memory", metavar="DIR", help=memory)
    add("--max-new-tokens", type=_positive(int), default=256, metavar="N", help="longest answer (default: 256)")
    add("--temperature", type=_positive(float), metavar="T", help="sample at this temperature (default: no sampling)")
    add("--top-p", type=_positive(float), metavar="P", help="sample from the most likely tokens that make up P")
    add("--seed", type=int, help="makes sampling repeatable")
    add("--show-chunks", action="store_true", help="with --read-chunks: say on stderr which ones these are")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: the model's own")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one)")
    add_reading_options(generate)


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def run_generate(args: argparse.Namespace) -> None:
    """`focus-peft generate`: document → memory, then every question → answer."""
    if args.document is None and args.memory is None:
        raise CommandError("nothing to read; give --document FILE, or --memory DIR with a saved memory.", USAGE)
    if args.show_chunks and args.read_chunks is None:
        raise CommandError("--show-chunks shows the chunks that are read in full; give --read-chunks N too.", USAGE)
    text = None if args.document is None else read_document(args.document)
    if args.memory is not None:
        check_memory(Path(args.memory), to_save=text is not None)
    model, tokenizer = load(args)
    if text is None:
        with failing_as(LOADING, f"the memory {args.memory} cannot be loaded"):
            memory = model.load_memory(args.memory, tokenizer=tokenizer)
        say(f"loaded {memory.num_tokens:,} tokens in {memory.num_chunks:,} chunks from {args.memory}.")
    else:
        start = time.perf_counter()
        memory = model.encode(tokenizer(text, return_tensors="pt", verbose=False).input_ids)
        say(f"read {_rate(memory.num_tokens, start)}, in {memory.num_chunks:,} chunks.")
        if args.memory is not None:
            with failing_as(SAVING, f"the memory cannot be saved in {args.memory}"):
                memory.save(args.memory, tokenizer=tokenizer)
            say(f"saved the memory in {args.memory}.")
    for question in args.question:
        answer(model, tokenizer, memory, question, args)


def read_document(name: str) -> str:
    """The text of a file, or of stdin for `-`."""
    where = "stdin" if name == "-" else name
    with failing_as(DOCUMENT, f"{where} cannot be read", OSError):
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    return decode_document(data, where)


def decode_document(data: bytes, where: str) -> str:
    """The text in the bytes of a file; `where` they are from is for the errors.

    Raises:
        CommandError: if they are no text, or an empty one.
    """
    with failing_as(DOCUMENT, f"{where} is not UTF-8 text", UnicodeDecodeError):
        text = data.decode("utf-8-sig")
    if "\0" in text:
        raise CommandError(f"{where} is not text; it contains NUL characters.", DOCUMENT)
    if not text.strip():
        raise CommandError(f"{where} is empty; give a document with some text in it.", DOCUMENT)
    return text


def check_memory(directory: Path, to_save: bool) -> None:
    """What would go wrong with a memory's directory only after long work, goes wrong now."""
    used = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if to_save and used:
        raise CommandError(
            f"the memory cannot be saved in {directory}, which is not empty; name a new directory, or leave out "
            "--document to ask about the memory that is stored there.",
            SAVING,
        )
    if not to_save and not used:
        raise CommandError(f"the memory {directory} cannot be loaded; there is nothing.", LOADING)


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """(model with its adapter, tokenizer), ready to generate."""
    import torch
    import transformers
    from peft import PeftModel, get_peft_model

    from .. import FocusConfig

    if not args.debug:
        transformers.logging.set_verbosity_error()
        # Those between PEFT and transformers; no user can do anything about them
        warnings.simplefilter("ignore", FutureWarning)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    files = {} if args.gguf_file is None else {"gguf_file": args.gguf_file}
    with failing_as(LOADING, f"the model {args.model} cannot be loaded"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model, **files)
        base: Any = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype, **files)
        base.to(device)
    if args.adapter is None:
        say(
            "warning: no --adapter, so the twins are untrained: they have not learned to read chunks; expect poor "
            "answers."
        )
        # The same function as full twins, before training, at a small part of their size
        config: Any = FocusConfig(r=1)
    else:
        with failing_as(LOADING, f"the adapter {args.adapter} cannot be loaded"):
            config = load_config(args.adapter)
    with failing_as(USAGE, "these options do not go together", ValueError):
        config = config.with_overrides(**reading_options(args))
    with failing_as(LOADING, "the adapter cannot be put on the model"):
        if args.adapter is None:
            model: Any = get_peft_model(base, config)
        else:
            model = PeftModel.from_pretrained(base, args.adapter, config=config)
        model.settings()  # refuses what this model cannot do
    return model.eval(), tokenizer


def load_config(adapter: str) -> Any:
    """The configuration of a focus adapter, from a folder or the Hub."""
    from peft import PeftConfig

    from .. import FocusConfig
    from ..hub.errors import hub_reason

    try:
        config = PeftConfig.from_pretrained(adapter)
    except ValueError as error:
        reason = hub_reason(error, adapter)  # which PEFT leaves out
        if reason is None:
            raise
        raise ValueError(f"{error}. {reason}") from error
    if not isinstance(config, FocusConfig):
        raise ValueError(f"it is a {config.peft_type} adapter, not one of focus_peft")
    return config


def answer(model: Any, tokenizer: Any, memory: Any, question: str, args: argparse.Namespace) -> None:
    """Answer one question about the memory, token by token, on stdout."""
    from transformers import TextStreamer, set_seed

    from ..frozen.compat import CACHE

    if args.seed is not None:
        set_seed(args.seed)
    if tokenizer.chat_template is None:
        inputs = tokenizer(f"\n\nQuestion: {question}\nAnswer:", return_tensors="pt")
    else:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    sampling: dict[str, Any] = {"do_sample": args.temperature is not None or args.top_p is not None}
    sampling |= {name: value for name in ("temperature", "top_p") if (value := getattr(args, name)) is not None}
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    start = time.perf_counter()
    inputs = inputs.to(model.device)
    output = model.generate(
        **inputs,
        memory=memory,
        max_new_tokens=args.max_new_tokens,
        streamer=streamer,
        return_dict_in_generate=True,
        **sampling,
    )
    new = output.sequences.shape[1] - inputs["input_ids"].shape[1]
    sys.stdout.flush()
    say(f"answered with {_rate(new, start)}.")
    if args.show_chunks:
        show_chunks(tokenizer, memory, output[CACHE].read_chunks[0])


def show_chunks(tokenizer: Any, memory: Any, read: list[int]) -> None:
    """Say which chunks of the document were read in full, and how each begins."""
    (document,), size = memory.documents, memory.chunk_size
    for number in read:
        if number < memory.num_chunks:  # else it is of the answer
            words = " ".join(tokenizer.decode(document[number * size : (number + 1) * size]).split())
            say(f"read chunk {number + 1} of {memory.num_chunks}: {words[:72]} ...")


def _rate(tokens: int, start: float) -> str:
    seconds = time.perf_counter() - start
    return f"{tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.1f} tokens/s)"
