"""What a CUDA device shows: penalties in large networks, whole steps as graphs, dropout, stacks, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torchreg
from torchreg.regularizer import Mode
from torchreg.tuning.path.executors import train_all
from torchreg.tuning.path.fit import fit

from . import dropout, optimizer, overhead
from .choosing import alone, members_of
from .overhead import MODES
from .steps import BATCH, Step, l1_l2, mlp, step
from .timing import Clock, Row, Table, Work


def parts(clock: Clock) -> list[Callable[[], Iterable[Table]]]:
    """What makes the tables of ``tests/gpu_check.py``, each by itself: if one fails, the others are made."""
    made: list[Callable[[Clock], Iterable[Table]]] = [
        *(overhead.small, overhead.thin, overhead.slope, overhead.modes, resnet, gpt, whole_step),
        *(partial(epoch, members) for members in (1, 64)),
        *(optimizer.tables, dropout.in_step),
        *(partial(dropout.alone, p, torch.float32) for p in (0.5, 0.1)),
        *(partial(dropout.alone, 0.5, torch.float32, own=True), stack, study, memory),
    ]
    return [partial(part, clock) for part in made]


def networks(clock: Clock) -> Iterator[Table]:
    """Penalties in large networks."""
    yield from resnet(clock)
    yield from gpt(clock)


def graphs(clock: Clock) -> Iterator[Table]:
    """Steps as graphs."""
    yield from whole_step(clock)
    yield from epoch(1, clock)
    yield from epoch(64, clock)


# -- steps --------------------------------------------------------------------------------------------------------


def _by_mode(title: str, net: Callable[[], nn.Module], clock: Clock, batch: tuple[Tensor, Tensor]) -> Iterator[Table]:
    """L1 + L2 in each mode, with and without compile, against the bare step, in bfloat16 by autocast."""

    def made(mode: Mode | None = None, **options: object) -> Work:
        return step(net, mode, device=clock.device, batch=batch, half=torch.bfloat16, **options)

    contenders = {"bare": made(), "naive penalty in the loss": made(by_hand=l1_l2)}
    for compile in (False, True):
        for mode in MODES:
            contenders[f"mode {mode!r}{', compile=True' * compile}"] = made(mode=mode, compile=compile)
    yield from clock.race(f"training step, {title}, fused AdamW, L1 + L2", contenders, 15, repeat=8)


def resnet(clock: Clock) -> Iterator[Table]:
    from torchvision.models import resnet50

    images = torch.randn(64, 3, 224, 224, device=clock.device), torch.randint(1000, (64,), device=clock.device)
    return _by_mode("ResNet-50, batch 64 of 224 x 224, bfloat16 by autocast", resnet50, clock, images)


def gpt(clock: Clock) -> Iterator[Table]:
    words = torch.randint(GPT.words, (8, 512), device=clock.device)
    batch = words, torch.randint(GPT.words, (8 * 512,), device=clock.device)
    return _by_mode("GPT-2 of 124M weights, 8 x 512 words, bfloat16 by autocast", GPT, clock, batch)


class GPT(nn.Module):
    """A network of the sizes of the smallest GPT-2 (Radford and others 2019): 12 blocks, 124 million weights."""

    words, length, width = 50257, 1024, 768

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(self.words, self.width)
        self.place = nn.Embedding(self.length, self.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(self.width, 12, 4 * self.width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(12)
        )
        self.norm = nn.LayerNorm(self.width)

    def forward(self, words: Tensor) -> Tensor:
        x = self.word(words) + self.place.weight[: words.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1], device=words.device, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        scores: Tensor = self.norm(x) @ self.word.weight.T
        return scores.flatten(0, 1)


def whole_step(clock: Clock) -> Iterator[Table]:
    """Model, loss, penalty, dropout and optimizer: eager, compiled as one, and captured as one CUDA graph."""
    net = partial(dropout.with_dropout, mlp, torchreg.nn.Dropout)

    def made() -> Step:
        return step(net, mode="grad", device=clock.device, capturable=True)

    contenders: dict[str, Work] = {
        "eager": made(),
        "torch.compile": torch.compile(_one(made())),
        'torch.compile, mode="reduce-overhead"': torch.compile(_one(made()), mode="reduce-overhead"),
        "torch.cuda.graph": _captured(made()),
    }
    title = "whole step, 784-1024-1024-2048-10, batch 128, dropout, mode 'grad'"
    yield from clock.race(title, contenders, 10, repeat=100)


def _one(work: Step) -> Work:
    """The step as a function that a compiler can read, with numbers of its own."""

    def step() -> None:
        work.optimizer.zero_grad(set_to_none=True)
        cross_entropy(work.net(work.x), work.y).backward()
        work.optimizer.step()

    return step


def _captured(work: Step) -> Work:
    run = _one(work)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(holds: Step = work) -> None:  # the graph does not hold the weights, whose memory it uses
        graph.replay()

    return replay


def epoch(members: int, clock: Clock) -> Iterator[Table]:
    """An epoch of a study as it is, and with ``train.compile``: of a run alone, or of a stack."""
    from .. import config  # needs pydantic, which a machine for GPU checks may lack
    from ..training.loop import make_steps
    from ..training.setup import set_up

    hidden = [1024, 1024, 2048] if members == 1 else [512, 512]

    def made(compile: bool) -> Work:
        study = config.resolve(
            {
                "name": "epoch",
                "seeds": list(range(members)),
                "data": {"class": f"{__name__}:noise", "train_size": 50 * BATCH, "standardize": False},
                "model": {"name": "mlp", "hidden": hidden, "dropout": {"name": "Dropout", "p": 0.3}},
                "optimizer": {"name": "AdamW", "lr": 1e-3},
                "train": {"epochs": 1, "batch_size": BATCH, "compile": compile},
                "regularizers": [{"penalty": penalty, "strength": 1e-6, "mode": "grad"} for penalty in ("L1", "L2")],
                "arms": [{"name": "arm"}],
            }
        )
        setup = set_up(study.runs, torch.device(clock.device), stacked=members > 1)
        return lambda: make_steps(setup, setup.batches())

    works = {"eager": made(False), "train.compile = true": made(True)}
    net = f"{'-'.join(map(str, (784, *hidden, 10)))}, batch {BATCH}, dropout, L1 + L2 in mode 'grad'"
    runs = "a run" if members == 1 else f"{members} runs as a stack"
    yield from clock.race(f"an epoch of 50 steps of {runs}, {net}", works, 8, repeat=1)


def noise() -> tuple[Tensor, Tensor]:
    """Inputs as large as those of MNIST, and classes."""
    return torch.randn(80 * BATCH, 784), torch.randint(10, (80 * BATCH,))


# -- stacks, memory ---------------------------------------------------------------------------------------------------


def stack(clock: Clock) -> Iterator[Table]:
    """64 networks at 64 strengths: stacked, and one after another."""
    problem, models, strengths = members_of(64, (64, 64, 64, 10), 1000, 5, 100, clock.device)

    def job(stacked: torchreg.Stacked, strengths: Sequence[float]) -> None:
        fit(stacked, strengths, problem)

    contenders: dict[str, Work] = {
        "stacked": lambda: train_all(models, strengths, job, "stacked", 1),
        "ordinary loops": lambda: list(map(partial(alone, problem), models, strengths)),
    }
    yield from clock.race("64 x 64-64-64-10, 50 steps of 100", contenders, 3, warmup=1, repeat=1)


def study(clock: Clock) -> Iterator[Table]:
    """64 runs of the quickstart with all that a study does beside the steps: as one stack, and one after another."""
    from .. import config  # needs pydantic, which a machine for GPU checks may lack
    from .studies import QUICKSTART, made

    tree = config.tree_of(QUICKSTART, ["train.epochs=20", "train.evaluate_every=5"])
    tree["seeds"], tree["arms"] = (
        list(range(16)),
        [{**arm, "strengths": [0.0, 0.003, 0.01, 0.03]} for arm in tree["arms"] if arm["name"] == "L2"],
    )
    studies = {
        "in a stack": config.resolve({**tree, "train": {**tree["train"], "stack": True}}),
        "one run after another": config.resolve({**tree, "train": {**tree["train"], "stack": False}}),
    }
    works = {name: partial(made, study, clock.device) for name, study in studies.items()}
    title = "a study of 64 runs of 64-128-128-10, 120 steps of 50, 4 evaluations"
    yield from clock.race(title, works, 1, warmup=1, repeat=1)


def memory(clock: Clock) -> list[Table]:
    """The peak of memory of a step beyond the bare step's, relative to the largest parameter."""
    largest = max(p.numel() * p.element_size() for p in mlp().parameters())
    peaks = {}
    for mode in (None, *MODES):
        work = step(mlp, mode, device=clock.device)
        for _ in range(3):
            work()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        peaks[mode] = torch.cuda.max_memory_allocated() - before
    bare = peaks.pop(None)
    shares = {mode: (peak - bare) / largest for mode, peak in peaks.items()}
    rows = [Row(f"mode {mode!r}", share, share, share, 0.0) for mode, share in shares.items()]
    title = "peak memory beyond the bare step's, 784-1024-1024-2048-10, to the largest parameter's"
    return [Table(title, tuple(rows))]
