"""The modules in a module, and their parameters."""

from collections.abc import Collection, Iterable

from torch import Tensor, nn


def parameters_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters of modules, without those of their submodules; a shared one comes once for each."""
    return [param for module in modules for param in module._parameters.values() if param is not None]


def modules_of(module: nn.Module) -> Collection[nn.Module]:
    """As ``module.modules()``, which spends most of its time on names."""
    modules: dict[int, nn.Module] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        inner = waiting.pop()
        if inner is not None and id(inner) not in modules:
            modules[id(inner)] = inner
            waiting.extend(inner._modules.values())
    return modules.values()
