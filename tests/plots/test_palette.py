"""One palette for all figures: told apart by every kind of color vision, and without color."""

import importlib
import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lightning_same
from lightning_same.experiments.study.figures import curve_pictures, fraction_pictures
from lightning_same.plots.palette import CKPTS, METHODS, QUANTITIES, REFERENCES, REST, Style, method_styles

ROOT = Path(__file__).parents[2]

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009:
# full protanopia, deuteranopia and tritanopia, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
NAMES = ["ckpts", "methods", "quantities"]


def lab(color: str, vision: str) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB color as somebody with this kind of color vision sees it."""
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = to_xyz @ seen / np.array([0.95047, 1, 1.08883])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("styles", [(*CKPTS.values(), REST), (*METHODS, REFERENCES[0]), QUANTITIES], ids=NAMES)
def test_colors_are_told_apart(vision: str, styles: tuple[Style, ...]) -> None:
    """A difference of 10 in L*a*b* is plain to see; of 2.3, just noticeable."""
    colors = [style.color for style in styles]
    nearest = min(np.linalg.norm(lab(a, vision) - lab(b, vision)) for a, b in combinations(colors, 2))
    assert nearest > 15


@pytest.mark.parametrize("styles", [tuple(CKPTS.values()), (*METHODS, REFERENCES[0]), QUANTITIES], ids=NAMES)
@pytest.mark.parametrize("attribute", ["dashes", "marker"])
def test_dashes_and_markers_differ(styles: tuple[Style, ...], attribute: str) -> None:
    values = [getattr(style, attribute) for style in styles]
    assert len(set(values)) == len(values)


def test_methods_keep_their_order_and_references_are_black() -> None:
    styles = method_styles(["SGD", "SAM", "SAME 1"], references=["SAM"])
    assert list(styles) == ["SGD", "SAM", "SAME 1"]
    assert [styles[name].color for name in styles] == [METHODS[0].color, "#000000", METHODS[1].color]
    assert [style.label for style in styles.values()] == list(styles)
    two = method_styles("abc", references=["b", "c"])
    assert method_styles("abc", references=["b", "b", "c"]) == two  # named twice is named once
    assert two["b"].color == two["c"].color == "#000000"
    assert two["b"].dashes != two["c"].dashes
    many = method_styles("abcd", references=["a", "b", "c"])
    assert "#000000" not in {style.color for style in many.values()}
    long = method_styles([str(k) for k in range(9)])
    assert long["7"]._replace(label="0") == long["0"]
    assert method_styles([]) == {}


@pytest.mark.parametrize("library", ["matplotlib", "pandas"])
def test_the_palette_needs_no_plotting_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_same, "plots", None, raising=False)
    for module in ("lightning_same.plots", "lightning_same.plots.palette"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    assert importlib.import_module("lightning_same.plots.palette").METHODS == METHODS


def used(svg: bytes) -> set[str]:
    return {color.upper() for color in re.findall(r"#[0-9a-fA-F]{6}", svg.decode())}


def test_a_study_s_figures_use_it() -> None:
    variants, epochs = ["SAM", "SGD", "SAME 1"], range(1, 4)
    rows = [
        {"variant": variant, "epoch": epoch, "val/accuracy": 0.1 * epoch + 0.01 * k}
        | dict.fromkeys([f"ckpt_fraction/{name}" for name in (*CKPTS, "rest")], 0.2)
        for k, variant in enumerate(variants)
        for epoch in epochs
    ]
    curves = pd.DataFrame(rows)
    (curve,) = curve_pictures(curves, ["SAM"])
    assert {METHODS[0].color, METHODS[1].color} <= used(curve.svg)
    assert not {style.color for style in METHODS[2:]} & used(curve.svg)
    for picture in fraction_pictures(curves):
        assert {style.color for style in (*CKPTS.values(), REST)} <= used(picture.svg)


@pytest.mark.parametrize("length", [4, 14, 40])
def test_a_study_s_legend_is_not_cut_off(length: int) -> None:
    names = [f"{k}{'m' * length}" for k in range(6)]
    rows = [{"variant": name, "epoch": epoch, "val/accuracy": 0.1} for name in names for epoch in (1, 2)]
    (picture,) = curve_pictures(pd.DataFrame(rows), [])
    svg = picture.svg.decode()
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    legend = svg[svg.index('id="legend_1"') :]
    ends = [float(x) for x in re.findall(r'<use [^>]*x="([-\d.]+)" y="', legend)]
    texts = [float(x) for x in re.findall(r"translate\(([-\d.]+) [-\d.]+\) scale", legend)]
    assert len(ends) == len(texts) == len(names)
    assert min(ends) > 0
    assert max(texts) < width - 6 * min(length, 30)


@pytest.mark.parametrize("folder", ["lightning_same", "docs", "notebooks", "benchmarks"])
def test_no_other_file_has_colors_of_its_own(folder: str) -> None:
    """But for shades of grey, and for the style sheet of the report's page."""
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".ipynb")]
    assert files
    for path in files:
        text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
        colors = {color.lower() for color in re.findall(r"[\"'](#[0-9a-fA-F]{6})\b", text)}
        if path.name != "palette.py":
            assert not {color for color in colors if not color[1:3] == color[3:5] == color[5:]}, path
