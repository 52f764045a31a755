"""Studies at hand: the list, a new one, a study shown before it is run, and the schema for editors."""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchreg
from experiments import config
from experiments.config.toml import dumped
from experiments.running import plans
from experiments.running.catalog import SHIPPED, counts, schema_of_studies
from tests.integration.studies import TREE, small

CONFIGS = sorted(SHIPPED.glob("**/*.toml"))
STUDY = dumped(TREE)


# -- list and new ---------------------------------------------------------------------------------------------------


def test_the_list_has_shipped_studies_and_those_of_the_folder(experiments, tmp_path):
    (tmp_path / "mine.toml").write_text(f"#:schema x.json\n# A study\n# of mine. It\n#   runs\n{STUDY}")
    (tmp_path / "longer.toml").write_text('extends = "mine.toml"\nseeds = [1, 2]')
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"')
    (tmp_path / "none.toml").write_text("x: 1")
    (tmp_path / "faulty.toml").write_text(STUDY.replace("epochs", "epoch"))
    code, out, err = experiments("list")
    assert (code, err) == (0, "")
    lines = {Path(line.split()[0]).name: line for line in out.splitlines()}
    assert lines.keys() == {path.name for path in CONFIGS} | {"mine.toml", "longer.toml", "faulty.toml"}
    assert lines["mine.toml"].split(maxsplit=1)[1] == "1 runs  A study of mine."
    assert lines["longer.toml"].split(maxsplit=1)[1] == "2 runs"
    assert lines["faulty.toml"].split(maxsplit=1)[1] == "faulty: train.epochs: is missing"
    assert "45 runs  Overfitting shown in under a minute" in lines["quickstart.toml"]
    assert "30 runs" in lines["sweep.toml"]  # nine strengths and none, with three seeds


def test_the_list_in_the_folder_of_shipped_studies_has_each_once(experiments, monkeypatch):
    monkeypatch.chdir(SHIPPED)
    _, out, _ = experiments("list")
    names = [line.split()[0] for line in out.splitlines()]
    assert sorted(names) == sorted(path.relative_to(SHIPPED).as_posix() for path in CONFIGS)


def test_in_a_terminal_a_line_of_the_list_is_no_longer_than_it(experiments, monkeypatch):
    long = experiments("list")[1].splitlines()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cut = experiments("list")[1].splitlines()
    assert max(map(len, long)) > 100
    assert cut == [line if len(line) <= 100 else line[:97] + "..." for line in long]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_study_says_what_it_is_about_and_names_the_schema(path, experiments):
    line = path.read_text(encoding="utf-8").splitlines()[0]
    assert line.startswith("#:schema ")
    assert (path.parent / line.removeprefix("#:schema ")).resolve() == SHIPPED / "study.schema.json"
    _, out, _ = experiments("list")
    assert re.search(rf"{path.name} +\d+ runs  \w.{{20}}", out)


def test_a_new_study_runs_at_once_and_is_not_overwritten(experiments, tmp_path):
    code, out, err = experiments("new", "mine")
    assert (code, err) == (0, "")
    assert out == "mine.toml is written; run it with: python -m experiments run mine.toml\n"
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    assert {"epochs = 80", "python -m experiments run mine.toml"} <= {line.strip("# ") for line in text.splitlines()}
    code, out, _ = experiments("run", "mine.toml", "--set", "train.epochs=1", "--device", "cpu")
    assert code == 0
    assert {"none", "L1", "dropout"} <= {line.split("  ")[0] for line in out.splitlines()}
    code, out, err = experiments("new", "mine")
    assert (code, out) == (2, "")
    assert err == "error: new: mine.toml exists already: choose another name, or remove it\n"
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["a b", 'quote"', "back\\slash", "日本", "{x}", "v1.2", "twice.toml"])
def test_a_new_study_may_have_any_name(name, experiments, tmp_path):
    assert experiments("new", name)[0] == 0
    (path,) = tmp_path.iterdir()
    assert path.name == name.removesuffix(".toml") + ".toml"
    assert config.load(path).name == name.removesuffix(".toml")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("", "new: NAME must be of 1 to 80 letters in one line, got ''"),
        ("a\nb", r"new: NAME must be of 1 to 80 letters in one line, got 'a\nb'"),
        ("x" * 81, "new: NAME must be of 1 to 80 letters"),
        ("none/mine", "new: none/mine.toml cannot be written: No such file or directory"),
        ("here/", "new: NAME must be of 1 to 80 letters in one line, got 'here/'"),
    ],
)
def test_a_name_that_is_none_is_one_line(name, line, experiments, tmp_path):
    code, out, err = experiments("new", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_nowhere_is_not_followed(experiments, tmp_path):
    (tmp_path / "mine.toml").symlink_to(tmp_path / "elsewhere.toml")
    assert experiments("new", "mine")[0] == 2
    assert not (tmp_path / "elsewhere.toml").exists()


# -- show -----------------------------------------------------------------------------------------------------------

SEARCH = {"space": {"optimizer.lr": [0.1, 0.2, 0.3]}, "arms": ["wide"]}
TWO_ARMS = small(seeds=[0, 1], arms=[{"name": "none", "strengths": [0.1, 0.2]}, {"name": "wide"}], sweep=SEARCH)


def test_runs_are_counted_over_strengths_seeds_and_points():
    assert counts(TWO_ARMS) == {"none": 4, "wide": 6}


@pytest.fixture
def shown(experiments, tmp_path, monkeypatch):
    """What is shown of the small study with two arms, which extends another file."""
    monkeypatch.setattr("experiments.training.cost._TIMED", 0.001)
    (tmp_path / "base.toml").write_text(STUDY)
    (tmp_path / "mine.toml").write_text(
        'extends = "base.toml"\ntrain.early_stopping = { patience = 2 }\n'
        '[[arms]]\nname = "small"\nstrengths = [0.1, 0.2]\nregularizers = [{ penalty = "L1" }]\n'
        '[[arms]]\nname = "large"\nmodel.hidden = [20, 20]\n'
    )

    def show(*arguments: str) -> str:
        code, out, err = experiments("show", "mine.toml", "--set", "seeds=[3, 4]", "--device", "cpu", *arguments)
        assert (code, err) == (0, "")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base.toml", "mine.toml"]
        return out

    return show


def test_what_is_shown_is_a_file_with_the_same_study(shown, tmp_path):
    text = shown()
    (tmp_path / "whole.toml").write_text(text)
    assert config.load(tmp_path / "whole.toml") == config.load(tmp_path / "mine.toml", ["seeds=[3, 4]"])
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("#   ")}
    assert rows["small"][2:5] == ["4", f"{65 * 16 + 17 * 10:,}", "16"]  # four epochs of 100 images in batches of 30
    assert rows["large"][2:5] == ["2", f"{65 * 20 + 21 * 20 + 21 * 10:,}", "16"]
    assert re.search(r"^# 6 runs, about .* on cpu, less where a run stops early", text, re.MULTILINE)


