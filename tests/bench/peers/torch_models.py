"""The CPU models that Castor's benchmarks are measured against, written for PyTorch 1.13 (Debian's python3-torch).

Each builder returns a Workload: a step to time and what it counts. Shapes, batch, optimizer and data are the contract
between this file and the C++ benchmark of the same name (README.md); change both or neither.
Delicate: PyTorch 1.13 has no fused attention on the CPU, so attention is written out, as its users wrote it.
"""
import gzip
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


@dataclass
class Workload:
    name: str
    unit: str
    items_per_step: int
    warmup_steps: int
    steps_per_repeat: int
    parameters: int
    step: Callable[[], torch.Tensor]  # one training step; returns the loss


def fashion_mnist_train():
    """60000 images as f32 [n, 28, 28] in 0..1 and their labels as i64 [n]."""

    def unpacked(name, header_bytes):
        try:
            with gzip.open(f"{FASHION_MNIST}/{name}") as file:
                header, body = file.read(header_bytes), file.read()
        except FileNotFoundError as error:
            sys.exit(f"{error}; install Debian's dataset-fashion-mnist")
        return header, np.frombuffer(body, np.uint8)

    header, pixels = unpacked("train-images-idx3-ubyte.gz", 16)
    _, count, rows, columns = struct.unpack(">4I", header)
    _, labels = unpacked("train-labels-idx1-ubyte.gz", 8)
    images = torch.from_numpy(pixels.reshape(count, rows, columns).astype(np.float32)).div_(255)
    return images, torch.from_numpy(labels.astype(np.int64))


def king_james_bytes():
    """The King James text as i64 [n], one element a byte, as Debian's `bible` prints it."""
    if shutil.which("bible") is None:
        sys.exit("no program `bible`; install Debian's bible-kjv")
    text = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True).stdout
    return torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def classifier(name, model, optimizer, images, labels, batch, warmup_steps, steps_per_repeat):
    """A classifier fed from memory: every step gathers the next `batch` rows of one shuffled order."""
    order = torch.randperm(len(images))
    cursor = 0

    def step():
        nonlocal cursor
        if cursor + batch > len(images):
            cursor = 0
        rows = order[cursor : cursor + batch]
        cursor += batch
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Workload(name, "samples/s", batch, warmup_steps, steps_per_repeat, parameter_count(model), step)


def mlp():
    """784-512-512-10, ReLU, batch 128, Adam 1e-3."""
    images, labels = fashion_mnist_train()
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(),
        nn.Linear(512, 512), nn.ReLU(),
        nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return classifier("mlp-784-512-512-10-b128-adam", model, optimizer, images.flatten(1), labels, 128, 20, 100)


def lenet():
    """conv 5x5 1->32 and 32->64, each with padding 2, ReLU and 2x2 max pooling; 3136-128-10; batch 128, Adam 1e-3."""
    images, labels = fashion_mnist_train()

    def stage(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, kernel_size=5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]

    model = nn.Sequential(
        *stage(1, 32), *stage(32, 64),
        nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return classifier("lenet-b128-adam", model, optimizer, images.unsqueeze(1), labels, 128, 3, 8)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut, projected by 1x1 where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


def resnet():
    """ResNet-18 for 28x28: 3x3 stem without pooling, widths 16 32 64 128, strides 1 2 2 2; batch 64, SGD with momentum."""
    images, labels = fashion_mnist_train()
    widths, strides, batch = (16, 32, 64, 128), (1, 2, 2, 2), 64
    layers = [nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    inputs = widths[0]
    for width, stride in zip(widths, strides):
        layers += [BasicBlock(inputs, width, stride), BasicBlock(width, width, 1)]
        inputs = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return classifier("resnet18-small-w16-b64-sgd", model, optimizer, images.unsqueeze(1), labels, batch, 3, 3)


class CausalSelfAttention(nn.Module):
    def __init__(self, width, heads, context):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("future", torch.ones(context, context, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x):
        batch, time, width = x.shape
        head_width = width // self.heads
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, head_width).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * head_width**-0.5
        weights = scores.masked_fill(self.future[:time, :time], float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, time, width))


class TransformerBlock(nn.Module):
    def __init__(self, width, heads, context):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, context)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Gpt(nn.Module):
    """GPT-2's shape, pre-norm, learned positions, an output matrix of its own without bias, no dropout."""

    def __init__(self, layers, width, heads, context, vocabulary):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, context) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def gpt_step(wrap=lambda model: model, data_seed=1):
    """6 layers, width 384, 6 heads, 256 bytes of context, 256 symbols; batch 8, AdamW 3e-4 (0.9, 0.95), decay 0.1.

    Returns the model as `wrap` made it, its step, and the tokens of one."""
    context, vocabulary, batch = 256, 256, 8
    text = king_james_bytes()
    model = wrap(Gpt(layers=6, width=384, heads=6, context=context, vocabulary=vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(data_seed)

    def step():
        starts = torch.randint(len(text) - context - 1, (batch,), generator=generator).tolist()
        inputs = torch.stack([text[at : at + context] for at in starts])
        targets = torch.stack([text[at + 1 : at + 1 + context] for at in starts])
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs).view(-1, vocabulary), targets.view(-1))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step, batch * context


def gpt():
    model, step, tokens = gpt_step()
    return Workload("gpt-6x384-t256-b8-adamw", "tokens/s", tokens, 1, 1, parameter_count(model), step)


WORKLOADS = {"mlp": mlp, "lenet": lenet, "resnet": resnet, "gpt": gpt}
