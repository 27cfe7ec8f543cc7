"""What a study is: methods x seeds x swept options, each of them one configuration of ``lightning-same fit``."""

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.identity import checksum, decode, digest, encode, label, text
from lightning_same.experiments.study.reading import Document, read_yaml
from lightning_same.experiments.study.schema import Plan, StudyFile, checked, shown, study_file
from lightning_same.experiments.study.writing import read_regular

Config = dict[str, Any]

MARKER = "done.json"
"""Written last into the directory of a run, and by renaming: a run without it counts as not begun."""

METRICS = "metrics.csv"
"""What the fit of a run has logged, beside it."""

PLAN = "study.json"
"""The plan, in the directory of a study."""

RUNS = "runs"
"""The directory of all runs, likewise."""

MAX_RUNS = 20_000

OWN = (
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "test_after_fit",
)
"""What the study sets itself, in every run."""


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
        """The method with its settings: what the seeds are repetitions of. A study has no two that read the same."""
        return f"{self.method} ({label(self.settings)})" if self.settings else self.method

    @property
    def digest(self) -> str:
        """Equal for equal configurations only."""
        return digest(self.config)

    @property
    def epochs(self) -> int | None:
        """The length that is planned, where the configuration says it."""
        trainer = self.config.get("trainer")
        epochs = trainer.get("max_epochs") if isinstance(trainer, Mapping) else None
        return epochs if type(epochs) is int and epochs > 0 else None


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
        lines: for each method, file and line where it stands; empty if the study comes out of a plan.
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
    lines: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return re.sub(r'[/\\:*?"<>|]+', "-", self.name).lstrip(".-") or "study"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a study's configuration.

        Args:
            path: a YAML file; docs/study.md describes it.

        Raises:
            StudyError: if the file, or what it says, is no study. Names the file, the line, the key, what was got and
                what was wanted.
        """
        document = read_yaml(path)
        file = study_file(document)
        claimed = [("claims", method) for method in file.claims] if isinstance(file.claims, dict) else []
        for where, method in [(("reference",), file.reference), *((claim, claim[1]) for claim in claimed)]:
            if method not in file.methods:
                raise StudyError(
                    f"{document.at(*where)}: `{where[0]}` must be one of the methods ({', '.join(file.methods)}), got"
                    f" {method!r}."
                )
        base = read_yaml(path.parent / file.base)
        runs = list(_Expansion(document, file, base).runs())
        _refuse_equal(runs, document)
        lines = {method: document.at("methods", method) for method in file.methods}
        return cls(**{key: getattr(file, key) for key in _KEPT}, runs=runs, lines=lines)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `dump` has written.

        Raises:
            StudyError: if there is no such file, or it is not as it was written.
        """
        restore = "With the study's file, `lightning-same study --config FILE --results DIR` restores it."
        try:
            content = json.loads(read_regular(path, most=2**30))
            plan = checked(Plan, content)
            if plan.check not in (None, _check(content)):
                raise ValueError("it was changed since it was written")
            runs = [Run(run.name, run.method, decode(run.settings), run.seed, decode(run.config)) for run in plan.runs]
            _refuse_equal(runs, None)
        except FileNotFoundError:
            raise StudyError(f"{path.parent} holds no study: there is no {path.name} in it. {restore}") from None
        except (StudyError, ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise StudyError(f"{path} cannot be read: {str(why).rstrip('.')}. {restore}") from error
        return cls(**{key: getattr(plan, key) for key in _KEPT}, runs=runs)

    def dump(self) -> str:
        """All of it, as JSON."""
        content = asdict(self)
        del content["lines"]
        content["runs"] = [
            run | {"settings": encode(run["settings"]), "config": encode(run["config"])} for run in content["runs"]
        ]
        return json.dumps(content | {"check": _check(content)}, indent=1)

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
                return f"in run {run.name!r}, {key} is {shown(old)} there and {shown(new)} here"
        return None


_KEPT = ("name", "description", "reference", "early", "late", "threads", "delta", "claims")
"""What a study, its file and its plan have in common."""


class _Expansion:
    """A study's file as runs. Nothing that is written there is lost on the way: what contradicts itself is refused."""

    def __init__(self, document: Document, file: StudyFile, base: Document) -> None:
        self.document, self.file = document, file
        self.base: Config = base.content
        self.base_path = base.path
        self._refuse_set(file.options, "options")
        self._refuse_set(file.sweep, "sweep")
        self._refuse_within(file.options, "options")
        for key in file.sweep:
            if _holds(file.options, key):
                raise self._error(f"{key} stands in `options` and in `sweep`. Give it once.", "sweep", key)

    def runs(self) -> Iterator[Run]:
        """All runs, in the order of the file."""
        file = self.file
        self._check_number()
        if len(file.seeds) > 1 and not file.seed_options:
            raise self._error(
                f"`seed_options` must name what a seed sets, got []: all {len(file.seeds)} runs of a method would be"
                " equal.",
                "seed_options",
            )
        common = copy.deepcopy(self.base)
        self._apply(common, file.options, "options")
        for method in file.methods:
            own, sweep = self._options(method)
            for values in itertools.product(*sweep.values()):
                settings = dict(zip(sweep, values, strict=True))
                config = copy.deepcopy(common)
                self._apply(config, own, "methods", method)
                self._apply(config, settings, "methods", method, "sweep")
                for seed in file.seeds:
                    seeded = copy.deepcopy(config)
                    self._seed(seeded, seed)
                    yield Run(_run_name(method, settings, seed), method, settings, seed, seeded)

    def _options(self, method: str) -> tuple[Config, dict[str, list[Any]]]:
        """A method's own options and what is swept for it."""
        file, given = self.file, self.file.methods[method]
        own = dict(given.model_extra or {})
        where = ("methods", method)
        self._refuse_set(own, *where)
        self._refuse_set(given.sweep, *where, "sweep")
        self._refuse_within(own, *where)
        sweep = {key: values for key, values in {**file.sweep, **given.sweep}.items() if values is not None}
        for key, values in sweep.items():
            self._refuse_twice(key, values, *((*where, "sweep") if key in given.sweep else ("sweep",)))
            if _holds(own, key) or any(name.startswith(f"{key}.") for name in own):
                raise self._error(
                    f"method {method!r} gives {key}, which is swept too. Take it out, or leave the sweep out with"
                    f" `sweep: {{{key}: null}}`.",
                    *where,
                )
        for key in [*sweep, *(name for name, value in own.items() if value is not None)]:
            lost = [name for name in file.options if name.startswith(f"{key}.")]
            if lost:
                raise self._error(
                    f"method {method!r} gives the whole of `{key}`, and so would lose {lost[0]} of the study's"
                    f" `options`. Give that in the method, too, or `{key}` by its parts.",
                    *where,
                    key,
                )
        return own, sweep

    def _check_number(self) -> None:
        count = 0
        for method in self.file.methods:
            _, sweep = self._options(method)
            count += len(self.file.seeds) * math.prod(map(len, sweep.values()))
        if count > MAX_RUNS:
            raise StudyError(f"{self.document.path}: a study may have {MAX_RUNS} runs, this one has {count}.")

    def _apply(self, config: Config, options: Config, *where: str) -> None:
        """Set options, those that hold others first, so that none is lost."""
        for key in sorted(options, key=lambda name: name.count(".")):
            try:
                set_option(config, key, copy.deepcopy(options[key]))
            except ValueError as error:
                raise self._error(str(error), *where, key) from None

    def _seed(self, config: Config, seed: int) -> None:
        for number, key in enumerate(self.file.seed_options):
            value: Any = config
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if isinstance(value, Mapping | list):
                raise self._error(f"`{key}` is no seed: it is {shown(value)}.", "seed_options", number)
        self._apply(config, dict.fromkeys(self.file.seed_options, seed), "seed_options")
        if type(config.get("seed_everything")) is not int:
            raise StudyError(
                f"{self.base_path}: `seed_everything` must be a number, got {shown(config.get('seed_everything'))}:"
                " every run would draw another seed."
            )

    def _refuse_set(self, options: Mapping[str, Any], *where: str) -> None:
        """Refuse options that the study sets, by itself or by the seed: they would be changed without a word."""
        for key in (*OWN, *self.file.seed_options):
            if _holds(options, key):
                why = "by the study itself" if key in OWN else "by `seeds`, since `seed_options` names it"
                raise self._error(f"`{key}` is set {why}. Take it out.", *where, key)

    def _refuse_within(self, options: Config, *where: str) -> None:
        for key in options:
            if _holds({name: value for name, value in options.items() if name != key}, key):
                raise self._error(f"{key} is given twice: by itself, and within another. Give it once.", *where, key)

    def _refuse_twice(self, key: str, values: list[Any], *where: str) -> None:
        """Refuse equal values: 1 and 1.0, which a table takes for one, and '1' and 1, which read the same."""
        seen: dict[Any, Any] = {}
        for value in values:
            for known in (text(value), (value,) if type(value) in (int, float) else None):
                if known is not None and known in seen:
                    raise self._error(
                        f"`sweep` of {key} must list different values, got {shown(seen[known])} and {shown(value)}.",
                        *where,
                        key,
                    )
                seen[known] = value

    def _error(self, message: str, *where: Any) -> StudyError:
        return StudyError(f"{self.document.at(*where)}: {message}")


def set_option(config: Config, key: str, value: Any) -> None:
    """Set an option by its dotted name; a mapping that is missing on the way is made.

    Raises:
        ValueError: if something else stands where a mapping would have to be.
    """
    *path, last = key.split(".")
    for number, name in enumerate(path):
        if config.get(name) is None:
            config[name] = {}
        config = config[name]
        if not isinstance(config, dict):
            raise ValueError(
                f"{key} cannot be set: `{'.'.join(path[: number + 1])}` must be a mapping of options, got"
                f" {shown(config)}."
            )
    config[last] = value


def _holds(options: Mapping[str, Any], key: str) -> bool:
    """Whether options give a value to this one, by itself or within another."""
    for name, value in options.items():
        if name == key:
            return True
        if key.startswith(f"{name}."):
            for part in key.removeprefix(f"{name}.").split("."):
                if not (isinstance(value, Mapping) and part in value):
                    break
                value = value[part]
            else:
                return True
    return False


def _run_name(method: str, settings: Mapping[str, Any], seed: int) -> str:
    """A name for a folder; what is longer than a file's name may be ends in a number that stands for the rest."""
    name = re.sub(r"[^A-Za-z0-9.=_-]+", "-", f"{method}_{label(settings, '=', '_')}")
    if len(name) > 120:
        name = f"{name[:110]}_{checksum(name)[:8]}"
    return re.sub(r"_+", "_", f"{name}_seed={seed}").lstrip(".-_") or f"run_seed={seed}"


def _refuse_equal(runs: list[Run], document: Document | None) -> None:
    """Refuse runs of one name, and variants that read the same: a report would take them for one."""
    at = f"{document.at('methods')}: " if document else ""
    names: dict[str, Run] = {}
    for run in runs:  # some file systems do not tell cases apart
        if names.setdefault(run.name.casefold(), run) is not run:
            raise StudyError(f"{at}two runs would have the name {run.name!r}; name the methods more differently.")
    variants = list({run.variant: run for run in runs}.values())
    if len({(run.method, text(run.settings)) for run in runs}) > len(variants):
        variants = runs  # some of them read the same
    # A table may leave one setting out, since it stands at the head of the row.
    for out in [None, *dict.fromkeys(key for run in variants for key in run.settings)]:
        known: dict[str, tuple[str, str]] = {}
        for run in variants:
            rest = {key: value for key, value in run.settings.items() if key != out}
            read = re.sub(r"[\s(),]+", " ", f"{run.method} {label(rest)}".casefold()).strip()
            method, settings = known.setdefault(read, (run.method, text(rest)))
            if (method, settings) != (run.method, text(rest)):
                raise StudyError(
                    f"{at}two variants would read {read!r}: method {method!r} with {settings}, and method"
                    f" {run.method!r} with {text(rest)}. Name the methods more differently."
                )


def _check(content: Mapping[str, Any]) -> str:
    """The checksum of a plan, for its own ``check``."""
    return checksum(json.dumps({key: value for key, value in content.items() if key != "check"}, sort_keys=True))


def _first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if encode(old.get(name)) != encode(new.get(name)) or (name in old) != (name in new):
                return _first_difference(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        return key or "the order of the options", old, new
    return key, old, new
