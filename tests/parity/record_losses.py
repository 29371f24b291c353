#!/usr/bin/python3
"""Records what PyTorch makes of small models and optimizers, for loss_parity_test.cpp and optimizer_parity_test.cpp.

    tests/parity/record_losses.py [--out FOLDER]

Needs torch and numpy (Debian: python3-torch). Writes losses.json and optimizers.json. Optimizers that torch has not are in
optimizer_formulas.py.

Nothing but a formula ties the two sides: a weight, a gradient, a token or a pixel is a function of a name and a number,
SplitMix64 started at the FNV-1a hash of the name, here in numpy and in counted_numbers.h in C++. The models below are
written from torch's own functions and share no code or layout with the samples, only the names of the parameters.

Every run is recorded in f32 and once more in f64. A run whose two recordings part by more than a fifth of the test's
tolerance would test luck instead of arithmetic: the script refuses it.
"""
import argparse
import json
import os
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import optimizer_formulas

STEPS = 20
BATCHES = 4  # a run sees these in turn
TOLERANCE = 1e-4
torch.set_num_threads(1)

# ------------------------------------------------------------------------------------------------ the counter formula


def words(name, count):
    """`count` 64-bit words of the stream `name`."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    golden = np.uint64(0x9E3779B97F4A7C15)
    x = np.uint64(seed) + golden * (np.arange(count, dtype=np.uint64) + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(name, shape, offset=0.0, scale=1.0):
    """f32 numbers in [offset - scale, offset + scale)."""
    unit = (words(name, int(np.prod(shape))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (offset + scale * (2 * unit - 1)).astype(np.float32).reshape(shape)


def integers(name, shape, bound):
    """Integers in [0, bound)."""
    return ((words(name, int(np.prod(shape))) >> np.uint64(32)) % np.uint64(bound)).astype(np.int64).reshape(shape)


def start_of(name, shape):
    """(offset, scale) of a parameter's first values."""
    if len(shape) > 1:
        return 0.0, float(np.float32(np.sqrt(3.0 / np.prod(shape[1:]))))
    return (0.0, 0.1) if name.endswith('bias') else (1.0, 0.2)


def digits(values):
    return [float(f'{value:.9g}') for value in values]


# --------------------------------------------------------------------------------------------------------- the decoder


class RootMeanSquareNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def norm_of(options):
    if options['norm'] == 'rms':
        return RootMeanSquareNorm(options['n_embd'])
    return nn.LayerNorm(options['n_embd'])


class Attention(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.heads, self.kv_heads = options['n_head'], options['n_kv_head'] or options['n_head']
        width = options['n_embd']
        self.head_dim = width // self.heads
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=options['bias'])
        self.proj = nn.Linear(width, width, bias=options['bias'])
        self.rotary_base = options['rotary_base'] if options['position'] == 'rotary' else None

    def turned(self, x):
        """Rotates the pairs (d, d + D/2) of each head by position * base^(-2 d / D)."""
        half = self.head_dim // 2
        angle = torch.outer(torch.arange(x.shape[2], dtype=torch.float64),
                            self.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half))
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, x):
        B, T, width = x.shape
        sizes = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        q, k, v = (part.view(B, T, -1, self.head_dim).transpose(1, 2) for part in self.qkv(x).split(sizes, -1))
        if self.rotary_base is not None:
            q, k = self.turned(q), self.turned(k)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float('-inf'))
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, width))


