import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from dpaudit import Ledger, MemoryJournal, account
from dpaudit.privacy.errors import DpauditError, PrivacyRefusal
from dpaudit.storage.journal import read_ledger
from dpaudit.trainers import NoiseSource, PoissonSampler, PrivacyPlan, pad_tokens, train
from dpaudit.trainers.huggingface.arguments import PrivacyArguments
from dpaudit.trainers.huggingface.forbidden import refuse_arguments
from dpaudit.trainers.huggingface.losses import per_example_losses
from dpaudit.trainers.huggingface.plans import steps_within
from dpaudit.trainers.huggingface.trainer import DPTrainer
from dpaudit.trainers.optimizers import OptimizerSettings
from dpaudit.trainers.sampling import ScriptedSampler

N = 24
PLAN = PrivacyPlan(
    delta=1e-3,
    relation="add_or_remove_one",
    sampling="poisson",
    unit="record",
    public_size=N,
    expected_batch_size=6,
    steps=5,
    clipping_norm=0.1,
    noise_multiplier=1.0,
)


def model(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=32)
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = 0.0
    return GPT2LMHeadModel(config)


RECORDS = [{"input_ids": [3 + i, 5, 7 + i % 4, 2, 9 + i][: 3 + i % 3]} for i in range(N)]


def collate(rows):
    return pad_tokens([r["input_ids"] for r in rows])


def arguments(path, **changes):
    values = dict(
        output_dir=str(path),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
    )
    return TrainingArguments(**{**values, **changes})


def trainer(path, net=None, args=None, plan=PLAN, **kwargs):
    return DPTrainer(
        model() if net is None else net,
        args or arguments(path),
        privacy=plan,
        train_dataset=RECORDS,
        data_collator=collate,
        **kwargs,
    )


DRAWS = [[0, 1, 2, 3, 4, 5, 6], [], [7], [8, 9], [10, 11, 12]]


def noise():
    return NoiseSource(generator=torch.Generator().manual_seed(3))


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def bare(net, draws=DRAWS, plan=PLAN):
    """The same run by the bare loop; its parameter order is put into the Trainer's (decayed first)."""
    return train(
        net,
        RECORDS,
        plan,
        collate=collate,
        loss_fn=per_example_losses,
        journal=MemoryJournal(),
        optimizer=OptimizerSettings(algorithm="adamw", learning_rate=1e-2),
        sampler=ScriptedSampler(draws),
        noise=Silent(),
    )


class Silent(NoiseSource):
    def sample(self, shape, std, device="cpu"):
        return torch.zeros(shape)


def test_trainer_and_bare_loop_make_the_same_updates(tmp_path):
    ours, theirs = model(), model()
    run = trainer(tmp_path, ours, sampler=ScriptedSampler(DRAWS), noise=Silent())
    output = run.train()
    bare(theirs)
    assert output.global_step == 5 and run.status == "test"
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)


def test_noise_reaches_every_weight_once_at_the_right_scale(tmp_path):
    net = model()
    before = weights(net)
    args = arguments(tmp_path, optim="sgd", learning_rate=1.0)
    trainer(tmp_path, net, args, sampler=ScriptedSampler([[]] * 5)).train()
    moved = weights(net) - before
    assert float(moved.std()) == pytest.approx(5**0.5 * 0.1 / 6, rel=0.05) and bool((moved != 0).all())


def test_the_ledger_is_on_disk_and_counts_empty_draws(tmp_path):
    run = trainer(tmp_path, sampler=ScriptedSampler(DRAWS), noise=noise())
    run.train()
    ledger = read_ledger(tmp_path / "privacy" / "ledger.jsonl")
    assert ledger.merged() == run.ledger == PLAN.ledger()
    with pytest.raises(PrivacyRefusal, match="already holds a ledger"):
        trainer(tmp_path).train()
    with pytest.raises(PrivacyRefusal, match="run is complete"):
        run.train()