@pytest.mark.parametrize(("stack", "each"), [("true", [0.5, 1.0]), ('"auto"', [0.5, 1.0]), ("false", [3.0, 3.0])])
def test_runs_that_are_stacked_are_shown_with_their_share(stack, each, shown, monkeypatch):
    def seconds(setup, every):
        return 2.0 if isinstance(setup.model, torchreg.Stacked) else 3.0

    monkeypatch.setattr(plans, "seconds_of_epoch", seconds)
    found = json.loads(shown("--json", "--set", f"train.stack={stack}", "--set", "train.epochs=1"))
    assert [arm["seconds_per_run"] for arm in found["arms"]] == each  # of stacks of 4 and of 2 runs


def test_the_figures_as_json_add_up(shown):
    found = json.loads(shown("--json"))
    assert (found["name"], found["runs"], found["device"]) == ("small", 6, "cpu")
    assert [(arm["name"], arm["runs"], arm["steps"]) for arm in found["arms"]] == [("small", 4, 16), ("large", 2, 16)]
    assert found["seconds"] == pytest.approx(sum(arm["runs"] * arm["seconds_per_run"] for arm in found["arms"]))
    assert found["seconds"] > 0
    assert found["study"]["seeds"] == [3, 4]


def test_the_time_is_that_of_all_steps_and_evaluations(experiments, tmp_path, monkeypatch):
    """With a clock that each call moves on by a second, a step takes one second, and so does an evaluation."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("experiments.training.cost.time.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr("experiments.training.cost._TIMED", 2.5)
    (tmp_path / "mine.toml").write_text(STUDY)
    _, out, _ = experiments("show", "mine.toml", "--json", "--device", "cpu")
    assert json.loads(out)["seconds"] == pytest.approx(4 * (4 + 1))  # four epochs of four steps


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epoch=3", "error: train.epoch: unknown key"),
        ("optimizer.name=AdamV", "error: arms[none].optimizer.name: unknown name 'AdamV'"),
        ("data.train_size=5000", "error: arms[none].data.train_size: must be at most"),
    ],
)
def test_a_study_that_cannot_run_is_one_line(override, line, experiments, tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    code, out, err = experiments("show", "mine.toml", "--set", override)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)


def test_a_model_that_raises_later_is_one_line(experiments, tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    fragile = 'model={ class = "tests.integration.studies:Fragile", fate = "raises" }'
    code, out, err = experiments("show", "mine.toml", "--set", fragile)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: arms[none].model: cannot be trained: no more")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES = st.recursive(
    TEXTS | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_written_is_read_as_the_same_tree(tree):
    assert tomllib.loads(dumped(tree)) == tree


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_study_is_written_as_it_was_read(path):
    tree = config.tree_of(path)
    assert tomllib.loads(dumped(tree)) == tree


# -- schema ---------------------------------------------------------------------------------------------------------


def faults(schema: dict[str, Any], value: Any, root: dict[str, Any], at: str = "") -> list[str]:
    """What is wrong with a value by a JSON schema: the keywords that the schema of a study has."""
    if "$ref" in schema:
        return faults(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root, at)
    found = [fault for part in schema.get("allOf", []) for fault in faults(part, value, root, at)]
    if "anyOf" in schema and all(faults(part, value, root, at) for part in schema["anyOf"]):
        found.append(f"{at}: none of anyOf")
    if "if" in schema and not faults(schema["if"], value, root, at):
        found += faults(schema["then"], value, root, at)
    if "not" in schema and not faults(schema["not"], value, root, at):
        found.append(f"{at}: not")
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return [*found, f"{at}: no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: not in {schema['enum']}")
    if isinstance(value, dict):
        found += [f"{at}: lacks {key}" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            other = schema.get("additionalProperties", True)
            part = schema.get("properties", {}).get(key, {} if other is True else other)
            found += [f"{at}.{key}: unknown"] if part is False else faults(part, inner, root, f"{at}.{key}")
    if isinstance(value, list):
        found += [fault for inner in value for fault in faults(schema.get("items", {}), inner, root, f"{at}[]")]
    if isinstance(value, (int, float)):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if value < low or value > high or not schema.get("exclusiveMinimum", value - 1) < value:
            found.append(f"{at}: out of range")
    return found


SCHEMA = schema_of_studies()


def test_the_shipped_schema_is_that_of_todays_sections(experiments):
    code, out, _ = experiments("schema")
    assert code == 0
    shipped = (SHIPPED / "study.schema.json").read_text(encoding="utf-8")
    assert without_names_of_torch(json.loads(out)) == without_names_of_torch(json.loads(shipped))


def without_names_of_torch(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the names that another version of torch may add."""
    ours = set(torchreg.optim.__all__)
    for section in ("Optimizer", "Scheduler"):
        offer = schema["$defs"][section]["properties"]["name"]["anyOf"][0]
        offer["enum"] = [name for name in offer["enum"] if name in ours]
    return schema


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_study_fits_the_schema(path):
    assert faults(SCHEMA, tomllib.loads(path.read_text(encoding="utf-8")), SCHEMA) == []


