"""The page of a study: its structure, its data against the records, what it shows of predictions."""

import csv
import io
import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from experiments.errors import UserError
from experiments.report import datasets, images, page, predicting, vega
from experiments.report.settings import settings_of
from experiments.report.summary import summarize
from experiments.running.study import run_study
from experiments.training import data
from experiments.training.data import loading
from experiments.training.outcomes import binned, calibration_error, classified, predictions
from experiments.training.record import Record
from tests.helpers import assert_close
from tests.integration.studies import CPU, small

NAME = "L1 </pre><script>alert('1')</script> & \"q\", 日本"
ARMS = [
    {"name": "none"},
    {"name": NAME, "regularizers": [{"penalty": "L1", "strength": 0.3, "mode": "prox"}]},
    {"name": "L2", "strengths": [0.0, 0.003, 1.0], "regularizers": [{"penalty": "L2"}]},
    {"name": "broken", "optimizer": {"name": "SGD", "lr": 1e30}},
]


class Tree(HTMLParser):
    """The elements of a page, with their attributes, and the text in each ``pre`` by its identity."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "pre":
            self._inside = dict(attributes).get("id", "")

    def handle_endtag(self, tag):
        if tag == "pre":
            self._inside = ""

    def handle_data(self, text):
        if self._inside:
            self.texts[self._inside] = self.texts.get(self._inside, "") + text

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def rows(self, name):
        return list(csv.DictReader(io.StringIO(self.texts[f"data-{name}"].removeprefix("\n"))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run_study(small(arms=ARMS, seeds=[0, 1, 2]), folder, CPU)
    page.write_page(summarize(folder), folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(text):
    return Tree(text)


def without_bundle(text: str) -> str:
    return text.replace(vega.bundle(), "")


def test_every_identity_is_unique_and_every_reference_to_one_is_met(text):
    ours = without_bundle(text)
    identities = re.findall(r'\bid="([^"]+)"', ours)
    assert len(identities) == len(set(identities)) > 10
    assert set(re.findall(r"url\(#([^)]+)\)", ours)) <= set(identities)


def test_every_head_has_a_scope_and_every_picture_a_name(tree):
    heads = tree.of("th")
    assert {head["scope"] for head in heads} == {"col", "row"}
    drawn = [one for one in tree.of("svg") if one.get("class") == "marks"]
    assert len(drawn) == 2 * len(tree.of("figure")) >= 10
    live = [one for one in tree.of("div") if one.get("class") == "live"]
    assert len(live) == len(tree.of("figure"))
    for one in (*drawn, *live):
        assert one["role"] == "img"
        assert len(one["aria-label"]) > 20
    assert len(tree.of("img")) > 20
    assert all(one["alt"] for one in tree.of("img"))
    groups = [one for one in tree.of("div") if one.get("class") == "scroll"]
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in groups)


def test_nothing_is_loaded_from_elsewhere(text, tree):
    for _, attributes in tree.elements:
        for key in ("src", "href", "data", "action", "srcset"):
            assert attributes.get(key, "data:").startswith("data:")
    assert not tree.of("link")
    assert not re.search(r"@import|url\((?!#)", without_bundle(text))


def test_names_are_only_text(text, tree):
    assert "alert('1')</script>" not in text
    assert len(tree.of("script")) == 2 + len(tree.of("figure"))
    assert NAME in {one.get("data-label") for one in tree.of("tr")}
    assert {"none", NAME} < {row["label"] for row in tree.rows("history")}


def test_specifications_name_data_that_the_page_has(text, tree):
    specs = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert len(specs) == len(tree.of("figure"))
    for spec in map(json.loads, specs):
        assert set(spec) == {"wide", "narrow"}
        for one in spec.values():
            names = vega._names_in(one)
            assert names
            assert {f"data-{name}" for name in names} <= set(tree.texts)


def layers_in(spec):
    if isinstance(spec, dict):
        return [*([spec] if "mark" in spec else []), *(one for value in spec.values() for one in layers_in(value))]
    return [one for value in spec for one in layers_in(value)] if isinstance(spec, list) else []


def test_layers_that_only_script_shows_have_a_name_each_and_are_not_drawn_before(text):
    found = 0
    for spec in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL):
        names = [one["name"] for one in layers_in(json.loads(spec)["wide"]) if "name" in one]
        assert len(names) == len(set(names))  # Vega-Lite takes the data of one for those of another of that name
        found += len(names)
    assert found == 3
    assert "live seeds" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_numbers_on_axes_are_whole_and_places_are_short(text):
    drawn = "".join(re.findall(r"<svg.*?</svg>", without_bundle(text), re.DOTALL))
    assert drawn.count(">0.003</text>") >= 2
    assert re.search(r'[ "(,]\d+\.\d\d[ "),]', drawn)
    assert not re.search(r"<[^<>]*\d\.\d{3}", re.sub(r'aria-label="[^"]*"', "", drawn))


def test_the_runs_hold_the_figures_of_the_records_to_the_last_bit(folder, tree):
    rows = tree.rows("runs")
    runs = [
        (run, result) for cell in summarize(folder).cells for run, result in zip(cell.runs, cell.results, strict=True)
    ]
    assert len(rows) == len(runs) == 18
    for row, (run, result) in zip(rows, runs, strict=True):
        assert (row["arm"], int(row["seed"]), row["status"]) == (run.arm, run.seed, result["status"])
        for key in ("train_error", "valid_error", "test_error", "train_loss", "valid_loss", "test_loss", "zeros"):
            assert row[key] == ("" if row["status"] == "diverged" else repr(result[key]))
    assert {row["label"] for row in rows if row["arm"] == "L2"} - {""} == {
        row["label"] for row in tree.rows("history") if row["label"].startswith("L2")
    }


def test_the_history_holds_each_epoch_of_the_arms_that_are_shown(folder, tree):
    rows = {(row["label"], int(row["seed"]), int(row["epoch"])): row for row in tree.rows("history")}
    assert len(rows) == 3 * 3 * 4
    plain = summarize(folder).plain
    for run, history in zip(plain.runs, plain.histories, strict=True):
        for row in history:
            assert float(rows["none", run.seed, row["epoch"]]["test_error"]) == row["test_error"]
            assert float(rows["none", run.seed, row["epoch"]]["train_loss"]) == row["train_loss"]


def test_long_histories_are_thinned_and_keep_their_ends():
    for count in (1, 400, 401, 12345):
        found = datasets.thinned(range(count), 400)
        assert (found[0], found[-1], len(found)) == (0, count - 1, min(count, 400))
        assert len(set(found)) == len(found)


def test_a_record_tells_what_the_model_predicts(folder):
    for cell in summarize(folder).chosen[:3]:
        for seed, found in datasets.predicted(cell).items():
            assert ((found.true != found.predicted) == cell.wrong("test")[seed]).all()
            assert (found.confidence > 0.05).all()
            assert (found.confidence <= 1).all()


def test_the_confusion_is_scikit_learns(folder, tree):
    cell = summarize(folder).plain
    counts = np.zeros((10, 10), int)
    for row in tree.rows("confusion"):
        if row["label"] == "none":
            counts[int(row["true"]), int(row["predicted"])] += int(row["times"])
    found = datasets.predicted(cell).values()
    assert (counts == sum(confusion_matrix(one.true, one.predicted, labels=range(10)) for one in found)).all()
    assert counts.sum() == 3 * 797


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 7, 300])
def test_the_calibration_error_is_that_of_other_libraries(classes, seed):
    draw = torch.Generator().manual_seed(seed)
    outputs, y = 3 * torch.randn(500, classes, generator=draw), torch.randint(classes, (500,), generator=draw)
    y[:250] = outputs[:250].argmax(1)
    row = {"count": 500, **classified(outputs, y)}
    found = predictions(row)
    assert (found.true == y.numpy()).all()
    assert (found.predicted == outputs.argmax(1).numpy()).all()
    sure = outputs.double().softmax(1).max(1).values.numpy()
    assert abs(found.confidence - sure).max() <= 0.5 / 255 + 1e-12
    is_right = found.true == found.predicted
    right, confident = calibration_curve(is_right, sure, n_bins=15)
    counts = np.histogram(sure, np.linspace(0, 1, 16))[0]
    expected = (counts[counts > 0] / 500 * abs(right - confident)).sum()
    assert_close(calibration_error(row["bins"]), expected, tolerance=1e-12)
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    theirs = metrics.multiclass_calibration_error(outputs.double().softmax(1), y, num_classes=classes, n_bins=15)
    assert_close(calibration_error(row["bins"]), theirs.item(), tolerance=1e-5)


def test_a_confidence_at_an_edge_is_in_the_bin_below_it():
    bins = binned(np.array([0.0, 1 / 15, 2 / 15, 1.0]), np.array([True, False, True, True]))
    assert [bins["count"][k] for k in (0, 1, 14)] == [2, 1, 1]
    assert sum(bins["count"]) == 4
    assert_close(calibration_error(bins), (abs(1 - 1 / 15) + abs(1 - 2 / 15)) / 4, tolerance=1e-12)


def test_a_regression_shows_what_is_predicted_and_what_is_true(tmp_path):
    run_study(small(data={"name": "diabetes"}, seeds=[0, 1]), tmp_path, CPU)
    summary = summarize(tmp_path)
    found = Tree(page.write_page(summary, tmp_path).read_text(encoding="utf-8"))
    assert "data-confusion" not in found.texts
    rows = found.rows("numbers")
    for cell in summary.cells:
        assert cell.wrong("test") == {}
        for seed, made in datasets.predicted(cell).items():
            error = np.sqrt(np.mean((made.true - made.predicted) ** 2))
            assert_close(float(error), cell.by_seed("test_error")[seed], tolerance=1e-4)
            shown = [float(row["predicted"]) for row in rows if int(row["seed"]) == seed]
            assert_close(shown, made.predicted.tolist(), tolerance=1e-3)
    true = data.load(summary.cells[0].runs[0].data, CPU)
    scale, middle = true.task.scale[0].item(), true.task.middle[0].item()
    assert_close(made.true.tolist(), (scale * true.test.y[:, 0] + middle).tolist(), tolerance=1e-3)


def test_records_without_predictions_make_a_page_that_says_so(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    for path in (tmp_path / "old").glob("runs/**/result.json"):
        row = json.loads(path.read_text())
        for split in row.get("outcomes", {}):
            row["outcomes"][split] = {key: row["outcomes"][split][key] for key in ("count", "wrong")}
        path.write_text(json.dumps({key: value for key, value in row.items() if key not in ("checksum", "files")}))
    text = page.write_page(summarize(tmp_path / "old"), tmp_path / "old").read_text(encoding="utf-8")
    assert "do not hold what their models predict" in text
    assert "data-confusion" not in Tree(text).texts
    assert "Where each arm ends" in text


def test_images_are_those_that_most_seeds_get_wrong(folder, tree):
    summary = summarize(folder)
    cells = {"none": summary.plain, "other": summary.chosen[1]}
    examples, missing = images.examples_of(cells, trusted=False)
    assert missing == ""
    shown = {one.title: one for one in images.of_study(cells, summary, examples)}
    wrong = np.sum(list(summary.plain.wrong("test").values()), axis=0)
    votes = [
        int(re.search("by ([123]) of 3 seeds", one.text)[1])
        for one in shown["The most confused images"].strips[0].images
    ]
    assert len(votes) == images.MOST
    assert (wrong == 3).sum() >= images.MOST
    assert max(votes) <= 3
    (gained,) = shown["What regularization gets right"].strips
    other = np.sum(list(summary.chosen[1].wrong("test").values()), axis=0)
    assert gained.text.startswith(f"{((wrong > 1.5) & (other < 1.5)).sum()} more right than none")
    first = shown["The first layer"].strips[0]
    assert len(first.images) == 16  # the hidden units
    assert len({one["src"] for one in tree.of("img")}) > 20


def test_a_png_is_read_by_others():
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for shape in ((3, 5, 1), (8, 8, 3), (1, 1, 3)):
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        content = io.BytesIO(b64decode(images.png(pixels).partition(",")[2]))
        assert (np.asarray(image.open(content)).reshape(shape) == pixels).all()


LOADED = []


def squares():
    """Random images of two classes."""
    LOADED.append(None)
    draw = torch.Generator().manual_seed(0)
    return torch.rand(100, 1, 4, 4, generator=draw), torch.arange(100) % 2


def test_a_report_runs_no_class_that_a_record_names(tmp_path):
    own = {"class": "tests.integration.test_page:squares"}
    run_study(small(data=own, model={"name": "mlp", "hidden": [4]}), tmp_path, CPU)
    summary, before = summarize(tmp_path), len(LOADED)
    loading._load.cache_clear()
    text = page.write_page(summary, tmp_path).read_text(encoding="utf-8")
    assert len(LOADED) == before
    assert "runs no class that a record names" in text
    assert "<img" not in without_bundle(text)
    assert "<img" in without_bundle(page.write_page(summary, tmp_path, trusted=True).read_text(encoding="utf-8"))
    assert len(LOADED) > before


@pytest.mark.parametrize("fault", ["other labels", "missing"])
def test_data_that_is_gone_or_another_is_told_and_the_page_is_made(fault, folder, monkeypatch):
    examples = data.load(summarize(folder).plain.runs[0].data, CPU)

    def load(settings, device):
        if fault == "missing":
            raise UserError("data.root: digits <are> gone")
        y = (examples.test.y + 1) % 10
        return data.Examples(
            examples.train, examples.valid, data.Split(examples.test.x, y), examples.task, examples.labels
        )

    monkeypatch.setattr(images, "load", load)
    cells = {"none": summarize(folder).plain}
    found, line = images.examples_of(cells, trusted=False)
    assert found is None
    assert ("cannot be loaded: data.root: digits <are> gone" if fault == "missing" else "is not what it was") in line


def test_data_that_is_not_there_is_not_downloaded(folder, tmp_path):
    plain = summarize(folder).plain
    mnist = plain.runs[0].data.model_copy(update={"name": "mnist", "root": str(tmp_path)})
    with pytest.raises(UserError, match="mnist is not there"):
        images._load(mnist)
    assert list(tmp_path.iterdir()) == []


def test_settings_tell_first_what_differs(folder):
    cells = {cell.label: cell for cell in summarize(folder).chosen}
    found = {one.label: one for one in settings_of(cells)}
    assert found["none"].differs == []
    assert found[NAME].differs == [
        'regularizers = [{ penalty = "L1", strength = 0.3, mode = "prox", select = "weights" }]'
    ]
    assert set(found["broken"].differs) == {'optimizer.name = "SGD"', "optimizer.lr = 1e+30"}
    assert 'data.name = "digits"' in found["none"].whole
    assert {one.ran for one in found.values()} == {""}
    assert {one.seeds for one in found.values()} == {"0, 1, 2"}


def test_an_environment_that_is_another_is_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    for path in (tmp_path / "moved" / "runs" / "none").glob("*/environment.json"):
        (row,) = json.loads(path.read_text())
        path.write_text(json.dumps([{**row, "torch": "1.0"}]))
    for path in (tmp_path / "moved").glob("runs/**/result.json"):
        row = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in row.items() if key not in ("checksum", "files")}))
    summary = summarize(tmp_path / "moved")
    found = settings_of({cell.label: cell for cell in summary.chosen})
    assert "torch 1.0" in found[0].ran
    assert {one.ran for one in found[1:]} == {""}
    assert Record(summary.plain.records[0].folder).environments[0]["torch"] == "1.0"


@pytest.mark.parametrize(("count", "is_told"), [(2, False), (3, True)])
def test_the_page_says_which_arms_it_does_not_show_one_by_one(count, is_told, tmp_path, monkeypatch):
    for module in (datasets, images, predicting):
        monkeypatch.setattr(module, "MOST_ARMS", 2)
    rates = [{"name": f"{i}", "optimizer": {"name": "SGD", "lr": 0.01 * i}} for i in range(1, count + 1)]
    run_study(small(arms=rates, train={"epochs": 1, "batch_size": 50}), tmp_path, CPU)
    text = page.write_page(summarize(tmp_path), tmp_path).read_text(encoding="utf-8")
    assert ("Calibration, confusion and images are shown of the first 2 of 3 arms." in text) == is_told
