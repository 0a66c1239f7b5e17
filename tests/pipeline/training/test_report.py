"""The page and the lines on the terminal."""

import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from pipeline.training.plots import confused_classes
from pipeline.training.report import Run, metrics_text, ranking, report_html, verdict
from transforms.evaluation.metrics import judge, score_rows

HOSTILE = (
    "<script>alert(1)</script>",
    '$\\frac{1$ & "quoted\' id="x" #010101',
    "日本\n\x00\u202e{{ 7 * 7 }}" + "long " * 30,
)
VOID = {"meta", "link", "br", "img", "hr", "input"}
PENALTIES = [{"penalty": 10.0**i, "loss": 1 + i**2 / 10} for i in range(-4, 5)]
EPOCHS = [{"epoch": i, "loss": 1 / i, "validation_loss": 0.1 * i} for i in range(1, 6)]
LEARNING = [{"rows": 10 * 2**i, "accuracy": 0.5 + i / 10, "train_accuracy": 0.99} for i in range(4)]


def make_run(kind="ridge", *, classes=("ants", "bees"), rows=60, right=2.0, seed=0, keys=None, **others):
    random = np.random.default_rng(seed)
    codes = random.integers(0, len(classes), rows).astype(np.int32)
    scores = random.normal(size=(rows, len(classes)))
    scores[np.arange(rows), codes] += right
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    keys = keys or [f"photo{i}.jpg" for i in range(rows)]
    scores = score_rows(probabilities, codes, keys=keys)
    judged = judge(scores, codes, classes, keys=keys, groups=None, seed=0, judged_on="folds")
    run = {"settings": {"penalty": 0.1}, "curve": PENALTIES, "learning": LEARNING, "seconds": 1.25, **others}
    return Run(kind=kind, judged=judged, **run)


