"""The examples in the package's docstrings, each a test of its own."""

import doctest
import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator

import pytest
from typing_extensions import override

import lightning_same


class Finder(doctest.DocTestFinder):
    """Finds the examples of decorated functions too, which standard doctest takes for another module's."""

    @override
    def _from_module(self, module: types.ModuleType | None, obj: object) -> bool:
        return super()._from_module(module, inspect.unwrap(obj) if callable(obj) else obj)  # type: ignore[misc]


def examples() -> Iterator[doctest.DocTest]:
    for info in pkgutil.walk_packages(lightning_same.__path__, "lightning_same."):
        if not info.name.endswith("__main__"):
            module = importlib.import_module(info.name)
            yield from (test for test in Finder(exclude_empty=True).find(module) if test.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name.removeprefix("lightning_same."))
def test_the_example_is_true(example: doctest.DocTest) -> None:
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not result.failed, "".join(report)
