"""The table and the drawing of a backbone."""

import subprocess
import sys
from xml.etree import ElementTree

import pytest

from pipeline import describe as describe_module
from pipeline.describe import DescribeOptions, describe_text, plot
from tests import ROOT
from transforms.errors import FeaturemillError, UsageError


def test_rows_and_totals():
    lines = describe_text(DescribeOptions("vgg19", include_top=True, image_size=224)).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["block1_conv2"] == ["224×224×64", "36,928", "1,849,688,064", "12,845,056"]
    assert rows["fc1"] == ["4,096", "102,764,544", "102,760,448", "16,384"]
    assert rows["total"] == ["143,667,240", "19,632,062,464"]
    assert len([name for name in rows if name.startswith("block")]) == 21


def test_columns_are_aligned():
    lines = describe_text(DescribeOptions("vgg16", image_size=64)).splitlines()
    table = lines[2 : lines.index("", 2)]
    rows = [line for line in table if line.startswith(("name", "block"))]
    assert len(rows) == 19
    assert len({len(line) for line in rows}) == 1
    assert "fc1" not in "\n".join(lines)


@pytest.mark.parametrize(("image_size", "noted"), [(224, False), (320, True)])
def test_says_where_the_published_top_does_not_fit(image_size, noted):
    text = describe_text(DescribeOptions("vgg16", include_top=True, image_size=image_size))
    assert ("fit image sizes 224 to 255 only" in text) == noted
    assert "fit image sizes" not in describe_text(DescribeOptions("vgg16", image_size=image_size))


def test_wrong_names_and_sizes():
    with pytest.raises(UsageError, match="no backbone 'vgg9'; did you mean"):
        describe_text(DescribeOptions("vgg9", image_size=224))
    with pytest.raises(UsageError, match="31 is below 32"):
        describe_text(DescribeOptions("vgg16", image_size=31))


def test_draws_a_png(tmp_path):
    from PIL import Image

    plot(DescribeOptions("vgg19", plot=str(tmp_path / "a.PNG"), include_top=True))
    with Image.open(tmp_path / "a.PNG") as image:
        assert image.format == "PNG"
        assert image.width > 1000
        colours = {image.convert("RGB").getpixel((x, image.height // 2)) for x in range(image.width)}
    expected = {tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for code in describe_module._COLOURS.values()}
    assert expected <= colours


def test_draws_an_svg(tmp_path):
    plot(DescribeOptions("vgg16", plot=str(tmp_path / "a.svg")))
    svg = (tmp_path / "a.svg").read_text()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    for label in ("block5", "14,714,688 parameters", "7×7×512"):
        assert label in svg
    assert "fc1" not in svg


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a\.jpg: its ending has to be \.png or \.svg"):
        plot(DescribeOptions("vgg16", plot=str(tmp_path / "a.jpg")))
    assert not list(tmp_path.iterdir())


def test_a_place_that_can_not_be_written(tmp_path):
    with pytest.raises(FeaturemillError, match=r"cannot write .*choose another place"):
        plot(DescribeOptions("vgg16", plot=str(tmp_path / "none" / "a.png")))


def test_neither_imports_keras(tmp_path):
    code = (
        "import sys; from pipeline.describe import DescribeOptions, describe_text, plot;"
        "describe_text(DescribeOptions('vgg16', include_top=True, image_size=224)); print('matplotlib' in sys.modules);"
        f"plot(DescribeOptions('vgg16', plot={str(tmp_path / 'a.png')!r}));"
        "print('keras' in sys.modules, 'tensorflow' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "False", "False"]