def test_poisson_survives_the_trainer(tmp_path):
    plan = dataclasses.replace(PLAN, steps=300, expected_batch_size=4)
    sizes = []

    class Counting:
        is_test = True
        inner = PoissonSampler(N, plan.sampling_probability, generator=np.random.default_rng(4))

        def draw(self):
            return self.inner.draw()

    run = trainer(tmp_path, plan=plan, sampler=Counting(), journal=MemoryJournal(), per_example_loss=_linear)
    run.train()
    sizes = [row["batch"] for row in run.private_logs if "batch" in row]
    assert len(sizes) == 300 and min(sizes) == 0
    assert np.mean(sizes) == pytest.approx(4, abs=5 * np.sqrt(10 / 3 / 300))
    assert np.var(sizes) == pytest.approx(10 / 3, rel=0.35)


def _linear(net, batch):
    return (net.transformer.wte(batch["input_ids"]) * batch["attention_mask"][..., None]).sum((1, 2))


def test_nothing_private_is_logged_or_saved(tmp_path):
    run = trainer(tmp_path, args=arguments(tmp_path, save_strategy="steps", save_steps=5), eval_dataset=RECORDS[:4])
    run.train()
    run.evaluate()
    shown = set().union(*(row.keys() for row in run.state.log_history))
    assert shown <= {"learning_rate", "epoch", "step", "epsilon"}
    assert any("eval_loss" in row for row in run.private_logs) and any("loss" in row for row in run.private_logs)
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["total_flos"] == 0 and "loss" not in json.dumps(state["log_history"])


def test_published_logs_are_a_recorded_deviation(tmp_path):
    privacy = PrivacyArguments(
        delta=1e-3,
        relation="add_or_remove_one",
        sampling="poisson",
        unit="record",
        public_size=N,
        expected_batch_size=6,
        clipping_norm=0.1,
        noise_multiplier=1.0,
        allow_nonprivate_logs=True,
    )
    run = trainer(tmp_path, args=arguments(tmp_path, max_steps=3), plan=privacy)
    run.train()
    run.save_model(str(tmp_path / "out"))
    assert any("loss" in row for row in run.state.log_history)
    assert json.loads((tmp_path / "out" / "privacy.json").read_text())["deviations"] == ["allow_nonprivate_logs"]


def test_a_resume_continues_ledger_weights_and_moments(tmp_path):
    whole, split = model(), model()
    trainer(tmp_path / "a", whole, sampler=ScriptedSampler(DRAWS), noise=Silent()).train()

    class Stop(Exception):
        pass

    class Crash(ScriptedSampler):
        def draw(self):
            if not (drawn := next(self._draws, None)) and drawn is None:
                raise Stop
            return np.asarray(drawn, dtype=np.int64)

    args = arguments(tmp_path / "b", save_strategy="steps", save_steps=2)
    first = trainer(tmp_path / "b", split, args, sampler=Crash(DRAWS[:2]), noise=Silent())
    with pytest.raises(Stop):
        first.train()
    again = trainer(tmp_path / "b", model(1), args, sampler=ScriptedSampler(DRAWS[2:]), noise=Silent())
    again.train(resume_from_checkpoint=True)
    assert again.ledger.steps == 5 and again.state.global_step == 5
    assert torch.allclose(weights(whole), weights(again.model), atol=1e-6)
    record = json.loads((tmp_path / "b" / "checkpoint-4" / "privacy.json").read_text())
    assert record["ledger"]["stages"][0]["steps"] == 4


