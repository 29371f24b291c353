#!/usr/bin/env python3
"""Records what mmengine's and ColossalAI's parameter schedulers do, for scheduler_parity_test.cpp to replay.

    tests/parity/record_schedulers.py [--venv DIR] [--out FILE]

Makes a virtual environment (default: castor-peers in the temporary directory; kept, so that a second run is quick),
installs the peers there from PyPI, runs every case below through the peers' own classes and writes one JSON file.
Nothing of the peers is needed to run the test, only to record again. An interpreter that already has torch (Debian's
python3-torch) is preferred; otherwise torch is installed too, which is a large download.

A case is: groups of hyper-parameters, schedulers as a config names them, and a run of epochs and iterations. After
construction and after every iteration and epoch the values are recorded; "every" thins long runs out.
"""
import argparse
import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path

PEERS = ['mmengine-lite==0.10.7', 'colossalai==0.5.0']
# ColossalAI 0.5.0 asks for torch <= 2.5.1; later ones change the first value of a cosine that follows a warm-up.
TORCH = 'torch<2.6'
USABLE = 'import torch, venv, ensurepip; assert tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)'


def has_torch(python):
    return subprocess.run([python, '-c', USABLE], capture_output=True).returncode == 0


def prepare(venv_dir):
    """Returns the interpreter of a virtual environment that can import the peers."""
    python = venv_dir / 'bin' / 'python'

    def install(*what):
        subprocess.run([str(python), '-m', 'pip', 'install', '--quiet', *what], check=True)

    if not python.exists():
        base = next((p for p in (sys.executable, '/usr/bin/python3') if has_torch(p)), None)
        make = [base or sys.executable, '-m', 'venv', str(venv_dir)]
        subprocess.run(make + (['--system-site-packages'] if base else []), check=True)
    if not has_torch(str(python)):
        try:
            install(TORCH, '--index-url', 'https://download.pytorch.org/whl/cpu')
        except subprocess.CalledProcessError:
            install(TORCH)
    install(PEERS[0], 'packaging')
    install('--no-deps', PEERS[1])  # only its lr_scheduler folder is imported, which needs nothing but torch
    return python


# ---------------------------------------------------------------------------------------------------------- the cases

SGD = {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 5e-4}
SGD_SLOW = {'lr': 0.0123, 'momentum': 0.85, 'weight_decay': 0.0}
ADAM = {'lr': 3e-4, 'beta1': 0.9, 'beta2': 0.95, 'weight_decay': 0.1}
ADAM_SLOW = {'lr': 7e-5, 'beta1': 0.87, 'beta2': 0.999, 'weight_decay': 0.05}

# Options of each shape over 20 steps; windows are added where a case wants them.
SHAPES = {
    'Constant': [{'factor': 0.25}, {}],
    'Linear': [{'start_factor': 0.001}, {'start_factor': 1.0, 'end_factor': 0.0}, {}],
    'CosineAnnealing': [{}, {'T_max': 7, 'eta_min': 1e-5}, {'eta_min_ratio': 0.05}, {'T_max': 1}],
    'CosineRestart': [{'periods': [4, 5, 8], 'restart_weights': [1, 0.5, 0.3], 'eta_min': 1e-6},
                      {'periods': [20], 'eta_min_ratio': 0.1}],
    'Exponential': [{'gamma': 0.87}],
    'Step': [{'step_size': 3}, {'step_size': 4, 'gamma': 0.7}],
    'MultiStep': [{'milestones': [4, 9, 9, 15]}, {'milestones': [12, 0, 5], 'gamma': 0.6}],
    'Poly': [{}, {'power': 0.9, 'eta_min': 1e-4}, {'power': 2.5}],
}
CYCLES = [{'eta_max': 0.4}, {'eta_max': [0.4, 0.02], 'anneal_strategy': 'linear', 'pct_start': 0.45},
          {'eta_max': 0.4, 'three_phase': True, 'div_factor': 10, 'final_div_factor': 100},
          {'eta_max': 0.4, 'pct_start': 0.0}, {'eta_max': 0.4, 'total_steps': 40, 'anneal_strategy': 'linear'}]