class Page(HTMLParser):
    """Collects a page's tags; fails where one is closed that isn't open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], "never closed"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            assert not name.startswith("on")
            if name in ("href", "xlink:href", "src", "style", "clip-path"):
                self.links += re.findall(r"url\((.*?)\)", value) if "url(" in value else [value] * ("style" not in name)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def page_text():
    return report_html("Head <ridge>", [make_run(), make_run("knn", seed=1, right=1, curve=[])], {"split": "5 folds"})


def test_page_is_whole_and_needs_nothing_else(page_text):
    page = Page(page_text)
    assert page_text.startswith("<!doctype html>")
    assert page.count("script") == page.count("link") == page.count("img") == page.count("iframe") == 0
    assert page.count("svg") == 4 + 3
    assert len(page.ids) == len(set(page.ids)) > 20
    assert page.links
    assert {link.lstrip("#") for link in page.links} <= set(page.ids), "a link leads out of the page or nowhere"
    # What is left are names of XML dialects, which nobody fetches.
    rest = re.sub(r'xmlns(:xlink)?="http://www.w3.org/[^"]*"', "", page_text)
    assert "http" not in rest
    assert "@import" not in rest


def test_page_says_what_matters(page_text):
    page = Page(page_text)
    run = make_run()
    assert f"ridge: {verdict(run['judged'])}" in page.text
    for words in ("Head <ridge>", "5 folds", "Ranking", "calibration error", "Most confused", "majority class", "ants"):
        assert words in page.text
    assert run["judged"]["most_confused"][0]["keys"][0] in page.text


def test_tables_can_be_read_aloud(page_text):
    page = Page(page_text)
    assert page.count("table") == page.count("caption") == 1 + 2 * 4
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    assert all(attrs["aria-label"] for tag, attrs in page.tags if tag == "svg")


def test_hostile_names_stay_text():
    keys = [f"<img src=x onerror=alert({i})>" for i in range(60)]
    run = make_run('<b>"ridge"', classes=HOSTILE, right=0.5, keys=keys, settings={"<i>": "<u>{{ 7 * 7 }}"})
    page = Page(report_html("<title>", [run], {"<dt>": "</dd><script>"}))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "b", "i", "u"}
    for name in (*HOSTILE[:2], "<title>", "</dd><script>", '<b>"ridge"', "<u>{{ 7 * 7 }}", keys[0][:12]):
        assert name in page.text
    assert "49" not in re.findall(r"\{\{.*?\}\}", page.text)
    # A plot's letters are single ones on a line: none that breaks or turns it.
    page_text = report_html("Head", [run], {})
    assert not re.search("<svg.*?[\\x00\u202e].*?</svg>", page_text[: page_text.index("Most confused")], re.DOTALL)
    drawn = page.text[page.text.index("Settings") : page.text.index("Most confused")]
    assert "<script>alert(1)<…" in drawn


def test_long_names_do_not_fill_the_page():
    page = Page(report_html("Head", [make_run(classes=("x" * 4096, "y" * 4096), right=0.5)], {}))
    assert not re.search("x{100}|y{100}", page.text)


def test_page_is_the_same_bytes_each_time(tmp_path, page_text):
    runs = [make_run(), make_run("knn", seed=1, right=1, curve=[])]
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.grid": True, "lines.linewidth": 9}):
        again = report_html("Head <ridge>", runs, {"split": "5 folds"})
    assert again == page_text


def test_plots_follow_the_page_in_light_and_dark(page_text):
    plots = re.findall(r"<svg.*?</svg>", page_text, flags=re.DOTALL)
    assert all("var(--ink)" in plot for plot in plots)
    # Whatever matplotlib drew, it drew in one of the page's colours.
    assert {colour for plot in plots for colour in re.findall(r"#[0-9a-f]{6}\b", plot)} == set()


@pytest.mark.parametrize(
    "curve", [EPOCHS, PENALTIES[:1], [{"penalty": 0.0, "loss": 1.0}, *PENALTIES], PENALTIES[:2] * 2]
)
def test_curves_are_drawn(curve):
    page = Page(report_html("Head", [make_run(curve=curve, learning=LEARNING[:1])], {}))
    assert page.count("svg") == 4
    assert next(iter(curve[0])) in page.text


def test_a_loss_that_is_not_finite_is_left_out():
    curve = [{"penalty": 0.1, "loss": float("nan")}, {"penalty": 1.0, "loss": 0.5}, {"penalty": 10.0, "loss": np.inf}]
    assert "lowest: 1" in Page(report_html("Head", [make_run(curve=curve)], {})).text


def test_many_classes_are_cut_to_the_most_confused():
    classes = tuple(f"class{i:03}" for i in range(60))
    page = Page(report_html("Head", [make_run(classes=classes, rows=600, curve=[], learning=[])], {}))
    assert "Only the 40 classes with the most errors of 60" in page.text
    assert page.text.count("class059") >= 1


def test_confused_classes_are_those_with_the_most_errors():
    matrix = np.diag(np.full(50, 100))
    matrix[3, 45] = matrix[45, 3] = 7
    matrix[10, 20] = 1
    chosen = confused_classes(matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix))
    assert len(chosen) == 40
    assert chosen == sorted(chosen)
    assert {3, 45, 10, 20} <= set(chosen)


def test_too_many_classes_for_a_matrix_leave_it_out():
    run = make_run(classes=tuple(map(str, range(1_001))), rows=30, curve=[], learning=[])
    assert Page(report_html("Head", [run], {})).count("svg") == 1


def test_one_class_makes_a_page():
    page = Page(report_html("Head", [make_run(classes=("all",), rows=5)], {}))
    assert "No row was taken for another class." in page.text


def test_ranking_is_by_accuracy_then_log_loss():
    def run(kind, accuracy, loss):
        return {"kind": kind, "judged": {"metrics": {"accuracy": {"value": accuracy}, "log_loss": {"value": loss}}}}

    runs = [run("c", 0.8, 0.1), run("b", 0.9, 0.5), run("a", 0.9, 0.3)]
    assert [found["kind"] for found in ranking(runs)] == ["a", "b", "c"]


def test_verdict():
    metric = {"value": 0.8985, "low": 0.8701, "high": 0.921}
    judged = {"judged_on": "folds", "rows": 1705, "metrics": {"accuracy": metric}}
    judged["majority"] = {"label": "bees", "accuracy": {"value": 0.746, "low": 0.7, "high": 0.8}}
    assert verdict(judged) == "accuracy 0.898 (0.870-0.921) on 1,705 rows by folds; majority class 0.746"
    assert "1,705 test rows" in verdict({**judged, "judged_on": "test"})
    assert "1,705 validation rows" in verdict({**judged, "judged_on": "validation"})


def test_metrics_text_of_one_run():
    run = make_run(classes=tuple("abcdef"))
    accuracy = run["judged"]["metrics"]["accuracy"]
    lines = metrics_text([run]).splitlines()
    assert lines[1].split() == [
        "accuracy",
        f"{accuracy['value']:.3f}",
        f"({accuracy['low']:.3f}-{accuracy['high']:.3f})",
    ]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "accuracy",
        "balanced accuracy",
        "macro F1",
        "top-5 accuracy",
        "log loss",
        "calibration error",
    ]
    assert "top-5" not in metrics_text([make_run()])


def test_settings_in_a_setting_have_rows_of_their_own():
    inner = {"unfreeze": "block5", "learning_rate": 1e-5, "frozen": ["a", "b"], "trained": [], "after": {"rows": 3}}
    settings = {"standardize": False, "finetuned": inner}
    html = report_html("Head", [make_run(settings=settings)], {})
    table = html[html.index("<caption>Settings") : html.index("<figure")]
    rows = re.findall(r'<th scope="row">([^<]*)</th><td><bdi>([^<]*)</bdi>', table)
    assert rows == [
        ("standardize", "False"),
        ("finetuned: unfreeze", "block5"),
        ("finetuned: learning rate", "1e-05"),
        ("finetuned: frozen", "a, b"),
        ("finetuned: trained", "none"),
    ]
    # The page lets all other words break anywhere.
    assert ".settings th { overflow-wrap: normal; }" in html


def test_metrics_text_of_several_runs_is_the_ranking():
    lines = metrics_text([make_run("knn", right=0.5), make_run("ridge", right=3)]).splitlines()
    assert [line.split()[0] for line in lines] == ["head", "ridge", "knn"]
    assert lines[1].endswith("1.2")
