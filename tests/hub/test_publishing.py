"""Publishing an adapter: the folder and its card. (See test_hub for uploads.)"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_tiny_model
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from published import (
    BASE,
    FILES,
    FOCUS,
    RECIPE,
    STATE,
    Trained,
    change_weights,
    load,
    load_base,
    logits_of,
    result,
)
from refusal import assert_sentence, refusal
from safetensors.torch import load_file, save_file

from focus_peft import FocusConfig
from focus_peft.cli.main import main
from focus_peft.hub import publishable_files, save_adapter
from focus_peft.hub.card import MARK
from focus_peft.hub.provenance import Provenance
from focus_peft.hub.results import environment, load_results, save_results
from focus_peft.hub.run_identity import RunIdentity
from focus_peft.hub.weights import weights_digest


# Of `RECIPE`, what may be published
PUBLIC_RECIPE = """\
model:
  name_or_path: user/tiny-base
  dtype: bfloat16
focus:
  r: 4
  chunk_size: 24
  local_size: 16
data:
  sources:
  - path: org/books
    split: train
    weight: 2.0
  - path: local files (.md)
  max_tokens: 400
training:
  max_steps: 20
  learning_rate: 1e-3
"""


@pytest.fixture
def adapter(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the adapter to spoil."""
    return shutil.copytree(trained.adapter, tmp_path / "checkpoint-10")


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# The folder


def test_a_folder_holds_what_is_published_and_nothing_else(trained: Trained, tmp_path: Path) -> None:
    files = trained.write(tmp_path / "out")
    assert sorted(files) == FILES == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no scratch folder is left"
    assert (
        files["adapter_model.safetensors"].read_bytes() == (trained.adapter / "adapter_model.safetensors").read_bytes()
    )
    assert files["recipe.yaml"].read_text() == PUBLIC_RECIPE
    assert load_results(files["results.json"]) == load_results(trained.results)
    config = FocusConfig.from_pretrained(tmp_path / "out")
    assert (config.base_model_name_or_path, config.r, config.chunk_size) == (BASE, 4, 24)
    assert publishable_files(tmp_path / "out") == files


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights_take_half_the_space_and_give_the_rounded_logits(
    trained: Trained, dtype: str, tmp_path: Path
) -> None:
    files = trained.write(tmp_path / "out", dtype=dtype)
    before, after = (
        load_file(trained.adapter / "adapter_model.safetensors"),
        load_file(files["adapter_model.safetensors"]),
    )
    assert {str(weight.dtype) for weight in after.values()} == {f"torch.{dtype}"}
    assert sum(w.nbytes for w in before.values()) == 2 * sum(w.nbytes for w in after.values())
    assert f", {dtype} |" in files["README.md"].read_text()
    expected = load(trained)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if "focus_" in name:
                parameter.copy_(parameter.to(getattr(torch, dtype)))
    assert torch.equal(logits_of(load(trained, tmp_path / "out")), logits_of(expected))
    assert not torch.equal(logits_of(expected), logits_of(load(trained)))


