"""Tasks of published records: files are found and read, prompts are the published ones, and what is too long is cut in
the middle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import make_focus_model, make_tiny_tokenizer
from refusal import refusal
from test_tasks import text_of

from focus_peft.tasks import RECORD_TASKS, FullAttention, RecordTask, Source, records
from focus_peft.tasks.infinitebench.published import INFINITEBENCH, INFINITEBENCH_RECORD_TASKS
from focus_peft.tasks.longbench.published import LONGBENCH, LONGBENCH_TASKS
from focus_peft.tasks.records import find_file, needed


# Made for these tests, in the formats of the published files
FOLDERS = {name: str(Path(__file__).parents[1] / "files" / name) for name in ("longbench", "infinitebench")}
NARRATIVE, PASSKEY = RECORD_TASKS["longbench/narrativeqa"], RECORD_TASKS["infinitebench/passkey"]


def source(**fields: Any) -> Source:
    return Source(make_tiny_tokenizer(), **{"data": FOLDERS, **fields})


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def test_all_tasks_are_there() -> None:
    assert " ".join(task.short_name for task in LONGBENCH_TASKS) == (
        "narrativeqa qasper multifieldqa_en multifieldqa_zh hotpotqa 2wikimqa musique dureader gov_report qmsum "
        "multi_news vcsum trec triviaqa samsum lsht passage_count passage_retrieval_en passage_retrieval_zh lcc "
        "repobench-p"
    )
    assert " ".join(task.short_name for task in INFINITEBENCH_RECORD_TASKS) == (
        "passkey number_string kv_retrieval longbook_sum_eng longbook_choice_eng longbook_qa_eng longbook_qa_chn "
        "longdialogue_qa_eng math_find math_calc code_run code_debug"
    )
    assert Counter(task.category for task in LONGBENCH_TASKS) == {
        "single-document QA": 4,
        "multi-document QA": 4,
        "summarization": 4,
        "few-shot": 4,
        "synthetic": 3,
        "code": 2,
    }


def test_prompts_are_the_published_ones_to_the_letter() -> None:
    # of the values of LongBench's dataset2prompt.json, and of InfiniteBench's yarn_mistral_templates with `input` for
    # `question`
    assert digest([task.prompt for task in LONGBENCH_TASKS]) == "b4af880e8a882dfd"
    assert digest([task.prompt + task.start for task in INFINITEBENCH_RECORD_TASKS]) == "cf92832bc0554eb6"


def test_answers_have_the_published_lengths() -> None:
    lengths = [task.new_tokens for task in LONGBENCH_TASKS]
    assert lengths == [128, 128, 64, 64, 32, 32, 32, 128, 512, 512, 512, 512, 64, 32, 128, 64, 32, 32, 32, 64, 64]
    lengths = [task.new_tokens for task in INFINITEBENCH_RECORD_TASKS]
    assert lengths == [6, 12, 50, 1200, 40, 40, 40, 40, 3, 30000, 5, 5]


WITHOUT_INPUT = [f"infinitebench/{name}" for name in ("longdialogue_qa_eng", "math_calc", "code_run", "code_debug")]


@pytest.mark.parametrize("name", RECORD_TASKS)
def test_a_prompt_holds_the_whole_record(name: str) -> None:
    task = RECORD_TASKS[name]
    file = task.file(FOLDERS)
    lines = [json.loads(line) for line in file.path.read_text(encoding="utf-8").split("\n") if line]
    assert file.facts().records == len(lines)
    for number, record in enumerate(lines):
        sample = task.sample(source(), None, number, len(lines))
        text = text_of(sample)
        assert record["context"] in text and not sample.cut and sample.depth is None
        assert name in WITHOUT_INPUT or record["input"] in text
        assert all(option in text for option in record.get("options", ()))
        assert sample.references and all(isinstance(reference, str) for reference in sample.references)


@pytest.mark.parametrize(
    ("name", "number", "end", "references"),
    [
        ("longbench/qasper", 0, "\n\nQuestion: Is the corpus public?\n\nAnswer:", ("Yes", "yes")),
        ("longbench/trec", 1, "How many steps are there ?\nType:", ("Number of something",)),
        ("longbench/repobench-p", 0, "    tower.climb()\nNext line of code:\n", ("    tower.light()",)),
        ("infinitebench/passkey", 0, "What is the pass key?\n\nThe pass key is", ("71432",)),
        ("infinitebench/passkey", 1, "What is the pass key?\n\nThe pass key is", ("00417",)),
        ("infinitebench/longbook_choice_eng", 0, "D. White\n\nThe letter of the correct answer is", ("Green", "B")),
        ("infinitebench/code_debug", 0, "D. Lamp.fill\n\nThe correct option is:", ("Tower.light", "B")),
        ("infinitebench/code_run", 0, "exact value of func_3(-7). The value of func_3(-7) is", ("-2",)),
        ("infinitebench/math_find", 1, "no other words. The median number of the list is: ", ("2.5",)),
        ("infinitebench/math_calc", 0, "Expression: 1 + 5 - 2 + 10\nValues:", ("6", "4", "14")),
        ("infinitebench/longbook_qa_chn", 0, "\n\n问题：看守人叫什么名字？\n答案：", ("林海",)),
    ],
)
def test_prompts_end_with_the_question_and_have_its_answers(
    name: str, number: int, end: str, references: tuple[str, ...]
) -> None:
    task = RECORD_TASKS[name]
    sample = task.sample(source(), None, number, task.file(FOLDERS).facts().records)
    assert text_of(sample).endswith(end) and sample.references == references


def test_what_math_find_asks_for_stands_before_the_list_too() -> None:
    sample = RECORD_TASKS["infinitebench/math_find"].sample(source(), None, 0, 2)
    assert text_of(sample).startswith("What is the second largest number in the following list?\n\n[7, 41,")


def test_few_shot_and_code_tasks_are_not_put_into_a_chat_and_answers_start_behind_it() -> None:
    outside = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    for task in RECORD_TASKS.values():
        plain, chat = (text_of(task.sample(source(chat=chat), None, 0, 1)) for chat in (False, True))
        if task.short_name in outside:
            assert chat == plain
        elif task.benchmark == LONGBENCH:
            assert chat == f"<s>user: {plain}\nassistant: "
        else:
            given, start = chat.removeprefix("<s>user: ").split("\nassistant: ")
            assert plain.startswith(given) and plain.endswith(start) and len(given) + len(start) <= len(plain)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("tokens", [300, 301, 640])
def test_what_is_too_long_is_cut_in_the_middle(tokens: int, chat: bool) -> None:
    whole = NARRATIVE.sample(source(), None, 1, 2)
    sample = NARRATIVE.sample(source(chat=chat), tokens, 1, 2)
    text, complete = text_of(sample), text_of(whole)
    if chat:
        text = text.removeprefix("<s>user: ").removesuffix("\nassistant: ")
    kept = len(text) // 2
    # bytes are tokens here, so the two halves are those of pred.py, exactly
    assert text == complete[:kept] + complete[-kept:]
    assert sample.cut and 0 <= tokens - 128 - len(sample.ids) <= 1
    assert sample.references == whole.references


def test_what_fits_is_not_touched() -> None:
    whole = NARRATIVE.sample(source(), None, 1, 2)
    needs = len(whole.ids) + 128
    assert NARRATIVE.sample(source(), needs, 1, 2) == whole
    assert NARRATIVE.sample(source(), needs - 1, 1, 2).cut


def test_letters_that_are_cut_in_two_do_not_make_a_prompt_longer() -> None:
    task = RECORD_TASKS["longbench/multifieldqa_zh"]
    for tokens in range(170, 200):
        assert len(task.sample(source(), tokens, 0, 1).ids) <= tokens - task.new_tokens


def test_samples_are_spread_evenly_over_the_records(tmp_path: Path) -> None:
    lines = [json.dumps({"input": f"{n}?", "context": "c", "answers": [str(n)]}) for n in range(10)]
    (tmp_path / "narrativeqa.jsonl").write_text("\n\n".join(lines) + "\n")
    given = source(data={"longbench": str(tmp_path)})
    found = [
        [NARRATIVE.sample(given, None, number, count).references[0] for number in range(count)] for count in (10, 4)
    ]
    assert found == [[str(number) for number in range(10)], ["0", "2", "5", "7"]]
    with refusal("`samples`", "11", "10 records"):
        NARRATIVE.sample(given, None, 0, 11)


def test_records_are_found_in_folders_and_archives(tmp_path: Path) -> None:
    expected = NARRATIVE.sample(source(), None, 0, 2)
    (tmp_path / "a").mkdir()
    shutil.copytree(FOLDERS["longbench"], tmp_path / "a" / "data")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:  # as on the Hub, where LongBench-E lies beside
        for name in ("narrativeqa", "narrativeqa_e", "qasper"):
            text = "{}\n" if name.endswith("_e") else Path(FOLDERS["longbench"], f"{name}.jsonl").read_text("utf-8")
            archive.writestr(f"data/{name}.jsonl", text)
    facts = NARRATIVE.file(FOLDERS).facts()
    for place in (tmp_path / "a", tmp_path / "a" / "data", tmp_path / "data.zip", tmp_path):
        data = {"longbench": str(place)}
        assert NARRATIVE.file(data).facts() == facts
        assert NARRATIVE.sample(source(data=data), None, 0, 2) == expected


def test_files_that_are_not_there_are_told(tmp_path: Path) -> None:
    with refusal("`data.infinitebench`", "'passkey.jsonl'", INFINITEBENCH.repo):
        PASSKEY.file({"infinitebench": str(tmp_path)})
    (tmp_path / "data.zip").write_text("not an archive")
    with refusal("ZIP", "data.zip"):
        NARRATIVE.file({"longbench": str(tmp_path)})
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/qasper.jsonl", "{}\n")
    with refusal("'narrativeqa.jsonl'", "data.zip"):
        NARRATIVE.file({"longbench": str(tmp_path)})


@pytest.mark.parametrize(
    ("owner", "name", "file"), [(LONGBENCH, "lcc", "data.zip"), (INFINITEBENCH, "math_find", "math_find.jsonl")]
)
def test_without_the_hub_one_is_told_what_to_do(
    owner: Any, name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with refusal(repr(file), "HF_HUB_OFFLINE is set", f"`data.{owner.name}`", owner.repo):
        find_file(owner, name, None)


def test_files_of_the_hub_are_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for owner in (LONGBENCH, INFINITEBENCH):  # laid out as a download leaves them
        folder, commit = tmp_path / f"datasets--{owner.repo.replace('/', '--')}", "0" * 40
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
    with zipfile.ZipFile(next(tmp_path.glob("*LongBench/snapshots/*")) / "data.zip", "w") as archive:
        archive.write(Path(FOLDERS["longbench"], "narrativeqa.jsonl"), "data/narrativeqa.jsonl")
    shutil.copy(Path(FOLDERS["infinitebench"], "passkey.jsonl"), next(tmp_path.glob("*InfiniteBench/snapshots/*")))
    try:
        for task in (NARRATIVE, PASSKEY):
            assert task.sample(source(data={}), None, 1, 2) == task.sample(source(), None, 1, 2)
            assert task.file({}).facts() == task.file(FOLDERS).facts()
    finally:
        records._from_hub.cache_clear()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ('{"input": "", "answers": ["x"]}', "`context`"),
        ('{"input": "", "context": "c", "answers": null}', "not as published"),
    ],
)
def test_records_that_are_not_as_published_are_told(line: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "narrativeqa.jsonl").write_text(line + "\n")
    with refusal("Record 1", "narrativeqa.jsonl", named):
        NARRATIVE.sample(source(data={"longbench": str(tmp_path)}), None, 0, 1)


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "narrativeqa.jsonl"
    for answer in ("one", "two-and-more"):
        file.write_text(json.dumps({"input": "", "context": "c", "answers": [answer]}) + "\n")
        assert NARRATIVE.sample(source(data={"longbench": str(tmp_path)}), None, 0, 1).references == (answer,)


def test_a_prompt_that_has_no_room_is_refused() -> None:
    with refusal("`tokens`", "too few"):
        NARRATIVE.sample(source(), 129, 0, 2)


def test_packages_are_asked_for_only_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rouge", "rouge_score", "rouge_score.rouge_scorer", "jieba"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed

    def missing(task: RecordTask) -> bool:
        try:
            task.check_packages()
        except ImportError as error:
            assert str(error).startswith(f"The metric of `{task.name}` needs the package ")
            assert str(error).endswith("install it with `pip install 'focus_peft[eval]'`.")
            return True
        return False

    without_them = {task.short_name for task in RECORD_TASKS.values() if missing(task)}
    summaries = {"gov_report", "qmsum", "multi_news", "vcsum", "samsum", "longbook_sum_eng"}
    assert without_them == {*summaries, "dureader", "multifieldqa_zh"}
    with refusal("rouge-score", "focus_peft[eval]", error=ImportError):
        needed("rouge_score.rouge_scorer", "This")


def test_the_longest_that_a_method_reads_is_found() -> None:
    model = make_focus_model()  # 128 positions
    method = FullAttention(model)
    assert [method.longest(tokens, 10) for tokens in (5, 128, 129, 5000)] == [5, 128, 128, 128]
    assert method.longest(5000, 127) == 128 and method.longest(5000, 128) == 0
