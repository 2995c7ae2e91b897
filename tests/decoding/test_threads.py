"""Requests in threads give what they give alone, and leave the model as it was, whatever happens in them."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, make_tiny_tokenizer, random_ids
from peft import PeftModel
from transformers import LogitsProcessor, LogitsProcessorList, TextIteratorStreamer

from focus_peft import Memory
from focus_peft.frozen.compat import CACHE
from focus_peft.frozen.current_pass import current_pass


THREADS, ROUNDS, CALLS_OF_A_ROUND = 8, 5, 40
SHORT, LONG = 5, 28  # the local window has 8 tokens
GREEDY = {"do_sample": False, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def model() -> PeftModel:
    model = make_focus_model(dtype=torch.float32)
    for layer in model.get_base_model().model.layers:
        layer.gradient_checkpointing = True
    return model


@pytest.fixture(scope="module")
def memory(model: PeftModel) -> Memory:
    return model.encode(random_ids(30, seed=9)[None])


def ids(length: int, seed: int, rows: int = 1) -> torch.Tensor:
    return torch.stack([random_ids(length, seed=10 * seed + row) for row in range(rows)])


def gradients(model: PeftModel, seed: int) -> torch.Tensor:
    """The loss of a training step and all its gradients."""
    rows = ids(LONG, seed)
    twins = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = model(rows, labels=rows, sample_seeds=torch.tensor([seed])).loss
    found = torch.autograd.grad(loss, twins, materialize_grads=True)
    return torch.cat([loss.detach()[None], *(gradient.flatten() for gradient in found)])


def read_in_full(model: PeftModel, memory: Memory, seed: int, **options: Any) -> torch.Tensor:
    options = {"read_chunks": 1, "return_dict_in_generate": True, "output_logits": True, **GREEDY, **options}
    return torch.cat(model.generate(ids(SHORT, seed), memory=memory, **options).logits)


# What a thread may do with a model, a memory of it, and a seed
CALLS: dict[str, Callable[[PeftModel, Memory, int], torch.Tensor]] = {
    "generate long": lambda model, _, seed: model.generate(ids(LONG, seed), **GREEDY),
    "generate long, exact": lambda model, _, seed: model.generate(ids(LONG, seed), decoding="exact", **GREEDY),
    "generate short": lambda model, _, seed: model.generate(ids(SHORT, seed), **GREEDY),
    "ask a memory": lambda model, memory, seed: model.generate(ids(SHORT, seed), memory=memory, **GREEDY),
    "read a chunk": read_in_full,
    "read a chunk alone": lambda model, memory, seed: read_in_full(model, memory, seed, keep_candidates=False),
    "forward": lambda model, _, seed: model(ids(LONG, seed)).logits,
    "forward with a memory": lambda model, memory, seed: model(ids(SHORT, seed), memory=memory).logits,
    "base model": lambda model, _, seed: model.get_base_model()(ids(LONG, seed)).logits,
    "base model generates": lambda model, _, seed: model.get_base_model().generate(ids(LONG, seed), **GREEDY),
    "beams": lambda model, _, seed: model.generate(ids(LONG, seed, rows=2), num_beams=2, **GREEDY),
    "attention": lambda model, _, seed: model.chunk_attention(ids(LONG, seed))[0],
    "training step": lambda model, _, seed: gradients(model, seed),
}
SEEDS = range(3)


def state(model: PeftModel) -> dict[str, Any]:
    """Everything of a model that a call could leave changed."""
    found: dict[str, Any] = {
        "pass": current_pass.get(),
        "gradients on": torch.is_grad_enabled(),
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "generation config": model.generation_config.to_dict(),
        "adapters": (list(model.active_adapters), model.base_model.adapters_enabled),
        "chunks kept": model.base_model._reader.pool,
    }
    for path, module in model.named_modules():
        hooks = {name: len(value) for name, value in vars(module).items() if name.endswith("_hooks")}
        forward, config = vars(module).get("forward"), vars(module).get("config")
        attention = getattr(config, "_attn_implementation", None)
        found[path] = sorted(vars(module)), module.training, hooks, id(forward), id(config), attention
    for name, parameter in model.named_parameters():
        found[f"{name}, a parameter"] = (
            parameter.requires_grad,
            parameter.grad,
            parameter.detach().double().sum().item(),
        )
    return found


@pytest.fixture(scope="module")
def alone(model: PeftModel, memory: Memory) -> dict[tuple[str, int], torch.Tensor]:
    """What each call gives that nothing runs beside."""
    return {(kind, seed): call(model, memory, seed) for kind, call in CALLS.items() for seed in SEEDS}


def in_threads(calls: list[Callable[[], Any]], threads: int) -> list[Any]:
    """What calls return that are made side by side."""
    with ThreadPoolExecutor(threads) as pool:
        return [future.result(timeout=60) for future in [pool.submit(call) for call in calls]]


def test_calls_in_threads_give_bit_for_bit_what_they_give_alone(
    model: PeftModel, memory: Memory, alone: dict[tuple[str, int], torch.Tensor]
) -> None:
    before, draw = state(model), random.Random(0)
    for _ in range(ROUNDS):
        drawn = [draw.choice(list(alone)) for _ in range(CALLS_OF_A_ROUND)]
        calls = [lambda kind=kind, seed=seed: CALLS[kind](model, memory, seed) for kind, seed in drawn]
        wrong = [name for name, got in zip(drawn, in_threads(calls, THREADS)) if not torch.equal(got, alone[name])]
        assert not wrong
        assert state(model) == before


def test_the_first_calls_of_a_model_may_come_from_threads() -> None:
    expected = make_focus_model(dtype=torch.float32).generate(ids(LONG, 1), **GREEDY)
    fresh = make_focus_model(dtype=torch.float32)
    assert all(
        torch.equal(got, expected) for got in in_threads([lambda: fresh.generate(ids(LONG, 1), **GREEDY)] * 8, 8)
    )


@pytest.mark.parametrize("family", ["bloom", "mpt", "falcon_alibi", "gemma3", "gpt2"])
def test_models_of_other_kinds_answer_in_threads(family: str) -> None:
    lengths = [SHORT, 12, 20, LONG]
    alone = [make_focus_model(family, torch.float32).generate(ids(length, 1), **GREEDY) for length in lengths]
    model = make_focus_model(family, torch.float32)
    base = [make_tiny_model(family, torch.float32)(ids(length, 1)).logits for length in lengths]
    calls = [lambda length=length: model.generate(ids(length, 1), **GREEDY) for length in lengths]
    calls += [lambda length=length: model.get_base_model()(ids(length, 1)).logits for length in lengths]
    assert all(map(torch.equal, in_threads(calls * 4, THREADS), (alone + base) * 4))


@pytest.mark.parametrize("storage", ["cpu", "int8", "disk"])
def test_threads_ask_a_memory_in_any_storage(model: PeftModel, storage: str) -> None:
    memory = model.encode(ids(LONG, 9), storage=storage)
    calls = [lambda seed=seed: model.generate(ids(SHORT, seed), memory=memory, **GREEDY) for seed in SEEDS]
    calls += [lambda seed=seed: model.generate(ids(LONG, seed), storage=storage, **GREEDY) for seed in SEEDS]
    expected = [call() for call in calls]
    assert all(map(torch.equal, in_threads(calls * 2, THREADS), expected * 2))


def test_threads_share_chunks_that_are_kept(model: PeftModel) -> None:
    expected = [model(ids(LONG, seed)).logits for seed in range(4)]
    calls = [lambda seed=number % 4: model(ids(LONG, seed)).logits for number in range(40)]
    with model.keeping_chunks(1e-5) as kept:  # room for a few chunks: they throw each other out
        found = in_threads(calls, THREADS)
    assert all(torch.equal(got, expected[number % 4]) for number, got in enumerate(found))
    assert kept.hits and kept.misses > 16  # the chunks of four inputs


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_model_can_be_copied_after_threads_have_used_it(model: PeftModel, duplicate: Callable[[Any], Any]) -> None:
    expected = model.generate(ids(LONG, 1), **GREEDY)
    in_threads([lambda: model.generate(ids(LONG, 1), **GREEDY)] * 4, 4)
    before, other = state(model), duplicate(model)
    found = in_threads([lambda m=m: m.generate(ids(LONG, 1), **GREEDY) for m in (other, model) * 4], 4)
    assert all(torch.equal(got, expected) for got in found)
    assert state(model) == before


def test_the_request_after_the_end_of_a_stream_works(model: PeftModel) -> None:
    expected = model.generate(ids(LONG, 1), **GREEDY)
    before = state(model)
    for _ in range(30):
        streamer = TextIteratorStreamer(make_tiny_tokenizer(), skip_prompt=True, timeout=20)
        options = {"streamer": streamer, **GREEDY}
        thread = threading.Thread(target=model.generate, args=(ids(LONG, 2),), kwargs=options)
        thread.start()
        "".join(streamer)  # the answer is whole, and the thread not yet at its end
        assert torch.equal(model.generate(ids(LONG, 1), **GREEDY), expected)
        thread.join()
    assert state(model) == before


# Errors


class Stop(Exception):
    """Raised in the middle of a pass."""


def stop() -> None:
    raise Stop


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


class At:
    """A hook that does something at its call of this number."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.left, self.action = number, action

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == -1:
            self.action()


