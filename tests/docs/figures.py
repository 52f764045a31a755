"""The figures that README and the documentation quote: ``python -m tests.docs.figures`` writes them into the pages.

They are those of docs/benchmarks.json, which `bench --json` writes, and of docs/gpu.json, which `tests.gpu_check`
writes. Each quote below is a piece of a page's text, with # for each number, and the numbers in their order. A page
keeps as many digits of a number as it shows.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.benches.overhead import MODES
from experiments.benches.profile import PARTS, REST
from experiments.benches.timing import Row, Table
from tests.docs.pages import ROOT

COSTS, PROFILE, README = ROOT / "docs/guides/costs.md", ROOT / "docs/profile.md", ROOT / "README.md"
BY_HAND = {PROFILE: "## What a penalty costs a small network"}  # a page's figures from there on were measured by hand
_NUMBER = r"(\d+(?:,\d{3})*(?:\.\d+)?)"

Quote = tuple[str, Sequence[float]]


class Tables:
    """The tables of a file; one is found by what its title holds."""

    def __init__(self, tables: Sequence[dict[str, Any]]) -> None:
        self.tables = [Table.from_json({key: table[key] for key in table if key != "shown"}) for table in tables]

    def __call__(self, title: str, row: str) -> Row:
        (found,) = (table for table in self.tables if title in table.title)
        return found[row]

    def ratios(self, title: str, *rows: str) -> list[float]:
        return [self(title, row).ratio for row in rows]


def quotes() -> dict[Path, list[Quote]]:
    """What each page quotes."""
    benches = json.loads((ROOT / "docs/benchmarks.json").read_text(encoding="utf-8"))["benches"]
    cpu = Tables([table for some in benches.values() for table in some])
    checked = json.loads((ROOT / "docs/gpu.json").read_text(encoding="utf-8"))
    tests = (
        "Of the tests marked `cuda` # passed and # failed",
        [checked["tests"][key] for key in ("passed", "failed")],
    )
    return {
        README: [*_readme(cpu)],
        COSTS: [*_costs(cpu), *_gpu(Tables(checked["tables"])), tests],
        PROFILE: [*_profile(cpu)],
    }


_FOUR_MILLION = "step, 784-1024-1024-2048-10, batch 128, fused AdamW, L1 + L2"
_BY_MODE = [f"mode {mode!r}" for mode in MODES]
_EPOCH = "MNIST images"
_WHOLE = "the loop, dropout + L1 + L2 'prox'"


def _readme(cpu: Tables) -> Iterator[Quote]:
    loss, *others = cpu.ratios(_FOUR_MILLION, *_BY_MODE)
    naive = cpu(_FOUR_MILLION, "naive penalty in the loss").ratio
    yield 'takes # times as long as without in mode `"loss"`', [loss]
    yield "and # to # times in the others", [min(others), max(others)]
    yield "Written by hand it takes # times", [naive]


def _costs(cpu: Tables) -> Iterator[Quote]:
    yield "| written into the loss by hand | # | |", cpu.ratios(_FOUR_MILLION, "naive penalty in the loss")
    for mode, name in zip(MODES, _BY_MODE, strict=True):
        yield f'| mode `"{mode}"` | # | # |', cpu.ratios(_FOUR_MILLION, name, f"{name}, compile=True")
    concave = [f"LogSum(1e-06, epsilon=0.1), {mode!r}" for mode in ("grad", "prox")]
    yield (
        '`LogSum` in mode `"grad"` costs #, compiled #; in mode `"prox"` #, compiled #.',
        cpu.ratios("by penalty", *(f"{name}{end}" for name in concave for end in ("", ", compile=True"))),
    )
    loss, grad, decoupled, prox = cpu.ratios("memory that L1 + L2 take", *_BY_MODE)
    yield (
        '# in mode `"prox"`, # in modes `"grad"` and `"decoupled"`, # in mode `"loss"`',
        [prox, max(grad, decoupled), loss],
    )

    for net in ("64-64-10", "20 layers of 32"):
        yield f"| {net} | # | # | # | # | # |", cpu.ratios(f"step, {net},", "naive", *_BY_MODE)
    for weights in ("10,000", "100,000", "1,000,000", "10,000,000", "100,000,000"):
        yield f"| {weights} | # | # | # | # | # |", cpu.ratios(f"step, {weights} weights", "naive", *_BY_MODE)
    for count, tensors in ((1, "tensor"), (20, "tensors"), (100, "tensors"), (500, "tensors")):
        yield f"| 4 million, in {count} {tensors} | | # | # | # | # |", cpu.ratios(f"4M weights in {count},", *_BY_MODE)
    largest = cpu("step, 100,000,000 weights", "mode 'prox'")
    yield "its quartiles are as wide as # to #:", [largest.low, largest.high]
    loss, grad, decoupled, prox = cpu.ratios("each further tensor", *_BY_MODE)
    yield (
        'takes # µs in mode `"grad"`, # µs in mode `"prox"`, # µs in mode `"decoupled"` and # µs in mode `"loss"`',
        [grad, prox, decoupled, loss],
    )

    for label, row in (
        ("the matrix products alone", "its matrix products alone"),
        ("torchreg's loop, bare", "the loop, bare"),
        ('with dropout, L1 by `"prox"`, L2 in AdamW', "the loop, dropout + L1 'prox', L2 in AdamW"),
        ('with dropout, both by `"prox"`', _WHOLE),
        ("Keras on JAX", "Keras on JAX, Dropout, L1L2"),
        (
            "by hand: `nn.Dropout`, L1 + L2 in the loss, tensors in memory",
            "by hand: nn.Dropout, L1 + L2 in the loss",
        ),
        ("Lightning, the same", "Lightning, nn.Dropout, L1 + L2 in the loss"),
        ("`DataLoader` and transforms, bare", "DataLoader and transforms, bare"),
    ):
        yield _epoch(cpu, label, row)

    for power in (14, 16, 18, 20, 22, 24):
        titles = [f"p = {p}, {kind}" for kind in ("float32", "bfloat16") for p in (0.5, 0.2, 0.1)]
        yield f"| 2^{power} | # | # | # | # | # | # |", [cpu(title, f"2^{power}").ratio for title in titles]
    dropouts = cpu.ratios("dropout .2 of inputs", "torchreg.nn.Dropout", "torch.nn.Dropout")
    yield "dropout after each layer costs #, `nn.Dropout` #", dropouts

    for label, *rows in (
        ('`AdamW`, decay as torch\'s; `"constant"`', "AdamW", "AdamW, constant"),
        ('`AdamW(decay="L1")`', "AdamW, L1 decay"),
        (
            "`AdamW(cautious=True)`; with `compile=True`",
            "AdamW, cautious",
            "AdamW, cautious, compile=True",
        ),
        ('`AdamW` and a `Regularizer(L1, mode="prox")`', "AdamW + Regularizer(L1, prox)"),
        (
            "`ProxAdam` with decay and L1; with `compile=True`",
            "ProxAdam, decay + L1",
            "ProxAdam, decay + L1, compile=True",
        ),
        ("`SGDW`; `ProxSGD` with decay and L1, to fused SGD", "SGDW / SGD", "ProxSGD, decay + L1 / SGD"),
    ):
        yield f"| {label} | {'; '.join('#' for _ in rows)} |", cpu.ratios("optimizer's step", *rows)

    faster = [1 / ratio for ratio in cpu.ratios("16 x 64-64-64-10", "stacked", "processes")]
    yield "one after another: stacked; in two processes | #; # |", faster
    faster = [1 / ratio for ratio in cpu.ratios("4 x 784-1024", "one after another", "stacked", "processes")]
    yield "likewise: one after another; stacked; in two processes | #; #; # |", faster
    tuned = [cpu(f"784-256-256-10, batch 100, Adam, {how}", "tuned").ratio for how in ("L2(1.0)", "L1", "L2(0.01)")]
    yield 'times as long: mode `"decoupled"`; `"prox"`; `"grad"` | #; #; # |', tuned

    decomposed = "one layer of 1000 x 1000"
    nuclear, spectral = (f"{kind} norm by hand in the loss" for kind in ("nuclear", "spectral"))
    yield 'by hand; in mode `"prox"`, decomposed | #; # |', cpu.ratios(decomposed, nuclear, "Nuclear, 'prox'")
    low = cpu.ratios("ten such steps", "Nuclear, 'prox', of a low rank", "the same, every=10")
    yield "once the rank is low; with `every=10` | #; # |", low
    ratios = [*cpu.ratios(decomposed, spectral), *cpu.ratios("ten such steps", "SpectralNorm, 'grad'")]
    yield '`SpectralNorm` in the loss by hand; in mode `"grad"` | #; # |', ratios


def _epoch(cpu: Tables, label: str, row: str) -> Quote:
    return f"| {label} | # | # |", [cpu(_EPOCH, row).seconds, cpu(_EPOCH, row).ratio]


def _gpu(gpu: Tables) -> Iterator[Quote]:
    compiled = [f"{name}, compile=True" for name in _BY_MODE]
    for label, title in (
        ("ResNet-50, batch 64, bfloat16", "ResNet-50"),
        ("GPT-2 with 124 million weights, bfloat16", "GPT-2"),
        ("perceptron with 4 million weights", "784-1024-1024-2048-10, batch 128, fused AdamW, L1 + L2"),
    ):
        ours = gpu.ratios(title, "naive penalty in the loss", *_BY_MODE, *compiled)
        yield f"| {label} | # | # | # | # | # |\n| the same with `compile=True` | | # | # | # | # |", ours
    wide = gpu("GPT-2", "mode 'grad', compile=True")
    yield 'are wide, # to # for mode `"grad"` with', [wide.low, wide.high]
    graph, *compilers = gpu.ratios(
        "whole step", "torch.cuda.graph", "torch.compile", 'torch.compile, mode="reduce-overhead"'
    )
    yield 'a penalty in mode `"grad"` it takes # of the eager time', [graph]
    yield "of the step takes # to # of it", [min(compilers), max(compilers)]
    epochs = [gpu(f"50 steps of {runs}", "train.compile = true").ratio for runs in ("a run", "64 runs as a stack")]
    yield "its steps take # of the eager time, and those of 64 runs as one stack #.", epochs
    yield "64 stacked networks 64-64-64-10 train # times faster", gpu.ratios("64 x 64-64-64-10", "ordinary loops")
    seconds = [gpu("a study of 64 runs", row).seconds for row in ("in a stack", "one run after another")]
    yield "takes # s as one stack and # s one run after another", seconds


def _profile(cpu: Tables) -> Iterator[Quote]:
    for label, row in (
        ("a `DataLoader` with transforms, bare", "DataLoader and transforms, bare"),
        (
            "Lightning on tensors in memory, `nn.Dropout`, L1 + L2 in the loss",
            "Lightning, nn.Dropout, L1 + L2 in the loss",
        ),
        ("the loop by hand: the same on tensors in memory", "by hand: nn.Dropout, L1 + L2 in the loss"),
        ('torchreg\'s loop, its dropout, L1 + L2 in mode `"prox"`', _WHOLE),
        ("the same with L2 as AdamW's own `weight_decay`", "the loop, dropout + L1 'prox', L2 in AdamW"),
        ("torchreg's loop, bare", "the loop, bare"),
        ("its matrix products alone", "its matrix products alone"),
        ("Keras on JAX, `Dropout`, `L1L2`", "Keras on JAX, Dropout, L1L2"),
    ):
        yield _epoch(cpu, label, row)
    steps = [f"a step of the loop, {which}" for which in ("bare", "dropout,", "dropout + L1 + L2 'decoupled'")]
    parts = [*PARTS, REST]
    for part in parts:
        yield f"| {part} | # | # | # |", [1e3 * cpu(title, part).seconds for title in steps]
    bare, whole = ([cpu(title, part).seconds for part in PARTS] for title in (steps[0], steps[2]))
    yield (
        "the kernels of the bare step alone take # times as long as the products, and those of the regularized step #",
        [sum(bare) / bare[0], sum(whole) / whole[0]],
    )
    yield "the bare loop takes # times", [1 / cpu(_EPOCH, "its matrix products alone").ratio]


Written = tuple[int, int, str]


def numbers(page: Path, text: str) -> list[Written]:
    """Where in the page's text each quoted number begins and ends, and what is to stand there."""
    found = []
    for quote, values in quotes()[page]:
        places = list(re.finditer(_NUMBER.join(map(_spaced, quote.split("#"))), text))
        assert len(places) == 1, f"{page.name}: must hold once, holds {len(places)} times: {quote}"
        (place,) = places
        for group, value in enumerate(values, start=1):
            digits = len(place[group].partition(".")[2])
            found.append((*place.span(group), f"{value:.{digits}f}"))
    return sorted(found)