def case(name, groups, schedulers, watch, epochs=0, epoch_length=0, every=1, metrics=None, context=None):
    return {'name': name, 'groups': groups, 'schedulers': schedulers, 'watch': watch, 'epochs': epochs,
            'epoch_length': epoch_length, 'every': every, 'metrics': metrics or [], 'context': context or {}}


def wave(count, slope, period):
    """A validation series that improves, stalls and jumps, without a random number generator."""
    return [round(2.0 - slope * i + 0.3 * ((i * 7) % period) / period, 3) for i in range(count)]


def mmengine_cases():
    for stem, variants in SHAPES.items():
        for i, options in enumerate(variants):
            yield case(f'{stem} {i} by epoch', [SGD], [{'type': stem + 'LR', 'end': 20, **options}], ['lr'], epochs=23)
            yield case(f'{stem} {i} by iteration in a window, two groups', [ADAM, ADAM_SLOW],
                       [{'type': stem + 'LR', 'by_epoch': False, 'begin': 3, 'end': 17, **options}], ['lr'],
                       epochs=1, epoch_length=21)
            yield case(f'{stem} {i} momentum', [SGD, SGD_SLOW], [{'type': stem + 'Momentum', 'end': 20, **options}],
                       ['momentum'], epochs=21)
            yield case(f'{stem} {i} beta1', [ADAM], [{'type': stem + 'Momentum', 'end': 16, 'begin': 1, **options}],
                       ['beta1', 'beta2'], epochs=18)
            yield case(f'{stem} {i} weight decay', [ADAM, ADAM_SLOW],
                       [{'type': stem + 'ParamScheduler', 'param_name': 'weight_decay', 'end': 20, **options}],
                       ['weight_decay'], epochs=20)
            yield case(f'{stem} {i} converted', [SGD],
                       [{'type': stem + 'LR', 'convert_to_iter_based': True, 'begin': 1, 'end': 9, **options}], ['lr'],
                       epochs=10, epoch_length=5)
        yield case(f'{stem} default end', [SGD], [{'type': stem + 'LR', **variants[0]}], ['lr'], epochs=12,
                   context={'max_epochs': 12, 'max_iters': 1000})
        resumed = dict(SGD, lr=0.04, initial_lr=0.1)
        yield case(f'{stem} last_step', [resumed], [{'type': stem + 'LR', 'last_step': 3, 'end': 11, **variants[0]}],
                   ['lr'], epochs=6)
        yield case(f'{stem} fractions of an epoch', [SGD],
                   [{'type': stem + 'LR', 'convert_to_iter_based': True, 'begin': 0.5, 'end': 2.35, **variants[0]}],
                   ['lr'], epochs=3, epoch_length=9)
    for i, options in enumerate(CYCLES):
        yield case(f'OneCycle {i}', [SGD, SGD_SLOW], [{'type': 'OneCycleLR', 'end': 30, **options}],
                   ['lr', 'initial_lr', 'max_lr', 'min_lr'] if i == 1 else ['lr'], epochs=30)
        yield case(f'OneCycle {i} generic by iteration', [ADAM, ADAM_SLOW],
                   [{'type': 'OneCycleParamScheduler', 'param_name': 'lr', 'by_epoch': False, 'begin': 2, 'end': 24,
                     **options}], ['lr'], epochs=1, epoch_length=26)
        yield case(f'OneCycle {i} converted', [SGD, SGD_SLOW],
                   [{'type': 'OneCycleLR', 'convert_to_iter_based': True, 'end': 8, **options}], ['lr'], epochs=8,
                   epoch_length=4)
    yield case('warm-up by iteration, cosine by epoch', [SGD, SGD_SLOW],
               [{'type': 'LinearLR', 'by_epoch': False, 'start_factor': 0.001, 'end': 12},
                {'type': 'CosineAnnealingLR', 'by_epoch': True, 'begin': 2, 'end': 9, 'eta_min': 1e-5}], ['lr'],
               epochs=9, epoch_length=6)
    yield case('three windows one after another', [ADAM],
               [{'type': 'LinearLR', 'by_epoch': False, 'start_factor': 0.1, 'end': 10},
                {'type': 'ConstantLR', 'by_epoch': False, 'factor': 0.5, 'begin': 10, 'end': 18},
                {'type': 'PolyLR', 'by_epoch': False, 'begin': 18, 'end': 40, 'power': 0.9}], ['lr'],
               epochs=1, epoch_length=42)
    yield case('overlapping windows on one value', [SGD],
               [{'type': 'ExponentialLR', 'gamma': 0.95, 'end': 30}, {'type': 'StepLR', 'step_size': 5, 'begin': 4},
                {'type': 'CosineAnnealingLR', 'begin': 12, 'end': 25}], ['lr'], epochs=30)
    yield case('rate, momentum and decay together', [SGD, SGD_SLOW],
               [{'type': 'CosineAnnealingLR', 'end': 15}, {'type': 'LinearMomentum', 'start_factor': 0.5, 'end': 15},
                {'type': 'MultiStepParamScheduler', 'param_name': 'weight_decay', 'milestones': [5, 10]}],
               ['lr', 'momentum', 'weight_decay'], epochs=15)
    yield case('two momentum schedulers on beta1', [ADAM],
               [{'type': 'LinearMomentum', 'start_factor': 0.8, 'end': 8},
                {'type': 'CosineAnnealingMomentum', 'begin': 8, 'end': 20, 'eta_min_ratio': 0.5}], ['beta1'], epochs=20)
    yield case('every converted twin of a recipe', [ADAM, ADAM_SLOW],
               [{'type': 'LinearLR', 'convert_to_iter_based': True, 'end': 2, 'start_factor': 1e-4},
                {'type': 'CosineAnnealingLR', 'convert_to_iter_based': True, 'begin': 2, 'end': 10, 'T_max': 8},
                {'type': 'CosineAnnealingParamScheduler', 'param_name': 'weight_decay', 'convert_to_iter_based': True,
                 'eta_min': 0.4}], ['lr', 'weight_decay'], epochs=10, epoch_length=7, every=3,
               context={'max_epochs': 10})
    for name, options in {'CosineAnnealing': {'end': 20000}, 'Poly': {'end': 20000, 'power': 0.9},
                          'Linear': {'end': 20000, 'start_factor': 1e-5}, 'CosineRestart': {
                              'periods': [3000, 7000, 9000], 'restart_weights': [1, 0.7, 0.2], 'eta_min': 1e-7},
                          'Exponential': {'gamma': 0.9997}, 'OneCycle': {'eta_max': 1.3, 'end': 20000},
                          'Step': {'step_size': 1111, 'gamma': 0.93}}.items():
        yield case(f'long {name}', [SGD], [{'type': name + 'LR', 'by_epoch': False, **options}], ['lr'], epochs=1,
                   epoch_length=20000, every=499)
    yield case('long cosine past its turn', [ADAM], [{'type': 'CosineAnnealingLR', 'by_epoch': False, 'T_max': 4000}],
               ['lr'], epochs=1, epoch_length=13000, every=499)
    yield from plateau_cases()


