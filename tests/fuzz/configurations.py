"""Studies whose text was mutated, read and rehearsed as the command line does up to the start of training."""

import json
import random
import re
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from experiments import cli
from tests.fuzz.command import Outcome, outcome_of

OWN = (Path(__file__).parents[2] / "configs" / "own").as_posix()
HEAD = """
name = "fuzz"
seeds = [0, 1]
data = { name = "digits", train_size = 20, valid_size = 20, label_noise = 0.2 }
model = { name = "mlp", hidden = [4] }
optimizer = { name = "AdamW", lr = 1e-3, betas = [0.9, 0.99] }
train = { epochs = 2, batch_size = 10, early_stopping = { patience = 2 } }
"""
STUDIES = [
    HEAD
    + """
regularizers = [{ penalty = "ElasticNet", l1_ratio = 0.5, mode = "prox", select = "weights" }]
[[arms]]
name = "ElasticNet"
strengths = [0.0, 0.1]
""",
    HEAD.replace(
        "label_noise = 0.2", "tasks = { classes = [[0, 1], [2, 3]], scenario = 'task', in_turn = true }"
    ).replace(", early_stopping = { patience = 2 }", "")
    + """
regularizers = [{ penalty = "L2SP", anchor = "tasks", weights = "fisher", select = "everything" }]
[[arms]]
name = "EWC"
strengths = [0.0, 100.0]
""",
    HEAD
    + """
scheduler = { name = "CosineAnnealingLR", T_max = 2, interval = "epoch", after = 1 }
dropout_schedule = { name = "early", steps = 4 }
[[arms]]
name = "dropout"
model.dropout = { name = "Dropout", p = 0.5 }
model.input_dropout = { name = "GaussianDropout", p = 0.2 }
optimizer.weight_decay = 0.1
""",
    HEAD
    + """
[[arms]]
name = "zeros"
optimizer = { name = "ProxAdam", lr = 1e-3, penalty = { name = "LogSum", strength = 1e-4, epsilon = 0.1 } }
sparsity = { target = 0.9, fix_at = 0.6 }
""",
    HEAD
    + """
auto_strength = { lr = 0.05, every = 1, per = "regularizer", bounds = [1e-8, 1e4], batch_size = 8 }
[[arms]]
name = "tuned"
regularizers = [{ penalty = "L2", strength = 0.1, mode = "decoupled" }]
[[arms]]
name = "own"
model = { class = "tests.fuzz.configurations:own_model", args = { width = 4 } }
auto_strength.bounds = [1e-6, 1.0]
regularizers = [{ penalty = "L1", strength = 0.1, mode = "grad" }]
[[arms]]
name = "scheduled"
auto_strength.lr = 0.1
[[arms.regularizers]]
penalty = "L2"
strength = 0.1
mode = "prox"
[[arms.regularizers]]
penalty = "Huber"
strength = 0.1
delta = 0.1
mode = "grad"
""",
    HEAD
    + """
[[arms]]
name = "smooth"
train.loss = { name = "CrossEntropyLoss", label_smoothing = 0.1 }
train.average = { name = "ema", decay = 0.9 }
train.accumulate = 2
train.clip_norm = 1.0
[[arms]]
name = "squares"
train.loss = { name = "HuberLoss", delta = 0.5 }
train.clip_value = 0.1
train.dtype = "float64"
[[arms]]
name = "two"
data = { name = "breast_cancer", train_size = 20 }
train.loss = { name = "BCEWithLogitsLoss", pos_weight = [2.0] }
train.metrics = ["AUROC", { name = "F1Score", average = "macro" }]
""",
    HEAD.replace('name = "digits", train_size = 20, valid_size = 20, label_noise = 0.2', 'name = "diabetes", seed = 1')
    + """
[[arms]]
name = "regression"
data.test_size = 0.5
data.valid_size = 30
data.standardize = false
[[arms]]
name = "own"
data = { class = "tests.fuzz.configurations:own_data", args = { count = 30 }, task = "regression" }
""",
    HEAD.replace(
        'name = "digits"', f'name = "csv", path = "{OWN}/diabetes.csv", target = "sex", inputs = ["bmi", "bp"]'
    )
    + f"""
[[arms]]
name = "table"
[[arms]]
name = "images"
data = {{ name = "images", path = "{OWN}/shapes", size = [8, 8] }}
""",
    HEAD
    + """
[[arms]]
name = "bounded"
model = { freeze = ["linear1.bias"], scale = 2.0, init = { name = "kaiming_normal_", nonlinearity = "linear" } }
regularizers = [{ penalty = "MaxNorm", max_norm = 1.0 }, { activity = "L1", strength = 0.1, modules = "relu*" }]
[[arms]]
name = "searched"
regularizers = [{ penalty = "L1", mode = "loss" }]
[sweep]
sampler = { name = "TPESampler", n_startup_trials = 2 }
pruner = { name = "MedianPruner", n_warmup_steps = 1 }
trials = 2
metric = "valid_loss"
arms = ["searched"]
[sweep.space]
"regularizers.0.strength" = { low = 1e-2, high = 1.0, log = true, count = 3 }
"train.batch_size" = [10, 20]
""",
    HEAD.replace(
        "epochs = 2, batch_size = 10, early_stopping = { patience = 2 }", "solve = true, epochs = 1, batch_size = 9"
    )
    + """
[[arms]]
name = "solved"
train.loss = { name = "MSELoss" }
model.freeze = "linear1.*"
regularizers = [{ penalty = "L2", strength = 0.1 }]
""",
]

