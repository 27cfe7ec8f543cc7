"""What may stand in a study's file and in a plan: types, ranges, lengths, names; every error with its line."""

import difflib
import re
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.reading import Document

MAX_SEED = 2**32 - 1
"""numpy's seeds, which ``seed_everything`` sets too, go as far."""

MAX_SEEDS = 10_000
MAX_NAME = 100
MAX_THREADS = 1024

Model = TypeVar("Model", bound=BaseModel)


def _wanted(text: str) -> PydanticCustomError:
    return PydanticCustomError("wanted", "{text}", {"text": text})


def _seeds(given: Any) -> list[int]:
    count = given if type(given) is int else len(given) if isinstance(given, list) else 0
    if count > MAX_SEEDS:
        raise _wanted(f"at most {MAX_SEEDS} seeds")
    seeds = list(range(count)) if type(given) is int else given
    if count < 1 or any(type(seed) is not int for seed in seeds) or len(set(seeds)) < count:
        raise _wanted("a number of seeds or a list of different ones")
    if not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise _wanted(f"seeds from 0 to {MAX_SEED}")
    return list(seeds)


def _name(given: str) -> str:
    if not (given.isprintable() and given.strip() == given and 0 < len(given) <= MAX_NAME):
        raise _wanted(f"a text of 1 to {MAX_NAME} printable characters, without spaces around it")
    return given


_OPTION = re.compile(r"[^\s.\x00-\x1f\ud800-\udfff]+(\.[^\s.\x00-\x1f\ud800-\udfff]+)*")


def _option(given: str) -> str:
    if not _OPTION.fullmatch(given):
        raise _wanted("the full name of an option, such as trainer.max_epochs")
    return given


def _run_name(given: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.=_-]{1,200}", given) or not given.strip("."):
        raise _wanted("a name of letters, digits and .=_-, which is that of a folder")
    return given


def _description(given: Any) -> Any:
    return "" if given is None else given


def _encodable(given: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in given):
        raise _wanted("a text that UTF-8 can hold")
    return given


def _claims(given: Any) -> Any:
    if given is None or given == "notes":
        return given
    if not isinstance(given, dict):
        raise _wanted("`notes`, or for each method its phases")
    for method, phases in given.items():
        pairs = phases.items() if isinstance(phases, dict) else [(None, None)]
        for phase, pair in pairs:
            words = pair if isinstance(pair, list) and len(pair) == 2 else [None]
            if phase not in ("early", "late") or any(word not in ("less", "similar", "greater") for word in words):
                raise _wanted(
                    f"for {method!r} such as `early: [less, similar]`, for training and validation, each less, similar"
                    " or greater"
                )
    return given


