#!/usr/bin/env python3
"""One rank of a timed training step of the `gpt` workload under PyTorch's DistributedDataParallel over gloo (loopback
TCP), started by bench_ddp beside Castor's ranks.

usage: RANK=R WORLD_SIZE=W GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1 \
       LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/openblas-openmp torch_ddp.py MEETING_FILE RESULT_FILE REPEATS

Rank 0 writes one line to RESULT_FILE: the median seconds of a step, the CPU seconds of a rank for one, and what other
processes and the hypervisor took of the CPUs meanwhile, in percent. Every rank has a batch of its own.
"""
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch_models import gpt_step


def data_parallel(model):
    """The masks of attention stay out of it: gloo cannot send bools, and they are constants."""
    masks = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, masks)
    return DistributedDataParallel(model)


def machine_ticks():
    """Ticks of all CPUs since boot: user, nice, system, idle, iowait, irq, softirq, steal."""
    with open("/proc/stat") as stat:
        return [int(field) for field in stat.readline().split()[1:9]]


def main():
    meeting, result, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cpus = sorted(os.sched_getaffinity(0))
    if world <= len(cpus):
        os.sched_setaffinity(0, {cpus[rank]})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=world)
    _, step, _ = gpt_step(data_parallel, data_seed=1 + rank)
    for _ in range(2):
        step()
    seconds = []
    dist.barrier()
    before, cpu = machine_ticks(), time.process_time()
    for _ in range(repeats):
        dist.barrier()
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    own = torch.tensor([time.process_time() - cpu], dtype=torch.float64)
    ticks = [b - a for a, b in zip(before, machine_ticks())]
    dist.all_reduce(own)
    if rank == 0:
        total = max(sum(ticks), 1)
        busy = ticks[0] + ticks[1] + ticks[2]
        other = 100 * max(busy - float(own) * os.sysconf("SC_CLK_TCK"), 0) / total
        with open(result, "w") as file:
            file.write(f"{statistics.median(seconds):.9g} {float(own) / world / repeats:.9g} {other:.1f} {100 * ticks[7] / total:.1f} {torch.__version__}\n")
    dist.barrier()
    dist.destroy_process_group()


main()