DEEP = "[" * 300 + "]" * 300
VALUES = rf"""
-1 0 1 2 3 0.5 -0.0 1.5 1e-3 1e30 1e308 1e999 inf -inf nan 0x10 0b1 1_000 true false 1{"0" * 400} {"9" * 5000}
9223372036854775807 9223372036854775808 -9223372036854775809 1979-05-27 07:32:00 1979-05-27T07:32:00Z
"" "x" 'x' "mlp" "cnn" "nope" "L1" "Nuclear" "MaxNorm" "Dropout" "SGD" "Adamw" "Muon" "LBFGS" "ProxSGD" "linear"
"resnet18" "kaiming_normal_" "StepLR" "GridSampler" "CmaEsSampler" "weights" "*" "loss" "prox"
"é" "日本" "\u0000" "\u2028" "\n"
"csv" "npz" "images" "wine" "regression" "classes" "/dev/zero" "configs" "bmi"
"a:b" "sys:exit" "os:abort" "os:_exit" "os:getcwd" "torch.nn:Linear" "math:pi" "builtins:input"
[] {{}} [1] [nan] [inf,1] [0.9,0.99] [[1]] [{{}}] {{a=1}} {{name="L1"}} {{class="sys:exit"}} {{low=1,high=2}}
{{values=[1979-05-27]}} {{a={{b={{c=nan}}}}}} {DEEP} {DEEP * 20}
""".split()
JUNK = [*'=[]{},."#\x00\x07', "-nan", "1.e", "[[", "]]"]
KEYS = r"""
name class args class_ strength mode select penalty schedule lr p epochs batch_size seed seeds strengths values low
high log count trials metric sampler pruner space sweep arms x "a\nb" "\u0000" "" optimizer model data train dropout
path test_path inputs target split size task standardize stratified train_size valid_size test_size label_noise
tasks scenario in_turn anchor weights
wrap hidden root amp weight_decay momentum betas eps foreach fused capturable maximize interval after steps start end
activity modules max_norm freeze scale init torch timm solve l1_ratio dim groups a.b.c run runs
""".split()  # noqa: SIM905
TOKEN = re.compile(r'"[^"\n]*"|[\w.+:-]+|[^\w\s]|\s+')


def own_model(width: int) -> torch.nn.Sequential:
    """A user's own function that makes a model."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, 10))


def own_data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A user's own function that gives data."""
    return torch.randn(count, 3), torch.arange(count) / 7


class Raw(str):
    """A value as it stands in a file."""


def mutated(text: str, draw: random.Random) -> bytes:
    """The text of a study after one mutation, or after two or three: of its tree, of its words, or of its bytes."""
    count, kind = draw.choice([1, 1, 1, 1, 1, 2, 3]), draw.random()
    if kind < 0.65:
        tree = tomllib.loads(text)
        for _ in range(count):
            _mutate(tree, draw)
        return "\n".join(f"{key} = {toml(value)}" for key, value in tree.items()).encode()
    for _ in range(count):
        text = _mutated_once(text, draw)
    content = text.encode()
    if kind > 0.95 and content:
        place = draw.randrange(len(content))
        byte = bytes([content[place] ^ 1 << draw.randrange(8)]) if draw.random() < 0.5 else draw.randbytes(3)
        content = content[:place] + byte + content[place + 1 :]
    return content