def test_a_file_that_extends_another_may_hold_parts():
    part = {"extends": "base.toml", "optimizer": {"weight_decay": 0.1}, "train": {"epochs": 3}}
    assert faults(SCHEMA, part, SCHEMA) == []
    del part["extends"]
    assert ": lacks arms" in faults(SCHEMA, part, SCHEMA)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"trian": {}}, ".trian: unknown"),
        ({"train": {"epoch": 3}}, ".train.epoch: unknown"),
        ({"train": {"epochs": "3"}}, ".train.epochs: no integer"),
        ({"data": {"name": "minst"}}, ".data.name: not in"),
        ({"arms": [{"name": "a", "strenghts": [1.0]}]}, ".arms[].strenghts: unknown"),
        ({"arms": [{"optimizer": {"lr": 1.0}}]}, ".arms[]: lacks name"),
        ({"regularizers": [{"strength": 1.0}]}, ".regularizers[]: none of anyOf"),
        ({"regularizers": [{"penalty": "L1", "strength": -1.0}]}, ".regularizers[].strength: out of range"),
        ({"sparsity": {"target": 0}}, ".sparsity.target: out of range"),
        ({"sweep": {"space": {"x": 3}}}, ".sweep.space.x: none of anyOf"),
    ],
)
def test_the_schema_finds_what_a_study_may_not_hold(changes, fault):
    assert any(line.startswith(fault) for line in faults(SCHEMA, {**TREE, **changes}, SCHEMA))
    assert faults(SCHEMA, TREE, SCHEMA) == []


def test_the_schema_offers_names_and_says_what_keys_are():
    sections = SCHEMA["$defs"]
    offered = sections["Optimizer"]["properties"]["name"]["anyOf"][0]["enum"]
    assert {"AdamW", "ProxAdam"} <= set(offered)
    assert "LBFGS" not in offered  # whose steps the loop cannot make
    assert "L1" in sections["Regularizer"]["properties"]["penalty"]["anyOf"][0]["enum"]
    assert "DropConnect" in json.dumps(sections["Model"]["properties"]["wrap"])
    assert sections["Train"]["properties"]["checkpoint_seconds"]["description"].startswith("Least time between")
    assert "null" not in json.dumps(SCHEMA)


def test_a_shipped_study_may_be_named_and_a_file_goes_first(experiments, tmp_path):
    assert experiments("show", "nothing")[2] == "error: nothing: cannot be read: No such file or directory\n"
    short = ("--set", "train.epochs=1", "--json")
    assert json.loads(experiments("show", "quickstart", *short)[1])["name"] == "quickstart"
    assert experiments("show", "published/quickstart", *short)[0] == 2
    (tmp_path / "quickstart").write_text(STUDY)
    assert json.loads(experiments("show", "quickstart", *short)[1])["name"] == "small"
