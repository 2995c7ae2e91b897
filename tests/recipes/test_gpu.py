"""What must hold on a card holds on the CPU, where every run of the tests sees it, and on a card where there is one
(marked `gpu`).
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from benchmarks.gpu.report import Options
from conftest import ROOT, make_focus_model
from device_checks import CHECKS, FEW, equals_the_reference, layers_never_wait
from lib.byte_tokenizer import byte_tokenizer
from safetensors.torch import load_file

from focus_peft import FocusConfig
from focus_peft.layer import TwinLayer
from focus_peft.passes.frames import Frames
from focus_peft.tasks.passkey import passkey_prompt


CPU = torch.device("cpu")
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card")],
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("check", CHECKS)
def test_a_check_holds_on_the_device(check: str, device: str) -> None:
    CHECKS[check](torch.device(device))


def test_the_few_checks_of_the_small_setting_are_checks() -> None:
    assert set(FEW) <= set(CHECKS)


def test_a_check_fails_where_chunks_stand_at_other_positions() -> None:
    right = Frames.chunk_start
    with (
        patch.object(Frames, "chunk_start", lambda self, index, length: right(self, index, length) - 3),
        pytest.raises(AssertionError),
    ):
        equals_the_reference(CPU)


def test_a_check_fails_where_a_layer_waits_for_the_device() -> None:
    right = TwinLayer.forward

    def waiting(self: TwinLayer, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        float(x.sum())
        return right(self, x, *args, **kwargs)

    with patch.object(TwinLayer, "forward", waiting), pytest.raises(RuntimeError, match="wait for the device"):
        layers_never_wait(CPU)


def test_a_checkpoint_in_parts_is_put_together_again(tmp_path: Path) -> None:
    module: Any = importlib.import_module("benchmarks.gpu.adapter_training")
    model = make_focus_model(dtype=torch.float32, base={"hidden_size": 8192})
    counts = []
    for most in (1, 2):  # the second checkpoint takes the place of the first
        files = module.save_parts(model, Options(tmp_path, CPU, max_part_mb=most))
        parts = [tmp_path / file for file in files if file.endswith(".safetensors")]
        assert all(part.stat().st_size <= most * 2**20 for part in parts)
        counts.append(len(parts))
    assert counts[0] > counts[1] > 1
    module.join_parts(tmp_path / "checkpoint", tmp_path / "whole")
    model.save_pretrained(tmp_path / "saved")
    joined, weights = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "saved"))
    assert joined.keys() == weights.keys()
    assert all(torch.equal(joined[name], weight.to(torch.bfloat16)) for name, weight in weights.items())
    assert FocusConfig.from_pretrained(tmp_path / "whole").chunk_size == model.peft_config["default"].chunk_size


def test_passkeys_in_pieces_are_those_of_the_task() -> None:
    module: Any = importlib.import_module("benchmarks.gpu.adapter")
    tokenizer = byte_tokenizer()
    passkeys = module._Passkeys(tokenizer)
    assert passkeys.by_pieces
    for tokens, depth, seed in ((333, 0.0, 1), (1000, 0.3, 2), (1024, 1.0, 3)):
        found, wanted = passkeys.prompt(tokens, depth, seed), passkey_prompt(tokenizer, tokens, depth, seed)
        assert found.key == wanted.key and found.ids.tolist() == wanted.ids.tolist()


@pytest.mark.slow
def test_all_parts_run_in_small_and_say_what_they_measured(tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(ROOT / "recipes" / "gpu.py"),
        "--small",
        "--output",
        str(tmp_path),
        "--seconds",
        "900",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    check_results(results)
    *passkeys, last = results["adapter"]["cells"]
    assert [cell["asked"] for cell in passkeys] == [4, 4]
    assert last["training_steps"] >= 1 and len(last["losses"]) == last["training_steps"]
    assert all((tmp_path / file).stat().st_size < 15 * 2**20 for file in last["files"])
    assert sum(path.is_file() for path in tmp_path.rglob("*")) <= 8


def check_results(results: dict[str, Any]) -> None:
    """What the JSONs of a small run hold."""
    assert results.keys() == {"check", "reading", "decoding", "training", "adapter"}
    for part, result in results.items():
        assert result["part"] == part and result["device"] == "CPU" and result["small"] is True
        assert result["versions"]["torch"] == torch.__version__ and "recipes/gpu.py --small" in result["command"]
        assert {cell["status"] for cell in result["cells"]} == {"ok"}, result["cells"]
    assert results["check"]["passed"] == len(FEW) and results["check"]["passed_all"] is True
    for part in ("reading", "decoding"):
        measured = [cell for cell in results[part]["cells"] if "seconds" in cell]
        found = {(cell["model"], cell["tokens"]) for cell in measured}
        assert found == {(model, tokens) for model in ("Llama-2-7B", "Qwen3-4B") for tokens in (96, 160)}
        assert all(cell["times_the_floor"] > 1 and cell["peak_memory_gb"] > 0 for cell in measured)
        assert "full attention" in {cell["way"] for cell in measured}
    ours = [cell for cell in results["reading"]["cells"] if cell["way"] == "chunks in parallel"]
    for cell in ours:
        assert cell["tokens_per_second"] == pytest.approx(cell["tokens"] / cell["seconds"], rel=0.01)
        assert cell["of_base_model_rate"] > 0 and cell["times_full_attention"] > 0
    training = results["training"]["cells"]
    assert all(cell["hours_of_the_paper"] > 0 for cell in training if cell["way"] == "drawn spans")
    kept, naive = ([cell for cell in training if cell["way"].endswith(end)] for end in ("focus_peft", "naive graph"))
    assert len(ours) == 4 and len(kept) == 4
    for one, other in zip(kept, naive, strict=True):  # the same computation
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-2)
