"""Seconds that torch.save (with fsync) and a cold torch.load take for a state of as many bytes as Castor's benchmark
saves: 144 f32 tensors. usage: torch_checkpoint.py PATH BYTES; prints two numbers. The file is left for the caller."""
import os
import sys
import time

import torch

path, size = sys.argv[1], int(sys.argv[2])
state = {f"blocks.{i}.weight": torch.randn(size // 144 // 4) for i in range(144)}
start = time.perf_counter()
with open(path, "wb") as file:
    torch.save(state, file)
    file.flush()
    os.fsync(file.fileno())
saved = time.perf_counter() - start
with open(path, "rb") as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
start = time.perf_counter()
torch.load(path)
print(saved, time.perf_counter() - start)
