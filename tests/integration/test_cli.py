"""The command line: exit codes, and where what it writes lies."""

import os
import platform
import subprocess
import sys

import pytest
import torch

import torchreg

STUDY = """
name = "small"
data = { train_size = 50, valid_size = 50 }
model = { name = "mlp", hidden = [8] }
optimizer = { name = "SGD", lr = 0.1 }
train = { epochs = 1, batch_size = 25 }
arms = [{ name = "none" }, { name = "L2", regularizers = [{ penalty = "L2", strength = 0.1 }] }]
"""


@pytest.fixture
def command(experiments, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    return experiments


def test_a_run_prints_the_table_and_says_where_the_report_lies(command, tmp_path):
    code, out, _ = command("run", "study.toml")
    assert code == 0
    assert "test error %" in out
    assert f"Report: {tmp_path / 'runs' / 'small' / 'report.html'}" in out
    assert (tmp_path / "runs" / "small" / "report.html").exists()


def test_a_finished_study_resumes_to_its_report(command):
    _, first, _ = command("run", "study.toml", "--out", "a")
    code, again, _ = command("run", "study.toml", "--out", "a", "--resume")
    table = first[first.index("arm ") :]
    assert (code, again) == (0, table)
    assert command("report", "a") == (0, table, "")


def test_a_diverged_run_ends_with_1_and_names_the_step(command):
    code, _, err = command("run", "study.toml", "--set", "optimizer.lr=1e30")
    assert code == 1
    assert "diverged: none/seed0: the loss is" in err
    assert "at step 2" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "no.toml"], "error: no.toml: cannot be read"),
        (["run", "study.toml", "--set", "train.epoch=3"], "error: train.epoch: unknown key, did you mean 'epochs'?"),
        (["run", "study.toml", "--set", "train"], "error: --set: must be key=value, got 'train'"),
        (["run", "study.toml", "--set", "name.x=1"], "error: --set name.x: name must be a table, got 'small'"),
        (
            ["run", "study.toml", "--set", "arms.L9.strength=1"],
            "error: --set arms.L9.strength: no table in arms has the name 'L9': its names are",
        ),
        (["run", "study.toml", "--set", "arms.0=1"], "error: --set arms.0: arms must be a table, got a list: set all"),
        (["run", "study.tml"], "error: study.tml: cannot be read"),
        (
            ["run", "quickstrat"],
            "No such file or directory: did you mean quickstart, which is shipped? All: ",
        ),
        (
            ["show", "configs/mnist/overfit.toml"],
            "did you mean mnist/overfit, which is shipped?",
        ),
        (["run", "study.toml", "--set", "train.epochs=1\ntrain=3"], "error: train.epochs: must be a valid integer"),
        (["run", "study.toml", "--out", "study.toml"], "error: --out: study.toml must be a folder, it is a file"),
        (
            ["run", "study.toml", "--out", "study.toml/x"],
            "error: study.toml/x: cannot be read or written",
        ),
        (
            ["bench", "dropuot"],
            "error: bench: unknown name 'dropuot', did you mean 'dropout'?",
        ),
        (
            ["bench", "memory", "--json", "figures.md"],
            "error: bench: --json must name a .json file, beside which a .md is written, got figures.md",
        ),
        (["run", "study.toml", "--set", "data.train_size=5000"], "data.train_size: must be at most 950"),
        (["run", "study.toml", "--set", "train.stack=maybe"], "error: train.stack: must be True, False or 'auto', got"),
        (["run", "study.toml", "--device", "tpu"], "error: --device: must be auto, cpu or cuda, got 'tpu'"),
        (["report", "."], "error: .: holds no study"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, tmp_path, arguments, line):
    code, out, err = command(*arguments)
    assert code == 2
    assert line in err
    assert (out, err.count("\n")) == ("", 1)
    assert not (tmp_path / "runs").exists()


def test_an_arm_is_overridden_by_its_name_and_a_byte_order_mark_is_no_obstacle(command, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8-sig")
    assert command("run", "study.toml", "--set", " arms . L2 . optimizer = {lr = -1}")[0] == 2
    assert command("run", "study.toml", "--set", " arms . L2 . optimizer = {lr = 0.2}")[0] == 0


def test_a_file_that_is_not_toml(command, tmp_path):
    (tmp_path / "study.toml").write_text("name: quickstart\n")
    code, _, err = command("run", "study.toml")
    assert code == 2
    assert "error: study.toml: not a TOML file: " in err


def test_cuda_asked_for_and_absent(command, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = command("run", "study.toml", "--device", "cuda")
    assert code == 2
    assert "error: --device: cuda is not available here" in err


def test_a_missing_argument_is_exit_code_2(command):
    assert command("run")[0] == 2


def test_the_versions_are_one_line(command):
    line = f"torchreg {torchreg.__version__}, torch {torch.__version__}, Python {platform.python_version()}\n"
    assert command("--version") == (0, line, "")


def test_a_study_whose_name_windows_reserves_lies_in_a_folder_that_windows_takes(command, tmp_path):
    code, _, _ = command("run", "study.toml", "--set", 'name="aux"', "--set", 'arms.none.name="Nul."')
    assert code == 0
    assert {path.parent.name for path in tmp_path.glob("runs/aux_/runs/*/seed0")} == {"L2", "Nul_"}


def printed(*arguments: str, **environment: str) -> str:
    """What Python prints in a process of its own."""
    around = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, *arguments], env=around, capture_output=True, text=True, check=True).stdout


def test_a_shell_completes_a_script_and_not_a_module(tmp_path):
    script = tmp_path / "studies"
    script.write_text("from experiments.cli import main\nmain()\n")
    asked = {"_STUDIES_COMPLETE": "complete_bash", "COMP_WORDS": "studies s", "COMP_CWORD": "1"}
    assert sorted(printed(str(script), **asked).split()) == ["schema", "show", "sweep"]
    assert "completion" in printed(str(script), "--help")
    assert "completion" not in printed("-m", "experiments", "--help")


@pytest.mark.parametrize("flags", [(), ("-P",)])
def test_the_script_finds_a_class_in_the_current_folder_as_python_m_does(tmp_path, flags):
    (tmp_path / "nets.py").write_text("")
    script = tmp_path / "bin" / "torchreg"
    script.parent.mkdir()
    shown = (
        "import sys, importlib.util; sys.argv = ['torchreg', '--version']\nimport torchreg, experiments.__main__ as m"
    )
    script.write_text(f"{shown}\nm.main = lambda: print(importlib.util.find_spec('nets'))\ntorchreg._run_studies()\n")
    around = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *flags, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, text=True, check=True)
    assert ("nets.py" in done.stdout) == (not flags)


def test_the_command_of_an_editable_install_is_that_of_the_clone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["torchreg", "--version"])
    with pytest.raises(SystemExit) as end:
        torchreg._run_studies()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"torchreg {torchreg.__version__}, ")
