"""The real trainers, schedulers and wrappers that drive an optimizer of torch."""

import copy
import importlib

import pytest
import torch

from adafactor_native.torch import Adafactor, HuggingFaceAdafactor
from torch_adapter.models import (
    assert_close,
    assert_same_bits,
    digest,
    gradients,
    parameters,
    take_step,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries warn of is theirs


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batch(step):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


def plain_run(steps, **options):
    model = network()
    opt = Adafactor(model.parameters(), lr=0.05, **options)
    for step in range(steps):
        opt.zero_grad()
        x, y = batch(step)
        torch.nn.functional.mse_loss(model(x), y).backward()
        opt.step()
    return model, opt


def test_grad_scaler():
    model = network()
    opt = Adafactor(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    expected, other = plain_run(3)
    for step in range(3):
        opt.zero_grad()
        x, y = batch(step)
        scaler.scale(torch.nn.functional.mse_loss(model(x), y)).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
    for p, q in zip(model.parameters(), expected.parameters()):
        assert torch.allclose(p, q, rtol=0, atol=1e-6)
    assert not hasattr(opt, "_step_supports_amp_scaling")  # or Lightning would refuse to clip
    before = digest(opt)
    next(model.parameters()).grad = torch.full_like(next(model.parameters()), float("inf"))
    scaler.step(opt)
    scaler.update()
    assert_same_bits(digest(opt), before)
    assert scaler.get_scale() < 2048
    assert all(other.state[p]["step"] == 3 for p in expected.parameters())


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=8, cycle_momentum=False
    ),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [2],
    ),
    "transformers cosine": lambda o: importlib.import_module(
        "transformers.optimization"
    ).get_cosine_schedule_with_warmup(o, 2, 8),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_what_torchs_own_class_would_step_by(name, require_installed):
    if name.startswith("transformers"):
        require_installed("transformers")
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    a, b = Adafactor(ours, lr=0.05), torch.optim.Adafactor(theirs, lr=0.05)
    schedules = [SCHEDULERS[name](opt) for opt in (a, b)]
    for step in range(6):
        for opt, params, schedule in zip((a, b), (ours, theirs), schedules):
            take_step(opt, params, step)
            if name == "ReduceLROnPlateau":
                schedule.step(1.0)
            else:
                schedule.step()
        assert a.param_groups[0]["lr"] == b.param_groups[0]["lr"]
        for p, q in zip(ours, theirs):
            assert torch.allclose(p, q, rtol=0, atol=1e-11)


def test_averaged_models_and_their_schedule():
    def averaged_by(optimizer):
        model = network().double()
        opt = optimizer(model.parameters(), lr=0.05)
        averaged = torch.optim.swa_utils.AveragedModel(model)
        schedule = torch.optim.swa_utils.SWALR(opt, swa_lr=0.01)
        for step in range(4):
            opt.zero_grad()
            x, y = (each.double() for each in batch(step))
            torch.nn.functional.mse_loss(model(x), y).backward()
            opt.step()
            averaged.update_parameters(model)
            schedule.step()
        assert int(averaged.n_averaged) == 4
        return opt.param_groups[0]["lr"], model, averaged.module

    lr, *ours = averaged_by(Adafactor)
    its, *theirs = averaged_by(torch.optim.Adafactor)
    assert lr == its
    for a, b in zip(ours, theirs):
        assert_close(a.parameters(), b.parameters(), 1e-12)
    assert not torch.equal(ours[0][0].weight, ours[1][0].weight)


def test_zero_redundancy_optimizer(python):
    """Two processes of gloo: the wrapper's own construction, step, consolidated state and its load."""
    said = python(
        """
        import os, sys
        rank = int(os.fork() != 0)
        import torch
        import torch.distributed as dist
        from torch.distributed.optim import ZeroRedundancyOptimizer
        from adafactor_native.torch import Adafactor
        dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore("store", 2))
        torch.manual_seed(0)
        model, plain = (torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)) for _ in "ab")
        plain.load_state_dict(model.state_dict())
        a = ZeroRedundancyOptimizer(model.parameters(), Adafactor, lr=0.05)
        b = Adafactor(plain.parameters(), lr=0.05)
        def train(a, steps):
            for step in steps:
                for net, opt in ((model, a), (plain, b)):
                    opt.zero_grad()
                    net(torch.ones(2, 6) * (step + 1)).square().mean().backward()
                    opt.step()
        train(a, range(3))
        a.consolidate_state_dict(0)
        states = [a.state_dict() if rank == 0 else None]
        dist.broadcast_object_list(states, 0)
        c = ZeroRedundancyOptimizer(model.parameters(), Adafactor, lr=0.05)
        said = float(states[0]["state"][0]["step"]), states[0]["state"][0]["row_var"].dtype
        c.load_state_dict(states[0])
        train(c, range(3, 6))
        same = all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters()))
        kept = sorted(len(opt.state) for opt in (c.optim, b))
        dist.destroy_process_group()
        if rank == 0:
            sys.exit(0 if same and 0 < kept[0] < 4 else f"{same} {kept}")
        print(same, kept[1], *said, os.wait()[1])
        """
    )
    assert said.split() == ["True", "4", "3.0", "torch.float64", "0"]


