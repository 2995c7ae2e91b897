"""Uploads and downloads through the Hub's real client, against a server on this machine that speaks the Hub's API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_client import Client, Outcome
from hub_server import TOKEN, Hub
from published import BASE, FILES, IDS, Trained, load, logits_of

from focus_peft.hub.card import MARK


WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def client(hub_server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub_server.url, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture
def hub(hub_server: Hub) -> Hub:
    """The server, without repositories and without trouble."""
    for held in (hub_server.repositories, hub_server.stored, hub_server.requests, hub_server.failing):
        held.clear()
    return hub_server


def command(client: Client, *arguments: str, token: str | None = TOKEN) -> Outcome:
    return client.ask(token, argv=list(arguments))


def run(client: Client, code: str, token: str | None = TOKEN) -> Outcome:
    return client.ask(token, code=code)


def ok(outcome: Outcome) -> Outcome:
    """What has to succeed."""
    assert outcome.code == 0, outcome.err
    return outcome


def push_base(client: Client, trained: Trained) -> None:
    code = f"""
from huggingface_hub import HfApi
HfApi().create_repo({BASE!r})
HfApi().upload_folder(repo_id={BASE!r}, folder_path={str(trained.base)!r})
"""
    ok(run(client, code))


def loaded_logits(
    client: Client, trained: Trained, repo_id: str, file: Path, options: str = "", **asking: str | None
) -> Outcome:
    """Save the logits of the tiny model with an adapter from the Hub."""
    code = f"""
import torch
import focus_peft
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(trained.base)!r}).eval()
model = PeftModel.from_pretrained(base, {repo_id!r}{options}).eval()
with torch.no_grad():
    torch.save(model(torch.tensor({IDS.tolist()})).logits, {str(file)!r})
