"""What a CUDA device shows: penalties in large networks, whole steps as graphs, dropout, stacks, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torchreg
from torchreg.regularizer import Mode
from torchreg.tuning.path.executors import train_all
from torchreg.tuning.path.fit import fit

from .choosing import alone, members_of
from .dropout import with_dropout
from .overhead import MODES
from .steps import BATCH, Step, mlp, step
from .timing import Row, Table, Work, race


def parts() -> list[Callable[[], Table]]:
    """What makes each table; each work is repeated before the clock waits for the device."""
    dropouts, epochs = (partial(dropout, p) for p in (0.5, 0.1)), (partial(epoch, members) for members in (1, 64))
    return [perceptron, resnet, gpt, whole_step, *epochs, *dropouts, stack, study, memory]


def cuda(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: make().to("cuda")


def waited(work: Work, repeat: int) -> Work:
    """The work so many times, and the wait for the device."""

    def block() -> None:
        for _ in range(repeat):
            work()
        torch.cuda.synchronize()

    return block


# -- steps --------------------------------------------------------------------------------------------------------


def overhead(
    title: str,
    net: Callable[[], nn.Module],
    repeat: int,
    rounds: int = 20,
    batch: tuple[Tensor, Tensor] | None = None,
) -> Table:
    """L1 + L2 in each mode, with and without compile, against the bare step; with a batch, in bfloat16 by autocast."""
    half = None if batch is None else torch.bfloat16

    def made(mode: Mode | None = None, **options: bool) -> Work:
        return waited(step(net, mode, batch=batch, half=half, **options), repeat)

    contenders = {"bare": made(), "naive penalty in the loss": made(naive=True)}
    for compile in (False, True):
        for mode in MODES:
            contenders[f"mode {mode!r}{', compile=True' * compile}"] = made(mode=mode, compile=compile)
    return race(f"{repeat} training steps, {title}, fused AdamW, L1 + L2", contenders, rounds)


def perceptron() -> Table:
    return overhead("784-1024-1024-2048-10, batch 128", cuda(mlp), repeat=20)


def resnet() -> Table:
    from torchvision.models import resnet50

    images = torch.randn(64, 3, 224, 224, device="cuda"), torch.randint(1000, (64,), device="cuda")
    return overhead("ResNet-50, batch 64 of 224 x 224, bfloat16 by autocast", cuda(resnet50), 8, 15, images)


def gpt() -> Table:
    words = torch.randint(GPT.words, (8, 512), device="cuda")
    batch = words, torch.randint(GPT.words, (8 * 512,), device="cuda")
    return overhead("GPT-2 of 124M weights, 8 x 512 words, bfloat16 by autocast", cuda(GPT), 8, 15, batch)


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


def whole_step() -> Table:
    """Model, loss, penalty, dropout and optimizer: eager, compiled as one, and captured as one CUDA graph."""
    net = cuda(partial(with_dropout, mlp, torchreg.nn.Dropout))

    def made() -> Step:
        return step(net, mode="grad", capturable=True)

    contenders: dict[str, Work] = {
        "eager": made(),
        "torch.compile": torch.compile(_one(made())),
        'torch.compile, mode="reduce-overhead"': torch.compile(_one(made()), mode="reduce-overhead"),
        "torch.cuda.graph": _captured(made()),
    }
    works = {name: waited(work, 100) for name, work in contenders.items()}
    return race("100 whole steps, 784-1024-1024-2048-10, batch 128, dropout, mode 'grad'", works, 10)


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


def epoch(members: int) -> Table:
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
        setup = set_up(study.runs, torch.device("cuda"), stacked=members > 1)
        return waited(lambda: make_steps(setup, setup.batches()), 1)

    works = {"eager": made(False), "train.compile = true": made(True)}
    net = f"{'-'.join(map(str, (784, *hidden, 10)))}, batch {BATCH}, dropout, L1 + L2 in mode 'grad'"
    return race(f"an epoch of 50 steps of {'a run' if members == 1 else f'{members} runs as a stack'}, {net}", works, 8)


def noise() -> tuple[Tensor, Tensor]:
    """Inputs as large as those of MNIST, and classes."""
    return torch.randn(80 * BATCH, 784), torch.randint(10, (80 * BATCH,))


# -- dropout, stacks, memory ----------------------------------------------------------------------------------------


def dropout(p: float) -> Table:
    """torchreg's dropout to torch's, forward and backward, by the number of elements."""
    rows = []
    for power in (14, 18, 22, 26):
        x = torch.randn(1 << power, device="cuda", requires_grad=True)
        gradient = torch.randn_like(x)

        def work(layer: nn.Module, x: Tensor = x, gradient: Tensor = gradient) -> None:
            x.grad = None
            layer(x).backward(gradient)

        layers = {"torch": nn.Dropout(p), "torchreg": torchreg.nn.Dropout(p)}
        layers["a generator"] = torchreg.nn.Dropout(p, generator=torch.Generator("cuda"))
        found = race("", {name: waited(partial(work, layer), 50) for name, layer in layers.items()}, 20)
        rows += [replace(found[name], name=f"2^{power}, {name}") for name in layers if name != "torch"]
    return Table(f"torchreg.nn.Dropout / torch.nn.Dropout, forward + backward, p = {p}, elements", tuple(rows))


def stack() -> Table:
    """64 networks at 64 strengths: stacked, and one after another."""
    problem, models, strengths = members_of(64, (64, 64, 64, 10), examples=1000, epochs=5, batch=100, device="cuda")

    def job(stacked: torchreg.Stacked, strengths: Sequence[float]) -> None:
        fit(stacked, strengths, problem)

    contenders: dict[str, Work] = {
        "stacked": lambda: train_all(models, strengths, job, "stacked", 1),
        "ordinary loops": lambda: list(map(partial(alone, problem), models, strengths)),
    }
    works = {name: waited(work, 1) for name, work in contenders.items()}
    return race("64 x 64-64-64-10, 50 steps of 100", works, 3, warmup=1)


def study() -> Table:
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
    works = {name: partial(made, study, "cuda") for name, study in studies.items()}
    return race("a study of 64 runs of 64-128-128-10, 120 steps of 50, 4 evaluations", works, 1, warmup=1)


def memory() -> Table:
    """The peak of memory of a step beyond the bare step's, relative to the largest parameter."""
    largest = max(p.numel() * p.element_size() for p in mlp().parameters())
    peaks = {}
    for mode in (None, *MODES):
        work = step(cuda(mlp), mode)
        for _ in range(3):
            work()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        peaks[mode] = torch.cuda.max_memory_allocated() - before
    bare = peaks.pop(None)
    shares = {mode: (peak - bare) / largest for mode, peak in peaks.items()}
    rows = [Row(f"mode {mode!r}", share, share, share, 0.0) for mode, share in shares.items()]
    return Table("peak memory beyond the bare step's, 784-1024-1024-2048-10, to the largest parameter's", tuple(rows))
