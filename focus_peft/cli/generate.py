"""`focus-peft generate`: answers questions about a text file."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..memory.text import decode_text
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
  141  whoever read stdout went away
"""


def add_generate(commands: Any) -> None:
    """Add the command to the parser's commands."""
    what = "answer questions about a text file or stdin"
    generate = add_command(commands, "generate", what, description=DESCRIPTION, epilog=EXIT_CODES)
    generate.set_defaults(run=run_generate)
    add_model_options(generate)
    add = generate.add_argument
    add("--document", metavar="FILE", help="the text to ask about (UTF-8), or - for stdin")
    question = "may be given several times; the document is read once"
    add("--question", action="append", required=True, type=_text, help=question)
    memory = "with --document: save the encoded document here; without: use the one saved here"
    add("--memory", metavar="DIR", help=memory)
    add("--max-new-tokens", type=_positive(int), default=256, metavar="N", help="longest answer (default: 256)")
    add("--temperature", type=_positive(float), metavar="T", help="sample at this temperature (default: no sampling)")
    add("--top-p", type=_positive(float, 1), metavar="P", help="sample from the most likely tokens that make up P")
    add("--seed", type=_seed, metavar="N", help="makes sampling repeatable")
    add("--show-chunks", action="store_true", help="with --read-chunks: say on stderr which ones these are")
    add_reading_options(generate)


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add what [`load`] takes, but for how it is read."""
    add = command.add_argument
    add("--model", required=True, help="a model's directory or its name on the Hub")
    add("--gguf-file", metavar="NAME", help="the GGUF file inside --model to load the model from")
    add("--adapter", help="a trained adapter's directory or its name on the Hub (default: untrained twins)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: the model's own")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one)")


def _positive(kind: type, limit: float = float("inf")) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value <= limit or value == float("inf"):
            above = "" if limit == float("inf") else f", and {limit} at most"
            raise argparse.ArgumentTypeError(f"must be above 0{above}, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {2**32 - 1}, got {text}")
    return int(text)


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"is not UTF-8 text ({text!r}); set the terminal to UTF-8") from error
    return text


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
    with failing_as(LOADING, "a question cannot be put into the chat template of the model"):
        questions = [question_ids(tokenizer, question) for question in args.question]
    longest = max(ids.shape[1] for ids in questions)
    if text is None:
        with failing_as(LOADING, f"the memory {args.memory} cannot be loaded"):
            memory = model.load_memory(args.memory, tokenizer=tokenizer)
        say(f"loaded {memory.num_tokens:,} tokens in {memory.num_chunks:,} chunks from {args.memory}.")
        check_room(model, memory.num_chunks, longest, args)
    else:
        start = time.perf_counter()
        ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids
        check_room(model, -(-ids.shape[1] // model.settings().sizes.chunk), longest, args)
        memory = model.encode(ids)
        say(f"read {_rate(memory.num_tokens, start)}, in {memory.num_chunks:,} chunks.")
        if args.memory is not None:
            with failing_as(SAVING, f"the memory cannot be saved in {args.memory}"):
                memory.save(args.memory, tokenizer=tokenizer)
            say(f"saved the memory in {args.memory}.")
    for ids in questions:
        answer(model, tokenizer, memory, ids, args)


def check_room(model: Any, chunks: int, question: int, args: argparse.Namespace) -> None:
    """What would not fit the model's positions after the document was read, is refused before.

    Args:
        model (`PeftModel`): The model.
        chunks (`int`): Of the document.
        question (`int`): Tokens of the longest question.
        args (`argparse.Namespace`): The options.
    """
    settings = model.settings()
    with failing_as(LOADING, "the model has too few positions"):
        chunks += settings.chunks_of(question)
        settings.check_room(chunks, args.max_new_tokens, min(question, settings.sizes.local))


def read_document(name: str) -> str:
    """The text of a file, or of stdin for `-`."""
    where = "stdin" if name == "-" else name
    if name == "-" and sys.stdin is None:
        raise CommandError("stdin cannot be read: it is closed; name a file as --document.", DOCUMENT)
    with failing_as(DOCUMENT, f"{where} cannot be read", OSError):
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return decode_text(data, where)
    except ValueError as error:
        raise CommandError(str(error), DOCUMENT) from error


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
    if to_save:
        place = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
        try:
            tempfile.TemporaryDirectory(prefix=".focus-peft-", dir=place).cleanup()
        except OSError as error:
            raise CommandError(
                f"the memory cannot be saved in {directory}: {place} is no directory that can be written to "
                f"({error.strerror}).",
                SAVING,
            ) from error


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """(model with its adapter, tokenizer), ready to generate."""
    import torch
    import transformers
    from peft import PeftModel, get_peft_model

    from ..config import FocusConfig
    from ..registration import register

    register()
    if not args.debug:
        transformers.logging.set_verbosity_error()
        # Those between PEFT and transformers; no user can do anything about them
        warnings.simplefilter("ignore", FutureWarning)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with failing_as(USAGE, f"--device {device} cannot be used"):
        torch.empty(1, device=device)
    for option, folder in (("--model", args.model), ("--adapter", args.adapter)):
        check_folder(option, folder, "config.json" if option == "--model" else "adapter_config.json")
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


def check_folder(option: str, name: str | None, file: str) -> None:
    """Refuse a folder without the file that makes it a model or an adapter, which would be looked for on the Hub."""
    if name is None or not Path(name).exists() or Path(name, file).exists() or any(Path(name).glob("*.gguf")):
        return
    raise CommandError(
        f"{option} {name} is there, but holds no {file}; name the folder that `save_pretrained` or a training run "
        "wrote.",
        LOADING,
    )


def load_config(adapter: str) -> Any:
    """The configuration of a focus adapter, from a folder or the Hub."""
    from peft import PeftConfig

    from ..config import FocusConfig
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


def question_ids(tokenizer: Any, question: str) -> Any:
    """A question as the model is asked it: ids of shape (1, tokens)."""
    if tokenizer.chat_template is None:
        return tokenizer(f"\n\nQuestion: {question}\nAnswer:", return_tensors="pt").input_ids
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return inputs["input_ids"]


def answer(model: Any, tokenizer: Any, memory: Any, ids: Any, args: argparse.Namespace) -> None:
    """Answer one question about the memory, token by token, on stdout."""
    from transformers import TextStreamer, set_seed

    from ..frozen.compat import CACHE

    if args.seed is not None:
        set_seed(args.seed)
    sampling: dict[str, Any] = {"do_sample": args.temperature is not None or args.top_p is not None}
    sampling |= {name: value for name in ("temperature", "top_p") if (value := getattr(args, name)) is not None}
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    start = time.perf_counter()
    ids = ids.to(model.device)
    output = model.generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        memory=memory,
        max_new_tokens=args.max_new_tokens,
        streamer=streamer,
        return_dict_in_generate=True,
        **sampling,
    )
    new = output.sequences.shape[1] - ids.shape[1]
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