@pytest.fixture(params=["embed_tokens", "layers.1.self_attn.q_proj.base_layer", "layers.1", "norm"])
def place(model: PeftModel, request: pytest.FixtureRequest) -> torch.nn.Module:
    return model.get_base_model().model.get_submodule(request.param)


@pytest.mark.parametrize(
    ("number", "interrupt", "error"),
    [(0, stop, Stop), (3, stop, Stop), (1, press_ctrl_c, KeyboardInterrupt)],
    ids=["error at the first call", "error at the fourth", "ctrl-c at the second"],
)
def test_an_error_in_the_middle_of_a_pass_leaves_the_model_as_it_was(
    model: PeftModel,
    memory: Memory,
    alone: dict[tuple[str, int], torch.Tensor],
    place: torch.nn.Module,
    number: int,
    interrupt: Callable[[], None],
    error: type[BaseException],
) -> None:
    before = state(model)
    reached = 0
    for kind in CALLS:
        hook = place.register_forward_hook(At(number, interrupt))
        try:
            CALLS[kind](model, memory, 0)
        except error:
            reached += 1
        finally:
            hook.remove()
        assert state(model) == before, kind
    for (kind, seed), expected in alone.items():
        assert seed or torch.equal(CALLS[kind](model, memory, 0), expected), kind
    assert reached >= 4


