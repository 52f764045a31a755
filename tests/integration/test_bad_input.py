"""Whatever a user's file, terminal or machine does: one line, exit code 2, and no traceback."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from torch import nn

from experiments.cli import main
from experiments.errors import did_you_mean
from experiments.running.engines import Local, Processes
from experiments.running.sweep import run_sweep
from experiments.training.loop import train
from tests.integration.studies import CPU, FORKS, lives, small, workers_of

STUDY = """
name = "small"
data = { train_size = 50, valid_size = 50 }
model = { name = "mlp", hidden = [8] }
optimizer = { name = "SGD", lr = 0.1 }
train = { epochs = 1, batch_size = 25 }
arms = [{ name = "plain" }]
"""
CALLED: list[str] = []


class Loud:
    """A class that is no model, and tells when it is made."""

    def __init__(self) -> None:
        CALLED.append("Loud")


class Quiet(nn.Sequential):
    """A user's own model."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    @classmethod
    def made(cls) -> "Quiet":
        return cls()


def loud() -> None:
    CALLED.append("loud")


def loud_number() -> int:
    CALLED.append("loud_number")
    return 3


def quiet() -> nn.Module:
    return Quiet()


def unannotated():
    return Quiet()


def nothing():
    pass


HERE = "tests.integration.test_bad_input"
DEEP = "[" * 60 + "]" * 60
TREE = "{a=" * 60 + "1" + "}" * 60
L1 = 'regularizers=[{ penalty = "L1", strength = 1,'
BAD = {
    "a date": ("arms.plain.optimizer.eps=1979-05-27", "optimizer.eps: must be a number, text"),
    "a time": ("model.args={ x = 07:32:00 }", "model.args.x: must be a number, text"),
    "a date and time in a list": ("optimizer.betas=[0.9, 1979-05-27T07:32:00Z]", "optimizer.betas.1: must be a number"),
    "a date as a name": ("name=1979-05-27", "name: must be a number, text"),
    "a date to search": ("sweep={ space = { x = [1979-05-27] } }", "sweep.space.x.0: must be a number, text"),
    "a number of 65 bits": ("data.seed=9223372036854775808", "data.seed: must be less than 2**63"),
    "a number of 400 digits": (f"optimizer.lr=1{'0' * 400}", "optimizer.lr: must be less than 2**63"),
    "a deep list": (f"model.hidden={DEEP}", "must not be more than 20 tables or lists deep"),
    "a deep table": (f"model.args={TREE}", "must not be more than 20 tables or lists deep"),
    "NUL in a folder": (r'data.root="a\u0000b"', "data.root: must be text without NUL"),
    "NUL in a class": (r'model={ class = "a\u0000:b" }', "model.class: must be text without NUL"),
    "NUL in a name": (r'arms=[{ name = "a\u0000" }]', "arms.0.name: must be text without NUL"),
    "NUL in a key": (r'optimizer={ "a\u0000" = 1 }', r"optimizer.'a\x00': must be a key of printable characters"),
    "a key of two lines": (r'optimizer={ "a\nb" = 1 }', r"optimizer.'a\nb': must be a key of printable characters"),
    "a name of two lines": (r'arms=[{ name = "a\u2028b" }]', "arms.0.name: must be a name on one line"),
    "a nested NaN": ("optimizer.betas=[nan, 0.9]", "optimizer.betas.0: must be a finite number, got nan"),
    "a deeper infinity": ("model.args={ x = { y = [-inf] } }", "model.args.x.y.0: must be a finite number, got -inf"),
    "a NaN to search": ("sweep={ space = { x = [nan] } }", "sweep.space.x.0: must be a finite number, got nan"),
    "a regularizer's class": (f'{L1} class = "a:b" }}]', "regularizers.0.class: unknown key"),
    "a regularizer's class_": (f'{L1} class_ = "a:b" }}]', "regularizers.0.class_: unknown key"),
    "a regularizer's args": (f"{L1} args = {{}} }}]", "regularizers.0.args: unknown key"),
    "a regularizer's number of args": (f"{L1} args = 3 }}]", "regularizers.0.args: unknown key"),
    "a regularizer's name": (f'{L1} name = "L2" }}]', "regularizers.0.name: unknown key"),
    "a misspelt decay": (
        'optimizer={ name = "SGD", lr = 1, weigth_decay = 1 }',
        "optimizer.weigth_decay: unknown key, did you mean 'weight_decay'?",
    ),
    "a misspelt mode": (f'{L1} mdoe = "prox" }}]', "regularizers.0.mdoe: unknown key, did you mean 'mode'?"),
    "a misspelt selection": (f'{L1} slect = "a" }}]', "regularizers.0.slect: unknown key, did you mean 'select'?"),
    "a misspelt strength": (
        'regularizers=[{ penalty = "L1", strenght = 1 }]',
        "regularizers.0.strenght: unknown key, did you mean 'strength'?",
    ),
    "an interval of a misspelt key": (
        'scheduler={ name = "StepLR", step_size = 1, intervall = "step" }',
        "scheduler.intervall: unknown key, did you mean 'interval'?",
    ),
    "the optimizer's key in an arm": (
        'arms=[{ name = "plain", weight_decay = 1 }]',
        "arms[plain].weight_decay: unknown key, it belongs in optimizer, as optimizer.weight_decay",
    ),
    "the model's key in an arm": (
        'arms=[{ name = "plain", dropout = 0.5 }]',
        "arms[plain].dropout: unknown key, it belongs in model, as model.dropout",
    ),
    "the network's layers at the top": ("hidden = [8]", "hidden: unknown key, it belongs in model, as model.hidden"),
    "the optimizer's rate at the top": (
        "learning_rate = 0.1",
        "learning_rate: unknown key, it belongs in optimizer or auto_strength",
    ),
    "a learning rate that is written out": (
        'optimizer={ name = "SGD", lr = 0.1, learning_rate = 0.1 }',
        "optimizer.learning_rate: unknown key, did you mean 'lr'?",
    ),
    "a rate in place of a layer": (
        'model={ name = "mlp", hidden = [8], dropout = 0.5 }',
        'model.dropout: must be a table, as { name = "Dropout", p = 0.5 }, got 0.5',
    ),
    "a regularizer's key in an arm": (
        'arms=[{ name = "plain", mode = "prox" }]',
        "arms[plain].mode: unknown key, it belongs in regularizers, as regularizers = [{ mode = ... }]",
    ),
    "an arm's strengths at the top": (
        "strengths = [1]",
        "strengths: unknown key, it belongs in an arm: write it in [[arms]], below its name",
    ),
    "the study's seeds in an arm": (
        'arms=[{ name = "plain", seeds = [1] }]',
        "arms[plain].seeds: unknown key, it is of the whole study: write it at the top of the file, above the first",
    ),
    "a device in the file": (
        'device = "cuda"',
        "device: unknown key, it is an option of the command, as in --device cuda",
    ),
    "a device of the training": (
        'train={ epochs = 1, batch_size = 10, device = "cuda" }',
        "train.device: unknown key, it is an option of the command, as in --device cuda",
    ),
    "a run's seed at the top": (
        "seed = 3",
        "seed: unknown key, a run's seed is one of seeds = [...], which is written",
    ),
    "the study's seeds in a table": (
        'data={ name = "digits", train_size = 40, valid_size = 40, seeds = [1] }',
        "data.seeds: unknown key, it is of the whole study: write it at the top of the file",
    ),
    "a key of another table": (
        "train={ epochs = 1, batch_size = 20, valid_size = 40 }",
        "train.valid_size: unknown key, it belongs in data, as data.valid_size",
    ),
    "a list of tables in a table": (
        "train={ epochs = 1, batch_size = 20, regularizers = [] }",
        "train.regularizers: unknown key, it is no part of another table: write regularizers = ... above the first "
        "table, or begin [[regularizers]]",
    ),
    "a search's key at the top": ("trials = 3", "trials: unknown key, it belongs in sweep, as sweep.trials"),
    "a search of strengths": (
        "sweep={ space = { strengths = [1, 2] } }",
        "sweep.space: strengths is no key of a run, write regularizers.0.strength or optimizer.weight_decay",
    ),
    "a search of a key without its table": (
        "sweep={ space = { epochs = [1, 2] } }",
        "sweep.space: epochs is no key of a run, it belongs in train, as train.epochs",
    ),
    "one strength in place of several": (
        'arms=[{ name = "plain", strength = [1] }]',
        "arms[plain].strength: unknown key, did you mean 'strengths'?",
    ),
    "an unknown argument": ("model.args={ hiden = 3 }", "model.args.hiden: unknown key, valid: hidden"),
    "a table in place of tables": (
        'regularizers={ penalty = "L1" }',
        "put it in brackets, as in regularizers = [{ ... }], or begin its tables with [[regularizers]]",
    ),
    "a table in place of an arm's": (
        'arms=[{ name = "plain", regularizers = { penalty = "L1" } }]',
        "put it in brackets, as in regularizers = [{ ... }], or begin its tables with [[arms.regularizers]]",
    ),
    "a class that exits": ('model={ class = "sys:exit" }', "must name a class of Module"),
    "a class that kills": ('model={ class = "os:abort" }', "must name a class of Module"),
    "a class of another kind": (f'model={{ class = "{HERE}:Loud" }}', "must name a class of Module"),
    "an optimizer that is a model": (f'optimizer={{ class = "{HERE}:Quiet", lr = 1 }}', "a class of Optimizer"),
    "a schedule that is a function": (f'dropout_schedule={{ class = "{HERE}:loud" }}', "a class of Callable"),
    "a function": (f'model={{ class = "{HERE}:loud" }}', "or a function of yours that makes one"),
    "a function of a number": (f'model={{ class = "{HERE}:loud_number" }}', "must name a class of Module"),
    "a module that exits": ('model={ class = "exits:Net" }', "'exits:Net' cannot be imported: SystemExit: 3"),
    "bytes that are no text": ("name=a\udcff", "name: must be text without NUL, in UTF-8"),
}


