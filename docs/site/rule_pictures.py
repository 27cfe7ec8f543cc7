"""What a rule does, drawn by calling it: the points e of two weights, and d over the plane of g and s."""

import io
import math

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_same import Dose, Elementwise, Memory, Perturbed, Progress, RandomMask, Rule
from lightning_same.plots.palette import CKPTS

THEMES = {"light": ("#1c1c1c", "#8c8c8c", "RdBu_r"), "dark": ("#e8e8e8", "#8c8c8c", "RdBu_r")}
"""Colors of text and of lines in the background, and the map of values, by theme."""

WEIGHTS = (1.0, 0.4)
EARLIER = (1.0, 1.0)
"""A gradient of the step before, for rules that remember."""

SPOTS = {1: (0.42, 0.8), 2: (0.8, 0.3), 3: (0.42, -0.8), 4: (0.8, -0.3)}
"""Where the checkpoints' numbers stand; the other half of the plane is the same, turned by 180 degrees."""


def svg(rule: Rule, theme: str) -> str:
    """The picture as SVG."""
    text, faint, colors = THEMES[theme]
    style = {
        "font.size": 9,
        "svg.fonttype": "path",
        "svg.hashsalt": "lightning-same",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "legend.frameon": False,
        **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], text),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(10.4, 3.3), layout="constrained")
        points, plane, cut = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 1))
        draw_points(points, rule, text, faint)
        if by_element(rule):
            draw_plane(plane, rule, colors, text)
            draw_cut(cut, rule, text, faint)
        else:
            draw_vectors(plane, rule, text, faint, between=False)
            if rule.combination.stateful:
                draw_vectors(cut, rule, text, faint, between=True)
            else:
                cut.remove()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return file.getvalue()


def draw_points(axes: Axes, rule: Rule, text: str, faint: str) -> None:
    """All e that gradients of two lengths lead to, and which direction leads to which."""
    angles = torch.linspace(0, 2 * math.pi, 121)
    rho = float(rule.rho)  # type: ignore[arg-type]
    for length, dashes in ((1.0, "-"), (2.0, (0, (4, 2)))):
        e = torch.stack([_e(rule, length * torch.stack([angle.cos(), angle.sin()])) for angle in angles]) / rho
        axes.plot(e[:, 0], e[:, 1], color=text, linestyle=dashes, linewidth=1.2, label=f"‖g‖ = {length:g}")
    largest = e.abs().max().item()
    name = "v" if rule.ahead else "g"
    for angle in angles[:-1:15]:
        direction = torch.stack([angle.cos(), angle.sin()])
        outer, inner = 1.35 * largest * direction, _e(rule, direction) / rho
        axes.plot(*zip(outer, inner, strict=True), color=faint, linewidth=0.8)
        axes.plot(*outer, marker="o", markersize=3.5, color=CKPTS["ckpt3"].color)
        axes.plot(*inner, marker="o", markersize=3.5, color=CKPTS["ckpt1"].color)
    axes.plot(0, 0, marker="+", color=text)
    for ckpt, label in (("ckpt3", f"direction of {name}"), ("ckpt1", "its e")):
        axes.plot([], [], marker="o", markersize=3.5, linestyle="", color=CKPTS[ckpt].color, label=label)
    axes.set(
        title=f"e for two weights, {WEIGHTS[0]:g} and {WEIGHTS[1]:g}",
        xlabel="first weight, in units of ρ",
        ylabel="second weight, in units of ρ",
        aspect="equal",
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.5, handlelength=1.4)


