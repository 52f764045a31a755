"""``evidence``: what it refuses, before the runs where that can be known, and which records it never replaces."""

import errno
import json
import re
from tempfile import TemporaryFile

import pytest
from torchvision import datasets

from experiments import SHIPPED
from experiments.training.storage import make_folder
from tests.integration.published import QUICK, TOML, altered


def test_the_record_of_another_study_with_the_same_file_name_is_not_replaced(evidence, tmp_path):
    for name in ("a", "b"):
        make_folder(tmp_path / name)
        (tmp_path / name / "x.toml").write_text(TOML.replace('"tiny"', f'"{name}"'))
    assert evidence("a/x.toml", *QUICK)[0] == 0
    record = (tmp_path / "docs/evidence/x.json").read_text()
    for arguments in (QUICK, (*QUICK, "--from", "runs/a")):
        code, _, said = evidence("b/x.toml", *arguments)
        assert code == 2
        assert said == (
            "error: evidence: docs/evidence/x.json is the record of another study, a/x.toml: rename the file of this "
            "one, or choose another folder by --docs; or remove the record\n"
        )
    assert not (tmp_path / "runs/b").exists()
    assert (tmp_path / "docs/evidence/x.json").read_text() == record
    (tmp_path / "docs/evidence/x.json").unlink()
    assert evidence("b/x.toml", *QUICK)[0] == 0


def test_the_record_of_the_same_file_is_replaced_wherever_the_command_is_called(evidence, tmp_path, monkeypatch):
    make_folder(tmp_path / "a")
    (tmp_path / "a" / "x.toml").write_text(TOML)
    assert evidence("a/x.toml", *QUICK)[0] == 0
    assert evidence(str(tmp_path / "a/x.toml"), "--resume", *QUICK)[0] == 0
    monkeypatch.chdir(tmp_path / "a")
    assert evidence("x.toml", "--from", "../runs/tiny", "--docs", "../docs", *QUICK)[0] == 0
    tree = json.loads((tmp_path / "docs/evidence/x.json").read_text())
    assert tree["command"] == "python -m experiments evidence x.toml --set train.epochs=1"


def test_a_study_named_as_a_shipped_one_has_its_own_text_and_neither_replaces_the_other(evidence, tmp_path):
    (tmp_path / "omnigrok.toml").write_text(TOML)
    assert evidence("omnigrok.toml", *QUICK)[0] == 0
    assert "[Decay \\| helps](#evidence-omnigrok)" in (tmp_path / "docs/evidence.md").read_text()
    for name in ("omnigrok", str(SHIPPED / "published" / "omnigrok.toml")):
        code, _, said = evidence(name)
        assert code == 2
        assert "docs/evidence/omnigrok.json is the record of another study, omnigrok.toml: rename" in said


def test_a_record_of_a_shipped_study_by_an_earlier_version_is_that_study_s(made, evidence, tmp_path):
    altered(made, study="")
    code, _, said = evidence("tiny.toml", "--from", "runs/tiny")
    assert code == 2
    assert "docs/evidence/tiny.json is the record of another study, tiny: rename" in said


def test_a_record_that_cannot_be_read_is_not_replaced(made, evidence):
    file = made / "evidence" / "tiny.json"
    file.write_text("[]")
    code, _, said = evidence("tiny.toml", "--resume")
    assert code == 2
    assert said == (
        "error: evidence: docs/evidence/tiny.json is damaged, and may be the record of another study: remove it, and "
        "run this again\n"
    )
    assert file.read_text() == "[]"


def touched(path):
    path.write_text("")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda docs: touched(docs / "evidence"), "docs/evidence must be a folder to write to, got: Not a directory:"),
        (lambda docs: (docs / "evidence").symlink_to("no"), "docs/evidence must be a folder to write to, got: No such"),
        (lambda docs: make_folder(docs / "evidence.md"), "docs/evidence.md must be a file, is a folder: remove it"),
        (lambda docs: make_folder(docs / "evidence" / "tiny.json"), "docs/evidence/tiny.json must be a file"),
        (lambda docs: make_folder(docs / "evidence" / "tiny_2.svg"), "docs/evidence/tiny_2.svg must be a file"),
    ],
)
def test_a_folder_that_cannot_hold_the_record_is_found_before_the_runs(evidence, tmp_path, make, said):
    make(tmp_path / "docs")
    code, _, error = evidence("tiny.toml", *QUICK)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: --docs: {said}")
    assert not (tmp_path / "runs").exists()


