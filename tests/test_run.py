"""Tools that never import focus_peft, in a process that does: lm-evaluation-harness runs, and padded batches are what
single rows are; so do other modules and scripts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_tokenizer, save_base

from focus_peft import FocusConfig, run


# the first fits the local window, the others have chunks
PROMPTS = [f"{'x' * length} Once upon a time there was" for length in (3, 40, 90, 300)]
CHOICES = ["a whale", "a sea"]
NEW_TOKENS = 6
TASKS = {
    "tiny_choice": {"output_type": "multiple_choice", "doc_to_choice": CHOICES, "doc_to_target": 0},
    "tiny_answer": {
        "output_type": "generate_until",
        "doc_to_target": "",
        "generation_kwargs": {"max_gen_toks": NEW_TOKENS, "do_sample": False, "until": ["~~~"]},
    },
}


@pytest.mark.slow
def test_both_kinds_of_requests_are_answered_as_the_model_answers_single_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'focus_peft[eval]')")
    datasets = pytest.importorskip("datasets")
    fields = {"vocab_size": 259, "max_position_embeddings": 256}
    model = make_focus_model(base=fields, chunk_size=32, local_size=48, prompt_size=8)
    tokenizer = make_tiny_tokenizer()
    save_base(tmp_path / "base", max_position_embeddings=256)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "documents.jsonl").write_text("\n".join(json.dumps({"q": prompt}) for prompt in PROMPTS))
    (tmp_path / "tasks").mkdir()
    data = {"test": str(tmp_path / "documents.jsonl")}
    for name, task in TASKS.items():
        whole = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": data},
            "test_split": "test",
            "doc_to_text": "{{q}}",
            **task,
        }
        # JSON is YAML
        (tmp_path / "tasks" / f"{name}.yaml").write_text(json.dumps(whole))

    # what recipes/harness has, but for what would come from the Hub
    arguments = f"pretrained={tmp_path / 'base'},peft={tmp_path / 'adapter'},max_length=2048,dtype=float64"
    words = ["--config", "recipes/harness/smollm2.yaml", "--model_args", arguments, "--tasks", ",".join(TASKS)]
    words += ["--include_path", str(tmp_path / "tasks"), "--device", "cpu"]
    words += ["--output_path", str(tmp_path / "out")]
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr(sys, "argv", ["focus_peft.run", "lm_eval", *words])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home")
    run.main()

    tuner: Any = model
    for number, responses in samples(tmp_path / "out", "tiny_choice").items():
        prompt = tokenizer(PROMPTS[number])["input_ids"]
        for choice, [[found, _]] in zip(CHOICES, responses):
            ids = torch.tensor([prompt + tokenizer(f" {choice}")["input_ids"]])
            with torch.no_grad():
                logits = tuner(ids).logits[0, len(prompt) - 1 : -1]
            chances = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
            assert float(found) == pytest.approx(float(chances.sum()), rel=1e-6), (number, choice)
    for number, [[found]] in samples(tmp_path / "out", "tiny_answer").items():
        ids = tokenizer(PROMPTS[number], return_tensors="pt")["input_ids"]
        expected = tuner.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
        assert found == tokenizer.decode(expected, skip_special_tokens=True), number


def samples(folder: Path, task: str) -> dict[int, Any]:
    """The responses to every document."""
    (file,) = folder.glob(f"*/samples_{task}_*.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(found) == len(PROMPTS)
    return {sample["doc_id"]: sample["resps"] for sample in found}


TOOL = """
import json, sys
import peft
print(json.dumps([__name__, sys.argv[1:], type(peft.PeftConfig.from_pretrained(sys.argv[1])).__name__]))
sys.exit(7)
"""


def test_a_tool_that_never_imports_focus_peft_reads_an_adapter(tmp_path: Path) -> None:
    FocusConfig().save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "tool.py").write_text(TOOL)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words, "adapter", "--more"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    bare = ran("-m", "tool")
    assert bare.returncode == 1 and "KeyError: 'FOCUS'" in bare.stderr
    done = ran("-m", "focus_peft.run", "tool")
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout) == ["__main__", ["adapter", "--more"], "FocusConfig"]


@pytest.mark.parametrize(
    ("place", "name"),
    [("tools/tool.py", "tools.tool"), ("tools/__main__.py", "tools"), ("scripts/tool.py", "scripts/tool.py")],
    ids=["a module of a package", "a package", "a script"],
)
def test_a_tool_runs_by_its_name_or_its_path(
    place: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FocusConfig().save_pretrained(str(tmp_path / "adapter"))
    tool = tmp_path / place
    tool.parent.mkdir()
    (tool.parent / "neighbor.py").touch()
    tool.write_text(("import neighbor\n" if name.endswith(".py") else "") + TOOL)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "tools", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run.main([name, "adapter", "--more"])
    assert ended.value.code == 7
    assert json.loads(capsys.readouterr().out) == ["__main__", ["adapter", "--more"], "FocusConfig"]


@pytest.mark.parametrize("words", [["no_such_tool"], ["no.such.tool", "--x"], ["no/script.py"], ["."], []], ids=str)
def test_what_is_not_there_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(words)
    assert ended.value.code == 2
    assert (repr(words[0]) if words else "MODULE") in capsys.readouterr().err
