"""The callback of transformers: the bits of the recipe, logs that a hand computes, runs that resume with both."""

from typing import Any

import pytest
from torch import nn

from tests.cases import each_step_mode
from tests.clients import loops
from tests.clients.callbacks import KEYS, STEPS, hand, several, transformers_callback
from tests.clients.loops import PENALTY, Wrapped
from tests.helpers import assert_bit_equal, assert_close, make_data, weights_of
from torchreg import L2, Regularizer, linear
from torchreg.tuning import AutoStrength

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs


def reporter() -> Any:
    """What a tracker of ``report_to`` gets: those come before the callbacks of a user."""
    transformers = pytest.importorskip("transformers")

    class Reporter(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.rows: dict[int, Any] = {}

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                self.rows[state.global_step] = {key: value for key, value in logs.items() if "/" in key}

    return Reporter()


@pytest.mark.parametrize("accumulate", [1, 2])
@each_step_mode
def test_transformers_trains_as_the_recipe(mode, accumulate, tmp_path):
    weights = loops.transformers(mode, accumulate, 0.3, tmp_path / "theirs")
    model = Wrapped()
    options = {"gradient_accumulation_steps": accumulate, "max_grad_norm": 0.3, "logging_steps": 1}
    trainer = loops.transformers_trainer(model, tmp_path / "ours", **options)
    transformers_callback(PENALTY, mode=mode).add_to(trainer)
    trainer.train()
    assert_bit_equal(weights_of(model.net), weights)


def test_transformers_logs_what_a_hand_computes_to_reporters_and_history(tmp_path):
    expected: dict[int, dict[str, float]] = {}
    reported, model = reporter(), Wrapped()
    trainer = loops.transformers_trainer(model, tmp_path, logging_steps=3, eval_strategy="epoch")
    trainer.add_callback(reported)
    before = trainer.callback_handler.callbacks[0]
    callback = transformers_callback(PENALTY, mode="prox").add_to(trainer).add_to(trainer)
    assert trainer.callback_handler.callbacks[:2] == [callback, before]

    class Recording(pytest.importorskip("transformers").TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            expected[state.global_step] = hand(model)

    trainer.add_callback(Recording())
    trainer.train()
    assert sorted(reported.rows) == [3, 6, 9, 12, 15]
    history = {row["step"]: row for row in trainer.state.log_history if "loss" in row}
    for step, row in reported.rows.items():
        assert_close(row, expected[step])
        assert {key: history[step][key] for key in KEYS} == row
    others = [row for row in trainer.state.log_history if "loss" not in row]
    assert len(others) == 3  # two evaluations and the summary
    assert not [key for row in others for key in row if "/" in key]


def test_transformers_takes_it_in_callbacks_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    callback, model = transformers_callback(PENALTY, mode="prox"), Wrapped()
    trainer = loops.transformers_trainer(model, tmp_path, logging_steps=1)
    trainer.add_callback(callback)  # where callbacks=[...] puts it
    trainer.train()
    assert_bit_equal(weights_of(model.net), loops.transformers("prox", 1, None, tmp_path / "theirs"))
    assert trainer.state.log_history[0].keys() >= KEYS
    with pytest.raises(TypeError, match=r"add_to\(\) takes a transformers.Trainer, got a Wrapped"):
        callback.add_to(model)
    assert isinstance(callback, transformers.TrainerCallback)


def test_transformers_resumes_weights_and_logs(tmp_path):
    def trainer() -> Any:
        it = loops.transformers_trainer(Wrapped(), tmp_path, save_strategy="epoch", logging_steps=3)
        for callback in several(transformers_callback):
            callback.add_to(it)
        return it

    def rows(it: Any) -> list[Any]:
        return [{k: v for k, v in row.items() if "/" in k} for row in it.state.log_history if "loss" in row]

    straight, resumed = trainer(), trainer()
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_bit_equal(weights_of(resumed.model), weights_of(straight.model))
    assert len(rows(straight)) == 5
    assert rows(resumed) == rows(straight)


def test_transformers_trains_twice_and_evaluates(tmp_path):
    model = Wrapped()
    trainer = loops.transformers_trainer(model, tmp_path, num_train_epochs=1)
    callback = transformers_callback(PENALTY, mode="prox", schedule=linear(99)).add_to(trainer)
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    assert callback.regularizer is None
    for steps in (8, 16):
        trainer.train()
        assert callback.regularizer.state_dict()["steps"] == steps


def test_transformers_tunes_a_strength_on_its_own_kind_of_batches(tmp_path):
    """The strength moves once in each step, not in each micro-batch, by the loss that the outputs have."""
    x, y = make_data()
    held_out = [{"x": x[at : at + 8], "labels": y[at : at + 8]} for at in range(0, len(x), 8)]

    def tuning(model: Any, validation: Any, criterion: Any) -> AutoStrength:
        return AutoStrength(Regularizer(model, L2(0.1), mode="decoupled"), validation, criterion, every=1)

    def trained(folder: str, accumulate: int, *examples: Any) -> AutoStrength:
        model = Wrapped()
        options = {"gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 8 // accumulate}
        trainer = loops.transformers_trainer(model, tmp_path / folder, **options)
        callback = transformers_callback(lambda each: tuning(each, *examples))
        callback.add_to(trainer)
        trainer.train()
        return callback.regularizer

    mappings = held_out, lambda outputs, batch: outputs["loss"]
    pairs = [(b["x"], b["labels"]) for b in held_out], lambda outputs, y: nn.functional.mse_loss(outputs["logits"], y)
    expected = trained("whole", 1, *pairs)
    assert expected.strengths["L2"] != 0.1
    for folder, accumulate in (("mappings", 1), ("accumulated", 2)):
        auto = trained(folder, accumulate, *mappings)
        assert auto._steps == expected._steps == 8
        assert_close(auto.strengths["L2"], expected.strengths["L2"], 1e-6)