def test_a_key_that_is_no_number_is_found_before_the_runs(evidence, tmp_path):
    slope = "[published.slope]\nalong = 'model.name'\nexpected = {}\n\n[published.finals]"
    named = TOML.replace('name = "decay"', 'name = "lr, 1"').replace("decay =", '"lr, 1" =')
    (tmp_path / "tiny.toml").write_text(named.replace("[published.finals]", slope))
    code, _, error = evidence("tiny.toml", *QUICK)
    assert code == 2
    assert error.startswith("error: published: along must be the key of a number, such as data.train_size, got 'model.")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["docs", "docs/evidence"])
def test_a_folder_that_must_not_be_written_to_is_found_before_the_runs(evidence, tmp_path, monkeypatch, place):
    """By an error as the system raises it, since the tests may run as root, who may write anywhere."""
    make_folder(tmp_path / "docs" / "evidence")
    used = TemporaryFile

    def refused(dir):
        if str(dir) == place:
            raise PermissionError(errno.EACCES, "Permission denied")
        return used(dir=dir)

    monkeypatch.setattr("experiments.report.evidence.place.TemporaryFile", refused)
    code, _, error = evidence("tiny.toml", *QUICK)
    assert code == 2
    assert error == (
        f"error: --docs: {place} must be a folder to write to, got: Permission denied: choose another for --docs\n"
    )
    assert not (tmp_path / "runs").exists()


def test_a_regression_is_refused_before_its_runs(evidence, tmp_path):
    rows = "\n".join(f"{i},{i % 7}" for i in range(200))
    (tmp_path / "rows.csv").write_text(f"x,y\n{rows}\n")
    data = 'data={ name = "csv", path = "rows.csv", target = "y", task = "regression" }'
    code, _, error = evidence("tiny.toml", "--set", data)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: published: the measures are of shares of wrong classes, this study is a regression")
    assert not list(tmp_path.glob("runs/*/runs"))


def test_an_unknown_name_lists_what_there_is(evidence):
    code, _, said = evidence("omnigrook")
    assert code == 2
    assert re.fullmatch(r"error: evidence: unknown study 'omnigrook': there are (\w+, )*omnigrok(, \w+)*\n", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny.toml", "--from", "nowhere"], "nowhere: holds no study"),
        (["tiny.toml", "--from", "runs/tiny", "--resume"], "--from: takes records as they are"),
        (["tiny.toml", "--docs", "nowhere"], "--docs: must be a folder that exists, got nowhere"),
        (["--resume"], "evidence: --set, --out, --device, --jobs, --resume and --from need a NAME: there are"),
        (["--device", "cpu"], "evidence: --set, --out, --device, --jobs, --resume and --from need a NAME: there are"),
        (
            ["tiny.toml", "--from", "runs", "--device", "cpu"],
            "--from: takes records as they are: leave out --out, --dev",
        ),
        (["tiny.toml", "--from", ""], "must be the path of a folder or a file, got an empty text"),
        (["--docs", ""], "must be the path of a folder or a file, got an empty text"),
        (["other.toml"], "evidence: other.toml has no table [published]"),
    ],
)
def test_bad_input_is_told_in_one_line(evidence, tmp_path, arguments, said):
    make_folder(tmp_path / "nothing")
    (tmp_path / "other.toml").write_text(re.sub(r"\[published\].*?(?=\[\[arms\]\])", "", TOML, flags=re.DOTALL))
    code, _, error = evidence(*arguments)
    assert code == 2
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("at_most", "at_mots"), "published.finals.at_mots: unknown key, did you mean 'at_most'?"),
        (("year = 2014", 'year = "2014"'), "published.year: must be a valid integer, got '2014'"),
        (('claim = "Decay | helps"', ""), "published.claim: is missing"),
        (("decay = 0.0 }", "dacay = 0.0 }"), "published.finals: unknown arm 'dacay'"),
        (("[[arms]]", "[published.tuned]\n[[arms]]"), "published.tuned: no arm's name ends in ', tuned': name one so"),
    ],
)
def test_the_table_is_checked_as_all_others_are(evidence, tmp_path, change, said):
    (tmp_path / "tiny.toml").write_text(TOML.replace(*change, 1))
    code, _, error = evidence("tiny.toml", *QUICK)
    assert code == 2
    assert f"error: {said}" in error
    assert not (tmp_path / "runs").exists()


def test_without_mnist_a_line_says_where_it_is_looked_for(evidence, tmp_path, monkeypatch):
    def offline(self):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCHREG_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr(datasets.MNIST, "download", offline)
    code, _, said = evidence("double_descent")
    assert code == 2
    assert said.count("\n") == 1
    assert f"mnist is not in {tmp_path / 'mine/MNIST/raw'}" in said
    assert "set data.root or TORCHREG_DATA to a folder that holds MNIST/raw" in said
    assert not (tmp_path / "docs/evidence.md").exists()