def _mutate(tree: Any, draw: random.Random) -> None:
    """Replaces, removes, renames, adds or moves a value somewhere in the tree."""
    nodes = list(_nodes(tree))
    node = draw.choice(nodes)
    places = list(node) if isinstance(node, dict) else list(range(len(node)))
    kind, new = draw.random(), Raw(draw.choice(VALUES))
    if kind < 0.15 or not places:
        if isinstance(node, dict):
            node[Raw(draw.choice(KEYS))] = new
        else:
            node.append(new)
        return
    place = draw.choice(places)
    if kind < 0.7:
        node[place] = new
    elif kind < 0.8:
        del node[place]
    elif kind < 0.9 and isinstance(node, dict):
        node[Raw(draw.choice(KEYS))] = node.pop(place)
    else:
        other = draw.choice(nodes)
        node[place] = deepcopy(other if draw.random() < 0.5 or not other else draw.choice(_values(other)))


def _nodes(tree: Any) -> Iterator[Any]:
    """The tables and lists in a tree."""
    if isinstance(tree, (dict, list)):
        yield tree
        for value in _values(tree):
            yield from _nodes(value)


def _values(node: Any) -> list[Any]:
    return list(node.values() if isinstance(node, dict) else node)


def toml(value: Any) -> str:
    """The value as it stands in a file."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def _key(key: str) -> str:
    return key if isinstance(key, Raw) or key.isidentifier() else json.dumps(key)


def _mutated_once(text: str, draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.75:
        tokens = TOKEN.findall(text)
        words = [i for i, token in enumerate(tokens) if not token.isspace() and not (token in "=[]{},." and kind > 0.1)]
        if not words:
            return text
        place = draw.choice(words)
        is_key = "".join(tokens[place + 1 : place + 3]).strip().startswith("=")
        if kind < 0.06:
            tokens[place] = ""
        elif kind < 0.1:
            other = draw.choice(words)
            tokens[place], tokens[other] = tokens[other], tokens[place]
        elif kind < 0.2 and not is_key:
            tokens[place] += f", {draw.choice(KEYS)} = {draw.choice(VALUES)}"
        else:
            tokens[place] = draw.choice(KEYS if is_key and draw.random() < 0.95 else [*VALUES, *JUNK])
        return "".join(tokens)
    lines = text.split("\n")
    place = draw.randrange(len(lines))
    if kind < 0.8:
        del lines[place]
    elif kind < 0.83:
        lines.insert(draw.randrange(len(lines)), lines[place])
    elif kind < 0.97:
        table = f"{draw.choice(KEYS)}." if draw.random() < 0.5 else ""
        lines.insert(place, f"{table}{draw.choice(KEYS)} = {draw.choice(VALUES)}")
    else:
        return text[: draw.randrange(len(text) + 1)]
    return "\n".join(lines)


class StartedError(Exception):
    """Training would begin now."""


def outcome(content: bytes, folder: Path) -> Outcome | None:
    """How the command line judges a study; None if it would begin to train."""
    path = folder / "study.toml"
    path.write_bytes(content)
    started = []

    def start(*_: object) -> None:
        started.append(True)
        raise StartedError

    command = cli.search if b"sweep" in content else cli.run
    with patch("experiments.running.study.open_study", start), patch("experiments.running.sweep.open_study", start):
        found = outcome_of(lambda: command(path, [], out=folder / "out", device="cpu"))
    return None if started else found


def faults(count: int, folder: Path, seed: int = 0) -> Iterator[tuple[str, str] | None]:
    """For each of so many mutated studies its text and what is wrong with how it ended; None if nothing is."""
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        content = mutated(draw.choice(STUDIES), draw)
        found = outcome(content, folder)
        is_right = found is None or found.is_refused
        said = "" if is_right else f"code {found.code}, said:\n" + "\n".join([found.out, *found.err])
        yield None if is_right else (f"study {number}:\n{content.decode(errors='replace')}", said)