@pytest.fixture
def command(experiments, tmp_path, monkeypatch):
    """The command line in a folder with a study and a module that ends Python."""
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    return experiments


@pytest.mark.parametrize(("override", "line"), BAD.values(), ids=BAD)
def test_a_bad_value_is_one_line_and_exit_code_2(override, line, command, tmp_path):
    code, out, err = command("run", "study.toml", "--set", override, "--device", "cpu")
    assert (code, out, err.count("\n"), err[:7]) == (2, "", 1, "error: ")
    assert line in err
    assert CALLED == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arms", "line"),
    [
        ('[{ name = "a" }]', "arms[a].optimizer: SGD("),
        ('[{ name = "a" }, { name = "b", model = { hidden = [9] } }]', "optimizer: SGD("),
        ('[{ name = "a" }, { name = "b", optimizer = { lr = 1 } }]', "arms[a].optimizer: SGD("),
    ],
    ids=["one arm", "a common table", "a table of an arm"],
)
def test_a_fault_is_told_at_the_table_of_the_arm_or_of_all(arms, line, command):
    code, _, err = command("run", "study.toml", "--set", f"arms={arms}", "--set", "optimizer.momentum=-1")
    assert (code, err[:7]) == (2, "error: ")
    assert err[7:].startswith(line)
    assert err.endswith("(tried in arm 'a')\n") == line.startswith("optimizer")


