"""``evidence``: a published study is repeated, reduced to a record, and shown on a page."""

import errno
import json
import re
from tempfile import TemporaryFile

import pytest
from torchvision import datasets

import torchreg
from experiments import SHIPPED
from experiments.training.storage import make_folder

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


@pytest.fixture
def evidence(experiments, tmp_path):
    """The command, in a folder with a published study of digits and a folder for the page."""
    (tmp_path / "tiny.toml").write_text(TOML)
    (tmp_path / "docs").mkdir()
    return lambda *arguments: experiments("evidence", *arguments)


@pytest.fixture
def made(evidence, tmp_path):
    assert evidence("tiny.toml")[0] == 0
    return tmp_path / "docs"


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


def test_a_study_becomes_a_record_a_picture_and_a_row(made, tmp_path):
    tree = json.loads((made / "evidence" / "tiny.json").read_text())
    assert (tree["runs"], tree["planned"], tree["seeds"]) == (6, 6, [0, 1])
    assert tree["versions"]["torchreg"] == torchreg.__version__
    assert tree["command"] == "python -m experiments evidence tiny.toml"
    assert [arm["arm"] for arm in tree["arms"]] == ["none", "decay"]
    results = [json.loads((tmp_path / f"runs/tiny/runs/none/seed{i}/result.json").read_text()) for i in (0, 1)]
    assert tree["arms"][0]["test_error"] == pytest.approx([row["test_error"] for row in results], rel=1e-5)
    page = (made / "evidence.md").read_text()
    assert "| [Decay \\| helps](#evidence-tiny) | 1.62 without, 1.05 with decay (2014) |" in page
    assert re.search(
        r"2014\) \| none: at most 100 % \| [\d.]+ ± [\d.]+ % \| yes \| 2 seeds; [^|]+ \| `evidence tiny.toml`<br>2",
        page,
    )
    assert re.search(r"\n\|  \|  \| decay: at most 0 % \| [\d.]+ ± [\d.]+ % \| \*\*no\*\* \|  \|  \|\n", page)
    assert "- It falls short, since 2 epochs are few." in page
    assert "evidence/tiny.svg" in page
    svg = (made / "evidence" / "tiny.svg").read_text()
    assert svg.startswith("<svg")
    assert 'fill="white"' in svg
    assert not list(made.rglob("*.part"))


def test_each_figure_is_of_the_strength_that_validation_chooses(made, tmp_path):
    tried = []
    for strength in ("0.1", "1"):
        folder = tmp_path / f"runs/tiny/runs/decay@{strength}"
        rows = [json.loads((folder / f"seed{i}" / "result.json").read_text()) for i in (0, 1)]
        tried.append((sum(row["valid_error"] for row in rows), -float(strength), [row["test_error"] for row in rows]))
    (_, decay) = json.loads((made / "evidence" / "tiny.json").read_text())["arms"]
    assert decay["test_error"] == pytest.approx(min(tried)[2], rel=1e-5)


def test_a_folder_is_reduced_without_a_run(experiments, evidence, tmp_path):
    assert experiments("run", "tiny.toml", "--out", "elsewhere")[0] == 0
    assert evidence("tiny.toml", "--from", "elsewhere")[0] == 0
    assert not (tmp_path / "runs").exists()
    first = json.loads((tmp_path / "docs/evidence/tiny.json").read_text())
    assert evidence("tiny.toml", "--from", "elsewhere")[0] == 0
    assert json.loads((tmp_path / "docs/evidence/tiny.json").read_text()) == first


def test_an_overridden_key_stands_in_the_command_and_must_be_that_of_the_folder(evidence, tmp_path):
    assert evidence("tiny.toml", *QUICK)[0] == 0
    tree = json.loads((tmp_path / "docs/evidence/tiny.json").read_text())
    assert tree["command"] == "python -m experiments evidence tiny.toml --set train.epochs=1"
    code, _, said = evidence("tiny.toml", "--from", "runs/tiny")
    assert code == 2
    assert said == (
        "error: --from: runs/tiny must hold the runs of tiny.toml, is of a study with other settings of "
        "none/seed0: train.epochs is 1 there and 2 here: give its --set, too\n"
    )
    assert evidence("tiny.toml", "--from", "runs/tiny", *QUICK)[0] == 0