def test_nothing_is_overwritten_unasked(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trained.write(out)
    (out / "mine.txt").write_text("mine")
    (out / "README.md").write_text("my own words")
    before = written(out)
    with refusal("`output`", "README.md", "`overwrite`", error=FileExistsError) as caught:
        trained.write(out)
    assert "adapter_model" not in str(caught.value), "only what differs is named"
    assert written(out) == before and sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    trained.write(out, overwrite=True)
    assert {name for name, data in written(out).items() if data != before[name]} == {"README.md"}


def test_results_and_recipe_of_another_adapter_do_not_stay(trained: Trained, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trained.write(out)
    change_weights(adapter)
    bare = {"results": None, "figure": None, "config": None}
    with refusal("`output`", "curves.svg", "results.json", "recipe.yaml", "`overwrite`", error=FileExistsError):
        trained.write(out, adapter, **bare)
    assert sorted(written(out)) == FILES
    trained.write(out, adapter, overwrite=True, **bare)
    assert sorted(written(out)) == FILES[:3]


def test_pickles_are_neither_opened_nor_published(trained: Trained, adapter: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "adapter_model.bin"):
        (adapter / name).write_bytes(pickle.dumps(Trap()))
    assert sorted(trained.write(tmp_path / "out", adapter)) == FILES
    (adapter / "adapter_model.safetensors").unlink()
    with refusal("`adapter`", "pickle", "`safe_serialization=True`"):
        trained.write(tmp_path / "other", adapter)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.bin", "modeling.py", "logs/run.svg", "weights.pkl"])
def test_a_folder_with_anything_else_is_not_uploaded(trained: Trained, name: str, tmp_path: Path) -> None:
    trained.write(tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("anything")
    with refusal("`folder`", name, "never"):
        publishable_files(tmp_path / "out")


# The card


def test_the_card_says_what_it_is_made_of(trained: Trained, tmp_path: Path) -> None:
    card = ModelCard.load(trained.write(tmp_path / "out", repo_id="org/tiny")["README.md"])
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["license"]) == (BASE, "adapter", "apache-2.0")
    assert (data["library_name"], data["pipeline_tag"], data["datasets"]) == ("peft", "text-generation", ["org/books"])
    assert {"focus_peft", "long-context", f"base_model:adapter:{BASE}"} <= set(data["tags"])
    for line in (
        *("# tiny", "Made for the tests.", "import focus_peft", 'PeftModel.from_pretrained(base, "org/tiny")'),
        *("| `org/books` | `split`: train, `weight`: 2.0 |", "| `local files (.md)` |", "| `learning_rate` | 1e-3 |"),
        "| `choice_weight` | 0.0 |",
        "| base model's `dtype` | bfloat16 |",
        *(
            "| steps trained | 10 of 20 |",
            "at step 10:",
            "| continuation | 1.125 | 2.250 |",
            "low-rank, `r=4`, `alpha=8`",
        ),
        *("| passkey | made-up passkeys | tokens 8192, decoding exact | adapter | accuracy | 0.5 |", "## Limits"),
        *(
            "| base model, local window alone | accuracy | 0.25 |",
            "`python recipes/evaluate.py --task passkey` on 2 cores",
        ),
        "![Results of tiny](curves.svg)",
    ):
        assert line in card.text, line
    assert "[More Information Needed]" not in card.text and MARK not in card.text


def test_numbers_of_a_task_at_several_lengths_are_one_table(trained: Trained, tmp_path: Path) -> None:
    def at(length: Any, value: float, **settings: Any) -> dict[str, Any]:
        return {"value": value, "settings": {"length": length, "dtype": "bfloat16", **settings}}

    base = {"subject": "base | model"}
    interval = {"95 % interval": [0.7221, 1.0]}
    save_results(
        [
            result(**at(8192, 0.5, samples=20)),
            result(**at(4096, 0.25, samples=10, **interval)),
            result(**at(4096, 0, samples=10), **base),
            result(
                **at(4096, 9.75, **{"standard error": 0.125}), task="perplexity", dataset="books", metric="perplexity"
            ),
            result(**at(8192, 9.5, decoding="exact"), task="perplexity", dataset="books", metric="perplexity"),
            result(**at(4096, 1), task="twice"),
            result(**at(4096, 2), task="twice"),
            result(**at(8192, 3), task="twice"),
            result(**at(4096, 4), task="once"),
            result(**at("whole", 5), task="words"),
            result(**at(4096, 6), task="words"),
        ],
        tmp_path / "results.json",
    )
    files = trained.write(tmp_path / "out", results=[tmp_path / "results.json"])
    card = files["README.md"].read_text()
    assert card.split("## Results\n\n")[1].split("\n\nMeasured with:")[0].splitlines() == [
        "**passkey**, accuracy (made-up passkeys, dtype bfloat16):",
        "",
        "| tokens | 4,096 | 8,192 |",
        "| --- | --- | --- |",
        "| adapter | 0.25 [0.72, 1] n=10 | 0.5 n=20 |",
        "| base \\| model | 0 n=10 | – |",
        "",
        "**perplexity**, perplexity (books, dtype bfloat16):",
        "",
        "| tokens | 4,096 | 8,192 |",
        "| --- | --- | --- |",
        "| adapter | 9.75 ± 0.12 | 9.5 (decoding exact) |",
        "",
        "| task | dataset | settings | measured | metric | value |",
        "| --- | --- | --- | --- | --- | --- |",
        "| twice | made-up passkeys | length 4096, dtype bfloat16 | adapter | accuracy | 1 |",
        "| twice | made-up passkeys | length 4096, dtype bfloat16 | adapter | accuracy | 2 |",
        "| twice | made-up passkeys | length 8192, dtype bfloat16 | adapter | accuracy | 3 |",
        "| once | made-up passkeys | length 4096, dtype bfloat16 | adapter | accuracy | 4 |",
        "| words | made-up passkeys | length whole, dtype bfloat16 | adapter | accuracy | 5 |",
        "| words | made-up passkeys | length 4096, dtype bfloat16 | adapter | accuracy | 6 |",
    ]


def test_results_are_the_hubs_model_index(trained: Trained, tmp_path: Path) -> None:
    card = ModelCard.load(trained.write(tmp_path / "out", repo_id="org/tiny")["README.md"])
    found = {
        (r.task_name, r.dataset_name, r.metric_type, r.metric_value, json.dumps(r.metric_args))
        for r in card.data.eval_results
    }
    assert found == {
        ("passkey", "made-up passkeys", "accuracy", 0.75, '{"tokens": 4096}'),
        ("passkey", "made-up passkeys", "accuracy", 0.5, '{"tokens": 8192, "decoding": "exact"}'),
        ("facts", "made-up passkeys", "exact_match", 0.125, '{"tokens": 4096}'),
    }, "the baseline is not claimed for the adapter"
    assert card.data.model_name == "tiny"


def test_what_is_not_known_is_not_in_the_card(trained: Trained, adapter: Path, tmp_path: Path) -> None:
    (adapter / "trainer_state.json").unlink()
    files = trained.write(tmp_path / "out", adapter, config=None, results=None, figure=None)
    assert sorted(files) == FILES[:3]
    text = files["README.md"].read_text()
    assert "## Training" not in text and "steps trained" not in text and "model-index" not in text
    assert "None were published with this adapter." in text


def test_the_snippet_of_a_branch_loads_that_branch(trained: Trained, tmp_path: Path) -> None:
    text = trained.write(tmp_path / "out", repo_id="org/tiny", revision="wide")["README.md"].read_text()
    assert 'PeftModel.from_pretrained(base, "org/tiny", revision="wide")' in text


def test_saving_an_adapter_writes_its_card_and_leaves_a_card_of_ones_own(trained: Trained, tmp_path: Path) -> None:
    model = get_peft_model(load_base(trained.base), FocusConfig(**FOCUS))
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert MARK in card and "import focus_peft" in card and "`r=4`" in card and "[More Information" not in card
    get_peft_model(load_base(trained.base), FocusConfig(**{**FOCUS, "r": 2})).save_pretrained(tmp_path)
    assert "`r=2`" in (tmp_path / "README.md").read_text(), "a card that was written here is written anew"
    for save in (model.save_pretrained, lambda folder: save_adapter(model, folder)):
        (tmp_path / "README.md").write_text("---\ntags: [mine]\nlicense: mit\n---\n\nMy own words.\n")
        save(tmp_path)
        own = ModelCard.load(tmp_path / "README.md")
        assert "My own words." in own.text and own.data.license == "mit" and own.data.library_name == "peft"
        assert "import focus_peft" not in own.text
    assert "mine" in own.data.tags


def test_an_adapter_of_another_name_has_its_card_above_it(trained: Trained, tmp_path: Path) -> None:
    for r in (4, 2):
        model = get_peft_model(load_base(trained.base), FocusConfig(**{**FOCUS, "r": r}), adapter_name="first")
        model.add_adapter("second", FocusConfig(**{**FOCUS, "r": 8}))
        model.save_pretrained(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "first", "second"]
        card = (tmp_path / "README.md").read_text()
        assert MARK in card and f"`r={r}`" in card, "that of the first adapter"


@pytest.mark.parametrize("where", ["in the middle", "at the end"])
def test_words_in_pefts_own_card_stay(trained: Trained, where: str, tmp_path: Path) -> None:
    get_peft_model(load_base(trained.base), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    changed = card.replace("[More Information Needed]", "My own words.", 1)
    (tmp_path / "README.md").write_text(changed if where == "in the middle" else card + "\nMy own words.\n")
    get_peft_model(load_base(trained.base), FocusConfig(**FOCUS)).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "My own words." in card and MARK not in card


def test_a_card_above_the_folder_stays_if_peft_has_not_just_written_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project\n")
    FocusConfig(r=2).save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["adapter_config.json"]


def test_another_methods_card_is_pefts(trained: Trained, tmp_path: Path) -> None:
    get_peft_model(load_base(trained.base), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    assert "focus_peft" not in (tmp_path / "README.md").read_text()


# How it was trained


def test_in_an_output_folder_the_state_is_that_of_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, tmp_path / "checkpoint-10")
    later = shutil.copytree(trained.adapter, tmp_path / "checkpoint-15")
    (later / "trainer_state.json").write_text(json.dumps({**STATE, "global_step": 15}))
    change_weights(later)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for step in (10, 15):  # the run may have ended with its best checkpoint, or its last
        shutil.copy(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors", tmp_path)
        assert Provenance.of(tmp_path).step == step == Provenance.of(tmp_path / f"checkpoint-{step}").step
    written = (tmp_path / "adapter_model.safetensors").stat().st_mtime_ns
    change_weights(tmp_path)
    os.utime(tmp_path / "adapter_model.safetensors", ns=(written, written))  # clocks of files are coarse
    known = Provenance.of(tmp_path)
    assert known.step is None and known.evaluation() == {}
    assert known.recipe_file == tmp_path / "recipe.yaml" == Provenance.of(later).recipe_file


def test_a_recipe_that_the_run_contradicts_is_refused(trained: Trained, adapter: Path, tmp_path: Path) -> None:
    RunIdentity(arguments={"learning_rate": 0.001, "seed": 7}).save(adapter)
    trained.write(tmp_path / "out", adapter)
    for old, new, named in (("1e-3", "1e-1", "learning_rate"), ("1e-3", "1e-3, seed: 8", "seed")):
        (tmp_path / "other.yaml").write_text(RECIPE.replace(old, new))
        with refusal("`config`", f"`training.{named}`"):
            trained.write(tmp_path / "other", adapter, config=tmp_path / "other.yaml")


@pytest.mark.parametrize(("word", "switch"), [("on", True), ("Yes", True), ("no", False), ("off", False)])
def test_a_recipe_that_says_a_switch_in_a_word_is_that_of_its_run(
    trained: Trained, adapter: Path, word: str, switch: bool, tmp_path: Path
) -> None:
    (tmp_path / "words.yaml").write_text(RECIPE.replace("1e-3", f"1e-3, bf16: {word}"))
    RunIdentity(arguments={"bf16": switch}).save(adapter)
    trained.write(tmp_path / "out", adapter, config=tmp_path / "words.yaml")
    RunIdentity(arguments={"bf16": not switch}).save(adapter)
    with refusal("`config`", f"`training.bf16` is {word}"):
        trained.write(tmp_path / "other", adapter, config=tmp_path / "words.yaml")


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        # of another run
        (RECIPE.replace("r: 4", "r: 8"), "`focus.r` is 8"),
        (RECIPE.replace("max_steps: 20", "max_steps: 30"), "`training.max_steps` is 30"),
        # with a secret
        ("training: {hub_token: abc}", "other.yaml"),
        ("data: {note: hf_" + "x" * 34 + "}", "other.yaml"),
        ("run: {wandb_api_key: abc}", "other.yaml"),
        # without sections
        ("model: [unfinished", "other.yaml"),
        ("42", "other.yaml"),
    ],
)
def test_a_recipe_that_cannot_be_told_is_refused(trained: Trained, recipe: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(recipe)
    with refusal("`config`", named):
        trained.write(tmp_path / "out", config=tmp_path / "other.yaml")
    assert not (tmp_path / "out").exists()


# What cannot be published


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"license": "My Licence!"}, ["`license`", "'My Licence!'", "apache-2.0"]),
        ({"license": "apache-3.0"}, ["`license`", "'apache-3.0'"]),
        ({"dtype": "int8"}, ["`dtype`", "'int8'", "'bfloat16'"]),
        ({"base_model": None}, ["base model", "`base_model`"]),
        ({"base_model": "../model"}, ["'../model'", "`base_model`"]),
        ({"config": None, "notes": None}, ["trained on", "`config`", "`notes`"]),
        ({"config": "none.yaml"}, ["`config`", "'none.yaml'"]),
        ({"figure": "picture.pt"}, ["`figure`", ".svg or .png", "'picture.pt'"]),
        ({"figure": "none.svg"}, ["`figure`", "'none.svg'"]),
        ({"notes": "none.md"}, ["`notes`", "'none.md'"]),
        ({"results": ["none.json"]}, ["`results`", "'none.json'"]),
    ],
)
def test_what_cannot_be_published_is_refused(
    trained: Trained, options: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    with refusal(*named):
        trained.write(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["notes", "results", "figure"])
def test_a_token_is_not_published_wherever_it_stands(trained: Trained, where: str, tmp_path: Path) -> None:
    token = "hf_" + "x" * 34
    (tmp_path / "notes.md").write_text(f"Log in with {token}.")
    (tmp_path / "curves.svg").write_text(f"<svg>{token}</svg>")
    save_results([result(command=f"HF_TOKEN={token} python recipes/evaluate.py")], tmp_path / "results.json")
    files = {"notes": tmp_path / "notes.md", "results": [tmp_path / "results.json"], "figure": tmp_path / "curves.svg"}
    with refusal("token") as caught:
        trained.write(tmp_path / "out", **{where: files[where]})
    assert token not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_picture_must_be_one(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(pickle.dumps([1]))
    with refusal("`figure`", "picture.png"):
        trained.write(tmp_path / "out", figure=tmp_path / "picture.png")


def test_adapters_that_are_none_are_refused(trained: Trained, adapter: Path, tmp_path: Path) -> None:
    with refusal("`adapter`", "checkpoint-10"):
        trained.write(tmp_path / "out", tmp_path)
    lora = get_peft_model(make_tiny_model(dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM"))
    lora.save_pretrained(tmp_path / "lora")
    with refusal("LORA"):
        trained.write(tmp_path / "out", tmp_path / "lora")
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    for value, options, named in (
        (float("nan"), {}, ["NaN", repr(name)]),
        (1e6, {"dtype": "float16"}, ["`dtype`", "'bfloat16'"]),
    ):
        save_file({**weights, name: torch.full_like(weights[name], value)}, file, {"format": "pt"})
        with refusal(*named):
            trained.write(tmp_path / "out", adapter, **options)
    file.write_bytes(file.read_bytes()[:-10])
    with refusal("damaged"):
        trained.write(tmp_path / "out", adapter)
    assert not (tmp_path / "out").exists()


# Results


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = [result(**environment()), result(value=3, subject="base model")]
    save_results(results, tmp_path / "new" / "results.json")
    assert load_results(tmp_path / "new" / "results.json") == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]
    single = json.loads((tmp_path / "new" / "results.json").read_text())[1]
    (tmp_path / "single.json").write_text(json.dumps(single))
    assert load_results(tmp_path / "single.json") == results[1:]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"value": "0.75"}, ["`value`", "'0.75'", "entry 2"]),
        ({"value": float("nan")}, ["`value`", "nan"]),
        ({"command": ""}, ["`command`", "''"]),
        ({"settings": [1]}, ["`settings`", "[1]"]),
        ({"machine": None}, ["`machine`", "None"]),
        ({"tokens": 4096}, ["`tokens`", "`settings`"]),
    ],
)
def test_a_result_that_says_too_little_is_refused(change: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    save_results([result(), result()], tmp_path / "results.json")
    entries = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps([entries[0], {**entries[1], **change}]))
    with refusal(str(tmp_path / "results.json"), *named):
        load_results(tmp_path / "results.json")
    entries[1].pop("versions")
    (tmp_path / "results.json").write_text(json.dumps(entries))
    with refusal("`versions`", "entry 2"):
        load_results(tmp_path / "results.json")