def plateau_cases():
    losses = wave(40, 0.02, 11)
    scores = [round(1.5 - x / 2, 3) for x in losses]
    for i, options in enumerate([
            {'monitor': 'loss', 'patience': 2},
            {'monitor': 'loss', 'patience': 1, 'factor': 0.5, 'cooldown': 3, 'min_value': 1e-3},
            {'monitor': 'acc', 'rule': 'greater', 'patience': 2, 'threshold': 0.05},
            {'monitor': 'acc', 'rule': 'greater', 'patience': 0, 'threshold': 0.02, 'threshold_rule': 'abs',
             'factor': 0.7, 'begin': 4, 'end': 30},
            {'monitor': 'loss', 'threshold_rule': 'abs', 'threshold': 0.03, 'patience': 0, 'factor': 0.9,
             'min_value': [0.02, 0.001], 'eps': 1e-3}]):
        metrics = [{'loss': a, 'acc': b} for a, b in zip(losses, scores)]
        metrics[7] = None  # an epoch without a validation
        for type_name, watch, groups, more in [('ReduceOnPlateauLR', 'lr', [SGD, SGD_SLOW], {}),
                                               ('ReduceOnPlateauMomentum', 'beta1', [ADAM, ADAM_SLOW], {}),
                                               ('ReduceOnPlateauParamScheduler', 'weight_decay', [ADAM, ADAM_SLOW],
                                                {'param_name': 'weight_decay'})]:
            yield case(f'plateau {i} {type_name}', groups, [{'type': type_name, **options, **more}], [watch],
                       epochs=40, metrics=metrics)
    yield case('plateau after a warm-up by iteration', [SGD],
               [{'type': 'LinearLR', 'by_epoch': False, 'start_factor': 0.1, 'end': 6},
                {'type': 'ReduceOnPlateauLR', 'patience': 1, 'factor': 0.3, 'begin': 2}], ['lr'], epochs=12,
               epoch_length=3, metrics=[{'loss': 1.0 if i < 3 else 1.1} for i in range(12)])


