"""What a study is: methods x seeds x swept options, each of them one configuration of ``lightning-same fit``."""

import copy
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml  # type: ignore[import-untyped]

Config = dict[str, Any]

MARKER = "done.json"
"""Written last into the directory of a run, and by renaming: a run without it counts as not begun."""

METRICS = "metrics.csv"
"""What the fit of a run has logged, beside it."""


class StudyError(Exception):
    """What the person who gave the command has to know or to change; shown without a traceback."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: its directory.
        method: the name of its method.
        settings: the swept options that its method takes, by their full names.
        seed: its seed; runs of equal seed are paired.
        config: what ``lightning-same fit --config`` is given.
    """

    name: str
    method: str
    settings: dict[str, Any]
    seed: int
    config: Config

    @property
    def variant(self) -> str:
        """The method with its settings: what the seeds are repetitions of."""
        return f"{self.method} ({_label(self.settings)})" if self.settings else self.method

    @property
    def digest(self) -> str:
        """Equal for equal configurations only."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def epochs(self) -> int | None:
        """The length that is planned, where the configuration says it."""
        epochs = self.config.get("trainer", {}).get("max_epochs")
        return epochs if isinstance(epochs, int) and epochs > 0 else None


@dataclass(frozen=True)
class Study:
    """A comparison that is planned.

    Attributes:
        name: its title, and the default directory of its results.
        description: a sentence for the head of the report.
        reference: the method that the others are compared with.
        early: the first share of the epochs, over which the early phase averages.
        late: the last share of the epochs, likewise.
        threads: PyTorch threads of a run. A number of its own, since the last bits of a result depend on it.
        runs: all of them.
        delta: the largest difference of an accuracy that counts as none.
        claims: what is tested: ``"notes"`` for the claims of the project's first notes, or for each method and phase
            what training and validation accuracy are expected to be beside the reference's (less, similar, greater).
    """

    name: str
    description: str
    reference: str
    early: float
    late: float
    threads: int
    runs: list[Run] = field(repr=False)
    delta: float = 0.02
    claims: str | dict[str, dict[str, list[str]]] | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a study's configuration.

        Args:
            path: a YAML file; docs/study.md describes it.

        Raises:
            StudyError: if the file, or what it says, is no study.
        """
        given = _yaml(path)
        _known(given, {*_DEFAULTS, *_NEEDED}, f"{path}: a study")
        for key in _NEEDED:
            if key not in given:
                raise StudyError(f"{path}: a study needs `{key}`.")
        options = {**_DEFAULTS, "name": path.stem, **given}
        methods = options["methods"]
        if not isinstance(methods, Mapping) or not methods:
            raise StudyError(f"{path}: `methods` must name one method or more, each with its options, got {methods!r}.")
        if options["reference"] not in methods:
            raise StudyError(
                f"{path}: `reference` must be one of the methods ({', '.join(methods)}), got {options['reference']!r}."
            )
        for phase in "early", "late":
            if not (isinstance(options[phase], float | int) and 0 < options[phase] <= 0.5):
                raise StudyError(f"{path}: `{phase}` must be a share above 0, at most 0.5, got {options[phase]!r}.")
        if not (isinstance(options["threads"], int) and options["threads"] >= 1):
            raise StudyError(f"{path}: `threads` must be a whole number >= 1, got {options['threads']!r}.")
        for key in "options", "sweep":
            if not isinstance(options[key], Mapping):
                raise StudyError(f"{path}: `{key}` must be a mapping of full names to values, got {options[key]!r}.")
        base = _yaml(path.parent / options["base"])
        for key, value in options["options"].items():
            set_option(base, key, value)
        runs = []
        for method, own in methods.items():
            if not isinstance(own, Mapping | None):
                raise StudyError(
                    f"{path}: method {method!r} must have options, such as `sam: {{class_path: SAM}}`, got {own!r}."
                )
            own = dict(own or {})
            sweep = {**options["sweep"], **own.pop("sweep", {})}
            sweep = {key: values for key, values in sweep.items() if values is not None}  # a method may leave one out
            for key, values in sweep.items():
                if not isinstance(values, list) or not values:
                    raise StudyError(f"{path}: `sweep` of {key} must list its values, got {values!r}.")
            for values in itertools.product(*sweep.values()):
                settings = dict(zip(sweep, values, strict=True))
                config = copy.deepcopy(base)
                for key, value in (own | settings).items():
                    set_option(config, key, copy.deepcopy(value))
                for seed in _seeds(options["seeds"], path):
                    seeded = copy.deepcopy(config)
                    for key in options["seed_options"]:
                        set_option(seeded, key, seed)
                    name = _slug(f"{method}_{_label(settings, '=', '_')}_seed={seed}")
                    runs.append(Run(name, method, settings, seed, seeded))
        if len({run.name for run in runs}) < len(runs):
            twice = next(run.name for run in runs if sum(run.name == other.name for other in runs) > 1)
            raise StudyError(f"{path}: two runs would have the name {twice!r}; name the methods more differently.")
        if not (isinstance(options["delta"], float | int) and 0 < options["delta"] < 1):
            raise StudyError(f"{path}: `delta` must be a difference of accuracies above 0, got {options['delta']!r}.")
        _check_claims(options["claims"], methods, path)
        kept = ("name", "description", "reference", "early", "late", "threads", "delta", "claims")
        return cls(**{key: options[key] for key in kept}, runs=runs)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `dump` has written.

        Raises:
            StudyError: if there is no such file.
        """
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise StudyError(f"{path.parent} holds no study: there is no {path.name} in it.") from None
        except (ValueError, OSError) as error:
            raise StudyError(f"{path} cannot be read: {error}") from error
        return cls(**{**content, "runs": [Run(**run) for run in content["runs"]]})

    def dump(self) -> str:
        """All of it, as JSON."""
        return json.dumps(asdict(self), indent=1)

    def extends(self, other: "Study") -> str | None:
        """Why this is another study than ``other``, whose results are there; None if it has all its runs.

        It may have more of them: further seeds or methods go on in the same directory.
        """
        if self.name != other.name:
            return f"that is the study {other.name!r}, this one is {self.name!r}"
        mine = {run.name: run for run in self.runs}
        for run in other.runs:
            if run.name not in mine:
                return f"it has a run {run.name!r} that this one has not"
            if mine[run.name].digest != run.digest:
                key, old, new = _first_difference(run.config, mine[run.name].config)
                return f"in run {run.name!r}, {key} is {old!r} there and {new!r} here"
        return None


_NEEDED = ("base", "methods", "seeds")
_DEFAULTS: Config = {
    "name": "",
    "description": "",
    "options": {},
    "seed_options": ["seed_everything", "data.init_args.noise_seed"],
    "sweep": {},
    "reference": "SAM",
    "early": 0.25,
    "late": 0.25,
    "threads": 1,
    "delta": 0.02,
    "claims": None,
}


def set_option(config: Config, key: str, value: Any) -> None:
    """Set an option by its dotted name; a mapping that is missing on the way is made."""
    *path, last = key.split(".")
    for name in path:
        if not isinstance(config.get(name), dict):
            config[name] = {}
        config = config[name]
    config[last] = value


def _yaml(path: Path) -> Config:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} must hold a mapping of options, got {type(content).__name__}.")
    return content


def _known(given: Config, allowed: set[str], owner: str) -> None:
    for key in given:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            meant = f" Did you mean `{close[0]}`?" if close else ""
            raise StudyError(f"{owner} has no option `{key}`.{meant} Its options: {', '.join(sorted(allowed))}.")


def _seeds(given: Any, path: Path) -> Sequence[int]:
    seeds = list(range(given)) if isinstance(given, int) else given
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise StudyError(f"{path}: `seeds` must be a number of seeds or a list of different ones, got {given!r}.")
    return seeds


def _check_claims(claims: Any, methods: Mapping[str, Any], path: Path) -> None:
    """Refuse claims that are neither the notes' nor a pair of words for a method and a phase."""
    if claims in (None, "notes"):
        return
    words = ("less", "similar", "greater")
    if not isinstance(claims, Mapping):
        raise StudyError(f"{path}: `claims` must be `notes`, or for each method its phases, got {claims!r}.")
    for method, phases in claims.items():
        if method not in methods:
            raise StudyError(f"{path}: `claims` must be of the methods ({', '.join(methods)}), got {method!r}.")
        for phase, pair in phases.items() if isinstance(phases, Mapping) else [(phases, None)]:
            if phase not in ("early", "late") or not (
                isinstance(pair, list) and len(pair) == 2 and all(word in words for word in pair)
            ):
                raise StudyError(
                    f"{path}: `claims` of {method!r} must be such as `early: [less, similar]`, for training and"
                    f" validation, each less, similar or greater; got {phase!r}: {pair!r}."
                )


def _label(settings: Mapping[str, Any], between: str = " ", separator: str = ", ") -> str:
    return separator.join(f"{key.split('.')[-1]}{between}{value}" for key, value in settings.items())


def _slug(name: str) -> str:
    return re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9.=_-]+", "-", name))


def _first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if old.get(name) != new.get(name):
                return _first_difference(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    return key, old, new