Name = Annotated[str, AfterValidator(_name)]
Option = Annotated[str, AfterValidator(_option)]
Share = Annotated[float, Field(gt=0, le=0.5, description="a share above 0, at most 0.5")]
Threads = Annotated[int, Field(ge=1, le=MAX_THREADS, description=f"a whole number from 1 to {MAX_THREADS}")]
Delta = Annotated[float, Field(gt=0, lt=1, description="a difference of accuracies above 0, below 1")]
Claims = Annotated[Any, AfterValidator(_claims)]
Description = Annotated[
    str, BeforeValidator(_description), AfterValidator(_encodable), Field(max_length=10_000, description="a text")
]
Options = Annotated[dict[Option, Any], Field(description="a mapping of full names to values")]
Sweep = Annotated[
    dict[Option, Annotated[list[Any], Field(min_length=1, max_length=MAX_SEEDS)] | None],
    BeforeValidator(lambda given: {} if given is None else given),
    Field(description="a mapping of full names to lists of values"),
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class MethodOptions(_Strict):
    """A method: its options by their full names, and what is swept for it."""

    model_config = ConfigDict(strict=True, extra="allow")

    sweep: Sweep = {}

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.model_extra or {}:
            if not _OPTION.fullmatch(name):
                raise _wanted(f"options by their full names, such as trainer.max_epochs, got {shown(name)}")
        return self


class StudyFile(_Strict):
    """A study's file; docs/study.md describes it."""

    base: str = Field(min_length=1, description="the name of a configuration file")
    methods: Annotated[
        dict[Name, Annotated[MethodOptions, BeforeValidator(lambda given: {} if given is None else given)]],
        Field(min_length=1, description="one method or more, each with its options"),
    ]
    seeds: Annotated[Any, AfterValidator(_seeds)]
    name: Name
    description: Description = ""
    options: Options = {}
    seed_options: list[Option] = Field(
        default=["seed_everything", "data.init_args.noise_seed"], description="a list of full names of options"
    )
    sweep: Sweep = {}
    reference: str = Field(default="SAM", description="the name of a method")
    early: Share = 0.25
    late: Share = 0.25
    threads: Threads = 1
    delta: Delta = 0.02
    claims: Claims = None


class PlannedRun(_Strict):
    """A run as a plan keeps it."""

    name: Annotated[str, AfterValidator(_run_name)]
    method: Name
    settings: dict[Option, Any]
    seed: int = Field(ge=0, le=MAX_SEED)
    config: dict[Any, Any]


class Plan(_Strict):
    """A study as ``study.json`` keeps it."""

    name: Name
    description: Description
    reference: Name
    early: Share
    late: Share
    threads: Threads
    delta: Delta = 0.02
    claims: Claims = None
    runs: list[PlannedRun] = Field(min_length=1)
    check: str | None = None


class Outcome(_Strict):
    """``done.json``: what is known of a run when it is over."""

    model_config = ConfigDict(strict=True, extra="ignore")

    digest: str
    test: dict[str, dict[str, float]]
    best_epoch: int | None
    noise_rate: float | None
    seconds_per_epoch: float | None
    device: str | None = None
    threads: int | None = None
    commit: str | None = None
    versions: dict[str, str] = {}
    files: dict[str, str] | None = None
    """SHA-256 of the files that the run has left; None in folders that were written before there were checksums."""
    check: str | None = None
    """SHA-256 of all the rest; None likewise."""


def study_file(document: Document) -> StudyFile:
    """Check a study's file.

    Raises:
        StudyError: names file, line, key, what was got and what was wanted.
    """
    content = {"name": document.path.stem, **document.content}
    try:
        return StudyFile.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        first, *more = sorted(errors, key=lambda one: document.lines.get(_path(one), 0))
        rest = f" There {'is 1 more error' if len(more) == 1 else f'are {len(more)} more errors'}." if more else ""
        raise StudyError(f"{document.at(*_path(first))}: {_said(first)}{rest}") from None


def checked(kind: type[Model], content: Any) -> Model:
    """Check what a JSON file holds.

    Raises:
        ValueError: names the key, what was got and what was wanted.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ValueError(_said(error.errors(include_url=False)[0])) from None


def shown(value: Any, limit: int = 80) -> str:
    """A value as an error shows it."""
    text = {"True": "true", "False": "false", "None": "null"}.get(repr(value), repr(value))
    return text if len(text) <= limit else f"{text[:limit]}..."


def _path(error: ErrorDetails) -> tuple[Any, ...]:
    return tuple(part for part in error["loc"] if part != "[key]")


def _said(error: ErrorDetails) -> str:
    """An error of pydantic's in the words of this project."""
    match error["loc"], error["type"]:
        case [key], "extra_forbidden":
            names = sorted(StudyFile.model_fields)
            close = difflib.get_close_matches(str(key), names, n=1)
            meant = f" Did you mean `{close[0]}`?" if close else ""
            return f"a study has no option `{key}`.{meant} Its options: {', '.join(names)}."
        case [*_, key], "missing":
            return f"`{key}` is missing."
        case ["methods", *_, "[key]"] as where, _:
            kind = "the name of a method" if len(where) == 3 else "the name of an option"
            return f"{kind} must be {_text_of(error)}, got {shown(error['input'])}."
        case [*_, "[key]"], _:
            return f"the name of an option must be {_text_of(error)}, got {shown(error['input'])}."
        case ["methods", method], "wanted":
            return f"method {method!r} must have {_text_of(error)}."
        case ["methods", method], _:
            example = "options, such as `sam: {class_path: SAM}`"
            return f"method {method!r} must have {example}, got {shown(error['input'])}."
        case [*_, "sweep", key], _:
            return f"`sweep` of {key} must list its values, got {shown(error['input'])}."
        case ["methods", method, "sweep"], _:
            wanted = "a mapping of full names to lists of values"
            return f"`sweep` of method {method!r} must be {wanted}, got {shown(error['input'])}."
        case ["methods", method, key], _:  # the values are checked when the runs are built
            return f"the name of an option of method {method!r} must be a text, got {shown(key)}."
        case ["methods"], _:
            return f"`methods` must name one method or more, each with its options, got {shown(error['input'])}."
        case [], _:
            return f"a mapping is expected, got {shown(error['input'])}."
        case [*keys], _:
            return f"`{'.'.join(map(str, keys))}` must be {_text_of(error)}, got {shown(error['input'])}."


def _text_of(error: ErrorDetails) -> str:
    """What was wanted."""
    if error["type"] == "wanted":
        return str(error["ctx"]["text"])
    field = StudyFile.model_fields.get(str(error["loc"][0]))
    if field is not None and field.description and len(error["loc"]) == 1:
        return field.description
    return error["msg"].removeprefix("Input should be ").removeprefix("a valid string") or "a text"
