"""The peer of scripts/speed: PyTorch DistributedDataParallel over gloo, the MLP of
examples/fashion-mlp.yaml, one process of `--world`. Needs Debian's python3-torch.

Evaluates every --evaluate-every steps off the clock, on rank 0, until --target is reached, or does
--steps steps for their time alone. Rank 0 prints JSON.
"""
import argparse
import gzip
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("--rank", type=int, required=True)
parser.add_argument("--world", type=int, required=True)
parser.add_argument("--master", required=True, help="HOST:PORT of rank 0")
parser.add_argument("--hook", choices=["none", "powersgd"], default="none")
parser.add_argument("--rate", type=float, default=0.05, help="learning rate")
parser.add_argument("--batch", type=int, default=128, help="of each process")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--target", type=float, default=0.87)
parser.add_argument("--evaluate-every", type=int, default=20)
parser.add_argument("--max-steps", type=int, default=2000)
parser.add_argument("--steps", type=int, default=0, help="only so many, no evaluation")
parser.add_argument("--warm-up", type=int, default=3, help="steps left out of the time of a step")
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
args = parser.parse_args()
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", GLOO_SOCKET_IFNAME="eth0")

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

POWERSGD_STARTS = 10  # dense steps before it, as its documentation asks for


def idx(name):
    with gzip.open(os.path.join(args.data, name)) as file:
        data = file.read()
    shape = [int.from_bytes(data[4 + 4 * i:8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def images(name):
    values = torch.from_numpy(idx(name).copy()).float().div_(255).sub_(0.2860).div_(0.3530)
    return values.view(len(values), -1)


def labels(name):
    return torch.from_numpy(idx(name).copy()).long()


torch.set_num_threads(1)
train = images("train-images-idx3-ubyte.gz"), labels("train-labels-idx1-ubyte.gz")
test = images("t10k-images-idx3-ubyte.gz"), labels("t10k-labels-idx1-ubyte.gz")
dist.init_process_group("gloo", init_method="tcp://" + args.master, rank=args.rank,
                        world_size=args.world)
torch.manual_seed(args.seed)
plain = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                      nn.Linear(1024, 10))
if args.hook == "powersgd":
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
    # With two buckets the hook takes both threads of gloo and waits for ever: one bucket.
    dist._DEFAULT_FIRST_BUCKET_BYTES = 256 << 20
    model = nn.parallel.DistributedDataParallel(plain, bucket_cap_mb=256)
    model.register_comm_hook(powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=2, start_powerSGD_iter=POWERSGD_STARTS,
        min_compression_rate=2, use_error_feedback=True, warm_start=True),
        powerSGD_hook.powerSGD_hook)
else:
    model = nn.parallel.DistributedDataParallel(plain)
optimizer = torch.optim.SGD(model.parameters(), lr=args.rate, momentum=0.9)


def accuracy():
    plain.eval()
    right = 0
    with torch.no_grad():
        for i in range(0, len(test[0]), 1000):
            right += (plain(test[0][i:i + 1000]).argmax(1) == test[1][i:i + 1000]).sum().item()
    plain.train()
    return right / len(test[0])


def sent_bytes():
    with open("/sys/class/net/eth0/statistics/tx_bytes") as file:
        return int(file.read())


per_epoch = len(train[0]) // (args.batch * args.world)
last = args.steps or args.max_steps
clock, times, reached = 0.0, [], None
dist.barrier()
for step in range(last):
    epoch, k = divmod(step, per_epoch)
    if k == 0:
        order = torch.randperm(len(train[0]),
                               generator=torch.Generator().manual_seed(1000 * args.seed + epoch))
    if step == args.warm_up:
        sent = sent_bytes()
    begin = time.perf_counter()
    first = (k * args.world + args.rank) * args.batch
    batch = order[first:first + args.batch]
    optimizer.zero_grad(set_to_none=False)
    loss = F.cross_entropy(model(train[0][batch]), train[1][batch])
    loss.backward()
    optimizer.step()
    loss.item()
    times.append(time.perf_counter() - begin)
    clock += times[-1]
    if args.steps == 0 and (step + 1) % args.evaluate_every == 0:
        value = torch.tensor([accuracy() if args.rank == 0 else 0.0])
        dist.broadcast(value, 0)
        if value.item() >= args.target:
            reached = value.item()
            break
if args.rank == 0:
    steady = times[args.warm_up:]
    print(json.dumps({
        "steps": len(times), "seconds": round(clock, 3), "accuracy": reached,
        "step_s": round(sorted(steady)[len(steady) // 2], 5),
        "first_step_s": round(times[0], 5),
        "sent_bytes_per_step": round((sent_bytes() - sent) / max(1, len(steady)))}))
dist.barrier()
dist.destroy_process_group()
