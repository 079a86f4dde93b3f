import sys
from pathlib import Path

import pytest

from iris.errors import UserError
from iris.evaluation import catalog, requirements
from iris.evaluation.catalog import select


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


TASK = "task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "other.jsonl", "{}\n")
    tmp_path = tmp_path / "tasks"
    tmp_path.mkdir()
    write(tmp_path, "one.yaml", TASK.format(name="one", data="rows.jsonl") + "tag: numbers\n")
    write(tmp_path, "two.yaml", "include: one.yaml\ntask: two\n")
    write(tmp_path, "both.yaml", "group: both\ntask:\n  - one\n  - task: two\n    num_fewshot: 1\n")
    write(tmp_path, "rows.jsonl", '{"question": "q"}\n')
    return tmp_path


def test_local_names_are_found_with_what_they_lead_to(folder: Path) -> None:
    write(
        folder,
        "inline.yaml",
        "group: inline\ntask:\n  - group: pair\n    task: [one, two]\n  - {task: x, dataset_path: d}\n",
    )
    write(folder, "template.yaml", "output_type: generate_until\n")
    for name in ("both", "numbers", "inline"):
        selection = select([name], [folder])
        assert [task.name for task in selection.tasks] == ["one", "two"]
        assert selection.harness == set()


def test_names_of_the_harness_are_those_of_its_own_index() -> None:
    from lm_eval.tasks import TaskManager

    names = set(catalog._harness_names())
    for folder in ("mmlu/default", "leaderboard", "glue", "gsm8k"):
        path = catalog._harness_folder() / folder
        index = TaskManager(include_path=str(path), include_defaults=False).all_tasks
        assert index
        assert names.issuperset(index)


def test_names_are_found_once_per_version_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(catalog, "_scan", lambda root: {"only": ["gsm8k/gsm8k.yaml"]})
    catalog._harness_names.cache_clear()
    try:
        assert [task.name for task in select(["only"]).tasks] == ["gsm8k"]
        monkeypatch.setattr(catalog, "_scan", lambda root: pytest.fail("scanned again"))
        catalog._harness_names.cache_clear()
        assert [task.name for task in select(["only"]).tasks] == ["gsm8k"]
    finally:
        catalog._harness_names.cache_clear()


def test_a_group_of_the_harness_leads_to_all_its_folders() -> None:
    selection = select(["leaderboard_bbh", "mmlu"])
    assert {folder.name for folder in selection.harness} == {"bbh_mc", "default"}
    names = [task.name for task in selection.tasks]
    assert sum(name.startswith("mmlu_") for name in names) == 57
    assert sum(name.startswith("leaderboard_bbh_") for name in names) == 24
    assert all(task.config["dataset_path"] for task in selection.tasks)


def test_own_definition_goes_before_the_harness(folder: Path) -> None:
    write(folder, "gsm8k.yaml", TASK.format(name="gsm8k", data="rows.jsonl"))
    selection = select(["gsm8k"], [folder])
    assert [task.path for task in selection.tasks] == [folder / "gsm8k.yaml"]
    assert selection.harness == set()


@pytest.mark.parametrize(
    ("file", "text", "name", "message"),
    [
        ("x.yaml", "", "gms8k", r"no evaluation task 'gms8k'. Did you mean 'gsm8k'\?"),
        ("x.yaml", "group: g\ntask: [one, thre]\n", "g", r"'thre', which the group 'g' in .*x.yaml names"),
        ("x.yaml", "task: x\n  metric: [\n", "one", r"x.yaml cannot be read: .*line 2"),
        ("x.yaml", "- task\n", "one", "x.yaml holds no keys"),
        ("x.yaml", "include: gone.yaml\ntask: x\n", "one", r"gone.yaml cannot be read"),
        ("x.yaml", "task: one\n", "one", r"'one' is defined twice: in .*one.yaml and .*x.yaml"),
        ("x.yaml", TASK.format(name="x", data="[gone.jsonl]"), "x", r"'x' .* reads .*gone.jsonl, which does not exist"),
        ("x.yaml", TASK.format(name="x", data="../other.jsonl"), "x", r"other.jsonl, which is outside the folders"),
        ("x.yaml", "task: x\nunsafe_code: true\n", "x", "'x' runs code that the model writes"),
        ("x.txt", "", "minerva_math", "antlr 4.11.*leaderboard_math_hard"),
    ],
)
def test_what_cannot_be_evaluated_is_told_first(folder: Path, file: str, text: str, name: str, message: str) -> None:
    if text or file.endswith(".txt"):
        write(folder, file, text)
    with pytest.raises(UserError, match=f"(?s){message}"):
        select([name], [folder])


def test_no_names_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate.tasks is empty: .*evaluate=papers"):
        select([])
    with pytest.raises(UserError, match="is no folder"):
        select(["one"], [tmp_path / "gone"])


def test_offline_without_the_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    select(["gsm8k"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="'gsm8k' needs the data set 'openai/gsm8k' \\(main\\)"):
        select(["gsm8k"])
    (tmp_path / "openai___gsm8k").mkdir()
    select(["gsm8k"])


def test_modules_and_sentence_data_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match="math_verify"):
        requirements.check_modules("leaderboard/math")
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="punkt_tab"):
        select(["ifeval"])
    (tmp_path / "tokenizers/punkt_tab").mkdir(parents=True)
    select(["ifeval"])


def test_looking_names_up_does_not_import_lm_eval(folder: Path) -> None:
    import subprocess

    code = "import sys; from pathlib import Path; from iris.evaluation.catalog import select; "
    code += f"select(['both'], [Path({str(folder)!r})])"
    code += "; assert not {'lm_eval', 'torch', 'datasets', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