def test_accelerate_prepares_clips_saves_and_loads(tmp_path, require_installed):
    require_installed("accelerate")
    accelerate = importlib.import_module("accelerate")

    def train(accelerator, model, opt, steps):
        for step in steps:
            opt.zero_grad()
            x, y = batch(step)
            accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            assert not opt.step_was_skipped

    def prepared():
        accelerator = accelerate.Accelerator(cpu=True)
        model = network()
        return accelerator, *accelerator.prepare(model, Adafactor(model.parameters(), lr=0.05))

    accelerator, model, opt = prepared()
    train(accelerator, model, opt, range(3))
    accelerator.save_state(tmp_path)
    other, resumed, its = prepared()
    other.load_state(tmp_path)
    for one, net, o in ((accelerator, model, opt), (other, resumed, its)):
        train(one, net, o, range(3, 6))
    assert_same_bits(digest(opt.optimizer), digest(its.optimizer))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_lightning_trains_and_resumes(tmp_path, precision, require_installed):
    require_installed("lightning")
    lightning = importlib.import_module("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, data, _):
            x, y = data
            return torch.nn.functional.mse_loss(self.net(x).float(), y.float())

        def configure_optimizers(self):
            return Adafactor(self.net.parameters(), lr=0.05)

        def train_dataloader(self):
            x = torch.cat([batch(step)[0] for step in range(3)])
            y = x.sum(1, keepdim=True)
            if precision == "bf16-true":
                x, y = x.bfloat16(), y.bfloat16()
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)

    def fit(epochs, checkpoint=None):
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            precision=precision,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, ckpt_path=checkpoint)
        return trainer, module

    trainer, straight = fit(4)
    half, _ = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed_trainer, resumed = fit(4, tmp_path / "half.ckpt")
    assert_same_bits(straight.parameters(), resumed.parameters())
    assert_same_bits(digest(trainer.optimizers[0]), digest(resumed_trainer.optimizers[0]))


def test_fabric(tmp_path, require_installed):
    require_installed("lightning")
    fabric = importlib.import_module("lightning").Fabric(accelerator="cpu", devices=1)
    model = network()
    net, opt = fabric.setup(model, Adafactor(model.parameters(), lr=0.05))
    for step in range(3):
        opt.zero_grad()
        x, y = batch(step)
        fabric.backward(torch.nn.functional.mse_loss(net(x), y))
        opt.step()
    expected, _ = plain_run(3)
    assert_same_bits(model.parameters(), expected.parameters())
    fabric.save(tmp_path / "state.pt", {"opt": opt})
    before = copy.deepcopy(opt.state_dict()["state"][0]["row_var"])
    fabric.load(tmp_path / "state.pt", {"opt": opt})
    assert torch.equal(opt.state_dict()["state"][0]["row_var"], before)


@pytest.mark.parametrize("made", [Adafactor, HuggingFaceAdafactor])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hugging_faces_trainer_resumes_to_the_bit(tmp_path, made, dtype, require_installed):
    """A tiny transformer, randomly initialised: schedule, clipping, save and resume."""
    require_installed("transformers", "accelerate")
    transformers = importlib.import_module("transformers")

    class Lines(torch.utils.data.Dataset):
        def __len__(self):
            return 32

        def __getitem__(self, k):
            ids = (torch.arange(12) * (k + 1)) % 50
            return {"input_ids": ids, "labels": ids}

    def train(folder, **more):
        transformers.set_seed(0)
        config = transformers.GPT2Config(
            vocab_size=50,
            n_positions=16,
            n_embd=16,
            n_layer=1,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        model = transformers.GPT2LMHeadModel(config).to(dtype)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=6,
            save_steps=3,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            learning_rate=1e-2,
            save_only_model=False,
            logging_strategy="no",
        )
        options = {"lr": 1e-2}
        if made is HuggingFaceAdafactor:
            options["relative_step"] = False
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=Lines(),
            optimizer_cls_and_kwargs=(made, options),
        )
        trainer.train(**more)
        return model, trainer.optimizer

    model, _ = train(tmp_path)
    resumed, _ = train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same_bits(model.parameters(), resumed.parameters())


def test_hooks_of_other_people_on_each_parameter():
    """One optimizer for each parameter, stepped by hooks of one's own, as torchtune does."""
    model = network()
    opts = {p: Adafactor([p], lr=0.05) for p in model.parameters()}

    def step(p):
        opts[p].step()
        opts[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for k in range(3):
        x, y = batch(k)
        torch.nn.functional.mse_loss(model(x), y).backward()
    expected, _ = plain_run(3)
    assert_same_bits(model.parameters(), expected.parameters())


def test_kohyas_patch_of_step_param():
    """It replaces methods on the instance, and drives the parameters itself."""
    params, others = parameters(), parameters()
    opt, plain = Adafactor(params), Adafactor(others)
    driven = opt.step_param
    opt.step = lambda closure=None: None
    (group,) = opt.param_groups

    def step_and_free(p):
        driven(p, group)
        p.grad = None

    for p in params:
        p.register_post_accumulate_grad_hook(step_and_free)
    for step in range(2):
        for p, grad in zip(params, gradients(params, step)):
            (p * grad).sum().backward()
        opt.step()
        take_step(plain, others, step)
    assert_same_bits(params, others)
