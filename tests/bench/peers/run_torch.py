#!/usr/bin/env python3
"""Times one PyTorch workload on the CPU and prints one line of JSON.

usage: OMP_NUM_THREADS=N LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/openblas-openmp \
       /usr/bin/python3 run_torch.py {mlp,lenet,resnet,gpt} [--threads N] [--repeats R] [--steps S] [--no-pin]

Delicate: with another OpenBLAS than the OpenMP build, BLAS's own threads fight PyTorch's for the second core and the
peer looks slow; tests/bench/run sets the two variables. Threads are pinned after the warm-up, when all of them exist.
The growth of memory is taken from the kernel's counters: rss_growth_bytes = highest resident set - resident set
right after `import torch`; rss_growth_training_bytes leaves out the data set, which lies in memory before the first step.
"""
import argparse
import gc
import json
import os
import statistics
import sys
import time


def parsed_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=0, help="steps a repeat; 0: the workload's own")
    parser.add_argument("--no-pin", dest="pin", action="store_false")
    return parser.parse_args()


def memory_bytes(field):
    """VmRSS (now) or VmHWM (highest) of this process."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def forget_highest_memory():
    """VmHWM restarts from the present resident set."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def machine_ticks():
    """Ticks of all CPUs since boot: user, nice, system, idle, iowait, irq, softirq, steal."""
    with open("/proc/stat") as stat:
        return [int(field) for field in stat.readline().split()[1:9]]


def pin_threads():
    """The main thread stays on the first allowed CPU, every other thread of the process goes round the rest."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return
    workers = sorted(int(task) for task in os.listdir("/proc/self/task") if int(task) != os.getpid())
    os.sched_setaffinity(os.getpid(), {cpus[0]})
    for index, thread in enumerate(workers):
        try:
            os.sched_setaffinity(thread, {cpus[1 + index % (len(cpus) - 1)]})
        except ProcessLookupError:
            pass  # it ended in the meantime


def main():
    arguments = parsed_arguments()
    if int(os.environ.get("OMP_NUM_THREADS", "0")) != arguments.threads:
        sys.exit(f"run_torch.py: set OMP_NUM_THREADS={arguments.threads}; libraries read it before Python starts")
    import torch

    rss_after_import = memory_bytes("VmRSS")
    from torch_models import WORKLOADS

    if arguments.workload not in WORKLOADS:
        sys.exit(f"run_torch.py: no workload {arguments.workload}; there are: {' '.join(WORKLOADS)}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    work = WORKLOADS[arguments.workload]()
    gc.collect()
    highest_while_loading = memory_bytes("VmHWM")
    forget_highest_memory()
    rss_with_data = memory_bytes("VmRSS")

    for _ in range(work.warmup_steps):
        work.step()
    pinned = arguments.pin and arguments.threads > 1
    if pinned:
        pin_threads()
    work.step()

    steps = arguments.steps or work.steps_per_repeat
    rates = []
    ticks_before, own_before = machine_ticks(), time.process_time()
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        for _ in range(steps):
            loss = work.step()
        rates.append(steps * work.items_per_step / (time.perf_counter() - started))
    own_ticks = (time.process_time() - own_before) * os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, *_, steal = ticks = [b - a for a, b in zip(ticks_before, machine_ticks())]
    total = max(sum(ticks), 1)

    highest_while_training = memory_bytes("VmHWM")
    print(json.dumps({
        "name": work.name,
        "unit": work.unit,
        "median": round(statistics.median(rates), 1),
        "min": round(min(rates), 1),
        "max": round(max(rates), 1),
        "repeats": arguments.repeats,
        "steps": steps,
        "threads": arguments.threads,
        "pinned": pinned,
        "parameters": work.parameters,
        "loss": round(float(loss), 4),
        "other_cpu_pct": round(100 * max(user + nice + system - own_ticks, 0) / total, 1),
        "steal_pct": round(100 * steal / total, 1),
        "idle_pct": round(100 * idle / total, 1),
        "rss_growth_bytes": max(highest_while_loading, highest_while_training) - rss_after_import,
        "rss_growth_training_bytes": highest_while_training - rss_with_data,
        "version": torch.__version__,
    }), flush=True)


if __name__ == "__main__":
    main()
