"""Parameters on an accelerator, their optimizer in host memory: the recipe of the guide, to the letter."""

import torch

from adafactor_native.torch import Adafactor


class OffloadedAdafactor:
    def __init__(self, params, **options):
        self.there = list(params)
        pin = self.there[0].device.type == "cuda"

        def twin(p):
            return torch.empty(p.shape, dtype=p.dtype, device="cpu", pin_memory=pin)

        self.here = [torch.nn.Parameter(twin(p).copy_(p.detach())) for p in self.there]
        self.grads = [twin(p) for p in self.there]
        self.opt = Adafactor(self.here, masters="float32", **options)
        self.handle = None

    def step(self):
        """Begin a step with the gradients there; the forward pass must wait for `finish`."""
        self.finish()
        for p, here, grad in zip(self.there, self.here, self.grads):
            if p.grad is None:
                here.grad = None
            else:
                here.grad = grad.copy_(p.grad, non_blocking=True)
                p.grad = None
        if self.there[0].device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the gradients have arrived
        self.handle = self.opt.step_async()

    def finish(self):
        """Let the copies there be what the step made of them."""
        if self.handle is not None:
            self.handle.wait()
            self.handle = None
            with torch.no_grad():
                for p, here in zip(self.there, self.here):
                    p.copy_(here, non_blocking=True)