def test_a_trial_with_other_settings_does_not_replace_the_record(made, evidence, tmp_path):
    before = (made / "evidence/tiny.json").read_bytes()
    code, _, error = evidence("tiny.toml", *QUICK, "--out", "trial")
    assert code == 2
    assert error == (
        "error: evidence: docs/evidence/tiny.json is the record of the study without --set, 6 runs: choose another "
        "folder by --docs, or remove the record\n"
    )
    assert not (tmp_path / "trial").exists()
    assert (made / "evidence/tiny.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    assert evidence("tiny.toml", *QUICK, "--out", "trial", "--docs", "other")[0] == 0
    page = (tmp_path / "other/evidence.md").read_text()
    assert "| 2 seeds; other settings than the file's | `evidence tiny.toml --set train.epochs=1`<br>" in page
    assert evidence("tiny.toml", "--from", "runs/tiny", "--docs", "other")[0] == 0
    assert "| 2 seeds; 2 epochs of 60 images | `evidence tiny.toml`<br>" in (tmp_path / "other/evidence.md").read_text()


def test_it_goes_on_after_the_text_was_changed(evidence, tmp_path):
    assert evidence("tiny.toml", *QUICK)[0] == 0
    (tmp_path / "tiny.toml").write_text(TOML.replace("since 2 epochs are few", "for another reason"))
    assert evidence("tiny.toml", *QUICK)[0] == 2
    assert evidence("tiny.toml", *QUICK, "--resume")[0] == 0
    assert "for another reason" in (tmp_path / "docs/evidence.md").read_text()


def test_a_file_may_have_any_name(evidence, tmp_path):
    (tmp_path / "my study (2).toml").write_text(TOML)
    assert evidence("my study (2).toml", *QUICK)[0] == 0
    page = (tmp_path / "docs" / "evidence.md").read_text()
    assert "](#evidence-my-study-2)" in page
    assert "\n(evidence-my-study-2)=\n" in page
    assert "](evidence/my%20study%20%282%29.svg)" in page


def test_a_study_that_is_not_finished_is_marked(made, evidence, tmp_path):
    (tmp_path / "runs/tiny/runs/none/seed1/result.json").unlink()
    code, _, error = evidence("tiny.toml", "--from", "runs/tiny")
    assert (code, error) == (0, "note: 5 of 6 runs replace a record of all 6\n")
    page = (made / "evidence.md").read_text()
    assert "| yes, so far<br>(not finished: 5 of 6 runs) |" in page
    assert "| **no**, so far |" in page
    assert "5 of 6 runs, " in page


def test_an_arm_that_diverged_is_told_and_its_check_is_not_reached(evidence, tmp_path):
    diverging = TOML.replace("strengths = [0.1, 1.0]", 'optimizer.name = "SGD"\noptimizer.lr = 1e30')
    (tmp_path / "tiny.toml").write_text(diverging)
    code, _, said = evidence("tiny.toml", *QUICK)
    assert code == 1
    assert "diverged: decay" in said
    page = (tmp_path / "docs" / "evidence.md").read_text()
    assert re.search(r"\| decay: at most [^|]+ \| decay diverged \| \*\*no\*\* \|", page)
    assert "| decay |  | diverged | - | - | - | - |" in page
    assert "not finished" not in page


def test_a_search_is_made_too(evidence, tmp_path):
    swept = TOML.replace("strengths = [0.1, 1.0]", "optimizer.weight_decay = 0.1")
    swept += '[sweep]\nspace = { "optimizer.weight_decay" = [0.1, 1.0] }\narms = ["decay"]\n'
    (tmp_path / "tiny.toml").write_text(swept)
    assert evidence("tiny.toml", *QUICK)[0] == 0
    tree = json.loads((tmp_path / "docs/evidence/tiny.json").read_text())
    assert (tree["runs"], tree["planned"]) == (6, 6)


def test_the_page_alone_is_that_of_all_records(made, evidence, tmp_path):
    page = (made / "evidence.md").read_text()
    (made / "evidence.md").unlink()
    (made / "evidence" / "tiny.svg").unlink()
    assert evidence()[0] == 0
    assert (made / "evidence.md").read_text() == page
    assert (made / "evidence" / "tiny.svg").exists()


def test_a_record_of_another_version_is_shown_as_such(made, evidence):
    tree = json.loads((made / "evidence" / "tiny.json").read_text())
    altered(made, versions={**tree["versions"], "torchreg": "0.0.1"})
    assert evidence()[0] == 0
    page = (made / "evidence.md").read_text()
    assert f"(made by torchreg 0.0.1, this is {torchreg.__version__})" in page


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-20], "is damaged"),
        (lambda text: "[]", "is damaged"),
        (lambda text: text.replace('"runs": 6', '"runs": 7'), "is damaged, or was altered"),
        (lambda text: text.replace('"layout": 1', '"layout": 2'), "has layout 2, this version reads 1"),
    ],
)
def test_a_record_that_cannot_be_read_is_shown_as_such(made, evidence, damage, said):
    file = made / "evidence" / "tiny.json"
    file.write_text(damage(file.read_text()))
    before = {path: path.stat().st_size for path in made.rglob("*.svg")}
    code, printed, error = evidence()
    assert (code, printed.startswith("Page: ")) == (1, True)
    assert error == f"evidence: docs/evidence/tiny.json {said}: make it again, or restore it\n"
    assert {path: path.stat().st_size for path in made.rglob("*.svg")} == before
    assert f"| `tiny` |  |  |  | the record {said} |" in (made / "evidence.md").read_text()