def colossalai_cases():
    shapes = {
        'colossalai.CosineAnnealingLR': [{}, {'eta_min': 1e-3}],
        'CosineAnnealingWarmupLR': [{'warmup_steps': 6}, {'warmup_steps': 1, 'eta_min': 1e-3}, {}],
        'FlatAnnealingLR': [{}, {'pct_start': 0.3}, {'pct_start': 0.0}],
        'FlatAnnealingWarmupLR': [{'warmup_steps': 5}, {'warmup_steps': 4, 'pct_start': 0.5, 'eta_min': 1e-3}],
        'LinearWarmupLR': [{}, {'warmup_steps': 7}],
        'colossalai.MultiStepLR': [{'milestones': [5, 12, 12], 'gamma': 0.3}],
        'MultiStepWarmupLR': [{'milestones': [3, 5, 12, 20], 'warmup_steps': 5},
                              {'milestones': [9], 'warmup_steps': 2, 'gamma': 0.5}],
        'PolynomialLR': [{}, {'end_lr': 1e-3, 'power': 2.0}],
        'PolynomialWarmupLR': [{'warmup_steps': 6}, {'warmup_steps': 3, 'power': 0.9, 'end_lr': 0.0}],
        'colossalai.OneCycleLR': [{}, {'pct_start': 0.45, 'anneal_strategy': 'linear', 'base_momentum': 0.7,
                                       'max_momentum': 0.99, 'div_factor': 10, 'final_div_factor': 50},
                                  {'cycle_momentum': False}],
    }
    for type_name, variants in shapes.items():
        for i, options in enumerate(variants):
            for groups, momentum in (([SGD, SGD_SLOW], 'momentum'), ([ADAM], 'beta1')):
                watch = ['lr', momentum] if 'OneCycle' in type_name else ['lr']
                yield case(f'{type_name} {i} {momentum}', groups, [{'type': type_name, 'total_steps': 24, **options}],
                           watch, epochs=1, epoch_length=24)
    yield case('long CosineAnnealingWarmupLR', [ADAM], [{'type': 'CosineAnnealingWarmupLR', 'total_steps': 20000,
                                                         'warmup_steps': 700, 'eta_min': 1e-6}], ['lr'],
               epochs=1, epoch_length=20000, every=499)


# ------------------------------------------------------------------------------------------------------- running them

def make_optimizer(groups):
    import torch
    rows = []
    for group in groups:
        row = {'params': [torch.nn.Parameter(torch.zeros(2))], **group}
        if 'beta1' in row:
            row['betas'] = (row.pop('beta1'), row.pop('beta2'))
        rows.append(row)
    if 'momentum' in groups[0]:
        return torch.optim.SGD(rows, lr=1.0, momentum=0.5)
    return torch.optim.AdamW(rows, lr=1.0)


