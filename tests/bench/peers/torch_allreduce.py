#!/usr/bin/env python3
"""One rank of a timed all-reduce over gloo (loopback TCP), started by bench_allreduce beside Castor's ranks.

usage: RANK=R WORLD_SIZE=W GLOO_SOCKET_IFNAME=lo torch_allreduce.py MEETING_FILE RESULT_FILE MIB REPEATS

Rank 0 writes one line to RESULT_FILE: the median seconds of an all-reduce, the CPU seconds of a rank for one, and what
other processes and the hypervisor took of the CPUs meanwhile, in percent. Delicate: the CPU time of all ranks is subtracted, so it is reduced as well.
"""
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist


def machine_ticks():
    """Ticks of all CPUs since boot: user, nice, system, idle, iowait, irq, softirq, steal."""
    with open("/proc/stat") as stat:
        return [int(field) for field in stat.readline().split()[1:9]]


def main():
    meeting, result, mib, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cpus = sorted(os.sched_getaffinity(0))
    if world <= len(cpus):
        os.sched_setaffinity(0, {cpus[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=world)
    x = torch.ones(mib << 18)
    warmups = 3
    for _ in range(warmups):
        dist.all_reduce(x)
    seconds = []
    dist.barrier()
    before, cpu = machine_ticks(), time.process_time()
    for _ in range(repeats):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(x)
        seconds.append(time.perf_counter() - started)
    own = torch.tensor([time.process_time() - cpu], dtype=torch.float64)
    ticks = [b - a for a, b in zip(before, machine_ticks())]
    dist.all_reduce(own)
    if float(x[0]) != float(world) ** (warmups + repeats):
        raise RuntimeError(f"the sum is {float(x[0])}")
    if rank == 0:
        total = max(sum(ticks), 1)
        busy = ticks[0] + ticks[1] + ticks[2]
        other = 100 * max(busy - float(own) * os.sysconf("SC_CLK_TCK"), 0) / total
        with open(result, "w") as file:
            file.write(f"{statistics.median(seconds):.9g} {float(own) / world / repeats:.9g} {other:.1f} {100 * ticks[7] / total:.1f} {torch.__version__}\n")
    dist.barrier()
    dist.destroy_process_group()


main()