"""
    return run(client, code, **asking)


def test_an_adapter_is_published_and_its_cards_snippet_loads_it(
    hub: Hub, client: Client, trained: Trained, tmp_path: Path
) -> None:
    push_base(client, trained)
    done = ok(command(client, *trained.arguments("--repo", "user/adapter", "--tag", "v1.0")))
    repository = hub.repositories["user/adapter"]
    assert done.out.strip() == repository.branches["main"] == repository.tags["v1.0"]
    assert sorted(hub.files("user/adapter")) == [".gitattributes", *FILES]
    assert hub.files("user/adapter")[WEIGHTS] == (trained.adapter / WEIGHTS).read_bytes()
    assert len(repository.commits) == 2, "one commit besides the repository's first"
    assert not repository.private
    card = hub.files("user/adapter")["README.md"].decode()
    snippet = card.partition("```python\n")[2].partition("```")[0]
    shown = run(client, snippet, token=None)
    assert shown.code == 0 and shown.out.endswith("\n"), shown.err
    ok(loaded_logits(client, trained, "user/adapter", tmp_path / "logits.pt", token=None))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits_of(load(trained)))


def test_publishing_again_sends_nothing_and_nothing_is_overwritten_unasked(
    hub: Hub, client: Client, trained: Trained
) -> None:
    publish = trained.arguments("--repo", "org/adapter")
    first = ok(command(client, *publish, "--tag", "v1"))
    hub.requests.clear()
    again = command(client, *publish, "--tag", "v1")
    assert (again.code, again.out) == (0, first.out), again.err
    assert not hub.asked("POST") and not hub.asked("PUT")

    hub.repositories["org/adapter"].commits[first.out.strip()]["old.txt"] = b"old"
    assert "stay as they are: old.txt" in command(client, *publish).err
    hub.requests.clear()
    rounded = [*publish, "--dtype", "bfloat16"]
    refused = command(client, *rounded)
    assert refused.code == 5 and f"README.md, {WEIGHTS}" in refused.err and "--overwrite" in refused.err
    assert not hub.asked("POST") and hub.repositories["org/adapter"].branches["main"] == first.out.strip()
    moved = command(client, *rounded, "--overwrite", "--tag", "v1")
    assert moved.code == 5 and "'v1'" in moved.err and not hub.asked("POST")
    replaced = ok(command(client, *rounded, "--overwrite", "--tag", "v2"))
    repository = hub.repositories["org/adapter"]
    assert repository.tags == {"v1": first.out.strip(), "v2": replaced.out.strip()}
    changed = {name for name, data in hub.files("org/adapter").items() if data != hub.files("org/adapter", "v1")[name]}
    assert changed == {"README.md", WEIGHTS}


def test_what_was_published_of_other_weights_does_not_stay_beside_new_ones(
    hub: Hub, client: Client, trained: Trained, tmp_path: Path
) -> None:
    first = ok(command(client, *trained.arguments("--repo", "user/adapter")))
    hub.repositories["user/adapter"].commits[first.out.strip()]["old.txt"] = b"old"
    bare = ["publish", "--adapter", str(trained.adapter), "--license", "mit", "--base-model", BASE]
    bare += ["--notes", str(trained.notes), "--dtype", "bfloat16", "--repo", "user/adapter"]
    refused = command(client, *bare)
    assert refused.code == 5 and "curves.svg" in refused.err and "results.json" in refused.err
    ok(command(client, *bare, "--overwrite"))
    assert sorted(hub.files("user/adapter")) == [".gitattributes", *FILES[:3], "old.txt"]


def test_a_dry_run_asks_and_changes_nothing(hub: Hub, client: Client, trained: Trained) -> None:
    fresh = command(client, *trained.arguments("--repo", "user/adapter", "--dry-run"))
    assert fresh.code == 0 and fresh.out.count("(new)") == len(FILES) and "would be made" in fresh.err
    assert not hub.repositories and not hub.asked("POST") and not hub.asked("PUT")
    command(client, *trained.arguments("--repo", "user/adapter"))
    hub.requests.clear()
    differing = command(client, *trained.arguments("--repo", "user/adapter", "--dry-run", "--dtype", "bfloat16"))
    assert (
        differing.code == 5 and differing.out.count("(differs)") == 2 and differing.out.count("(there already)") == 4
    )
    assert hub.requests and not hub.asked("POST") and not hub.asked("PUT")


def test_branches_hold_adapters_of_their_own(hub: Hub, client: Client, trained: Trained, tmp_path: Path) -> None:
    ok(command(client, *trained.arguments("--repo", "user/adapter")))
    rounded = trained.arguments("--repo", "user/adapter", "--revision", "half", "--dtype", "bfloat16")
    hub.failing["/commit/"] = 1
    assert command(client, *rounded).code == 6
    repository = hub.repositories["user/adapter"]
    assert repository.branches["half"] == repository.branches["main"], (
        "the branch was made, but has nothing of its own yet"
    )
    done = command(client, *rounded)  # so nothing is lost
    assert done.code == 0, done.err
    assert done.out.strip() == repository.branches["half"] != repository.branches["main"]
    other = trained.arguments("--repo", "user/adapter", "--revision", "half", "--dtype", "float16")
    assert command(client, *other).code == 5, "now it has"
    for branch, options in (
        ("main", ""),
        ("half", ", revision='half'"),
        (done.out.strip(), f", revision={done.out.strip()!r}"),
    ):
        ok(loaded_logits(client, trained, "user/adapter", tmp_path / branch, options))
    logits = {path.name: torch.load(path) for path in tmp_path.iterdir()}
    assert torch.equal(logits["main"], logits_of(load(trained)))
    assert torch.equal(logits["half"], logits[done.out.strip()]) and not torch.equal(logits["half"], logits["main"])
    missing = loaded_logits(client, trained, "user/adapter", tmp_path / "none", ", revision='none'")
    assert missing.code == 1 and "Revision Not Found" in missing.err


def test_a_private_repository_is_for_its_owner(hub: Hub, client: Client, trained: Trained, tmp_path: Path) -> None:
    publish = trained.arguments("--repo", "user/private", "--private")
    ok(command(client, *publish))
    assert hub.repositories["user/private"].private
    ok(loaded_logits(client, trained, "user/private", tmp_path / "mine.pt"))
    assert torch.equal(torch.load(tmp_path / "mine.pt"), logits_of(load(trained)))
    shutil.rmtree(Path(client.home) / "hub")

    stranger = loaded_logits(client, trained, "user/private", tmp_path / "theirs.pt", token=None)
    assert stranger.code == 1 and "private or gated repo, make sure you are authenticated" in stranger.err
    document = tmp_path / "document.txt"
    document.write_text("A short text.")
    asked = ["generate", "--model", str(trained.base), "--document", str(document), "--question", "What?"]
    answer = command(client, *asked, "--adapter", "user/private", token=None)
    assert answer.code == 4 and "is private" in answer.err and "`hf auth login`" in answer.err


def test_without_a_right_to_write_nothing_is_written_and_the_reason_is_said(
    hub: Hub, client: Client, trained: Trained
) -> None:
    for repo, token in (("user/adapter", None), ("user/adapter", "hf_wrong"), ("stranger/adapter", TOKEN)):
        refused = command(client, *trained.arguments("--repo", repo), token=token)
        assert refused.code == 6 and "Traceback" not in refused.err
        assert repr(repo) in refused.err and "`hf auth login`" in refused.err, refused.err
    assert not hub.repositories and not hub.stored


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, client: Client, trained: Trained) -> None:
    ok(command(client, *trained.arguments("--repo", "user/adapter")))
    refused = command(client, *trained.arguments("--repo", "user/adapter", "--private", "--overwrite"))
    assert refused.code == 2 and "--private" in refused.err and "public" in refused.err


@pytest.mark.parametrize(
    ("failing", "arrived"), [("PUT /lfs", 0), ("/commit/", 1), ("/preupload/", 0), ("/tag/", 1), ("repos/create", 0)]
)
def test_a_run_after_a_failure_sends_only_what_is_missing(
    hub: Hub, client: Client, trained: Trained, failing: str, arrived: int
) -> None:
    publish = trained.arguments("--repo", "user/adapter", "--tag", "v1")
    hub.failing[failing] = 1
    broken = command(client, *publish)
    assert broken.code == 6 and "run this again" in broken.err and "Traceback" not in broken.err, broken.err
    assert len(hub.stored) == arrived
    if failing != "/tag/" and hub.repositories:
        assert sorted(hub.files("user/adapter")) == [".gitattributes"], "all files arrive in one commit, or none"
    hub.requests.clear()
    done = ok(command(client, *publish))
    assert sorted(hub.files("user/adapter")) == [".gitattributes", *FILES]
    assert hub.asked("PUT /lfs") == 1 - arrived, "weights that have arrived are not sent again"
    assert hub.asked("/commit/") == (0 if failing == "/tag/" else 1)
    assert hub.repositories["user/adapter"].tags == {"v1": done.out.strip()}


def test_a_hub_that_is_not_there_is_named(client: Client, trained: Trained) -> None:
    code = f"""
