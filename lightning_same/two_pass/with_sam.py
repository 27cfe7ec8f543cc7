"""`with_sam`: the mixin for a module or a class that you cannot edit."""

from typing import Any, TypeVar, cast, overload

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_same.rules.base import Rule
from lightning_same.two_pass.checks import check_free_names, check_rule
from lightning_same.two_pass.mixin import SAMMixin
from lightning_same.two_pass.options import TwoPassOptions

ModuleT = TypeVar("ModuleT", bound=pl.LightningModule)


@overload
def with_sam(module_or_class: type[ModuleT], rule: Rule | None, **options: Any) -> type[ModuleT]: ...


@overload
def with_sam(module_or_class: ModuleT, rule: Rule | None, **options: Any) -> ModuleT: ...


def with_sam(module_or_class: Any, rule: Rule | None, **options: Any) -> Any:
    """Let a LightningModule train by a rule.

    Example::

        model = with_sam(LitNet(...), SAM(rho=0.05))
        Net = with_sam(LitNet, SAME(ckpt=1, rho=0.1))
        model = with_sam(LitNet(...), SAM(rho=0.05), ascent="local")

    Args:
        module_or_class: an instance, which is changed in place: it becomes an instance of a subclass with `SAMMixin` in
            front, and keeps its parameters, hyper-parameters and `state_dict` keys. Or a class, of which such a
            subclass is made. Both keep their name, pickle, copy, and load from checkpoint files as before.
        rule: the rule, or None to train without SAM.
        **options: those of `TwoPassOptions`, as the module's `two_pass`. Without any, it keeps what it has.

    Returns:
        The instance that was given, or the subclass.

    Raises:
        TypeError: if an argument is of another kind, or there is no such option.
        ValueError: if an option has no such choice.
    """
    two_pass = TwoPassOptions(**options) if options else None
    if isinstance(module_or_class, type) and issubclass(module_or_class, pl.LightningModule):
        check_rule(rule, module_or_class.__name__)
        check_free_names(module_or_class)
        return _mixed(module_or_class, rule, two_pass)
    if isinstance(module_or_class, pl.LightningModule):
        check_rule(rule, type(module_or_class).__name__)
        check_free_names(module_or_class)
        if not isinstance(module_or_class, SAMMixin):
            _swap_class(module_or_class, _mixed(type(module_or_class), None))
        cast(SAMMixin, module_or_class).sam = rule
        if two_pass is not None:
            cast(SAMMixin, module_or_class).two_pass = two_pass
        return module_or_class
    if hasattr(module_or_class, "_orig_mod"):
        raise TypeError("with_sam comes before torch.compile: `torch.compile(with_sam(module, rule))`.")
    kind = module_or_class if isinstance(module_or_class, type) else type(module_or_class)
    if any(cls.__module__.partition(".")[0] == "pytorch_lightning" for cls in kind.__mro__):
        raise TypeError(
            f"with_sam: {kind.__name__} is a LightningModule of the distribution `pytorch_lightning`, whose classes are"
            " not those of `lightning`. Import `lightning.pytorch` where the class is defined; if that is a library,"
            " use a version of it that is built on `lightning`."
        )
    raise TypeError(
        f"with_sam needs a `lightning.pytorch` LightningModule or a class of them, got {module_or_class!r}."
    )


def _swap_class(module: pl.LightningModule, mixed: type[SAMMixin]) -> None:
    try:
        module.__class__ = mixed
    except TypeError as error:
        name = type(module).__name__
        raise TypeError(
            f"with_sam: an instance of {name} cannot be given another class, for {name} lists"
            f" {type(module).__bases__[0].__name__} before LightningModule. Wrap the class instead:"
            f" `with_sam({name}, rule)(...)`; or list LightningModule first."
        ) from error


_classes: dict[tuple[type[pl.LightningModule], str, str], type[SAMMixin]] = {}
_bases: dict[type[pl.LightningModule], type[pl.LightningModule]] = {}


def _mixed(base: type[pl.LightningModule], rule: Rule | None, two_pass: TwoPassOptions | None = None) -> type[SAMMixin]:
    """The subclass of ``base`` with the mixin in front, one for each base, rule and options.

    It cannot be imported by its name, so its instances pickle as what it is made of.
    """
    base = _bases.get(base, base)
    key = (base, repr(rule), repr(two_pass))
    if key in _classes:
        return _classes[key]

    def reduce_ex(self: Any, protocol: Any) -> tuple[Any, ...]:
        if type(self) is not mixed:  # A subclass of the user's, which pickles by its own name.
            return cast(tuple[Any, ...], super(mixed, self).__reduce_ex__(protocol))
        _, _, *state = super(mixed, self).__reduce_ex__(protocol)
        return (_blank, (base, rule, two_pass), *state)

    def load_from_checkpoint(cls: type[SAMMixin], *args: Any, **kwargs: Any) -> pl.LightningModule:
        if cls is not mixed:
            return super(mixed, cls).load_from_checkpoint(*args, **kwargs)
        # By the base: a checkpoint file written by LightningCLI names the user's class and refuses any other.
        loaded = base.load_from_checkpoint(*args, **kwargs)
        module = cls.__new__(cls)  # A new one, and not another class for the loaded: not every instance can change it.
        vars(module).update(vars(loaded))
        if cls.sam is None:
            rank_zero_warn(
                f"{cls.__name__}.load_from_checkpoint: the class has no rule, so the module trains without SAM. Rules"
                " are not part of a checkpoint file: set `module.sam`, or load by `with_sam(YourClass, rule)`."
            )
        return module

    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce_ex,
        "load_from_checkpoint": classmethod(load_from_checkpoint),
        "sam": rule,
        **({} if two_pass is None else {"two_pass": two_pass}),
    }
    bases = (base,) if issubclass(base, SAMMixin) else (SAMMixin, base)
    mixed = cast(type[SAMMixin], type(base.__name__, bases, namespace))
    _classes[key], _bases[mixed] = mixed, base
    return mixed


def _blank(base: type[pl.LightningModule], rule: Rule | None, two_pass: TwoPassOptions | None) -> SAMMixin:
    """An instance before its state is set, as `pickle` and `copy` make them."""
    mixed = _mixed(base, rule, two_pass)
    return mixed.__new__(mixed)
