"""The mean teacher of EAT, animal2vec and ATST."""
from copy import deepcopy
from math import cos, pi

import torch
from torch import nn

MIXED = ("wave", "lengths", "seed", "mask", "partner", "partner_lengths")  # what a mixing objective takes of a batch


class MeanTeacher(nn.Module):
    """What EAT, Animal2Vec and ATST share: a teacher whose weights are a running average of the student's.

    The teacher is float32, never trained, without drop path and dropout, and saved with the run. After each step
    teacher = m · teacher + (1 - m) · student, m from ema[0] to ema[1] over `ema_steps` steps, linearly (data2vec)
    or on a cosine (BYOL, ATST). Only parameters are averaged; statistics of an encoder's input norm are copied.
    """

    def __init__(self, encoder, ema, ema_steps, ema_shape):
        super().__init__()
        if encoder.config.streams:
            raise ValueError("streams are learned from with ssast and the masked autoencoders")
        self.encoder, self.ema, self.ema_steps, self.ema_shape = encoder, tuple(ema), ema_steps, ema_shape

    def add_teacher(self, **parts):
        """parts: name -> the student's module of which the teacher gets a copy."""
        self.averaged = tuple(parts)
        self.teacher = nn.ModuleDict({name: deepcopy(part).requires_grad_(False) for name, part in parts.items()})

    def train(self, mode=True):
        super().train(mode)
        self.teacher["encoder"].eval()
        return self

    def decay(self, step):
        """m at `step` (from 0)."""
        (start, end), share = self.ema, min(1.0, step / max(1, self.ema_steps))
        if self.ema_shape == "cosine":
            share = (1 - cos(pi * share)) / 2
        return start + (end - start) * share

    def after_step(self, step):
        self.follow(self.decay(step))

    @torch.no_grad()
    def follow(self, decay):
        """teacher = decay · teacher + (1 - decay) · student."""
        for name in self.averaged:
            student, teacher = getattr(self, name), self.teacher[name]
            weights = dict(student.named_parameters())
            pairs = [(t, weights[key]) for key, t in teacher.named_parameters()]
            torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], 1 - decay)
        buffers = dict(self.encoder.named_buffers())
        for key, buffer in self.teacher["encoder"].named_buffers():
            buffer.copy_(buffers[key])

    def restart_teacher(self):
        """The teacher becomes a copy of the student, running statistics included."""
        for name in self.averaged:
            self.teacher[name].load_state_dict(getattr(self, name).state_dict(), strict=False)  # it may lack a part

    @property
    def exported(self):
        return self.encoder