from pathlib import Path
from huggingface_hub import HfApi
from focus_peft.hub import HubError, Upload
try:
    Upload({{"README.md": Path({str(trained.notes)!r})}}, "user/adapter",
    api=HfApi(endpoint="http://127.0.0.1:9")).compare()
except HubError as error:
    print(error)
"""
    outcome = run(client, code)
    assert outcome.out.startswith("The Hub cannot be reached ("), outcome.err


def test_somebody_elses_commit_in_between_is_not_overwritten(hub: Hub, client: Client, trained: Trained) -> None:
    ok(command(client, *trained.arguments("--repo", "user/adapter")))
    code = f"""
from pathlib import Path
from focus_peft.hub import HubError, Upload
from huggingface_hub import HfApi
upload = Upload({{"README.md": Path({str(trained.notes)!r})}}, "user/adapter", overwrite=True)
there = upload.compare()
HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="README.md", repo_id="user/adapter")
try:
    upload.send(there)
except HubError as error:
    print(error)
"""
    outcome = run(client, code)
    assert outcome.out.startswith("Somebody else has changed the repository 'user/adapter'"), outcome.err
    assert hub.files("user/adapter")["README.md"] == b"theirs"


def test_a_written_folder_is_uploaded_as_it_is(hub: Hub, client: Client, trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "tiny"
    ok(command(client, *trained.arguments("--output", str(folder), "--repo", "user/tiny")))
    assert not hub.requests
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMy own last words.\n")
    ok(command(client, "publish", "--folder", str(folder), "--repo", "user/tiny"))
    sent = hub.files("user/tiny")
    assert {name: sent[name] for name in FILES} == {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "optimizer.pt").write_bytes(b"\x80\x04")
    refused = command(client, "publish", "--folder", str(folder), "--repo", "user/tiny")
    assert refused.code == 2 and "'optimizer.pt'" in refused.err
    (folder / "optimizer.pt").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    refused = command(client, "publish", "--folder", str(folder), "--repo", "user/tiny")
    assert refused.code == 2 and "publish the folder as --adapter" in refused.err and "--base-model" in refused.err


def test_the_python_of_the_documentation_runs(hub: Hub, client: Client, trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, tmp_path / "outputs" / "mine")
    shutil.copy(trained.recipe, tmp_path / "outputs" / "mine" / "recipe.yaml")
    text = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 2
    code = f"import os\nos.chdir({str(tmp_path)!r})\n" + "\n".join(blocks).replace("me/mine", "user/mine")
    ok(run(client, code))
    assert sorted(hub.files("user/mine")) == [".gitattributes", *FILES[:3], "recipe.yaml"]
    assert hub.repositories["user/mine"].private and (tmp_path / "passkey.json").is_file()


PUSH = """
import focus_peft
from focus_peft.hub import push_adapter
from peft import PeftModel, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({base!r})
"""


def loading(trained: Trained) -> str:
    """Code that loads the tiny model with its adapter, as `model`."""
    return PUSH.format(base=str(trained.base)) + f"model = PeftModel.from_pretrained(base, {str(trained.adapter)!r})\n"


def test_a_pushed_adapter_brings_its_card_and_keeps_one_that_is_there(
    hub: Hub, client: Client, trained: Trained, tmp_path: Path
) -> None:
    load_it = loading(trained)
    ok(run(client, load_it + "push_adapter(model, 'user/pushed', private=True, tags=['mine'])"))
    files = hub.files("user/pushed")
    assert sorted(files) == [".gitattributes", *FILES[:3]] and hub.repositories["user/pushed"].private
    card = files["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "user/pushed")' in card and "- mine\n" in card and MARK in card
    assert "[More Information Needed]" not in card and "automatically generated" not in card
    assert files[WEIGHTS] == (trained.adapter / WEIGHTS).read_bytes()

    own = "---\ntags:\n- theirs\n---\n\nMy own words.\n"
    arguments = f"path_or_fileobj={own.encode()!r}, path_in_repo='README.md', repo_id='user/pushed'"
    put = f"from huggingface_hub import HfApi\nHfApi().upload_file({arguments})\n"
    again = run(client, load_it + put + "print(push_adapter(model, 'user/pushed').oid)")
    assert again.code == 0 and again.out.strip() == hub.repositories["user/pushed"].branches["main"], again.err
    assert hub.files("user/pushed")["README.md"].decode() == own
    ok(run(client, load_it + "push_adapter(model, 'user/pushed', revision='next')"))
    assert sorted(hub.files("user/pushed", "next")) == sorted(files)
    ok(run(client, load_it + "push_adapter(model, 'user/other', revision='next')"))
    card = hub.files("user/other", "next")["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "user/other", revision="next")' in card
    public = run(client, load_it + "push_adapter(model, 'user/other', private=True)")
    assert public.code == 1 and "`private` was asked for, but the repository 'user/other'" in public.err
    assert WEIGHTS not in hub.files("user/other")


def test_an_adapter_of_another_name_is_pushed_so_that_its_cards_snippet_loads_it(
    hub: Hub, client: Client, trained: Trained, tmp_path: Path
) -> None:
    load_it = PUSH.format(base=str(trained.base))
    load_it += f"model = PeftModel.from_pretrained(base, {str(trained.adapter)!r}, adapter_name='mine')\n"
    load_it += "model.add_adapter('default', focus_peft.FocusConfig(r=2))\n"
    ok(run(client, load_it + "push_adapter(model, 'user/pushed')"))
    assert sorted(hub.files("user/pushed")) == [".gitattributes", *FILES[:3]]
    assert 'PeftModel.from_pretrained(base, "user/pushed")' in hub.files("user/pushed")["README.md"].decode()
    ok(loaded_logits(client, trained, "user/pushed", tmp_path / "logits.pt"))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits_of(load(trained)))


def test_a_card_that_cannot_be_looked_at_is_not_replaced(hub: Hub, client: Client, trained: Trained) -> None:
    load_it = loading(trained)
    put = "HfApi().upload_file(path_or_fileobj=b'My own words.', path_in_repo='README.md', repo_id='user/mine')\n"
    made = "from huggingface_hub import HfApi\nHfApi().create_repo('user/mine')\n" + put
    hub.failing["resolve/main/README.md"] = 99
    failed = run(client, load_it + made + "push_adapter(model, 'user/mine')")
    assert failed.code == 1, failed.err
    assert hub.files("user/mine")["README.md"] == b"My own words."


def test_push_to_hub_keeps_the_card_that_push_adapter_wrote(hub: Hub, client: Client, trained: Trained) -> None:
    load_it = loading(trained)
    pushes = "push_adapter(model, 'user/pushed')\nmodel.push_to_hub('user/pushed')\nmodel.push_to_hub('user/other')\n"
    ok(run(client, load_it + pushes))
    assert MARK in hub.files("user/pushed")["README.md"].decode()
    assert hub.files("user/other")[WEIGHTS] == (trained.adapter / WEIGHTS).read_bytes()


def test_another_methods_adapter_is_not_pushed_with_this_card(hub: Hub, client: Client, trained: Trained) -> None:
    make = PUSH.format(base=str(trained.base)) + "model = get_peft_model(base, LoraConfig(task_type='CAUSAL_LM'))\n"
    refused = run(client, make + "push_adapter(model, 'user/lora')")
    assert refused.code == 1 and "LORA" in refused.err and "`model.push_to_hub`" in refused.err
    assert not hub.repositories
    ok(run(client, make + "model.push_to_hub('user/lora')"))
    assert b"focus_peft" not in hub.files("user/lora")["README.md"]


def test_a_trainer_brings_the_card_of_its_run(hub: Hub, client: Client, trained: Trained, tmp_path: Path) -> None:
    code = (
        PUSH.format(base=str(trained.base))
        + f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from runs import Documents, arguments
from focus_peft import FocusConfig
from focus_peft.data import DocumentCollator
from focus_peft.trainer import FocusTrainer
model = get_peft_model(base, FocusConfig(r=2, chunk_size=8, local_size=8, prompt_size=4, label_size=4))
args = arguments({str(tmp_path / "run")!r}, max_steps=2, save_strategy="steps", save_steps=1,
                 eval_strategy="steps", eval_steps=2, hub_model_id="user/run")
trainer = FocusTrainer(model=model, args=args, train_dataset=Documents(4), eval_dataset=Documents(2),
                       data_collator=DocumentCollator())
trainer.train()
trainer.push_to_hub(license="mit")
"""
    )
    ok(run(client, code))
    card = hub.files("user/run")["README.md"].decode()
    assert "| steps trained | 2 of 2 |" in card and "license: mit" in card and "at step 2:" in card
    assert 'PeftModel.from_pretrained(base, "user/run")' in card
