from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL.PngImagePlugin import PngImageFile

from aigc_ext.cli import main
from aigc_ext.data import open_dataset
from aigc_ext.metrics import compute_metrics
from aigc_ext.reporting import read_rows, write_report
from aigc_ext.reporting.chart import line_chart, number
from aigc_ext.sampling import Sampler, save_png
from tests.cli.test_cli import TINY, assert_refused


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    outdir = tmp_path_factory.mktemp("runs")
    assert main(["train", "--outdir", str(outdir), *TINY, "--cond"]) == 0
    return outdir / "00000-mlp-digits"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / trained.name))


class Page(HTMLParser):
    """The parts of a page; refuses tags that are not closed in order."""

    VOID = ("meta", "img", "path", "circle")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.images: list[str] = []
        self.charts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag == "svg":
            self.charts.append(dict(attributes)["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"] and data.strip():
            self.text.append(data.strip())


def png_of(url: str) -> bytes:
    assert url.startswith("data:image/png;base64,")
    return base64.b64decode(url.split(",")[1], validate=True)


def test_a_run_on_one_page(run, capsys) -> None:
    # What a trainer writes, and what it may write one day.
    rows = [{"nimg": 100, "fd": 9.5, "recall": 0.25}, {"nimg": 200, "fd": 7.5, "recall": None, "ppl": 1e5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"nimg": 30')
    with (run / "stats.jsonl").open("a") as file:
        file.write('{"nimg": 300, "loss_d": NaN, "ada_p": 0.125, "skipped_d": 2, "skipped_g": 1}\n')
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    html = (run / "report.html").read_text()
    page = Page(html)
    names = ["reals", "fakes_init", "fakes000000-100", "fakes000000-200"]
    assert [png_of(url) for url in page.images] == [(run / f"{name}.png").read_bytes() for name in names]
    assert page.charts == [
        *("Fréchet distance", "Precision and recall", "ppl"),
        *("Losses", "The discriminator's belief", "Share it judges right"),
        *("Variety of its samples", "Gradient penalties"),
        *("Speed", "Memory", "ada_p"),
    ]
    # Nothing is fetched, and nothing runs.
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)
    assert all(name != "href" and not name.startswith("on") for name, _ in page.attributes)
    for text in (
        "00000-mlp-digits",
        "7.5 at 0.2 kimg",
        "9.5",
        "100,000",
        "digits: 1797 images 1x8x8, 10 classes",
    ):
        assert text in page.text
    assert any("skipped as not finite: 2 discriminator and 1 generator steps" in text for text in page.text)
    config = dict(zip(page.text, page.text[1:], strict=False))
    assert (config["generator.hidden"], config["loss.kind"]) == ("[8, 8]", "logistic")
    weights = sum(t.numel() for t in Sampler.from_pretrained(run).generator.state_dict().values())
    assert f"mlp, {number(weights)} weights" in page.text


def test_scores_of_a_hinge_loss_are_not_called_a_belief(run) -> None:
    """They are not probabilities, so they have no fixed range."""
    config = json.loads((run / "config.json").read_text())
    for kind, title in (("hinge", "The discriminator's scores"), ("minimax", "The discriminator's belief")):
        config["loss"]["kind"] = kind
        (run / "config.json").write_text(json.dumps(config))
        assert title in Page(write_report(run).read_text()).charts


def test_a_run_that_has_nothing_yet(tmp_path) -> None:
    run, output = tmp_path / "00000-a", tmp_path / "page.html"
    run.mkdir()
    (run / "config.json").write_text('{"kimg": 2000}')
    assert write_report(run, output) == output
    text = Page(output.read_text()).text
    assert "No step has been reported yet: 0 of 2,000 thousand images" in text
    assert "No sample grids have been written yet." in text
    assert "no model has been written yet" in text
    assert list(run.iterdir()) == [run / "config.json"]


def test_everything_is_escaped(run) -> None:
    evil = "<script>alert('\"&')</script>"
    run = run.rename(run.with_name("00000-<b>&quot;"))
    (run / "config.json").write_text(json.dumps({"data": {"source": evil}, evil: [evil], "preset": evil}))
    (run / "metrics.jsonl").write_text(json.dumps({"nimg": 5, evil: 1.0, "note": evil}) + "\n")
    html = write_report(run).read_text()
    page = Page(html)
    assert "<script" not in html
    assert page.text[0] == page.text[1] == "00000-<b>&quot;"
    # The preset, a key and two values of the config, a column's head, title and legend, and a cell.
    assert len([text for text in page.text if evil in text]) == 8
    assert page.charts[0] == evil


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("stats.jsonl", b'{"nimg": 1}\nxx\n', "stats.jsonl, line 2 is not JSON"),
        ("stats.jsonl", b'{"nimg": 1}\n[3]\n', "stats.jsonl, line 2 is [3], but must be an object with"),
        ("stats.jsonl", b'{"step": 1}\n', 'stats.jsonl, line 1 is {"step": 1}, but must be an object with n'),
        ("metrics.jsonl", b'{"nimg": "1"}\n', "metrics.jsonl, line 1 is"),
        ("metrics.jsonl", b"\xff\n", "metrics.jsonl, line 1 is not JSON"),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "config.json holds a list, but must hold a JSON object"),
        ("reals.png", b"\x89PNG\r\n", "reals.png cannot be read as a PNG"),
        ("model/model.safetensors", b"1", "model.safetensors cannot be read"),
        ("checkpoints/000000-200/state.json", b"", "state.json is not JSON"),
    ],
)
def test_damage_is_refused_by_name(run, capsys, name, content, message) -> None:
    (run / name).write_bytes(content)
    assert_refused(capsys, ["report", run], message)
    assert not (run / "report.html").exists()