def _spaced(text: str) -> str:
    """A pattern for the text, whose spaces may be line breaks."""
    return re.sub(r"(?:\\\s)+", r"\\s+", re.escape(text))


def rewritten(page: Path, text: str) -> str:
    """The page's text with the figures of today's files."""
    for start, end, value in reversed(numbers(page, text)):
        text = text[:start] + value + text[end:]
    return text


def unknown(page: Path, text: str) -> list[str]:
    """The rows of tables with a number that no quote tells, beside their first column and their heads."""
    places = [(start, end) for start, end, _ in numbers(page, text)]
    measured = text[: text.find(BY_HAND[page])] if page in BY_HAND else text
    rows = []
    for row in re.finditer(r"^\|[^|\n]*\|(.*)\n(?!\|---)", measured, re.MULTILINE):
        cells = re.sub("`[^`]*`", lambda code: " " * len(code[0]), row[1])
        starts = [row.start(1) + cell.start() for cell in re.finditer(r"(?<![\w.,^])\d", cells)]
        if any(not any(begin <= start < end for begin, end in places) for start in starts):
            rows.append(row[0])
    return rows


def main() -> None:
    for page in quotes():
        text = page.read_text(encoding="utf-8")
        if text != (new := rewritten(page, text)):
            page.write_text(new, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
