"""``evidence``: a published study is repeated, reduced to a record, and shown on a page."""

import json
import re

import pytest

import torchreg
from experiments.training.record import Record
from tests.integration.published import QUICK, TOML, altered, with_two_measures


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


def test_all_machines_and_versions_that_made_the_runs_are_named(made, evidence, monkeypatch):
    own = {"torchreg": "0.2.0", "torch": "2.14.1", "python": "3.11.7", "device": "x86_64", "threads": 2}
    other = {**own, "torch": "2.11.0", "device": "NVIDIA H200", "threads": 1}

    def places(record):  # the second seed went on elsewhere
        return [own, other] if record.folder.name == "seed1" else [own]

    monkeypatch.setattr(Record, "environments", property(places))
    assert evidence("tiny.toml", "--from", "runs/tiny")[::2] == (0, "")
    tree = json.loads((made / "evidence/tiny.json").read_text())
    assert tree["machine"] == "x86_64, 2 threads and NVIDIA H200, 1 thread"
    assert tree["versions"] == {"torchreg": "0.2.0", "torch": "2.14.1 and 2.11.0", "python": "3.11.7"}
