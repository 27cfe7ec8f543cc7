"""What a repeated forward logs or prints, and what the module and the Trainer have again afterwards."""

from typing import Any

import pytest
from support.fits import RowLogger, trainer
from support.nets import Plain

from lightning_same.replay.muting import muted, muted_logger


class Pictures(RowLogger):
    """With a method to log of its own, as wandb's logger has, and one that only sounds like it."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Any] = []
        self.login = "me"

    def log_image(self, image: Any) -> None:
        self.images.append(image)

    @property
    def log_dir(self) -> str:
        return "here"

    def save(self) -> None:
        self.images.append("saved")


def test_a_stand_in_writes_nothing_and_has_the_attributes_of_its_logger() -> None:
    logger = Pictures()
    stand_in: Any = muted_logger(logger)
    assert isinstance(stand_in, Pictures)
    stand_in.log_metrics({"loss": 1.0}, 0)
    stand_in.log_image("x")
    stand_in.experiment.anything("y")
    stand_in.save()
    assert (logger.rows, logger.images) == ([], [])
    assert (stand_in.name, stand_in.log_dir, stand_in.login) == ("rows", "here", "me")
    stand_in.counted = 3
    assert logger.counted == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [None, ValueError])
def test_what_the_module_and_the_trainer_had_is_there_again(error: Any) -> None:
    """A `log` of the instance's own, too."""
    logger, module, said = Pictures(), Plain(), []
    made = module.trainer = trainer(logger=logger)
    module.log = lambda *args, **kwargs: said.append(args)  # type: ignore[method-assign]
    own = module.log
    try:
        with muted(made, module):
            assert made.loggers != [logger]
            module.print("unseen")
            module.log("loss", 1.0)
            if error is not None:
                raise error
    except ValueError:
        assert error is not None
    assert module.log is own
    assert "print" not in vars(module)
    assert made.loggers == [logger]
    assert said == []


def test_muted_within_muted() -> None:
    logger, module = Pictures(), Plain()
    made = module.trainer = trainer(logger=logger)
    with muted(made, module), muted(made, module):
        made.loggers[0].log_metrics({"loss": 1.0}, 0)
    assert logger.rows == []
    assert made.loggers == [logger]
