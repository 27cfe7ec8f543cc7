"""What docs/site makes from the code: a page and a picture for each rule, and a reference of every public name."""

import re
import sys
from contextlib import nullcontext
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from support.pages import BLOCK
from support.paths import DOCS

import lightning_same
from lightning_same import AESAM, SAM, SAME, FriendlySAM, MomentumSAM, Rule, TwoPassOptions
from lightning_same.two_pass.checks import check_options

SITE = DOCS / "site"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports one of the site's scripts."""
    monkeypatch.syspath_prepend(SITE)
    ours = {path.stem for path in SITE.glob("*.py")}
    for name in ours & sys.modules.keys():
        monkeypatch.delitem(sys.modules, name)
    yield __import__
    for name in ours & sys.modules.keys():
        del sys.modules[name]


def test_every_rule_has_a_row_and_a_page_that_is_true(site: Any) -> None:
    rule_pages = site("rule_pages")
    kinds = [kind for family in rule_pages.families().values() for kind in family]
    assert {kind.__name__ for kind in kinds} == {
        name
        for name in lightning_same.__all__
        if isinstance(kind := getattr(lightning_same, name), type) and issubclass(kind, Rule) and kind is not Rule
    }
    table = rule_pages.table()
    for kind in kinds:
        name, page = kind.__name__, rule_pages.page(kind)
        (row,) = re.findall(rf"^\| \[`{name}`\].*$", table, re.MULTILINE)
        passes = row.split(" | ")[-2]
        assert passes in {"2", "1", "1 + 1/k", "1 to 2 passes"} or "host sync" in passes, row
        assert re.search(r"\d{4}, \[arXiv", row) or kind.__module__.endswith(("same", "controls")), row
        for part in (kind().perturbation, kind().combination, kind().timing):
            assert f"`{type(part).__name__}`" in page
        assert "Use it" in page, f"{name}: the docstring does not say when to use it"
        assert f"::: lightning_same.{name}" in page
        (source,) = re.findall(r"^## Source\n\n(.+)$", page, re.MULTILINE)
        assert ("arXiv" in source) == ("References:" in (kind.__doc__ or ""))


def test_the_code_on_a_rules_page_makes_that_rule(site: Any) -> None:
    rule_pages = site("rule_pages")
    for family in rule_pages.families().values():
        for kind in family:
            page = re.sub(r"^    ", "", rule_pages.page(kind), flags=re.MULTILINE)
            code = {language: text for _, language, text in BLOCK.findall(page)}
            assert set(code) == {"python", "bash", "yaml"}
            (call,) = re.findall(r"LitNet\(\), (.*)\)", code["python"])
            assert eval(call, vars(lightning_same) | {kind.__name__: kind}) == kind()
            config = yaml.safe_load(code["yaml"])["sam"]
            arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in config["init_args"].items()}
            assert getattr(lightning_same, config["class_path"])(**arguments) == kind()
            flags = dict(re.findall(r"--sam\.(\w+) (\S+)", code["bash"]))
            assert {key: yaml.safe_load(text) for key, text in flags.items()} == config["init_args"]


def test_the_costs_on_a_rules_page_are_those_of_the_rule(site: Any) -> None:
    pages = {kind: site("rule_pages").page(kind) for kind in (SAM, SAME, FriendlySAM, AESAM, MomentumSAM)}
    refuses = [kind for kind, page in pages.items() if '`ascent="local"` is not available' in page]
    assert refuses == [FriendlySAM, AESAM]
    for kind in pages:
        options = TwoPassOptions(ascent="local")
        with pytest.raises(ValueError, match="local") if kind in refuses else nullcontext():
            check_options(options, kind(), "Net")
    assert [kind for kind, page in pages.items() if "one tensor per parameter" in page] == [FriendlySAM]
    assert [kind for kind, page in pages.items() if "g during pass two" in page] == [SAME]
    assert "| 1 pass, at w + e |" in pages[MomentumSAM]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_rule_is_drawn_by_calling_it(site: Any, theme: str) -> None:
    rule_pictures = site("rule_pictures")
    for rule in (lightning_same.SAME(), lightning_same.LookSAM(), lightning_same.MomentumSAM()):
        picture = ElementTree.fromstring(rule_pictures.svg(rule, theme))
        assert picture.tag.endswith("svg")
    # ASAM's e is an ellipse: along the second weight it is as much shorter as that weight is smaller.
    asam = lightning_same.ASAM(rho=1.0, eta=0.0)
    along = [rule_pictures._e(asam, direction).norm().item() for direction in torch.eye(2)]
    assert along == pytest.approx(list(rule_pictures.WEIGHTS))
    g, s = torch.full((2,), 0.5), torch.tensor([0.25, 1.0])
    assert rule_pictures._d(lightning_same.SAME(ckpt=1, condition=2.0), g, s).tolist() == [0.25, 2.0]


def test_the_reference_holds_every_public_name_once(site: Any) -> None:
    api_pages, rule_pages = site("api_pages"), site("rule_pages")
    pages = [api_pages.page(slug) for slug in api_pages.GROUPS]
    pages += [rule_pages.page(kind) for family in rule_pages.families().values() for kind in family]
    names = re.findall(r"^::: lightning_same\.(\w+)$", "\n".join(pages), re.MULTILINE)
    assert sorted(names) == sorted(lightning_same.__all__)


def test_a_docstrings_sentence_becomes_mathematics(site: Any) -> None:
    pretty = site("rule_pages").pretty
    assert pretty("e = rho * T^2 g / ||T g|| with `rho * x`") == "e = ρ · T² g / ‖T g‖ with `rho * x`"