def test_report_refuses(run, tmp_path, capsys) -> None:
    assert_refused(capsys, ["report", tmp_path / "no"], f"{tmp_path / 'no'} is no run: it has no config.json")
    assert_refused(capsys, ["report", run, "--output", tmp_path / "no" / "page.html"], "page.html")
    cut = (run / "reals.png").read_bytes()[:-40]
    (run / "reals.png").write_bytes(cut)
    assert_refused(capsys, ["report", run], "reals.png cannot be read as a PNG")


def test_many_and_large_grids_leave_a_page_of_some_size(run) -> None:
    for kimg in range(1, 100):
        shutil.copy(run / "fakes000000-200.png", run / f"fakes{kimg:06d}.png")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1400, 3), dtype=np.uint8)
    save_png(noise, run / "fakes000100.png")
    page = Page(write_report(run).read_text())
    assert len(page.images) == 2 + 24
    assert "24 of 102 grids, evenly chosen." in page.text
    assert "0.1 kimg" in page.text
    assert "100 kimg" in page.text
    last = PngImageFile(io.BytesIO(png_of(page.images[-1])))
    assert last.size == (720, 514)
    assert json.loads(last.text["AIGC"])["Label"] == "1"
    assert "trainedAlgorithmicMedia" in last.text["XML:com.adobe.xmp"]


def test_a_chart_puts_points_where_they_belong() -> None:
    svg = line_chart("t", [("a", [(0, 1.0), (5, 3.0), (10, 2.0)]), ("none", [])], x_label="x")
    # 50 to 388 across; 174 (for 1) up to 10 (for 3)
    assert 'd="M50.0 174.0L219.0 10.0L388.0 92.0"' in svg
    assert "none" not in svg
    assert line_chart("t", [("a", [])], x_label="x") == ""
    for flat in ([(3, 0.0)], [(3, 7.0), (4, 7.0)], [(0, -1e-7)], [(1, 1e12), (2, 1e12)]):
        drawn = line_chart("t", [("a", flat)], x_label="x")
        assert drawn.count("<circle") == len(flat)
        assert not re.search(r"nan|inf", drawn)
    long = line_chart("t", [("a", [(i, float(i % 3)) for i in range(1200)])], x_label="x")
    assert "Each point is the mean of 3 rows." in long
    (path,) = re.findall(r'class="line"[^>]* d="([^"]+)"', long)
    assert path.count("L") == 399
    assert len(set(re.findall(r" ([\d.]+)L", path))) == 1  # the means of 0, 1, 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12345.6, "12,346"), (0.12345, "0.1235"), (-2.5e-5, "-2.5e-05"), (float("inf"), "inf")],
)
def test_numbers_for_people(value, text) -> None:
    assert number(value) == text


def test_rows_of_no_file(tmp_path) -> None:
    assert read_rows(tmp_path / "none.jsonl") == []


# aigc-ext metrics


def test_metrics_prints_the_figures(trained, tmp_path, capsys) -> None:
    arguments = ["metrics", "--network", trained, "--data", "digits", "--num", 100, "--cache", tmp_path]
    arguments += ["--extractor", "random", "--device", "cpu", "--metrics", "pr, fd"]
    assert main([*map(str, arguments), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == compute_metrics(
        ["pr", "fd"],
        Sampler.from_pretrained(trained),
        open_dataset("digits"),
        num_images=100,
        extractor="random",
        cache_dir=tmp_path,
    )
    assert main([str(argument) for argument in arguments]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == ["precision", "recall", "fd"]
    assert float(lines[2][1]) == pytest.approx(figures["fd"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "fd,is"], "metric is 'is', but must be one of fd, kid, pr, fid, coverage"),
        (["--metrics", "fid"], "fid needs the path of Inception's weights"),
        (["--metrics", "fid", "--fid-weights", "no"], "fid weights no: there is no such file"),
        (["--num", "1"], "num_images is 1, but must be at least 2"),
        (["--data", "none"], "'none'"),
        (["--network", "none"], "network none is no directory"),
        (["--extractor", "random", "--num", "3", "--metrics", "pr"], "pr needs more than 3 images"),
    ],
)
def test_metrics_refuses(trained, tmp_path, capsys, arguments, message) -> None:
    command = ["metrics", "--network", trained, "--data", "digits", "--cache", tmp_path, *arguments]
    assert_refused(capsys, command, message)


def test_recordings_and_texts(run) -> None:
    """Of each the newest three, and pictures under another name beside them."""
    for kimg in range(5):
        (run / f"samples{kimg:06d}.wav").write_bytes(b"RIFF%d" % kimg)
        (run / f"samples{kimg:06d}.txt").write_text(f"text <{kimg}> & more")
    save_png(np.zeros((2, 2, 1), np.uint8), run / "spectrograms000001.png")
    page = Page(write_report(run).read_text())
    sources = [value for name, value in page.attributes if name == "src" and "audio" in str(value)]
    heard = [base64.b64decode(str(source).partition(",")[2]) for source in sources]
    assert heard == [b"RIFF4", b"RIFF3", b"RIFF2"]
    assert [text for text in page.text if text.startswith("text <")] == [
        f"text <{kimg}> & more" for kimg in (4, 3, 2)
    ]
    assert {"Samples", "Spectrograms"} <= set(page.text)


def test_what_a_run_learns_from_is_called_by_its_name(run) -> None:
    path = max((run / "checkpoints").iterdir()) / "state.json"
    state = json.loads(path.read_text())
    assert state["data"]["item"] == "image"
    path.write_text(json.dumps({**state, "data": {**state["data"], "item": "recording"}}))
    page = Page(write_report(run).read_text())
    assert any("thousand recordings" in text for text in page.text)