def test_an_error_in_one_thread_does_not_touch_the_requests_of_others(
    model: PeftModel, memory: Memory, alone: dict[tuple[str, int], torch.Tensor]
) -> None:
    before, draw, mine = state(model), random.Random(1), threading.local()

    def hook(*_: Any) -> None:
        if getattr(mine, "left", None) is not None:
            mine.left -= 1
            if mine.left < 0:
                raise Stop

    def call(kind: str, seed: int, left: int | None) -> torch.Tensor | Stop:
        mine.left = left  # passes of a layer until an error
        try:
            return CALLS[kind](model, memory, seed)
        except Stop as error:
            return error

    drawn = [(*draw.choice(list(alone)), draw.choice([None, 0, 1, 2])) for _ in range(64)]
    handle = model.get_base_model().model.layers[1].self_attn.register_forward_hook(hook)
    try:
        results = in_threads([lambda arguments=arguments: call(*arguments) for arguments in drawn], THREADS)
    finally:
        handle.remove()
    for (kind, seed, left), got in zip(drawn, results):
        assert isinstance(got, Stop) if left == 0 else isinstance(got, Stop) or torch.equal(got, alone[kind, seed])
        assert left is not None or isinstance(got, torch.Tensor)
    assert state(model) == before


def test_a_refused_option_leaves_the_model_as_it_was(model: PeftModel) -> None:
    before, expected = state(model), model.generate(ids(LONG, 1), **GREEDY)
    with contextlib.suppress(Exception):  # refused, or not: it exits the model's layers early
        model.generate(ids(LONG, 1), assistant_early_exit=1, **GREEDY)
    assert state(model) == before
    assert torch.equal(model.generate(ids(LONG, 1), **GREEDY), expected)


# Requests on one memory


class Pause(LogitsProcessor):
    """Lets the other threads run after every token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005)
        return scores


def test_requests_on_one_memory_do_not_feed_their_prompts_again(model: PeftModel, memory: Memory) -> None:
    options = {"memory": memory, "max_new_tokens": 8, "do_sample": False}
    calls = [
        lambda seed=seed: model.generate(ids(SHORT, seed), logits_processor=LogitsProcessorList([Pause()]), **options)
        for seed in range(4)
    ]
    read = []
    inner = model.get_base_model().model
    handle = inner.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        expected = [call() for call in calls]
        in_turn = sum(read)
        read.clear()
        results = in_threads(calls, len(calls))
    finally:
        handle.remove()
    assert all(map(torch.equal, results, expected))
    assert sum(read) == in_turn


def test_a_conversation_that_goes_on_waits_for_its_memory(model: PeftModel, memory: Memory) -> None:
    options = {"return_dict_in_generate": True, **GREEDY}
    first = model.generate(ids(SHORT, 1), memory=memory, **options)
    rows = torch.cat([first.sequences, ids(2, 2)], dim=1)
    done = []
    with memory.lock:
        thread = threading.Thread(
            target=lambda: done.append(model.generate(rows, **{CACHE: first[CACHE]}, **options).sequences)
        )
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        assert not done
    thread.join(timeout=20)
    assert len(done) == 1


def test_an_error_lets_the_next_request_have_the_memory(model: PeftModel, memory: Memory) -> None:
    hook = model.get_base_model().model.norm.register_forward_hook(lambda *_: stop())
    try:
        with pytest.raises(Stop):
            model.generate(ids(SHORT, 1), memory=memory, **GREEDY)
    finally:
        hook.remove()
    expected = model.generate(ids(SHORT, 1), memory=memory, **GREEDY)
    (found,) = in_threads([lambda: model.generate(ids(SHORT, 1), memory=memory, **GREEDY)], 1)
    assert torch.equal(found, expected)