def value_of(group, name):
    if name in ('beta1', 'beta2'):
        return group['betas'][0 if name == 'beta1' else 1]
    return group[name]


def build_mmengine(config, optimizer, run):
    from mmengine.registry import PARAM_SCHEDULERS
    config = dict(config)
    context = run['context']
    end = context.get('max_epochs' if config.get('by_epoch', True) else 'max_iters')
    if end is not None:
        config.setdefault('end', end)
    return PARAM_SCHEDULERS.build(config, default_args={'optimizer': optimizer, 'epoch_length': run['epoch_length']})


@functools.cache
def import_colossalai_schedulers():
    """Imports colossalai.nn.lr_scheduler alone: its parents' __init__ would import the whole framework."""
    root = Path(importlib.util.find_spec('colossalai').origin).parent
    for name, folder in (('colossalai', root), ('colossalai.nn', root / 'nn')):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    logging = types.ModuleType('colossalai.logging')
    logging.get_dist_logger = lambda *args: None
    sys.modules['colossalai.logging'] = logging
    return importlib.import_module('colossalai.nn.lr_scheduler')


def build_colossalai(config, optimizer, run):
    config = dict(config)
    name = config.pop('type').removeprefix('colossalai.')
    scheduler = getattr(import_colossalai_schedulers(), name)(optimizer, **config)
    scheduler.by_epoch = False
    return scheduler


def play(run, build):
    optimizer = make_optimizer(run['groups'])
    schedulers = [build(config, optimizer, run) for config in run['schedulers']]
    values = []

    def record(index):
        if index % run['every'] == 0:
            values.append([[value_of(group, name) for group in optimizer.param_groups] for name in run['watch']])

    def step(by_epoch):
        for scheduler in schedulers:
            if scheduler.by_epoch == by_epoch:
                scheduler.step()

    record(0)
    index = 1
    for epoch in range(run['epochs']):
        for _ in range(run['epoch_length']):
            optimizer.step()
            step(by_epoch=False)
            record(index)
            index += 1
        step(by_epoch=True)
        metrics = run['metrics'][epoch] if run['metrics'] else None
        for scheduler in schedulers:
            if metrics is not None and getattr(scheduler, 'need_val_args', False):
                scheduler.step(metrics)
        record(index)
        index += 1
    run['values'] = values
    run['final'] = [{key: state[key] for key in ('last_step', '_global_step', 'base_values', '_last_value', 'best',
                                                 'num_bad_epochs', 'cooldown_counter') if key in state}
                    for state in (scheduler.state_dict() for scheduler in schedulers)]
    return run


def record(out):
    import mmengine.optim  # noqa: F401  registers the schedulers
    import torch
    warnings.simplefilter('ignore')
    data = {'recorded_with': PEERS + ['torch ' + torch.__version__],
            'cases': [play(run, build_mmengine) for run in mmengine_cases()] +
                     [play(run, build_colossalai) for run in colossalai_cases()]}
    for run in data['cases']:
        for key in ('metrics', 'context'):
            if not run[key]:
                del run[key]
    names = [run['name'] for run in data['cases']]
    assert len(names) == len(set(names)), 'two cases have one name'
    lines = ',\n'.join(json.dumps(run, separators=(',', ':')) for run in data['cases'])
    text = '{"recorded_with":%s,"cases":[\n%s\n]}\n' % (json.dumps(data['recorded_with']), lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(f'{out}: {len(names)} cases, {len(text)} bytes')


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--venv', type=Path, default=Path(tempfile.gettempdir()) / 'castor-peers')
    parser.add_argument('--out', type=Path, default=here / 'data' / 'schedulers.json')
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return record(options.out)
    python = prepare(options.venv.absolute())
    os.execv(python, [str(python), str(Path(__file__).resolve()), '--inside', '--out', str(options.out.absolute())])


if __name__ == '__main__':
    main()
