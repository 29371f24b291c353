#!/usr/bin/python3
"""Saves small checkpoints with PyTorch, for torch_file_parity_test.cpp to read.

    tests/parity/record_torch_files.py [--out FOLDER]

Needs torch and numpy (Debian: python3-torch). Writes FOLDER/torch_<version>/*.pth, so that what several versions of
torch write can lie side by side; the default folder is tests/parity/data. All files of a version take about 30 KB.

Numbers come from the formula of counted_numbers.h, so the test knows every value without a second file; they are small
multiples of 1/8, exact in every float type, or small integers.
"""
import argparse
import collections
import warnings
from pathlib import Path

import numpy as np
import torch

warnings.simplefilter('ignore')
MASK = 0xFFFFFFFFFFFFFFFF


def word(name, i):
    x = 0xCBF29CE484222325
    for byte in name.encode():
        x = ((x ^ byte) * 0x100000001B3) & MASK
    x = (x + 0x9E3779B97F4A7C15 * (i + 1)) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def integers(name, shape, bound, dtype=torch.int64):
    count = int(np.prod(shape, dtype=np.int64))
    values = [(word(name, i) >> 32) % bound for i in range(count)]
    return torch.tensor(values, dtype=torch.int64).to(dtype).reshape(shape)


def eighths(name, shape, dtype=torch.float32):
    """Multiples of 1/8 from -4 on, below 4."""
    return ((integers(name, shape, 64) - 32).to(torch.float64) / 8).to(dtype)


def dtypes():
    saved = collections.OrderedDict()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        saved[str(dtype).split('.')[1]] = eighths(str(dtype).split('.')[1], (3, 5), dtype)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        saved[str(dtype).split('.')[1]] = integers(str(dtype).split('.')[1], (7,), 100, dtype)
    saved['bool'] = integers('bool', (9,), 2, torch.bool)
    saved['scalar'] = eighths('scalar', ())
    saved['count'] = integers('count', (), 1000)
    saved['empty'] = torch.empty(0, 3)
    saved['ones'] = eighths('ones', (1, 4, 1))
    return saved


def views():
    base = eighths('base', (6, 8))
    return {
        'base': base,
        'tied': base,
        'transposed': base.t(),
        'columns': base[:, 2:5],
        'every_other': base[::2, ::3],
        'row': base[4],
        'expanded': base[:, :1].expand(6, 4),
        'permuted': eighths('cube', (2, 3, 4)).permute(2, 0, 1),
        'same_values': base.clone(),
    }


def model():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(collections.OrderedDict(
        conv=torch.nn.Conv2d(2, 3, 3), norm=torch.nn.BatchNorm2d(3), fc=torch.nn.Linear(4, 2)))
    with torch.no_grad():
        for name, value in layers.state_dict().items():
            value.copy_(eighths(name, value.shape) if value.is_floating_point() else integers(name, value.shape, 1000))
    return layers


def checkpoint():
    layers = model()
    optimizer = torch.optim.Adam([{'params': list(layers.fc.parameters()), 'lr': 0.25},
                                  {'params': list(layers.norm.parameters())}], lr=0.5, betas=(0.5, 0.75))
    for name, parameter in layers.named_parameters():
        parameter.grad = eighths('grad.' + name, parameter.shape)
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    optimizer.step()
    layers.load_state_dict(before)
    return {'meta': {'epoch': 3, 'iter': 2**40, 'experiment_name': 'n\u00e4me'}, 'state_dict': layers.state_dict(),
            'optimizer': optimizer.state_dict(), 'param_schedulers': [{'last_step': -1, 'milestones': [70000, 300]}]}


def values():
    return {'none': None, 'yes': True, 'no': False, 'integers': [0, 255, 256, 65535, 65536, -1, -2**31, 2**31, 2**63 - 1,
            -2**63], 'floats': [0.5, -1e300, float('inf'), float('nan')], 'text': 'gr\u00fc\u00df \U0001F600',
            'bytes': b'\x00\x7f\x80\xff', 'tuples': ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), 'set': {5},
            'frozen': frozenset([6]), 'size': torch.Size([2, 3]), 'device': torch.device('cuda', 1),
            'dtype': torch.bfloat16, 'counter': collections.Counter({30: 1}), 7: 'seven', 2.5: None,
            'array': bytearray(b'ab')}


def parameters():
    plain = torch.nn.Parameter(eighths('plain', (2, 2)))
    frozen = torch.nn.Parameter(eighths('frozen', (3,)), requires_grad=False)
    marked = torch.nn.Parameter(eighths('marked', (2,)))
    marked.is_shared = True
    return {'model': {'plain': plain, 'frozen': frozen, 'marked': marked, 'leaf': eighths('leaf', (2,)).requires_grad_()},
            'best': 1.5}


def small():
    return {'weight': eighths('weight', (2, 3)), 'steps': [1, 2]}


def float8():
    return {'e4m3': integers('e4m3', (5,), 8).to(torch.float32).to(torch.float8_e4m3fn),
            'e5m2': integers('e5m2', (5,), 8).to(torch.float32).to(torch.float8_e5m2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'data')
    folder = parser.parse_args().out / ('torch_' + '.'.join(torch.__version__.split('.')[:2]))
    folder.mkdir(parents=True, exist_ok=True)

    def save(name, what, **options):
        torch.save(what, folder / (name + '.pth'), **options)

    save('dtypes', dtypes())
    save('views', views())
    save('checkpoint', checkpoint())
    save('values', values())
    save('parameters', parameters())
    for protocol in (3, 4, 5):
        save('protocol%d' % protocol, small(), pickle_protocol=protocol)
    save('values5', values(), pickle_protocol=5)
    if hasattr(torch, 'float8_e4m3fn'):
        save('float8', float8())
    save('short', {'short': integers('short', (4,), 100, torch.int16)})
    save('module', torch.nn.Linear(2, 1))
    save('numpy', {'state_dict': small(), 'best': np.float64(0.5)})
    save('legacy', small(), _use_new_zipfile_serialization=False)
    print(folder, sum(file.stat().st_size for file in folder.iterdir()), 'bytes')


main()
