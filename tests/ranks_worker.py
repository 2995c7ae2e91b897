"""
One of several processes that share the chunks of a memory. `test_ranks.py` starts them:

    torchrun --nproc_per_node 2 ranks_worker.py DIRECTORY SCENARIO...

Each goes through the scenarios and saves what came out. `test_ranks.py` runs the same scenarios in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_focus_model, pad_rows, random_ids
from peft import PeftModel

from focus_peft.frozen.compat import CACHE


DOCUMENTS = [random_ids(61, seed=1), random_ids(13, seed=2)]  # 8 and 2 chunks, the last of each ragged
QUESTIONS = torch.stack([random_ids(6, seed=3), random_ids(6, seed=4)])
LONG = random_ids(61, seed=5)[None]  # 7 chunks beyond the local window
SAVED = "saved.memory"

# What a scenario gives: tensors that must be those of one process
Results = dict[str, torch.Tensor]


class Scenarios:
    """They are run with or without spreading.

    Args:
        spread (`bool`): Whether processes share the chunks.
        directory (`Path`): Where a memory is saved.
    """

    def __init__(self, spread: bool, directory: Path) -> None:
        self.spread = {"spread_chunks": spread}
        self.directory = directory
        self.model = make_focus_model()

    def run(self, names: Iterable[str]) -> dict[str, Results]:
        return {name: SCENARIOS[name](self) for name in names}

    def generate(
        self, ids: torch.Tensor, new_tokens: int = 12, model: PeftModel | None = None, **options: Any
    ) -> Results:
        torch.manual_seed(0)
        defaults = {"max_new_tokens": new_tokens, "do_sample": False, **({} if "memory" in options else self.spread)}
        output = (model or self.model).generate(
            ids, output_logits=True, return_dict_in_generate=True, **{**defaults, **options}
        )
        return {"tokens": output.sequences, "logits": torch.stack(output.logits)}

    def ask(self, model: PeftModel | None = None, storage: str = "device", **options: Any) -> Results:
        memory = (model or self.model).encode(DOCUMENTS, storage=storage, chunk_batch_size=3, **self.spread)
        return self.generate(QUESTIONS, model=model, memory=memory, **options)

    def ask_and_generate(self, storage: str) -> Results:
        return self.ask(storage=storage) | {"plain": self.generate(LONG, 20, storage=storage)["logits"]}


def a_conversation(s: Scenarios) -> Results:
    output = s.model.generate(LONG, max_new_tokens=9, do_sample=False, return_dict_in_generate=True, **s.spread)
    ids = torch.cat([output.sequences[0], random_ids(15, seed=9)])[None]
    return s.generate(ids, 6, **{CACHE: output[CACHE]}, spread_chunks=None)


def several_questions_on_one_memory(s: Scenarios) -> Results:
    memory = s.model.encode(DOCUMENTS[0], **s.spread)
    first = s.generate(QUESTIONS[:1], memory=memory)
    both = s.generate(QUESTIONS, memory=memory)
    again = s.generate(QUESTIONS[:1], memory=memory)
    assert torch.equal(first["logits"], again["logits"])
    return {**first, "both": both["logits"]}


def a_memory_that_is_extended(s: Scenarios) -> Results:
    memory = s.model.encode(DOCUMENTS[0][:21], **s.spread)
    longer = s.model.encode(DOCUMENTS[0][21:], memory=memory)
    assert longer.ranks.size == memory.ranks.size
    fresh = s.model.encode(DOCUMENTS[0][21:], memory=s.model.encode(DOCUMENTS[0][:21]), **s.spread)
    results = {str(n): s.generate(QUESTIONS, memory=m)["logits"] for n, m in enumerate((memory, longer, fresh))}
    return {**results, "chunks": torch.tensor([memory.num_chunks, longer.num_chunks, fresh.num_chunks])}


def logits_of_a_text_behind_a_memory(s: Scenarios) -> Results:
    memory = s.model.encode(DOCUMENTS, **s.spread)
    return {"logits": s.model(QUESTIONS, memory=memory).logits}  # the second document's rows are not the first ones


RAGGED, MASK = pad_rows([LONG[0], LONG[0, :11], LONG[0, 20:60]])
SCENARIOS: dict[str, Callable[[Scenarios], Results]] = {
    # a plain input
    "an_input_and_what_it_spills": lambda s: s.generate(LONG, 40),
    "exact": lambda s: s.generate(LONG, 20, decoding="exact"),
    "beams": lambda s: s.generate(LONG, 20, num_beams=3),
    "samples": lambda s: s.generate(LONG, 20, do_sample=True, num_return_sequences=3),
    "chunks_read_in_full": lambda s: s.generate(LONG, 20, read_chunks=2, keep_candidates=False),
    "chunks_read_behind_candidates": lambda s: s.generate(LONG, 20, read_chunks=2),
    "chunks_read_in_full_by_a_ragged_batch": lambda s: s.generate(RAGGED, 20, attention_mask=MASK, read_chunks=1),
    "tokens_taken_back": lambda s: s.generate(LONG, 20, prompt_lookup_num_tokens=3),
    "one_chunk": lambda s: s.generate(LONG[:, :12], 4),
    "one_chunk_and_what_it_spills": lambda s: s.generate(LONG[:, :12], 40),
    "no_chunk_at_first": lambda s: s.generate(LONG[:, :5], 30),
    "a_ragged_batch": lambda s: s.generate(RAGGED, 20, attention_mask=MASK, chunk_batch_size=2),
    "a_conversation": a_conversation,
    # a memory
    "a_memory": lambda s: s.ask(new_tokens=30),
    "a_memory_exact": lambda s: s.ask(decoding="exact"),
    "a_memory_beams": lambda s: s.ask(num_beams=3),
    "a_memory_read_in_full": lambda s: s.ask(read_chunks=2, num_beams=2, new_tokens=30),
    "several_questions_on_one_memory": several_questions_on_one_memory,
    "a_memory_of_one_chunk": lambda s: s.generate(QUESTIONS[:1], memory=s.model.encode(DOCUMENTS[0][:5], **s.spread)),
    "a_memory_that_is_extended": a_memory_that_is_extended,
    "a_memory_that_is_loaded": lambda s: s.generate(
        QUESTIONS, memory=s.model.load_memory(s.directory / SAVED, **s.spread)
    ),
    "a_memory_that_is_not_spread": lambda s: s.generate(QUESTIONS, memory=s.model.encode(DOCUMENTS), **s.spread),
    # where chunks are kept, and other models
    "in_cpu_memory": lambda s: s.ask(storage="cpu"),
    "in_8_bits": lambda s: s.ask_and_generate("int8"),
    "on_disk": lambda s: s.ask_and_generate("disk"),
    "keys_and_values_of_different_widths": lambda s: s.ask(make_focus_model("deepseek_v3")),
    "alibi": lambda s: s.ask(make_focus_model("bloom")),
    "learned_positions": lambda s: s.ask(make_focus_model("gpt2")),
    "sliding_windows": lambda s: s.generate(LONG, model=make_focus_model("gemma3")),
    # sums of one row are the same in every batch
    "bfloat16": lambda s: s.generate(LONG[:, :13], model=make_focus_model(dtype=torch.bfloat16), chunk_batch_size=1),
    # without generate
    "logits_of_a_text": lambda s: {"logits": s.model(LONG, **s.spread).logits},
    "logits_of_a_text_behind_a_memory": logits_of_a_text_behind_a_memory,
    "what_is_looked_at": lambda s: {"shares": s.model.chunk_attention(LONG, **s.spread)[0]},
}


def error_of(call: Callable[[], Any]) -> str:
    """The kind of error and its message."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def errors(rank: int, directory: Path) -> dict[str, str]:
    """What every process is told where it should not go on."""
    model = make_focus_model(spread_chunks=True)
    memory = model.encode(DOCUMENTS)

    def sample() -> None:
        torch.manual_seed(rank)
        model.generate(LONG, max_new_tokens=20, do_sample=True, temperature=3.0)

    def other(place: int) -> torch.Tensor:
        ids = LONG.clone()
        ids[0, place] = 50 + rank
        return ids

    return {
        "other beginnings": error_of(lambda: model.generate(other(0), max_new_tokens=2)),
        "other ends": error_of(lambda: model.generate(other(-1), max_new_tokens=2)),
        "other lengths": error_of(lambda: model.generate(LONG[:, rank:], max_new_tokens=2)),
        "other options": error_of(lambda: model.generate(LONG, max_new_tokens=2, prompt_size=3 + rank)),
        "other seeds": error_of(sample),
        "other documents": error_of(lambda: model.encode([LONG[0] + rank])),
        "saved": error_of(lambda: memory.save(directory / "spread.memory")),
        "joined": error_of(lambda: model.encode(DOCUMENTS, memory=memory, spread_chunks=False)),
    }


def main(directory: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    scenarios = Scenarios(True, directory)
    results: dict[str, Any] = {"scenarios": scenarios.run(names), "errors": errors(rank, directory)}
    model = scenarios.model
    memory, whole = model.encode(DOCUMENTS[0], spread_chunks=True), model.encode(DOCUMENTS[0])
    results["chunks held"] = [memory.store.rows, memory.num_chunks, whole.store.rows]
    dist.destroy_process_group()
    results["errors"]["alone"] = error_of(lambda: model.generate(QUESTIONS[:1], memory=memory, max_new_tokens=2))
    torch.save(results, directory / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