def test_steps_lost_in_a_crash_still_count(tmp_path):
    args = arguments(tmp_path, save_strategy="steps", save_steps=2)

    def burst(net, batch, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("burst")
        return per_example_losses(net, batch)

    plan = dataclasses.replace(PLAN, expected_batch_size=24, sampling="none")
    args.per_device_train_batch_size = 24
    privacy = dict(plan=plan)
    first = trainer(tmp_path, args=args, per_example_loss=burst, **privacy)
    first._check = lambda: None
    with pytest.raises(RuntimeError, match="burst"):
        first.train()  # steps 1 and 2, checkpoint, step 3, and step 4 counted before it burst
    again = trainer(tmp_path, args=args, **privacy)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3 and again.ledger.steps == 5  # 2 + 2 lost + 1: never above the plan


def test_a_changed_plan_or_a_foreign_checkpoint_is_refused(tmp_path):
    args = arguments(tmp_path, save_strategy="steps", save_steps=2)
    trainer(tmp_path, args=args).train()
    other = dataclasses.replace(PLAN, noise_multiplier=0.5)
    with pytest.raises(PrivacyRefusal, match="noise_multiplier differs"):
        trainer(tmp_path, args=args, plan=other).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-4" / "privacy.json").unlink()
    with pytest.raises(PrivacyRefusal, match="spent budget is unknown"):
        trainer(tmp_path, args=args).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_budget_stops_training_before_it_is_overspent(tmp_path):
    run = trainer(tmp_path, budget=lambda ledger: 3.5 - ledger.steps, noise=noise())
    run.train()
    assert run.ledger.steps == 3 and run.state.global_step == 3
    empty = Ledger(stages=(), relation=PLAN.relation)
    allowed = [steps_within(lambda ledger, most=most: most - ledger.steps, empty, PLAN, 5) for most in (9, 2, 0)]
    assert allowed == [5, 2, 0]


def test_a_target_is_calibrated_before_anything_else(tmp_path):
    waiting = dataclasses.replace(PLAN, noise_multiplier=None, target_epsilon=2.0)
    run = trainer(tmp_path, plan=waiting, calibrate=lambda plan: plan.with_noise_multiplier(7.0))
    assert run.plan.noise_multiplier == 7.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(gradient_accumulation_steps=2), "gradient_accumulation_steps=2"),
        (dict(train_sampling_strategy="group_by_length"), "group_by_length"),
        (dict(auto_find_batch_size=True), "auto_find_batch_size"),
        (dict(label_smoothing_factor=0.1), "label_smoothing_factor=0.1"),
        (dict(dataloader_drop_last=True), "dataloader_drop_last"),
        (
            dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1),
            "load_best_model_at_end",
        ),
        (dict(lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps"), "reduce_lr_on_plateau"),
        (dict(include_num_input_tokens_seen="all"), "include_num_input_tokens_seen"),
        (dict(neftune_noise_alpha=5.0), "neftune_noise_alpha"),
        (dict(optim="adafactor"), "adafactor"),
        (dict(use_liger_kernel=True), "use_liger_kernel"),
    ],
)
def test_arguments_that_break_privacy_are_refused_in_a_sentence(tmp_path, change, says):
    with pytest.raises(DpauditError) as caught:
        trainer(tmp_path, args=arguments(tmp_path, **change))
    assert says in str(caught.value) and str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_fp16_loss_functions_optimizers_and_early_stopping_are_refused(tmp_path):
    args = arguments(tmp_path)
    args.fp16 = True
    with pytest.raises(PrivacyRefusal, match="fp16"):
        trainer(tmp_path, args=args)
    with pytest.raises(PrivacyRefusal, match="compute_loss_func"):
        trainer(tmp_path, compute_loss_func=lambda *a: 0)
    with pytest.raises(PrivacyRefusal, match="optimizers"):
        trainer(tmp_path, optimizers=(torch.optim.SGD(model().parameters(), lr=1.0), None))
    with pytest.raises(PrivacyRefusal, match="EarlyStopping"):
        trainer(tmp_path, callbacks=[EarlyStoppingCallback()])
    with pytest.raises(PrivacyRefusal, match="hyperparameter_search"):
        trainer(tmp_path).hyperparameter_search()


def test_streams_are_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(RECORDS)

    with pytest.raises(PrivacyRefusal, match="materialise"):
        DPTrainer(model(), arguments(tmp_path), privacy=PLAN, train_dataset=Stream(), data_collator=collate)


def test_preflight_runs_and_refuses_a_coupled_loss(tmp_path):
    def coupled(net, batch):
        losses = per_example_losses(net, batch)
        return losses * (batch["labels"] != -100).sum(1) / (batch["labels"] != -100).sum()

    run = trainer(tmp_path, per_example_loss=coupled)
    with pytest.raises(PrivacyRefusal, match="loss_fn"):
        run.train()
    assert run.ledger.steps == 0


