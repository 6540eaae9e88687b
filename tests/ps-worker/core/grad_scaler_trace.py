#!/usr/bin/env python3
"""Records what PyTorch's GradScaler does in 10,000 steps with staged infinities.

  python3 grad_scaler_trace.py > grad_scaler_trace.txt     needs torch 2.3 or later; a CPU will do

Each step is a whole one: the loss is scaled, a gradient computed, infinities and NaNs are put into it
where they are staged, and the scaler unscales, steps and updates. Which steps: those of a run of
failures at the beginning, as with a first scale that is too large, then random ones of several
frequencies, some next to each other.

The trace has three settings, each after a line `scaler <initial> <growth> <backoff> <interval>`. A
line of a trace is a run of steps: `<count> <found_inf> <scale> <tracker> <unscaled>`. In a run the
scale is the same after every step, as are found_inf and what a gradient of 1.5 times the scale becomes;
the tracker is the first step's and counts up by one in steps that are not skipped. Floats are as
float.hex() writes them.
"""
import random
import warnings

import torch

STEPS = 10000
SETTINGS = [
    (65536.0, 2.0, 0.5, 2000),
    (1000.0, 1.7, 0.3, 37),       # every multiplication rounds
    (2.0**120, 2.0, 0.5, 100),    # grows to where the scale would be infinite
]


def staged():
    choose = random.Random(1)
    bad = set(range(3)) | set(range(4, 9, 2))
    for begin, end, part in [(10, 3000, 0.002), (5200, 6000, 0.05), (7999, 8010, 0.5), (9000, 9500, 0.01)]:
        bad |= {step for step in range(begin, end) if choose.random() < part}
    return bad


def trace(initial, growth, backoff, interval, bad):
    scaler = torch.amp.GradScaler("cpu", init_scale=initial, growth_factor=growth,
                                  backoff_factor=backoff, growth_interval=interval)
    weight = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        # Through autograd, and then the gradient is 1.5 times the scale.
        scaler.scale((weight * 0).sum()).backward()
        scale = scaler.get_scale()
        weight.grad.fill_(torch.tensor(scale, dtype=torch.float32) * 1.5)
        if step in bad:
            weight.grad[step % 4] = float("inf") if step % 3 else float("nan")
        scaler.unscale_(optimizer)
        unscaled = weight.grad[(step + 1) % 4].item()
        found = sum(value.item() for value in
                    scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values())
        scaler.step(optimizer)
        scaler.update()
        yield int(found > 0), scaler.get_scale(), scaler._get_growth_tracker(), unscaled


def main():
    warnings.simplefilter("error")
    bad = staged()
    print("# torch %s" % torch.__version__)
    for setting in SETTINGS:
        print("scaler %s %s %s %d" % (setting[0].hex(), setting[1].hex(), setting[2].hex(), setting[3]))
        run = None  # count, found, scale, first tracker, unscaled
        for found, scale, tracker, unscaled in trace(*setting, bad):
            if run and (found, scale, unscaled) == (run[1], run[2], run[4]) and (
                    tracker == (0 if found else run[3] + run[0])):
                run[0] += 1
                continue
            if run:
                print(run[0], run[1], run[2].hex(), run[3], run[4].hex())
            run = [1, found, scale, tracker, unscaled]
        print(run[0], run[1], run[2].hex(), run[3], run[4].hex())


if __name__ == "__main__":
    main()
