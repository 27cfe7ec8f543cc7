"""The reference: every public name, by what it is for."""

from typing import NamedTuple

from public_names import MODULES

import lightning_same
from lightning_same import Rule, plots


class Group(NamedTuple):
    """One page of the reference.

    Attributes:
        title: of the page.
        text: its first sentence.
        modules: whose public names it holds: packages or modules within `lightning_same`.
        others: names beside the public ones.
    """

    title: str
    text: str
    modules: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


GROUPS = {
    "training": Group("Training", "The mixin, `with_sam`, and how the two passes run.", ("two_pass", "replay")),
    "rule": Group(
        "Rule",
        "The base class of rules, and what your own loop gives it. The named rules have [a page each](../rules.md).",
        ("rules.base", "rules.sam", "rules.same", "rules.state", "rules.progress"),
    ),
    "perturbations": Group("Perturbations", "How e is computed.", ("rules.perturbations",)),
    "combinations": Group("Combinations", "How d is made of g and s.", ("rules.combinations", "rules.controls")),
    "timings": Group("Timings", "Which steps perturb.", ("rules.timing",)),
    "schedules": Group("Schedules", "Radii and gains that change while training goes on.", ("rules.schedules",)),
    "monitors": Group("Monitors", "Callbacks that measure while a model trains.", ("callbacks",)),
    "curvature": Group("Curvature", "The Hessian of a loss, and what is measured on it.", ("curvature",)),
    "gradients": Group("Gradients", "The four checkpoints of two gradients.", ("gradients",)),
    "command": Group(
        "Command line", "The class behind `lightning-same fit`.", others=("lightning_same.cli.fit.SAMCLI",)
    ),
    "plots": Group(
        "Plots",
        "Figures from what runs have logged; the extra `plots`.",
        others=tuple(f"lightning_same.plots.{name}" for name in plots.__all__),
    ),
    "experiments": Group("Experiments", "Data, label noise and models of the studies; the extra `experiments`."),
}
"""The pages, by the last part of their address."""


def page(slug: str) -> str:
    """The page of one group."""
    group = GROUPS[slug]
    lines = [f"# {group.title}", "", group.text, ""]
    for name in [*(f"lightning_same.{name}" for name in names(group)), *group.others, *experiments(slug)]:
        lines += [f"::: {name}", ""]
    return "\n".join(lines)


def names(group: Group) -> list[str]:
    """The public names of a group that have no page of their own, in the order of the stub."""
    found = [
        name
        for name, module in MODULES.items()
        if any(f"{module}.".startswith(f"{chosen}.") for chosen in group.modules)
    ]
    return [name for name in found if not _has_a_page(getattr(lightning_same, name))]


def experiments(slug: str) -> list[str]:
    """The names of `lightning_same.experiments`, on its page."""
    if slug != "experiments":
        return []
    import lightning_same.experiments

    return [f"lightning_same.experiments.{name}" for name in lightning_same.experiments.__all__]


def _has_a_page(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Rule) and thing is not Rule
