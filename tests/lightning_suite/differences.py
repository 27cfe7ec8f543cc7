"""The tests that must fail with prepared fits, each with the reason."""

TWO_PASS, MONITORS = ("two_pass",), ("monitors",)
BOTH = TWO_PASS + MONITORS

ITERATOR = "The training step takes `dataloader_iter`, and an iterator cannot be replayed: refused, in README's list."
WEIGHTS = "The training step asserts what the weights are, and the monitors take it at w + e too."
RAISES = (
    "The training step raises at a certain batch. A monitor takes it first, so that it raises before Lightning has"
    " counted that a step of the optimizer has begun."
)
OUTPUT = (
    "The training step returns what is no loss. Both refuse it by name, and a monitor before Lightning does, with a"
    " message of its own."
)
BACKWARD = "Puts a `backward` of its own on the instance, in front of the mixin's: refused, with the way out."
BACKWARDS = "Counts torch's calls of backward, of which a step with two passes takes two."
LBFGS = "LBFGS evaluates the loss several times in a step: refused, in README's list."
NO_OPTIMIZER = "The module has no optimizer, so there is no step for a rule: refused, in README's list."
LAYOUT = "The class lists Generic before LightningModule, so no instance can change its class: refused, wrap the class."
AUTOCAST = "The training step asserts that autocast is on, and SharpnessMonitor measures without it."
HOOKS = (
    "Replaces every method of the instance by one that keeps a list of the calls. Such a `backward` is in front of the"
    " mixin's and refused; the monitors call the training step once more."
)
CALLS = "Keeps a list of all calls of the training step, outside of the module; pass two and the monitors call it too."
CLOCK = "Gives the training 100 ms for two steps, which the monitors' first measurement can take by itself."
CALLBACKS = "Compares the Trainer's list of callbacks, in which the mixin's own, or this suite's monitors, stand first."

_LOOPS = "tests/tests_pytorch/loops"
_CALLBACKS = "tests/tests_pytorch/callbacks"
_CORE = "tests/tests_pytorch/core"
_MODELS = "tests/tests_pytorch/models"
_TRAINER = "tests/tests_pytorch/trainer"
_TUNER = "tests/tests_pytorch/tuner"

DIFFERENCES: dict[str, tuple[tuple[str, ...], str]] = {
    f"{_LOOPS}/test_fetchers.py::test_fetching_dataloader_iter_opt[True]": (BOTH, ITERATOR),
    f"{_LOOPS}/test_fetchers.py::test_step_methods_with_dataloader_iter": (BOTH, ITERATOR),
    f"{_LOOPS}/test_fetchers.py::test_fetching_is_profiled": (BOTH, ITERATOR),
    f"{_LOOPS}/test_training_epoch_loop.py::test_training_loop_dataloader_iter_multiple_dataloaders": (BOTH, ITERATOR),
    f"{_LOOPS}/optimization/test_automatic_loop.py::test_warning_invalid_trainstep_output": (MONITORS, OUTPUT),
    f"{_LOOPS}/test_evaluation_loop_flow.py::test__eval_step__flow": (MONITORS, WEIGHTS),
    f"{_LOOPS}/test_evaluation_loop_flow.py::test__eval_step__epoch_end__flow": (MONITORS, WEIGHTS),
    f"{_LOOPS}/test_training_loop_flow_dict.py": (MONITORS, WEIGHTS),
    f"{_LOOPS}/test_training_loop_flow_scalar.py": (MONITORS, WEIGHTS),
    f"{_LOOPS}/test_loops.py::test_loop_state_on_exception": (MONITORS, RAISES),
    f"{_CALLBACKS}/test_callbacks.py::test_configure_callbacks_hook_multiple_calls": (TWO_PASS, CALLBACKS),
    f"{_CALLBACKS}/test_timer.py::test_timer_stops_training": (MONITORS, CLOCK),
    f"{_CORE}/test_lightning_optimizer.py::test_lightning_optimizer_automatic_optimization_lbfgs_zero_grad": (
        TWO_PASS,
        LBFGS,
    ),
    f"{_MODELS}/test_amp.py::test_amp_cpus": (MONITORS, AUTOCAST),
    f"{_MODELS}/test_hooks.py::test_trainer_model_hook_system_fit": (BOTH, HOOKS),
    f"{_MODELS}/test_hooks.py::test_trainer_model_hook_system_fit_no_val_and_resume_max_epochs": (BOTH, HOOKS),
    f"{_MODELS}/test_hooks.py::test_trainer_model_hook_system_fit_no_val_and_resume_max_steps": (BOTH, HOOKS),
    f"{_MODELS}/test_restore.py::test_callbacks_state_fit_ckpt_path": (MONITORS, CALLBACKS),
    f"{_MODELS}/test_restore.py::test_load_model_from_checkpoint[GenericValTestLossBoringModel]": (TWO_PASS, LAYOUT),
    f"{_TRAINER}/logging_/test_logger_connector.py::test_fx_validator_integration": (TWO_PASS, BACKWARD),
    f"{_TRAINER}/optimization/test_backward_calls.py::test_backward_count_simple": (TWO_PASS, BACKWARDS),
    f"{_TRAINER}/optimization/test_backward_calls.py::test_backward_count_with_grad_accumulation": (
        TWO_PASS,
        BACKWARDS,
    ),
    f"{_TRAINER}/optimization/test_backward_calls.py::test_backward_count_with_closure": (TWO_PASS, LBFGS),
    f"{_TRAINER}/optimization/test_optimizers.py::test_none_optimizer": (TWO_PASS, NO_OPTIMIZER),
    f"{_TRAINER}/test_trainer.py::test_train_loop_system": (BOTH, CALLS),
    f"{_TRAINER}/test_trainer.py::test_trainer_access_in_configure_optimizers": (TWO_PASS, NO_OPTIMIZER),
    f"{_TUNER}/test_lr_finder.py::test_trainer_reset_correctly": (TWO_PASS, CALLBACKS),
    f"{_TUNER}/test_scale_batch_size.py::test_trainer_reset_correctly[fit]": (TWO_PASS, CALLBACKS),
}
"""By the id of a test, without its parameters or with them, or of its file: under which kinds of fits it fails."""

MAY_PASS = {CLOCK}
"""The reasons of those that fail on a busy machine only."""
