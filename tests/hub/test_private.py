"""Nothing that a run knows of its machine and its owner is uploaded: what goes is a list of what may go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, save_base
from hub_client import Client
from hub_server import TOKEN, Hub
from published import SVG, result
from refusal import refusal
from runs import trainer_of

from focus_peft.hub.provenance import read_recipe
from focus_peft.hub.public import check_nothing_private, public_path, public_recipe, public_result
from focus_peft.hub.results import save_results


# A home folder, a project and a token, planted wherever a run can know them
PLANTED = ("alice", "blue-heron", TOKEN)
RUN = """
import os, sys
os.environ["HOME"] = {home!r}
os.chdir({project!r})
sys.path.insert(0, {recipes!r})
import torch
torch.set_num_threads(1)
import train
from lib.recipe import load_recipe
words = [
    "model.random=null", "model.name_or_path=" + {base!r}, "model.dtype=float32", "data.min_tokens=32",
    "data.sources.0.path=mails/*.txt", "data.cache_dir=" + {home!r} + "/cache", "output_dir=blue-heron-run",
    "focus.storage=disk", "focus.storage_dir=" + {home!r}, "focus.distill_weight=0.0",
    "run_name=blue-heron", "logging_steps=1", "max_steps=2", "save_steps=1", "eval_strategy=no",
    "run.passkey_every=null", "push_to_hub=true", "hub_model_id=user/run", "hub_token=" + {token!r},
]
train.main(load_recipe({recipe!r}, words))
"""
PUSH = """
import focus_peft
from focus_peft.hub import push_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), "blue-heron-run")
push_adapter(model, "user/pushed", token={token!r})
"""


def test_a_token_a_home_folder_and_a_projects_name_are_nowhere_in_what_is_uploaded(
    hub_server: Hub, tmp_path: Path
) -> None:
    pytest.importorskip("datasets")
    home = tmp_path / "home" / "alice"
    project = home / "blue-heron"
    (project / "mails").mkdir(parents=True)
    for number in range(6):
        (project / "mails" / f"{number}.txt").write_text(
            f"Mail {number}. " + "The lamp is green, the tree is old. " * 12
        )
    base = project / "base"
    save_base(base, dtype=torch.float32, max_position_embeddings=512)
    command = f"python {project}/evaluate.py --config mine/blue-heron.yaml adapter={project}/run"
    measured = result(command=command, dataset=f"{project}/mails/*.txt", settings={"samples": 3, "model": str(base)})
    save_results([measured], project / "results.json")
    (project / "curves.svg").write_text(SVG)

    planted = {"home": str(home), "project": str(project), "base": str(base), "token": TOKEN}
    planted |= {"recipes": str(ROOT / "recipes"), "recipe": str(ROOT / "recipes" / "configs" / "tiny_debug.yaml")}
    client = Client(hub_server.url, tmp_path / "client")
    try:
        trained = client.ask(TOKEN, code=RUN.format(**planted))
        assert trained.code == 0, trained.err
        pushed = client.ask(TOKEN, code=PUSH.format(**planted))
        assert pushed.code == 0, pushed.err
        publish = ["publish", "--adapter", "blue-heron-run", "--repo", "user/published", "--license", "mit"]
        publish += ["--base-model", "user/base", "--results", "results.json", "--figure", "curves.svg"]
        published = client.ask(TOKEN, argv=publish)
        assert published.code == 0, published.err
    finally:
        client.close()
    usual = [".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(hub_server.files("user/run")) == [*usual, "recipe.yaml"]
    assert sorted(hub_server.files("user/pushed")) == usual
    assert sorted(hub_server.files("user/published")) == [*usual, "curves.svg", "recipe.yaml", "results.json"]
    for name, repository in hub_server.repositories.items():
        for commit in repository.commits.values():
            for file, data in commit.items():
                found = [word for word in PLANTED if word.encode() in data]
                assert not found, (name, file, found)
    for name, base_model in (("user/run", None), ("user/published", "user/base")):
        config = json.loads(hub_server.files(name)["adapter_config.json"])
        assert (config["storage"], config.get("storage_dir")) == ("disk", None)
        assert config["base_model_name_or_path"] == base_model
    card = hub_server.files("user/published")["README.md"].decode()
    assert "`local files (.txt)`" in card and "| steps trained | 2 of 2 |" in card, "what may go is told"


def test_a_repository_is_not_called_after_a_folder(tmp_path: Path) -> None:
    with refusal("`hub_model_id`", "`output_dir`"):
        trainer_of(tmp_path / "blue-heron").push_to_hub()


def test_a_dataset_of_the_hub_is_told_by_name_in_the_recipe_of_a_run(tmp_path: Path) -> None:
    from lib.recipe import load_recipe, save_recipe

    words = ["data.sources=[{path: org/books}, {path: mails/*.txt}, {path: 'synthetic:facts', documents: 0}]"]
    recipe = load_recipe(ROOT / "recipes" / "configs" / "tiny_debug.yaml", words, training__output_dir=str(tmp_path))
    (tmp_path / "mails").mkdir()
    save_recipe(recipe, tmp_path / "recipe.yaml")
    public = public_recipe(read_recipe(tmp_path / "recipe.yaml"), "user/base")
    paths = [source["path"] for source in public["data"]["sources"]]
    assert paths == ["org/books", "local files (.txt)", "synthetic:facts"]


@pytest.mark.parametrize(
    ("path", "on_hub", "public"),
    [
        ("org/books", True, "org/books"),
        ("org/books", False, "local files"),
        ("mails/*.jsonl", False, "local files (.jsonl)"),
        ("/home/alice/mails", True, "local files"),
        ("synthetic:facts", False, "synthetic:facts"),
        ("${STDLIB}/email/*.py", False, "${STDLIB}/email/*.py"),
        ("${STDLIB}/../../alice/*.py", False, "local files (.py)"),
        ("1", False, "1"),
    ],
)
def test_a_path_of_this_machine_becomes_the_kind_of_its_files(path: str, on_hub: bool, public: str) -> None:
    assert public_path(path, on_hub) == public


def test_the_recipes_own_commands_are_told_as_they_are() -> None:
    command = "python recipes/evaluate.py --config recipes/evaluations/smollm2.yaml adapter=/home/alice/x"
    assert public_result(result(command=command)).command == command.replace("/home/alice/x", "PATH")
    assert public_result(result()) == result()


def test_what_one_writes_oneself_is_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("HF_TOKEN", "a token of another kind")
    notes = tmp_path / "README.md"
    for words, named in (("See /home/alice/x.", "'/home/alice'"), ("Use a token of another kind.", "token")):
        notes.write_text(words)
        with refusal("`README.md`", named):
            check_nothing_private([notes])
    notes.write_text("See /home/alice-and-bob.")
    check_nothing_private([notes])
