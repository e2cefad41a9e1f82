"""What pre-training and fine-tuning share: precision, compilation, optimiser, schedule, step.

A run is a pure function of its settings: the order of clips, crops and masks come from (seed, epoch, index), the
learning rate from the step, random layers from a generator seeded by (seed, step). So the state of a run is the
weights, the optimiser and one integer, and it continues exactly, on any number of processes, after any interruption.
"""
from contextlib import nullcontext
from functools import partial
from itertools import chain
from math import cos, inf, pi

import torch
from torch.nn.parallel import DistributedDataParallel

from wren import cli
from wren.cli import UserError
from wren.nets.positions import Convolutional
from wren.nets.transformer import Block
from wren.nets.wave import WaveEmbed
from wren.objectives.data2vec import ConvDecoder
from wren.sound.ahead import ahead, sent
from wren.tasks.augment import change_waves

COMPILED = (Block, ConvDecoder, Convolutional, WaveEmbed)  # one graph for all of a kind
COMPILED_METHODS = ("losses", "average")  # of objectives


def precision(name, device):
    """(autocast context maker, gradient scaler, name): bf16 where the GPU has it, fp16 with scaling on older ones,
    fp32 on CPU. Weights stay float32; the front end and the losses switch autocast off themselves."""
    if name == "auto":
        name = "fp32"
        if device.type == "cuda":
            name = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU; use bf16 or fp32 on CPU")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
    return (lambda: torch.autocast(device.type, dtype) if dtype else nullcontext()), scaler, name


def compile_parts(objective, how, device):
    """how: "on", "off", or "auto", on for GPUs. Batch and length are dynamic, so that a shorter clip or another block
    of the same width needs no graph of its own. Where nothing can be compiled one line says why."""
    if how == "off" or how == "auto" and device.type != "cuda" or not compiler_works(device):
        return
    torch._dynamo.config.recompile_limit = 64  # kinds: widths, with or without gradients, masks, skipped halves
    torch._dynamo.config.suppress_errors = True  # a part that can't be compiled runs as it is
    for module in objective.modules():  # of the encoder, a decoder, a teacher
        if isinstance(module, COMPILED):
            module.compile(dynamic=True)
    for name in COMPILED_METHODS:
        if hasattr(objective, name):
            setattr(objective, name, torch.compile(getattr(objective, name), dynamic=True))


def compiler_works(device):
    """Whether a small function can be compiled, forwards and backwards."""
    try:
        torch.compile(lambda x: x.exp().sum())(torch.ones(8, device=device, requires_grad=True)).backward()
        return True
    except Exception as error:  # a compiler, its headers or Triton are missing, each with an exception of its own
        cli.warn(f"torch.compile does not work here, training goes on without: {str(error).strip().splitlines()[0]}")
        return False


# --------------------------------------------------------------------------------------- optimiser and schedule

def make_optimizer(module, kind="adamw", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, eps=1e-6,
                   share=lambda name: 1.0):
    """Fused AdamW or SGD with decay on weight matrices only, or SSAST's Adam with L2 on everything. share: of the rate,
    by a parameter's name.

    Some parameters have no effect on the loss (the bias of attention's keys, that of the last layer before a softmax
    over predictions): their gradients are rounding noise of about 1e-9, which eps 1e-8 would turn into real steps,
    other ones for every way of cutting the batch. Biases, norms, positions and special tokens are not decayed.
    `initial_lr` is what the schedule multiplies, `initial_weight_decay` where a schedule of the decay starts.
    """
    groups = {}
    for name, p in module.named_parameters():
        decayed = kind == "adam" or p.ndim >= 2 and name.endswith("weight")
        if p.requires_grad:
            groups.setdefault((decayed, lr * share(name)), []).append(p)
    groups = [{"params": groups[decayed, rate], "lr": rate, "initial_lr": rate, "weight_decay": weight_decay * decayed,
               "initial_weight_decay": weight_decay * decayed} for decayed, rate in sorted(groups, reverse=True)]
    make = {"adamw": partial(torch.optim.AdamW, betas=betas, eps=eps),
            "adam": partial(torch.optim.Adam, betas=betas, eps=eps), "sgd": partial(torch.optim.SGD, momentum=0.9)}
    return make[kind](groups, lr=lr, fused=True)


