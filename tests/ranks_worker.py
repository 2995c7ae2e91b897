"""
One of several processes that share the chunks of a memory. `test_ranks.py` starts them:

    torchrun --nproc_per_node 2 ranks_worker.py DIRECTORY SCENARIO...

Each goes through the scenarios and saves what came out. `test_ranks.py` runs the same scenarios in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
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
    """Each method is one, with or without spreading.

    Args:
        spread (`bool`): Whether processes share the chunks.
        directory (`Path`): Where a memory is saved.
    """

    def __init__(self, spread: bool, directory: Path) -> None:
        self.spread = {"spread_chunks": spread}
        self.directory = directory
        self.model = make_focus_model()

    def run(self, names: Sequence[str]) -> dict[str, Results]:
        return {name: getattr(self, name)() for name in names}

    def _generate(
        self, ids: torch.Tensor, new_tokens: int = 12, model: PeftModel | None = None, **options: Any
    ) -> Results:
        torch.manual_seed(0)
        defaults = {"max_new_tokens": new_tokens, "do_sample": False, **({} if "memory" in options else self.spread)}
        output = (model or self.model).generate(
            ids, output_logits=True, return_dict_in_generate=True, **{**defaults, **options}
        )
        return {"tokens": output.sequences, "logits": torch.stack(output.logits)}

    def _ask(self, model: PeftModel | None = None, storage: str = "device", **options: Any) -> Results:
        memory = (model or self.model).encode(DOCUMENTS, storage=storage, chunk_batch_size=3, **self.spread)
        return self._generate(QUESTIONS, model=model, memory=memory, **options)

    # A plain input

    def an_input_and_what_it_spills(self) -> Results:
        return self._generate(LONG, 40)

    def exact(self) -> Results:
        return self._generate(LONG, 20, decoding="exact")

    def beams(self) -> Results:
        return self._generate(LONG, 20, num_beams=3)

    def samples(self) -> Results:
        return self._generate(LONG, 20, do_sample=True, num_return_sequences=3)

    def chunks_read_in_full(self) -> Results:
        return self._generate(LONG, 20, read_chunks=2, keep_candidates=False)

    def chunks_read_behind_candidates(self) -> Results:
        return self._generate(LONG, 20, read_chunks=2)

    def chunks_read_in_full_by_a_ragged_batch(self) -> Results:
        ids, mask = pad_rows([LONG[0], LONG[0, :11], LONG[0, 20:60]])
        return self._generate(ids, 20, attention_mask=mask, read_chunks=1)

    def tokens_taken_back(self) -> Results:
        return self._generate(LONG, 20, prompt_lookup_num_tokens=3)

    def one_chunk(self) -> Results:
        return self._generate(LONG[:, :12], 4)

    def one_chunk_and_what_it_spills(self) -> Results:
        return self._generate(LONG[:, :12], 40)

    def no_chunk_at_first(self) -> Results:
        return self._generate(LONG[:, :5], 30)

    def a_ragged_batch(self) -> Results:
        ids, mask = pad_rows([LONG[0], LONG[0, :11], LONG[0, 20:60]])
        return self._generate(ids, 20, attention_mask=mask, chunk_batch_size=2)

    def a_conversation(self) -> Results:
        output = self.model.generate(
            LONG, max_new_tokens=9, do_sample=False, return_dict_in_generate=True, **self.spread
        )
        ids = torch.cat([output.sequences[0], random_ids(15, seed=9)])[None]
        return self._generate(ids, 6, **{CACHE: output[CACHE]}, spread_chunks=None)

    # A memory

    def a_memory(self) -> Results:
        return self._ask(new_tokens=30)

    def a_memory_exact(self) -> Results:
        return self._ask(decoding="exact")

    def a_memory_beams(self) -> Results:
        return self._ask(num_beams=3)

    def a_memory_read_in_full(self) -> Results:
        return self._ask(read_chunks=2, num_beams=2, new_tokens=30)

    def several_questions_on_one_memory(self) -> Results:
        memory = self.model.encode(DOCUMENTS[0], **self.spread)
        first = self._generate(QUESTIONS[:1], memory=memory)
        both = self._generate(QUESTIONS, memory=memory)
        again = self._generate(QUESTIONS[:1], memory=memory)
        assert torch.equal(first["logits"], again["logits"])
        return {**first, "both": both["logits"]}

    def a_memory_of_one_chunk(self) -> Results:
        return self._generate(QUESTIONS[:1], memory=self.model.encode(DOCUMENTS[0][:5], **self.spread))

    def a_memory_that_is_extended(self) -> Results:
        memory = self.model.encode(DOCUMENTS[0][:21], **self.spread)
        longer = self.model.encode(DOCUMENTS[0][21:], memory=memory)
        assert longer.ranks.size == memory.ranks.size
        fresh = self.model.encode(DOCUMENTS[0][21:], memory=self.model.encode(DOCUMENTS[0][:21]), **self.spread)
        results = {
            str(n): self._generate(QUESTIONS, memory=m)["logits"] for n, m in enumerate((memory, longer, fresh))
        }
        return {**results, "chunks": torch.tensor([memory.num_chunks, longer.num_chunks, fresh.num_chunks])}

    def a_memory_that_is_loaded(self) -> Results:
        memory = self.model.load_memory(self.directory / SAVED, **self.spread)
        return self._generate(QUESTIONS, memory=memory)

    def a_memory_that_is_not_spread(self) -> Results:
        return self._generate(QUESTIONS, memory=self.model.encode(DOCUMENTS), **self.spread)

    # Where chunks are kept, and other models

    def in_cpu_memory(self) -> Results:
        return self._ask(storage="cpu")

    def in_8_bits(self) -> Results:
        return self._ask(storage="int8") | {"plain": self._generate(LONG, 20, storage="int8")["logits"]}

    def on_disk(self) -> Results:
        return self._ask(storage="disk") | {"plain": self._generate(LONG, 20, storage="disk")["logits"]}

    def keys_and_values_of_different_widths(self) -> Results:
        return self._ask(make_focus_model("deepseek_v3"))

    def alibi(self) -> Results:
        return self._ask(make_focus_model("bloom"))

    def learned_positions(self) -> Results:
        return self._ask(make_focus_model("gpt2"))

    def sliding_windows(self) -> Results:
        return self._generate(LONG, model=make_focus_model("gemma3"))

    def bfloat16(self) -> Results:
        model = make_focus_model(dtype=torch.bfloat16)
        return self._generate(
            LONG[:, :13], model=model, chunk_batch_size=1
        )  # sums of one row are the same in every batch

    # Without generate

    def logits_of_a_text(self) -> Results:
        return {"logits": self.model(LONG, **self.spread).logits}

    def logits_of_a_text_behind_a_memory(self) -> Results:
        memory = self.model.encode(DOCUMENTS, **self.spread)
        return {
            "logits": self.model(QUESTIONS, memory=memory).logits
        }  # the second document's rows are not the first ones

    def what_is_looked_at(self) -> Results:
        return {"shares": self.model.chunk_attention(LONG, **self.spread)[0]}


SCENARIOS = [name for name in vars(Scenarios) if not name.startswith("_") and name != "run"]


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