def draw_plane(axes: Axes, rule: Rule, colors: str, text: str) -> None:
    """D over the plane of g and s."""
    line = torch.linspace(-1, 1, 101)
    s, g = torch.meshgrid(line, line, indexing="ij")
    d = _d(rule, g, s)
    limit = d.abs().max().item()
    image = axes.imshow(d.numpy(), origin="lower", extent=(-1, 1, -1, 1), cmap=colors, vmin=-limit, vmax=limit)
    axes.figure.colorbar(image, ax=axes, label="d", shrink=0.85)
    for slope in (1, -1):
        axes.plot([-1, 1], [-slope, slope], color="#1c1c1c", linewidth=0.7, linestyle=(0, (3, 2)))
    axes.axhline(0, color="#1c1c1c", linewidth=0.7)
    axes.axvline(0, color="#1c1c1c", linewidth=0.7)
    for k, (x, y) in SPOTS.items():
        for sign in (1, -1):
            box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
            axes.text(sign * x, sign * y, str(k), ha="center", va="center", fontsize=8, color="#1c1c1c", bbox=box)
    axes.set(xlabel="g", ylabel="s", title="d over g and s", xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def draw_cut(axes: Axes, rule: Rule, text: str, faint: str) -> None:
    """D against s where g = 0.5."""
    s = torch.linspace(-1, 1, 401)
    axes.plot(s, s, color=faint, linewidth=1.2, linestyle=(0, (4, 2)), label="SAM: d = s")
    random = isinstance(rule.combination, RandomMask)
    line = {"linestyle": "", "marker": ".", "markersize": 2} if random else {"linewidth": 1.6}
    d = _d(rule, torch.full_like(s, 0.5), s)
    axes.plot(s, d, color=CKPTS["ckpt1"].color, label=type(rule).__name__, **line)
    for edge in (-0.5, 0, 0.5):
        axes.axvline(edge, color=faint, linewidth=0.6, linestyle=(0, (3, 2)))
    top = axes.get_ylim()[1]
    for k, x in {3: -0.75, 4: -0.25, 2: 0.25, 1: 0.75}.items():
        axes.text(x, top, str(k), ha="center", va="bottom", fontsize=8)
    axes.set(xlabel="s", ylabel="d", xticks=[-1, -0.5, 0, 0.5, 1])
    axes.set_title("d where g = 0.5", pad=14)
    axes.legend(fontsize=7.5, loc="lower right", handlelength=1.6)


def draw_vectors(axes: Axes, rule: Rule, text: str, faint: str, *, between: bool) -> None:
    """G, s and d of two weights as arrows, for a rule that looks at all elements together."""
    g, s = torch.tensor([1.0, 0.3]), torch.tensor([0.9, 0.9])
    memory = Memory([g])
    d = rule.combine([g], [s], Progress(), memory)[0]
    shown = {"g": (g, CKPTS["ckpt3"].color), "s": (s, CKPTS["ckpt1"].color), "d": (d, text)}
    title = "g, s and d of two weights"
    if between:
        g = torch.tensor([1.0, -0.2])
        d = g.clone()
        rule.plain_step_([d], memory)
        shown = {"g": (g, CKPTS["ckpt3"].color), "d": (d, text)}
        title = "on a step between"
    elif torch.equal(d, s):
        shown = {"g": shown["g"], "s = d": shown["s"]}
    for name, (vector, color) in shown.items():
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=vector.tolist(), xytext=(0, 0), arrowprops=arrow)
        axes.annotate(name, xy=vector.tolist(), xytext=(4, 4), textcoords="offset points", color=color, fontsize=10)
    ends = torch.stack([vector for vector, _ in shown.values()] + [torch.zeros(2)])
    low, high = ends.min(0).values - 0.2, ends.max(0).values + 0.3
    axes.axhline(0, color=faint, linewidth=0.6)
    axes.axvline(0, color=faint, linewidth=0.6)
    axes.set(title=title, xlabel="first weight", ylabel="second weight", aspect="equal")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def by_element(rule: Rule) -> bool:
    """Whether d can be drawn for each g and s alone."""
    return isinstance(rule.combination, Elementwise | Perturbed | RandomMask | Dose)


def _e(rule: Rule, g: Tensor) -> Tensor:
    w = torch.tensor(WEIGHTS)
    memory = Memory([w])
    if rule.perturbation.stateful:
        with rule.perturbed([w], [torch.tensor(EARLIER)], memory=memory):
            pass
    before = w.clone()
    with rule.perturbed([w], [g], memory=memory):
        return w - before


def _d(rule: Rule, g: Tensor, s: Tensor) -> Tensor:
    return rule.combine([g.clone()], [s.clone()], Progress(), Memory([g]))[0]