def test_privacy_arguments_are_parsed_beside_training_arguments(tmp_path):
    parser = HfArgumentParser((PrivacyArguments, TrainingArguments))
    line = "--delta 1e-5 --relation replace_one --sampling poisson --unit record --public_size 1000"
    line += f" --expected_batch_size 50 --clipping_norm 0.1 --target_epsilon 3 --output_dir {tmp_path}"
    privacy, args = parser.parse_args_into_dataclasses(line.split())
    plan = privacy.plan(max_steps=args.max_steps, num_train_epochs=args.num_train_epochs)
    assert (plan.steps, plan.sampling_probability, plan.relation) == (60, 0.05, "replace_one")
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--output_dir", "x"])  # nothing private has a default


SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, vocab_size=60)


def test_default_losses_depend_on_one_example_alone():
    torch.manual_seed(0)
    batch = pad_tokens([[5, 6, 7, 8], [9, 10]])
    masked = BertForMaskedLM(BertConfig(**SMALL)).eval()
    labelled = BertForSequenceClassification(BertConfig(**SMALL)).eval()
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).eval()
    cases = [
        (masked, batch),
        (labelled, {**batch, "labels": torch.tensor([1, 0])}),
        (t5, batch),
        (model().eval(), {**batch, "position_ids": torch.arange(4)[None].expand(2, -1)}),
    ]
    for net, full in cases:
        both = per_example_losses(net, full)
        assert both.shape == (2,)
        for row in range(2):
            alone = per_example_losses(net, {k: v[[row]] for k, v in full.items()})
            assert torch.allclose(alone[0], both[row], atol=1e-5)
    with pytest.raises(PrivacyRefusal, match="BertModel"):
        per_example_losses(BertModel(BertConfig(**SMALL)), batch)
    with pytest.raises(PrivacyRefusal, match="labels"):
        per_example_losses(labelled, {"input_ids": batch["input_ids"]})


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel, lambda net: net.compile() or net])
def test_compiled_and_wrapped_models_are_refused_before_columns_are_dropped(tmp_path, wrap, columns, monkeypatch):
    monkeypatch.setattr("torch._dynamo.convert_frame.compile_frame", None, raising=False)
    args = arguments(tmp_path, remove_unused_columns=columns)
    with pytest.raises(DpauditError, match=r"compiled by torch\.compile|wrapped by DataParallel"):
        trainer(tmp_path, wrap(model()), args)
    late = trainer(tmp_path, args=args)
    late.model = wrap(late.model)
    with pytest.raises(DpauditError, match=r"compiled by torch\.compile|wrapped by DataParallel"):
        late.train()
    assert not (tmp_path / "privacy" / "ledger.jsonl").exists()


def test_every_log_line_has_the_epsilon_so_far_rounded_up(tmp_path):
    run = trainer(tmp_path)
    output = run.train()
    told = [(row["step"], row["epsilon"]) for row in run.state.log_history if "epsilon" in row]
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 5]  # the last line is of the end
    for step, epsilon in told:
        ledger = dataclasses.replace(PLAN.ledger(), stages=(PLAN.stage(step),))
        (exact,) = account(ledger, delta=PLAN.delta)
        assert exact.epsilon_upper <= float(f"{epsilon:.4g}") < exact.epsilon_upper * 1.001
    assert np.isnan(output.training_loss) and output.global_step == 5
    assert output.metrics == {"steps_counted": 5, "epsilon": exact.epsilon_upper, "delta": PLAN.delta}


def test_trackers_see_epsilon_and_nothing_private(tmp_path):
    from transformers import TrainerCallback

    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    run = trainer(tmp_path, callbacks=[Tracker()])
    run.train()
    assert len(seen) == 6 and set().union(*seen) == {"learning_rate", "epsilon", "epoch"}


def test_a_tracker_that_watches_gradients_is_refused(tmp_path, monkeypatch):
    args = arguments(tmp_path)
    args.report_to = ["wandb"]
    monkeypatch.setenv("WANDB_WATCH", "gradients")
    with pytest.raises(PrivacyRefusal, match="WANDB_WATCH sends gradients before they are clipped"):
        refuse_arguments(args, None, [])
    monkeypatch.setenv("WANDB_WATCH", "parameters")  # every iterate is a release
    refuse_arguments(args, None, [])