@pytest.mark.parametrize(
    "text",
    [f"x = {'9' * 5000}", f"x = {'[' * 9000}{']' * 9000}", f"x = {'{a=' * 9000}1{'}' * 9000}", "x = 1979-13-01", "\0"],
    ids=["a number of 5000 digits", "a list too deep", "a table too deep", "no such date", "NUL"],
)
def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_2(text, command, tmp_path):
    (tmp_path / "study.toml").write_text(text)
    code, out, err = command("run", "study.toml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: study.toml: not a TOML file")


@pytest.mark.parametrize("name", ["Quiet", "quiet", "unannotated", "Quiet.made"])
def test_a_users_own_class_or_function_is_a_model(name, command):
    assert command("run", "study.toml", "--set", f'model={{ class = "{HERE}:{name}" }}', "--device", "cpu")[0] == 0


def test_a_function_without_an_annotation_is_judged_by_what_it_makes(command):
    code, _, err = command("run", "study.toml", "--set", f'model={{ class = "{HERE}:nothing" }}', "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "model.class: must make a Module" in err


@pytest.mark.parametrize(
    ("word", "valid"),
    [("Adamw", "AdamW"), ("adam", "Adam"), ("RADAM", "RAdam"), ("sgd", "SGD"), ("Adan", "Adam"), ("nadam", "NAdam")],
)
def test_the_name_in_another_case_is_the_nearest(word, valid):
    assert did_you_mean(word, ["ASGD", "Adam", "AdamW", "NAdam", "RAdam", "SGD"]) == f"did you mean {valid!r}?"


def test_the_help_shows_what_stands_in_brackets(command):
    _, out, _ = command("--help")
    assert "[sweep]" in out
    assert "[sweep]" in command("sweep", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run"], "error: Missing argument 'CONFIG': as in python -m experiments run quickstart\n"),
        (["sweep"], "error: Missing argument 'CONFIG': as in python -m experiments sweep sweep\n"),
        (["report"], "error: Missing argument 'DIR': as in python -m experiments report runs/quickstart\n"),
        (["rnu"], "error: No such command 'rnu'"),
        (["run", "study.toml", "--resmue"], "error: No such option: --resmue"),
        (["sweep", "study.toml", "--jobs", "0"], "error: Invalid value for "),
        (["run", "study.toml", "other.toml"], "error: Got unexpected extra argument"),
    ],
)
def test_a_misused_command_is_one_line_that_says_what_to_write(arguments, line, command):
    code, out, err = command(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)
    assert "python -m experiments" in err or "--help" in err