def test_a_record_with_other_keys_is_of_another_version(made, evidence):
    altered(made, more=1)
    assert evidence()[0] == 1
    assert "the record is of another version" in (made / "evidence.md").read_text()


def test_nothing_is_left_half_written(made, evidence, monkeypatch):
    """If the record cannot be put in its place, the page and the record before it stay as they were."""
    from experiments.training import files

    page, record = ((made / name).read_text() for name in ("evidence.md", "evidence/tiny.json"))

    def full(path, content):
        raise files.RecordError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("experiments.report.evidence.record.write", full)
    code, _, said = evidence("tiny.toml", "--from", "runs/tiny")
    assert code == 2
    assert "No space left" in said
    assert ((made / "evidence.md").read_text(), (made / "evidence/tiny.json").read_text()) == (page, record)


def test_nothing_is_written_if_a_picture_cannot_be_drawn(made, evidence, monkeypatch):
    """Else each later call would meet the record, and fail."""
    from experiments.report.evidence import page

    def drawn(picture, pen):
        raise RuntimeError("no ink")

    before = {file: file.read_bytes() for file in made.rglob("*") if file.is_file()}
    altered(made, versions={"torchreg": "0.0.1"})
    (older,) = made.rglob("*.json")
    before[older] = older.read_bytes()
    monkeypatch.setattr(page, "drawn", drawn)
    with pytest.raises(RuntimeError, match="no ink"):
        evidence("tiny.toml", "--from", "runs/tiny")
    assert {file: file.read_bytes() for file in made.rglob("*") if file.is_file()} == before


ODD = r"""a*b* <b>x</b> $d$ [e](f) \ `c`"""


def test_what_is_data_is_shown_letter_by_letter(evidence, tmp_path):
    odd = TOML.replace('"none"', f"'{ODD}'").replace("none =", f"'{ODD}' =")
    (tmp_path / "tiny.toml").write_text(odd.replace('["optim.AdamW"]', '["a`b", "x\\ny"]'))
    assert evidence("tiny.toml", "--set", "seeds=[0,\n1]", *QUICK)[0] == 0
    page = (tmp_path / "docs/evidence.md").read_text()
    name = r"a\*b\* \<b>x\</b> \$d\$ \[e\](f) \\ \`c\`"
    assert f"| {name}: at most 100 % |" in page
    assert f"| {name} | 1.62 |" in page
    assert "| `evidence tiny.toml --set 'seeds=[0, 1]' --set train.epochs=1`<br>" in page
    assert "\nUses: ``a`b``, `x y`.\n" in page


def test_studies_whose_names_differ_in_signs_alone_have_labels_of_their_own(evidence, tmp_path):
    for name in ("a b", "a-b"):
        (tmp_path / f"{name}.toml").write_text(TOML.replace('"tiny"', f'"{name}"'))
        assert evidence(f"{name}.toml", *QUICK)[0] == 0
    page = (tmp_path / "docs/evidence.md").read_text()
    assert re.findall(r"\]\(#(.*?)\)", page) == re.findall(r"\n\((.*?)\)=", page) == ["evidence-a-b", "evidence-a-b-2"]


def test_no_picture_of_a_study_replaces_that_of_another(evidence, tmp_path):
    (tmp_path / "a.toml").write_text(with_two_measures(TOML))
    (tmp_path / "a_2.toml").write_text(TOML.replace('"tiny"', '"other"'))
    for name in ("a", "a_2"):
        assert evidence(f"{name}.toml", *QUICK)[0] == 0
    page = (tmp_path / "docs/evidence.md").read_text()
    assert re.findall(r"\]\(evidence/(.*?)\.svg\)", page) == ["a", "a_2", "a_2_2"]
    assert len([*tmp_path.glob("docs/evidence/*.svg")]) == 3


def test_the_text_of_a_picture_is_its_first_sentence(evidence, tmp_path):
    (tmp_path / "tiny.toml").write_text(with_two_measures(TOML))
    assert evidence("tiny.toml", *QUICK)[0] == 0
    page = (tmp_path / "docs/evidence.md").read_text()
    assert "; the dashed line is at 87.5 %.](evidence/tiny_2.svg)" in page
    assert "![The final test errors of each seed, their mean, and the paper's.](evidence/tiny.svg)" in page


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