def learning_rate(step, steps, warmup, kind="cosine", floor=0.0):
    """Multiplier of the learning rate at `step` (from 0): linear warm-up, then constant, or a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    if kind == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + cos(pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
    return 1.0


class Plateau:
    """SSAST's schedule on top of the warm-up: halve the rate when `patience` evaluations bring no better accuracy."""

    def __init__(self, factor=0.5, patience=2):
        self.factor, self.patience = factor, patience
        self.scale, self.best, self.waited = 1.0, -inf, 0

    def update(self, value):
        if value > self.best:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
            if self.waited > self.patience:
                self.scale, self.waited = self.scale * self.factor, 0


# --------------------------------------------------------------------------------------------------------- step

def weighted(metrics):
    """An objective's means -> (names, float64 sums), which can be added up over micro-batches and processes."""
    names, count = sorted(metrics), metrics["count"].double()
    return names, torch.stack([metrics[n].detach().double() * (1 if n == "count" else count) for n in names])


def means(names, sums):
    """Undo `weighted`: Python numbers -> {name: mean}."""
    count = max(1.0, sums[names.index("count")])
    return {n: v if n == "count" else v / count for n, v in zip(names, sums)}


class Trainer:
    """One optimisation step over a global batch, on any number of processes and micro-batches.

    The objective returns a mean and its count; gradients are summed over everything and divided once by the global
    count, so the mathematics does not depend on how the batch is cut. augment: arguments of `change_waves`.
    """

    def __init__(self, objective, optimizer, procs, *, batch_size, micro_batch=None, steps, warmup, schedule="cosine",
                 floor=0.0, clip=0.0, weight_decay_end=None, amp="auto", compile="auto", seed=0, augment=None):
        self.objective, self.optimizer, self.procs = objective, optimizer, procs
        self.batch_size, self.micro_batch, self.clip, self.seed = batch_size, micro_batch or batch_size, clip, seed
        self.augment = augment if augment and any(augment.values()) else None
        self.steps, self.warmup, self.schedule, self.floor = steps, warmup, schedule, floor
        self.weight_decay_end = weight_decay_end  # reached on a cosine; None: weight decay is constant
        self.autocast, self.scaler, self.amp = precision(amp, procs.device)
        self.plateau = Plateau()
        self.step, self.skips, self.skipped_in_a_row = 0, 0, 0
        self.takes = getattr(objective, "takes", ("wave", "lengths", "seed"))
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.nominal = float(batch_size) / procs.world * objective.encoder.config.n_tokens
        compile_parts(objective, compile, procs.device)
        self.ddp = objective if procs.world == 1 else DistributedDataParallel(
            objective, device_ids=[procs.device] if procs.device.type == "cuda" else None,
            gradient_as_bucket_view=True, broadcast_buffers=False)

    def train(self, batch, flags=()):
        """One step, awaited: `launch`'s numbers."""
        return self.launch(batch, flags)()

    def launch(self, batch, flags=()):
        """One step, which a GPU may still be at when this returns. batch: dict of CPU tensors (wave, lengths, seed, …),
        this process's share of the global batch, or one that comes from `ahead`; flags: numbers to be summed over the
        processes along the way (stop requests, unreadable files).

        Returns a function that waits for the step's numbers, {"loss", …, "lr", "grad_norm", "finite", "flags"}: means
        over the global batch.
        """
        self.ddp.train()
        torch.manual_seed(hash((self.seed, self.step)) % 2 ** 63)  # for drop path and dropout, should a recipe use them
        scale = learning_rate(self.step, self.steps, self.warmup, self.schedule, self.floor) * self.plateau.scale
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale
            if self.weight_decay_end is not None and (start := group["initial_weight_decay"]):
                passed = (1 - cos(pi * min(1.0, self.step / self.steps))) / 2
                group["weight_decay"] = start + (self.weight_decay_end - start) * passed
        self.optimizer.zero_grad(set_to_none=True)
        cuts = batch["cuts"] if "cuts" in batch else self._placed(batch)["cuts"]
        totals = 0.0
        for k, (arguments, beside) in enumerate(cuts, 1):
            with nullcontext() if k == len(cuts) or self.procs.world == 1 else self.ddp.no_sync():
                with self.autocast():
                    loss, metrics = self.ddp(*arguments, **beside)
                self.scaler.scale(loss * (metrics["count"] / self.nominal)).backward()
            names, sums = weighted(metrics)
            totals = totals + sums
        sums = torch.cat([totals, sent(torch.tensor([*flags], dtype=torch.float64), self.procs.device)])
        return self._update(self.procs.sum(sums), names)

    def ahead(self, batches):
        """Batches with their micro-batches on the device, where the next ones are copied while one is computed."""
        return ahead(batches, self._placed, self.procs.device)

    def _placed(self, batch, training=True):
        """With "cuts", the objective's arguments for each micro-batch on the device, augmented: (wave, lengths, seeds,
        …), and by name the waves' rate and streams, where the batch has them. Lengths are left out when all clips are
        full, known here, on the CPU, so that attention runs without a mask."""
        cuts, device = [], self.procs.device
        for whole in batch.get("parts", [batch]):
            size = self.micro_batch if training else len(whole["wave"])
            for part in (slice(k, k + size) for k in range(0, len(whole["wave"]), size)):
                taken = {*self.takes, "partner", "partner_lengths"} & whole.keys()
                move = {k: sent(whole[k][part], device) for k in taken}
                if training and self.augment:
                    move["wave"] = change_waves(move["wave"], move["lengths"], move["seed"], **self.augment)
                for lengths, waves in (("lengths", "wave"), ("partner_lengths", "partner")):
                    if lengths in whole and bool((whole[lengths][part] >= whole[waves].shape[1]).all()):
                        move.pop(lengths, None)
                beside = {"rate": whole["rate"]} if "rate" in whole else {}
                if whole.get("streams"):
                    beside["streams"] = {name: sent(x[part], device) for name, x in whole["streams"].items()}
                cuts.append(([move.get(k) for k in self.takes], beside))
        return batch | {"cuts": cuts}

    def _update(self, sums, names):
        """Divide by the global count, clip, and step unless the gradient is not finite (alike on every process: DDP has
        spread a bad value to all). None of this waits for the device, which itself leaves out a bad step."""
        self.scaler.unscale_(self.optimizer)
        divisor = (sums[names.index("count")] / (self.nominal * self.procs.world)).float()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]) / divisor
        if self.clip:
            divisor = divisor * ((norm + 1e-6) / self.clip).clamp(min=1.0)
        # a fused step divides on the way: a pass over all gradients less; and it may find that nothing is to be done
        self.optimizer.grad_scale, self.optimizer.found_inf = divisor, (~norm.isfinite()).float()
        self.optimizer.step()
        if hasattr(self.objective, "after_step"):
            self.objective.after_step(self.step)
        self.scaler.update()
        self.step += 1
        lr = self.optimizer.param_groups[0]["lr"]
        values = torch.cat([sums, norm.double()[None]]).to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream().record_event() if sums.is_cuda else None

        def read():
            if copied:
                copied.synchronize()
            *numbers, norm = values.tolist()
            finite = norm < inf  # false for NaN too
            self.skips, self.skipped_in_a_row = self.skips + (not finite), 0 if finite else self.skipped_in_a_row + 1
            return means(names, numbers) | {"lr": lr, "grad_norm": norm, "finite": finite,
                                            "flags": numbers[len(names):]}
        return read

    @torch.no_grad()
    def evaluate(self, batches):
        """Mean metrics over held-out batches, each process giving its share; the same masks at every call."""
        self.objective.eval()
        own, totals = [], {}
        for batch in ahead(batches, partial(self._placed, training=False), self.procs.device):
            for arguments, beside in batch["cuts"]:
                with self.autocast():
                    own.append(weighted(self.objective(*arguments, **beside)[1]))
        for names, sums in chain(*self.procs.gather([(names, sums.tolist()) for names, sums in own])):
            totals = {name: totals.get(name, 0.0) + value for name, value in zip(names, sums)}
        if not totals:
            raise UserError("none of the held-out clips can be read any more: mend them (python data.py check lists "
                            "them), or start another run without them")
        return means([*totals], [*totals.values()])

    def state_dict(self):
        return {"step": self.step, "objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "plateau": vars(self.plateau), "skips": self.skips}

    def load_state_dict(self, state):
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        vars(self.plateau).update(state["plateau"])
        self.step, self.skips = state["step"], state["skips"]