def test_results_of_other_weights_are_refused(trained: Trained, adapter: Path, tmp_path: Path) -> None:
    own, file = weights_digest(trained.adapter / "adapter_model.safetensors"), tmp_path / "results.json"
    save_results([result(adapter=own), result(task="facts")], file)
    files = trained.write(tmp_path / "out", results=[file], dtype="bfloat16")
    rounded = weights_digest(files["adapter_model.safetensors"])
    assert [found.adapter for found in load_results(files["results.json"])] == [rounded, None]
    assert publishable_files(tmp_path / "out") == files
    change_weights(adapter)
    with refusal("`results`", "'passkey'", own, "other weights"):
        trained.write(tmp_path / "other", adapter, results=[file])
    shutil.copy(adapter / "adapter_model.safetensors", tmp_path / "out")
    with refusal("`results`", rounded, "other weights"):
        publishable_files(tmp_path / "out")


# The command


def test_a_dry_run_prints_what_would_go_and_writes_nothing(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(trained.adapter.parent.rglob("*"))
    assert main([*trained.arguments("--dry-run", "--output", str(tmp_path / "out"))]) == 0
    out, err = capfd.readouterr()
    assert [line.split()[2] for line in out.splitlines()[: len(FILES)]] == FILES
    assert "library_name: peft" in out and "import focus_peft" in out
    assert "optimizer.pt" in err and "optimizer.pt" not in out
    assert list(tmp_path.iterdir()) == [] and sorted(trained.adapter.parent.rglob("*")) == before


def test_the_command_writes_a_folder_once(trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "hub" / "tiny"
    assert main(trained.arguments("--output", str(out))) == 0
    assert capfd.readouterr().out == f"{out}\n"
    assert sorted(written(out)) == FILES
    assert main(trained.arguments("--output", str(out))) == 0, "the same again differs in nothing"
    before = written(out)
    for more in ([], ["--dry-run"]):
        assert main(trained.arguments("--output", str(out), "--dtype", "bfloat16", *more)) == 5
        assert written(out) == before
    assert main(trained.arguments("--output", str(out), "--dtype", "bfloat16", "--overwrite")) == 0
    assert "bfloat16" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--adapter", "none", "--license", "mit", "--output", "out"], "--adapter 'none'"),
        (["--adapter", "none", "--output", "out"], "--license"),
        (["--adapter", "none", "--license", "mit"], "--repo"),
        (["--adapter", "none", "--license", "mit", "--repo", "a/b/c"], "--repo must be"),
        (["--adapter", "none", "--license", "mit", "--repo", "adapter"], "'user/adapter'"),
        (["--folder", "none", "--repo", "user/x", "--license", "mit"], "--license"),
        (["--folder", "none", "--output", "out"], "--repo"),
        (["--folder", "none", "--repo", "user/x"], "--folder 'none'"),
    ],
)
def test_wrong_usage_ends_with_code_2(arguments: list[str], named: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err
    assert named in err
    assert_sentence("The command said: " + err)


def test_a_recipe_of_a_run_is_the_one_it_was_trained_with(tmp_path: Path) -> None:
    from lib.recipe import load_recipe, save_recipe

    config = Path(__file__).parents[2] / "recipes" / "configs" / "tiny_debug.yaml"
    recipe = load_recipe(config, ["focus.r=2", "learning_rate=3e-4"], training__output_dir=str(tmp_path))
    save_recipe(recipe, tmp_path / "recipe.yaml")
    saved = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert saved["focus"]["r"] == 2 and saved["data"]["sources"][0]["path"] == "${STDLIB}/email/*.py"
    again = load_recipe(tmp_path / "recipe.yaml")
    assert (again.focus, again.data, again.model) == (recipe.focus, recipe.data, recipe.model)
    assert again.training.learning_rate == 3e-4


def test_the_recipe_of_a_run_has_the_numbers_and_switches_that_words_and_variables_stood_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib.recipe import load_recipe, save_recipe

    monkeypatch.setenv("SEED", "3")
    monkeypatch.setenv("PLACE", str(tmp_path))
    config = Path(__file__).parents[2] / "recipes" / "configs" / "tiny_debug.yaml"
    words = ["training.seed=${SEED}", "focus.add_bos=no", "dataloader_drop_last=on", "data.sources.0.streaming=off"]
    save_recipe(load_recipe(config, [*words, "output_dir=${PLACE}/run"]), tmp_path / "recipe.yaml")
    saved = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert (saved["training"]["seed"], saved["training"]["dataloader_drop_last"]) == (3, True)
    assert saved["focus"]["add_bos"] is saved["data"]["sources"][0]["streaming"] is False
    assert saved["training"]["output_dir"] == "${PLACE}/run", "a text stays as it was said"
