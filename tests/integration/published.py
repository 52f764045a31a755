"""A study with a table [published], for the tests of ``evidence``."""

import json

TOML = """
name = "tiny"
seeds = [0, 1]
data = { name = "digits", train_size = 60, valid_size = 60 }
model = { name = "mlp", hidden = [8] }
optimizer = { name = "AdamW", lr = 1e-2 }
train = { epochs = 2, batch_size = 30, stack = false }

[published]
claim = "Decay | helps"
authors = "A. Author, B. Author"
title = "A Paper"
year = 2014
where = "table 1"
figures = "1.62 without, 1.05 with decay"
budget = "2 epochs of 60 images"
teaches = "That a page is written."
uses = ["optim.AdamW"]
notes = ["It falls short, since 2 epochs are few."]

[published.finals]
published = { none = 1.62 }
at_most = { none = 100.0, decay = 0.0 }

[[arms]]
name = "none"

[[arms]]
name = "decay"
strengths = [0.1, 1.0]
"""
QUICK = ("--set", "train.epochs=1")


def with_two_measures(text):
    onset = "[published.onset]\nlevel = 0.875\narms = ['decay']\n\n[[arms]]"
    return text.replace("strengths = [0.1, 1.0]", "optimizer.weight_decay = 0.1").replace("[[arms]]", onset, 1)


def altered(docs, **changes):
    """The record with other values, as if an earlier version had written it."""
    from experiments.report.evidence.record import _checksum

    file = docs / "evidence" / "tiny.json"
    tree = {**json.loads(file.read_text()), **changes}
    del tree["checksum"]
    file.write_text(json.dumps({**tree, "checksum": _checksum(tree)}))