class FeedForward(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.kind, hidden = options['mlp'], options['n_hidden']
        self.fc = nn.Linear(options['n_embd'], hidden * (2 if self.kind == 'swiglu' else 1), bias=options['bias'])
        self.proj = nn.Linear(hidden, options['n_embd'], bias=options['bias'])

    def forward(self, x):
        x = self.fc(x)
        if self.kind == 'swiglu':
            gate, up = x.chunk(2, -1)
            return self.proj(F.silu(gate) * up)
        return self.proj(F.gelu(x, approximate='tanh'))


class Block(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.norm1, self.attn = norm_of(options), Attention(options)
        self.norm2, self.mlp = norm_of(options), FeedForward(options)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.wte = nn.Embedding(options['vocab_size'], options['n_embd'])
        if options['position'] == 'learned':
            self.wpe = nn.Embedding(options['block_size'], options['n_embd'])
        self.blocks = nn.ModuleList(Block(options) for _ in range(options['n_layer']))
        self.norm = norm_of(options)
        self.head = nn.Linear(options['n_embd'], options['vocab_size'], bias=False)
        if options['tie_weights']:
            self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens)
        if hasattr(self, 'wpe'):
            x = x + self.wpe.weight[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


# ---------------------------------------------------------------------------------------------- the image classifiers


class ResidualBlock(nn.Module):
    def __init__(self, before, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or before != channels:
            self.downsample = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResidualNetwork(nn.Module):
    def __init__(self, options):
        super().__init__()
        width = options['width']
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage in range(4):
            channels = width << stage
            first = ResidualBlock(before, channels, 1 if stage == 0 else 2)
            setattr(self, f'layer{stage + 1}', nn.Sequential(first, ResidualBlock(channels, channels, 1)))
            before = channels
        self.fc = nn.Linear(before, options['num_classes'])

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(4):
            x = getattr(self, f'layer{stage + 1}')(x)
        return self.fc(x.mean((2, 3)))


class LeNet(nn.Module):
    def __init__(self, options):
        super().__init__()
        width = options['width']
        self.conv1 = nn.Conv2d(1, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.fc1 = nn.Linear(2 * width * 7 * 7, 128)
        self.fc2 = nn.Linear(128, options['num_classes'])

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


# ---------------------------------------------------------------------------------------------------- recording losses

GPT = {'n_layer': 2, 'n_head': 4, 'n_kv_head': 0, 'n_embd': 32, 'n_hidden': 128, 'block_size': 24, 'vocab_size': 61,
       'norm': 'layer', 'mlp': 'gelu_tanh', 'position': 'learned', 'bias': True, 'rotary_base': 10000.0,
       'tie_weights': False}
ADAMW = {'type': 'AdamW', 'lr': 3e-3, 'betas': [0.9, 0.95], 'eps': 1e-8, 'weight_decay': 0.1}
TOKENS = {'batch': 3, 'length': 20, 'classes': 61, 'ignore_every': 0}
RUNS = [
    {'name': 'gpt, learned positions, layer norm, gelu', 'model': {'type': 'Gpt', **GPT}, 'optimizer': ADAMW,
     'data': TOKENS},
    {'name': 'gpt, the same with tied weights', 'model': {'type': 'Gpt', **GPT, 'tie_weights': True},
     'optimizer': ADAMW, 'data': TOKENS},
    {'name': 'gpt, rotary, grouped queries, rms norm, swiglu, no biases, some targets ignored',
     'model': {'type': 'Gpt', **GPT, 'n_kv_head': 2, 'n_hidden': 64, 'norm': 'rms', 'mlp': 'swiglu',
               'position': 'rotary', 'bias': False},
     'optimizer': ADAMW, 'data': {**TOKENS, 'ignore_every': 7}},
    {'name': 'residual network with batch norm', 'model': {'type': 'ResNet', 'width': 4, 'num_classes': 10},
     'optimizer': {'type': 'SGD', 'lr': 0.02, 'momentum': 0.9, 'weight_decay': 5e-4},
     'data': {'batch': 16, 'side': 12, 'classes': 10}},
    {'name': 'convolutions with biases and max pooling', 'model': {'type': 'LeNet', 'width': 3, 'num_classes': 10},
     'optimizer': {'type': 'Adam', 'lr': 2e-3}, 'data': {'batch': 6, 'side': 28, 'classes': 10}},
]
MODELS = {'Gpt': Decoder, 'ResNet': ResidualNetwork, 'LeNet': LeNet}


def optimizer_of(options, parameters):
    options = dict(options)
    kind = getattr(torch.optim, options.pop('type'))
    if 'betas' in options:
        options['betas'] = tuple(options['betas'])
    return kind(parameters, foreach=False, **options)


def batch_of(data, number, dtype):
    if 'side' in data:
        inputs = torch.from_numpy(uniform(f'images/{number}', (data['batch'], 1, data['side'], data['side'])))
        return inputs.to(dtype), torch.from_numpy(integers(f'labels/{number}', (data['batch'],), data['classes']))
    tokens = torch.from_numpy(integers(f'tokens/{number}', (data['batch'], data['length'] + 1), data['classes']))
    targets = tokens[:, 1:].clone()
    if data['ignore_every']:
        targets.view(-1)[::data['ignore_every']] = -100
    return tokens[:, :-1], targets


def play(run, dtype):
    """The losses of STEPS training steps, then of one evaluation on the first batch; the parameters' list."""
    model = MODELS[run['model']['type']](run['model'])
    parameters = []
    for name, parameter in model.named_parameters():
        offset, scale = start_of(name, parameter.shape)
        parameters.append({'name': name, 'shape': list(parameter.shape), 'offset': offset, 'scale': scale})
        parameter.data = torch.from_numpy(uniform(name, tuple(parameter.shape), offset, scale))
    model.to(dtype)
    optimizer = optimizer_of(run['optimizer'], model.parameters())

    def loss_of(batch):
        logits = model(batch[0])
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[1].reshape(-1))

    losses = []
    for step in range(STEPS):
        loss = loss_of(batch_of(run['data'], step % BATCHES, dtype))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        evaluation = loss_of(batch_of(run['data'], 0, dtype)).item()
    return losses, evaluation, parameters


def record_losses():
    recorded = []
    for run in RUNS:
        losses, evaluation, parameters = play(run, torch.float32)
        exact, exact_evaluation, _ = play(run, torch.float64)
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses + [evaluation], exact + [exact_evaluation]))
        print(f'{run["name"]}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, evaluation {evaluation:.4f}; '
              f'f32 and f64 part by {apart:.1e}')
        if apart > TOLERANCE / 5:
            raise SystemExit('that is too much for a comparison; choose a smaller learning rate')
        recorded.append({**run, 'parameters': parameters, 'losses': digits(losses), 'evaluation': digits([evaluation])[0],
                         'losses_f64': digits(exact)})
    return {'steps': STEPS, 'batches': BATCHES, 'runs': recorded}


# ------------------------------------------------------------------------------------------------ recording optimizers

SHAPE = (40, 31)  # more than one block of 1024 elements
OPTIMIZER_STEPS = 10
WATCHED = [0, 1, 30, 31, 32, 500, 777, 1022, 1023, 1024, 1025, 1238, 1239]
TORCH_CASES = [
    {'type': 'SGD', 'lr': 0.1},
    {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9},
    {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9, 'dampening': 0.3, 'weight_decay': 0.01},
    {'type': 'SGD', 'lr': 0.05, 'momentum': 0.8, 'nesterov': True, 'weight_decay': 0.02},
    {'type': 'SGD', 'lr': 0.1, 'momentum': 0.5, 'maximize': True},
    {'type': 'Adam', 'lr': 1e-2},
    {'type': 'Adam', 'lr': 1e-2, 'betas': [0.8, 0.95], 'eps': 1e-6, 'weight_decay': 0.1},
    {'type': 'Adam', 'lr': 1e-2, 'betas': [0.9, 0.5], 'amsgrad': True, 'maximize': True},
    {'type': 'AdamW', 'lr': 1e-2},
    {'type': 'AdamW', 'lr': 3e-2, 'betas': [0.85, 0.97], 'eps': 1e-7, 'weight_decay': 0.3},
    {'type': 'AdamW', 'lr': 1e-2, 'betas': [0.9, 0.5], 'weight_decay': 0.1, 'amsgrad': True},
    {'type': 'Adagrad', 'lr': 5e-2},
    {'type': 'Adagrad', 'lr': 5e-2, 'lr_decay': 0.1, 'weight_decay': 0.02, 'initial_accumulator_value': 0.3, 'eps': 1e-6},
    {'type': 'RMSprop', 'lr': 1e-2},
    {'type': 'RMSprop', 'lr': 1e-2, 'alpha': 0.9, 'eps': 1e-5, 'weight_decay': 0.05, 'momentum': 0.6},
    {'type': 'RMSprop', 'lr': 3e-3, 'alpha': 0.8, 'eps': 1e-2, 'momentum': 0.5, 'centered': True},
]

def gradient(step, shape):
    """The gradient of step `step`, from 0. Its size changes from step to step and from row to row."""
    g = uniform(f'gradient/{step}', SHAPE, scale=1.0 + 0.5 * (step % 3))
    return (g * uniform(f'gradient/rows/{step}', (SHAPE[0], 1), offset=0.6, scale=0.5)).reshape(shape)


def play_torch(options):
    parameter = nn.Parameter(torch.from_numpy(uniform('parameter', SHAPE)))
    optimizer = optimizer_of(options, [parameter])
    for step in range(OPTIMIZER_STEPS):
        parameter.grad = torch.from_numpy(gradient(step, SHAPE))
        optimizer.step()
        yield parameter.detach().numpy().astype(np.float64)


def play_formula(options):
    options = dict(options)
    kind, shape = options.pop('type'), tuple(options.pop('shape', SHAPE))
    start = uniform('parameter', SHAPE).astype(np.float64).reshape(shape)
    gradients = (gradient(step, shape).astype(np.float64) for step in range(OPTIMIZER_STEPS))
    return optimizer_formulas.PLAYERS[kind](start, gradients, **options)


def record_optimizers():
    recorded = []
    for cases, player in ((TORCH_CASES, play_torch), (optimizer_formulas.CASES, play_formula)):
        for options in cases:
            start = uniform('parameter', SHAPE).astype(np.float64).reshape(-1)
            case = {'shape': list(options.get('shape', SHAPE)), 'optimizer': {k: v for k, v in options.items() if k != 'shape'},
                    'values': [], 'moved': []}
            for p in player(options):
                flat = p.reshape(-1)
                case['values'].append(digits(flat[WATCHED]))
                case['moved'].append(digits([np.sqrt(((flat - start)**2).sum())])[0])
            recorded.append(case)
            print(f'{options}: moved {case["moved"][-1]:.4f}')
    return {'watched': WATCHED, 'cases': recorded}


def write(path, data, rows):
    """JSON with one line a run, so that a change can be read."""
    text = '{' + ', '.join(f'{json.dumps(k)}: {json.dumps(v)}' for k, v in data.items() if k != rows) + ',\n'
    lines = ',\n'.join(json.dumps(row) for row in data[rows])
    path.write_text(f'{text}{json.dumps(rows)}: [\n{lines}\n]}}\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'data', help='folder of the two files')
    folder = parser.parse_args().out
    write(folder / 'losses.json', record_losses(), 'runs')
    write(folder / 'optimizers.json', record_optimizers(), 'cases')


if __name__ == '__main__':
    main()