def test_without_a_command_there_is_the_help(command):
    code, out, err = command()
    assert code == 2
    assert "Commands" in out + err


@pytest.fixture
def report(command):
    """The arguments that print the report of a study with one seed more than one, so that it has standard errors."""
    named = 'arms=[{ name = "none ±" }, { name = "日本", optimizer = { lr = 0.2 } }]'
    assert command("run", "study.toml", "--set", "seeds=[0, 1]", "--set", named, "--device", "cpu")[0] == 0
    return "report", "runs/small"


def written(arguments: tuple[str, ...], stream: io.TextIOBase, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the command with its output in a stream."""
    monkeypatch.setattr("sys.argv", ["experiments", *arguments])
    with pytest.raises(SystemExit) as end, contextlib.redirect_stdout(stream):  # type: ignore[type-var]
        main()
    return end.value.code


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "latin-1"])
def test_a_terminal_may_lack_letters(encoding, report, monkeypatch):
    stream = io.TextIOWrapper(buffer := io.BytesIO(), encoding=encoding)
    assert written(report, stream, monkeypatch) == 0
    table = buffer.getvalue().decode(encoding).splitlines()
    assert len({len(line) for line in table[1:4]}) == 1  # the columns are where they were
    assert "??" in table[3]
    assert table[2].count("+-" if encoding == "ascii" else "±") > 3


def test_nobody_may_read_the_output(report, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:  # noqa: PTH123
        assert written(report, stream, monkeypatch) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("closed", [["stdout"], ["stderr"], ["stdout", "stderr"]])
@pytest.mark.parametrize(("last", "code"), [("small", 0), ("none", 2)])
def test_the_output_may_be_closed_before_the_start(closed, last, code, report, monkeypatch, capsys):
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr("sys.argv", ["experiments", "report", f"runs/{last}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    out, err = capsys.readouterr()
    assert bool(out) == (code == 0 and "stdout" not in closed)
    assert bool(err) == (code == 2 and "stderr" not in closed)
    for name in closed:
        getattr(sys, name).close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_the_output_may_be_a_full_disk(report, monkeypatch, capsys):
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        stream = io.TextIOWrapper(full, write_through=True)
        assert written(report, stream, monkeypatch) == 2
        stream.detach()
    assert capsys.readouterr().err == "error: the output: cannot be read or written: No space left on device\n"


@pytest.mark.slow
def test_matplotlib_may_be_told_of_a_backend_that_it_lacks():
    environment = {**os.environ, "MPLBACKEND": "nope", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "experiments", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("torchreg ")


@pytest.fixture
def interrupts():
    """Ctrl-C interrupts, as in a terminal: a shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_study_that_is_asked_to_end_says_how_to_go_on(number, code, command, monkeypatch):
    def stop(*arguments: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    with monkeypatch.context() as patched:
        patched.setattr("experiments.running.tasks.train", stop)
        before = signal.getsignal(number)
        ended, _, err = command("run", "study.toml", "--device", "cpu")
        assert signal.getsignal(number) is before
    assert (ended, err) == (code, "\nstopped; run it again with --resume --out runs/small to go on\n")
    monkeypatch.setattr("experiments.running.tasks.train", train)
    assert command("run", "study.toml", "--device", "cpu", "--resume")[0] == 0


class Finalized:
    """Python drops an exception that it meets where this is deleted."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("engine", ["local", "processes"])
def test_a_signal_whose_exception_is_dropped_ends_the_study_all_the_same(engine, command, monkeypatch):
    def open_and_drop(self, *arguments: object) -> AbstractContextManager[object]:
        Finalized()
        return real(self, *arguments)

    kind = {"local": Local, "processes": Processes}[engine]
    real = kind.open
    monkeypatch.setattr(kind, "open", open_and_drop)
    ended, _, err = command("run", "study.toml", "--device", "cpu", "--engine", engine)
    assert ended == 130
    assert err.endswith(
        "\nstopped; run it again with --resume --out runs/small to go on\n"
    )  # a slow start tells before


@pytest.mark.parametrize("arguments", [["list"], ["show", "study.toml"]], ids=lambda arguments: arguments[0])
def test_ctrl_c_ends_a_command_that_writes_nothing(arguments, command, monkeypatch):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.cli.catalog.entries", stop)
    monkeypatch.setattr("experiments.cli.outline", stop)
    code, out, err = command(*arguments)
    assert (code, out, err.strip()) == (130, "", "")


class Slow(Quiet):
    """A model that takes its time, outside of Python."""

    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)


SLOW = {"class": f"{HERE}:Slow"}
SEARCH = small(
    arms=[{"name": "arm", "model": SLOW}],
    train={"epochs": 1000, "batch_size": 50},
    sweep={"space": {"optimizer.lr": [0.1, 0.2]}},
)


def search(folder: Path) -> None:
    run_sweep(SEARCH, folder, CPU, engine=Processes(2))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("later", [0.0, 0.2, None], ids=["at their start", "soon after it", "while they train"])
def test_workers_end_within_a_second_of_their_parent(later, tmp_path):
    parent = FORKS.Process(target=search, args=(tmp_path,))
    parent.start()
    while not (workers := workers_of(parent.pid) if parent.is_alive() else [0]) or len(workers) < 2:
        time.sleep(0.01)
    if later is None:
        while len(list(tmp_path.glob("runs/**/history.jsonl"))) < 2:
            time.sleep(0.01)
    else:
        time.sleep(later)
    assert all(map(lives, workers))
    parent.kill()
    parent.join()
    ended = time.monotonic()
    while any(map(lives, workers)):
        assert time.monotonic() - ended < 1.0
        time.sleep(0.01)
