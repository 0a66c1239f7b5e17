"""An OUT goes on as it was begun, and whoever names other settings is told."""

import pytest

from pipeline.cli.app import run_cli
from pipeline.demo.samples import draw_items, write_folder
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.resumed import resumed
from pipeline.extraction.run import run
from tests.support.fakes import WEIGHTS, load_fake
from transforms.store.features import open_features

BEGUN = {"image_size": 32, "interpolation": "bicubic", "features": ("texture=block1_conv2:max",)}


@pytest.fixture
def out(tmp_path):
    write_folder(tmp_path / "photos", draw_items(per_class=2, size=40, seed=0))
    options = ExtractOptions(inputs=(str(tmp_path / "photos"),), output=str(tmp_path / "OUT"), weights="fake", **BEGUN)
    run(options, load=load_fake, weights=WEIGHTS)
    return tmp_path / "OUT"


def asked(out, **more):
    return ExtractOptions(inputs=(str(out.parent / "photos"),), output=str(out), **more)


def test_settings_of_out_are_taken_and_reported(out):
    lines = []
    options = resumed(asked(out), (), say=lines.append)
    assert {name: getattr(options, name) for name in BEGUN} == BEGUN
    assert options.spec(WEIGHTS) == open_features(str(out)).spec
    [line] = lines
    assert "--image-size 32" in line
    assert "--feature texture=block1_conv2:max" in line
    again = resumed(asked(out, weights="fake", **BEGUN), BEGUN, say=lines.append)
    assert len(lines) == 1, "nothing to say where all is as it was"
    assert again.spec(WEIGHTS) == options.spec(WEIGHTS)


def test_what_is_named_stays_and_is_refused(out, capsys):
    options = resumed(asked(out, image_size=64), ("image_size",))
    assert options.image_size == 64
    assert options.interpolation == "bicubic"
    command = ["extract", str(out.parent / "photos"), "-o", str(out), "--image-size", "64", "--weights", "random:0"]
    assert run_cli(command) == 1
    assert "image_size 32 | 64" in capsys.readouterr().err


def test_nothing_is_taken_where_nothing_is_or_all_goes(out):
    assert resumed(asked(out, overwrite=True), ()).image_size == 224
    assert resumed(ExtractOptions(inputs=("photos",), output=str(out.parent / "NEW")), ()).image_size == 224
    (out / "manifest.json").write_text("{")
    assert resumed(asked(out), ()).image_size == 224


@pytest.mark.parametrize(("named", "value"), [("resize", "squash"), ("image_size", 64)])
def test_a_short_side_goes_with_what_was_cut_from_it(out, named, value):
    cut = {"resize": "crop", "short_side": 40, "weights": "fake"}
    begun = out.parent / "CUT"
    options = ExtractOptions(inputs=(str(out.parent / "photos"),), output=str(begun), **{**BEGUN, **cut})
    run(options, load=load_fake, weights=WEIGHTS)
    same = ExtractOptions(inputs=options.inputs, output=str(begun))
    assert resumed(same, ()).short_side == 40
    other = ExtractOptions(inputs=options.inputs, output=str(begun), **{named: value})
    assert resumed(other, (named,)).short_side is None
