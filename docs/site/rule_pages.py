"""A page for each rule and the table of all rules, from signatures, docstrings and the parts of a rule."""

import inspect
import re
import textwrap

import rule_pictures
from public_names import linked

import lightning_same
from lightning_same import Rule
from lightning_same.two_pass.announcement import passes

FAMILIES = {
    "sam": "SAM and its published variants",
    "same": "Rules that treat the four checkpoints differently",
    "controls": "Controls for experiments",
}
"""The modules of the rules, in the order of the site."""

OWN = "This rule was made in this project; no paper describes it. [Studies](../study.md) has what ours have shown."
"""The source of a rule without references."""


def families() -> dict[str, list[type[Rule]]]:
    """The public rules by heading, each family in the order of its module."""
    kinds = [getattr(lightning_same, name) for name in lightning_same.__all__]
    rules = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Rule) and kind is not Rule]
    found = {
        title: sorted(
            (kind for kind in rules if kind.__module__.endswith(f".{module}")),
            key=lambda kind: inspect.getsourcelines(kind)[1],
        )
        for module, title in FAMILIES.items()
    }
    assert sum(map(len, found.values())) == len(rules), "a rule is in a module that FAMILIES does not name"
    return found


def table() -> str:
    """All rules, a row each."""
    lines = []
    for title, kinds in families().items():
        lines += [f"## {title}", "", "| rule | what it does | passes per step | source |", "|---|---|---|---|"]
        for kind in kinds:
            summary, cost = _summary(kind)
            cells = [f"[`{kind.__name__}`](rules/{kind.__name__}.md)", summary, cost, _short_source(kind)]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def page(kind: type[Rule]) -> str:
    """The page of one rule."""
    name, rule = kind.__name__, kind()
    paragraphs = _description(kind)
    uses = [text for text in paragraphs[1:] if text.startswith("Use it")]
    others = [text for text in paragraphs[1:] if text not in uses]
    parts = [("Perturbation", rule.perturbation), ("Combination", rule.combination), ("Timing", rule.timing)]
    lines = [
        f"# {name}",
        "",
        *linked("\n\n".join(map(pretty, [paragraphs[0], *others, *uses])), name).splitlines(),
        "",
        *_picture(name, rule),
        "",
        "## The formulas",
        "",
        "g is the gradient at the weights w, s the gradient at w + e, and d what the optimizer steps with, from w.",
        "r is s / g, element by element.",
        "",
        "| part | class | formula |",
        "|---|---|---|",
    ]
    for title, part in parts:
        first = pretty(_description(type(part))[0]).replace("|", r"\|")
        if title == "Combination" and type(part).__name__ == "Gains":
            first = _gains(rule)
        lines.append(f"| {title} | {linked(f'`{type(part).__name__}`', name)} | {first} |")
    lines += ["", "## What it costs", "", "| what | how much |", "|---|---|"]
    lines += [f"| {what} | {cost} |" for what, cost in _costs(rule)]
    lines += ["", "## Source", "", _source(kind) or OWN]
    lines += ["", "## How to use it", "", *_tabs(rule), "", "## Arguments", "", *_reference(name), ""]
    return "\n".join(lines)


def pretty(text: str) -> str:
    """A sentence of a docstring with the symbols of mathematics, outside of code."""
    pieces = re.split(r"(`+[^`]*`+)", text)
    for index in range(0, len(pieces), 2):
        piece = pieces[index].replace("||", "‖")
        for word, symbol in SYMBOLS.items():
            piece = re.sub(rf"\b{word}\b", symbol, piece)
        pieces[index] = re.sub(r"(?<=[\w‖)²]) \* (?=[\w‖(])", " · ", piece).replace("*", r"\*").replace("^2", "²")
    return re.sub(r"``([^`]+)``", r"`\1`", "".join(pieces))


SYMBOLS = {"rho": "ρ", "alpha": "α", "sigma": "σ", "theta": "θ", "gamma": "γ", "eta": "η", "lambda": "λ"}


def _description(kind: type) -> list[str]:
    """The paragraphs of a docstring before its sections, each on one line."""
    text = re.split(r"\n\n(?:Args|Raises|Example|References|Attributes|Returns):\n", inspect.getdoc(kind) or "")[0]
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _summary(kind: type[Rule]) -> tuple[str, str]:
    """What it does, and the passes that a step takes."""
    first = pretty(_description(kind)[0])
    words = r"(?:Two passes|One pass, at w \+ e|1 \+ 1/k passes)\.$"
    cost = re.search(words, first)
    summary = re.sub(words, "", first).strip()
    if cost:
        return summary, {"T": "2", "O": "1", "1": "1 + 1/k"}[cost[0][0]]
    summary, _, cost_text = summary.rpartition(": ")
    return f"{summary}.", cost_text.rstrip(".").replace(" passes", "")


def _source(kind: type[Rule]) -> str:
    """The reference, with a link."""
    match = re.search(r"References:\n\s+(.*?)\Z", inspect.getdoc(kind) or "", re.DOTALL)
    text = " ".join(match[1].split()) if match else ""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _short_source(kind: type[Rule]) -> str:
    """Authors, year and link."""
    source = _source(kind)
    found = re.search(r"^(.*?), .*(\d{4}), (\[arXiv.*\))", source)
    return f"{found[1]} {found[2]}, {found[3]}" if found else ""


def _gains(rule: Rule) -> str:
    """The gains of the default settings, checkpoint by checkpoint."""
    gains = rule.combination.arguments().values()
    cells = {k: f"{gain:g}" if isinstance(gain, float) else f"`{gain!r}`" for k, gain in enumerate(gains, 1)}
    changed = [f"{cell} · s on checkpoint {k}" for k, cell in cells.items() if cell != "1"]
    return "d = " + ", ".join([*changed, "s elsewhere"]) if changed else "d = s"


def _costs(rule: Rule) -> list[tuple[str, str]]:
    """What a step takes beside plain training, from what the parts say of themselves."""
    memory = ["a copy of the weights during pass two"]
    if rule.ahead:
        memory = ["a copy of the weights during forward and backward"]
    elif rule.combination.needs_grads:
        memory.append("g during pass two")
    if rule.perturbation.stateful or rule.combination.stateful:
        memory.append("one tensor per parameter as its state, twice")
    steps = passes(rule).replace(" a step", "")
    if rule.ahead:
        reduces = "one"
    elif rule.perturbation.stateful or rule.timing.stateful:
        reduces = 'two; `ascent="local"` is not available'
    elif rule.combination.needs_grads:
        reduces = 'two; with `ascent="local"` one of them overlaps with pass two'
    else:
        reduces = 'two; with `ascent="local"` one'
    kept = "its state, under the names of the parameters" if rule.stateful else "nothing"
    return [
        ("Forward-backward passes per step", steps),
        ("Memory", ", ".join(memory)),
        ("All-reduces of the gradient per step, on several processes", reduces),
        ("In a checkpoint file", kept),
    ]


def _tabs(rule: Rule) -> list[str]:
    name, arguments = type(rule).__name__, _plain(rule)
    call = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    given = ", ".join(f"{key}: {_flag(value)}" for key, value in arguments.items())
    flags = " ".join(f"--sam.{key} {_flag(value)}" for key, value in arguments.items())
    code = {
        "A module": f"from lightning_same import {name}, with_sam\nfrom net import LitNet\n\n"
        f"model = with_sam(LitNet(), {call})",
        "Command line": f"lightning-same fit --model net.LitNet --sam {name} {flags}".strip(),
        "Config file": f"sam:\n  class_path: {name}\n  init_args: {{{given}}}",
    }
    languages = {"A module": "python", "Command line": "bash", "Config file": "yaml"}
    lines = []
    for title, text in code.items():
        lines += [f'=== "{title}"', "", f"    ```{languages[title]}", textwrap.indent(text, "    "), "    ```", ""]
    lines.append("In a loop of your own: [Fabric and plain PyTorch](../fabric_and_pytorch.md).")
    return lines


def _plain(rule: Rule) -> dict[str, object]:
    """The arguments that are numbers or words."""
    plain = int | float | str | tuple
    return {key: value for key, value in rule.arguments().items() if isinstance(value, plain)}


def _flag(value: object) -> str:
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


def _picture(name: str, rule: Rule) -> list[str]:
    by_element = rule_pictures.by_element(rule)
    said = "Left: the e of two weights, for gradients in all directions. " + (
        f"Middle: the d of {name} for each g and s. Right: d against s where g is 0.5, beside SAM's."
        if by_element
        else f"Right of it: g, s and the d of {name} for two weights, as arrows."
    )
    numbers = (
        "**Left**: where pass two looks, for gradients g in all directions and of two lengths; a thin line leads from"
        " the direction of g to its e. "
    )
    numbers += (
        "**Middle**: d for each g and s; the numbers are those of the [checkpoints](../rules.md#the-four-checkpoints)."
        " **Right**: d where g = 0.5."
        if by_element
        else "**Right of it**: g, s and d of two weights as arrows, since this rule looks at all elements together."
    )
    return [
        '<div class="wide" markdown tabindex="0">',
        "",
        f"![{said}](pictures/{name}-light.svg#only-light)",
        f"![{said}](pictures/{name}-dark.svg#only-dark)",
        "",
        "</div>",
        "",
        numbers + " The picture is drawn by calling the rule with its defaults.",
    ]


def _reference(name: str) -> list[str]:
    return [
        f"::: lightning_same.{name}",
        "    options:",
        "      heading_level: 3",
        "      show_docstring_description: false",
    ]
