"""Optimizers that PyTorch has not, from their papers' formulas in f64, for record_losses.py.

Each player takes the parameter's start and the gradients, with the options of the peer that has the optimizer, and yields the
parameter after every step. What a peer adds to its paper (ColossalAI's limits in Lars, apex's norm in FusedLAMB) is named there.
"""
import numpy as np

CASES = [
    {'type': 'Lamb', 'lr': 1e-2},
    {'type': 'Lamb', 'lr': 2e-2, 'betas': [0.8, 0.97], 'eps': 1e-5, 'weight_decay': 0.1},
    {'type': 'Lamb', 'lr': 1e-2, 'weight_decay': 0.05, 'bias_correction': True},
    {'type': 'Lamb', 'lr': 1e-2, 'weight_decay': 0.05, 'adam': True},
    {'type': 'Adafactor'},
    {'type': 'Adafactor', 'warmup_init': True, 'weight_decay': 0.1},
    {'type': 'Adafactor', 'lr': 3e-2, 'relative_step': False, 'scale_parameter': False, 'beta1': 0.9},
    {'type': 'Adafactor', 'lr': 0.5, 'relative_step': False, 'clip_threshold': 0.5, 'decay_rate': -0.6, 'weight_decay': 0.01},
    {'type': 'Adafactor', 'lr': 3e-2, 'relative_step': False, 'beta1': 0.8, 'shape': [1240]},
    {'type': 'FusedSGD', 'lr': 5e-2, 'momentum': 0.9, 'dampening': 0.2, 'weight_decay': 0.05, 'wd_after_momentum': True},
    {'type': 'FusedSGD', 'lr': 5e-2, 'momentum': 0.8, 'nesterov': True, 'weight_decay': 0.02},
    {'type': 'HybridAdam', 'lr': 1e-2, 'weight_decay': 0.1},
    {'type': 'FusedAdam', 'lr': 1e-2, 'betas': [0.8, 0.95], 'weight_decay': 0.1, 'adamw_mode': False},
    {'type': 'CPUAdam', 'lr': 1e-3, 'weight_decay': 0.2, 'bias_correction': False},
    {'type': 'FusedLAMB', 'lr': 1e-2},
    {'type': 'FusedLAMB', 'lr': 1e-2, 'betas': [0.8, 0.97], 'weight_decay': 0, 'max_grad_norm': 0, 'use_nvlamb': True, 'grad_averaging': False},
    {'type': 'FusedLAMB', 'lr': 1e-2, 'weight_decay': 0.05, 'bias_correction': False, 'adam_w_mode': False, 'max_grad_norm': 5},
    {'type': 'FusedLAMB', 'lr': 1e-3, 'weight_decay': 0},
    {'type': 'Lars', 'lr': 0.5},
    {'type': 'Lars', 'lr': 1.0, 'momentum': 0.9, 'eeta': 0.02, 'weight_decay': 0.1, 'epsilon': 1e-3},
    {'type': 'CAME', 'lr': 1e-2},
    {'type': 'CAME', 'lr': 2e-2, 'eps': [1e-20, 1e-8], 'clip_threshold': 0.5, 'betas': [0.8, 0.95, 0.99], 'weight_decay': 0.1},
    {'type': 'CAME', 'lr': 1e-2, 'weight_decay': 0.05, 'shape': [1240]},
    {'type': 'Lion', 'lr': 1e-3},
    {'type': 'Lion', 'lr': 3e-3, 'betas': [0.95, 0.98], 'weight_decay': 0.5},
    {'type': 'AdamW8bit', 'lr': 1e-2, 'min_8bit_size': 0},
    {'type': 'AdamW8bit', 'lr': 1e-2, 'betas': [0.8, 0.95], 'eps': 1e-6, 'weight_decay': 0.3, 'min_8bit_size': 1240},
    {'type': 'AdamW8bit', 'lr': 1e-2, 'weight_decay': 0.1},
]


def play_lamb(p, gradients, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, adam=False, bias_correction=False):
    """You et al. 2020, algorithm 2, with phi the identity and, unless asked for, no bias correction."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        u = m / (np.sqrt(v) + eps) + weight_decay * p
        size = lr * np.sqrt(1 - betas[1]**t) / (1 - betas[0]**t) if bias_correction else lr
        lengths = np.sqrt((p * p).sum()), np.sqrt((u * u).sum())
        p = p - size * (1.0 if adam or 0 in lengths else lengths[0] / lengths[1]) * u
        yield p


def play_adafactor(p, gradients, lr=None, eps=(1e-30, 1e-3), clip_threshold=1.0, decay_rate=-0.8, beta1=None, weight_decay=0.0,
                   scale_parameter=True, relative_step=True, warmup_init=False):
    """Shazeer & Stern 2018, algorithms 4 and 5, with the options of fairseq's."""
    def rms(x):
        return np.sqrt((x * x).mean())

    m = np.zeros_like(p)
    rows, columns, v = np.zeros(p.shape[:1]), np.zeros(p.shape[-1:]), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        rho = min(1e-6 * t if warmup_init else 1e-2, 1 / np.sqrt(t)) if relative_step else lr
        alpha = rho * max(eps[1], rms(p)) if scale_parameter else rho
        decay = 1 - t**decay_rate
        square = g * g + eps[0]
        if p.ndim > 1:
            rows = decay * rows + (1 - decay) * square.mean(1)
            columns = decay * columns + (1 - decay) * square.mean(0)
            v = np.outer(rows, columns) / rows.mean()
        else:
            v = decay * v + (1 - decay) * square
        u = g / np.sqrt(v)
        u = alpha * u / max(1.0, rms(u) / clip_threshold)
        if beta1 is not None:
            m = beta1 * m + (1 - beta1) * u
            u = m
        p = p - alpha * weight_decay * p - u
        yield p


def play_fused_sgd(p, gradients, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, wd_after_momentum=False):
    """apex's multi-tensor SGD: decay before or after the momentum."""
    buffer = None
    for g in gradients:
        if not wd_after_momentum:
            g = g + weight_decay * p
        if momentum:
            buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
            g = g + momentum * buffer if nesterov else buffer
        if wd_after_momentum:
            g = g + weight_decay * p
        p = p - lr * g
        yield p


def play_adam(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, adamw_mode=True, bias_correction=True):
    """Kingma & Ba 2015, algorithm 1; with adamw_mode Loshchilov & Hutter 2019, algorithm 2."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        if adamw_mode:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        first, second = (1 - betas[0]**t, 1 - betas[1]**t) if bias_correction else (1, 1)
        p = p - lr * (m / first) / (np.sqrt(v / second) + eps)
        yield p


def play_fused_lamb(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, bias_correction=True, adam_w_mode=True,
                    grad_averaging=True, max_grad_norm=1.0, use_nvlamb=False):
    """You et al. 2020, algorithm 2, with apex's limit on the norm of all gradients and its choice of who gets a trust ratio."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        norm = np.sqrt((g * g).sum())
        if max_grad_norm and norm > max_grad_norm:
            g = g * max_grad_norm / norm
        if not adam_w_mode:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0] if grad_averaging else 1) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        first, second = (1 - betas[0]**t, 1 - betas[1]**t) if bias_correction else (1, 1)
        u = (m / first) / (np.sqrt(v / second) + eps)
        if adam_w_mode:
            u = u + weight_decay * p
        lengths = np.sqrt((p * p).sum()), np.sqrt((u * u).sum())
        has_ratio = (use_nvlamb or weight_decay) and 0 not in lengths
        p = p - lr * (lengths[0] / lengths[1] if has_ratio else 1) * u
        yield p


def play_lars(p, gradients, lr=1e-3, momentum=0.0, eeta=1e-3, weight_decay=0.0, epsilon=0.0):
    """You et al. 2017, algorithm 1, with ColossalAI's limits on ratio and gradient."""
    buffer = None
    for g in gradients:
        length, slope = np.sqrt((p * p).sum()), np.sqrt((g * g).sum())
        ratio = min(eeta * length / (slope + weight_decay * length + epsilon), 50) if length > 0 and slope > 0 else 1
        g = np.clip(g + weight_decay * p, -10, 10)
        buffer = g if buffer is None or not momentum else momentum * buffer + g
        p = p - lr * ratio * buffer
        yield p


def play_came(p, gradients, lr, eps=(1e-30, 1e-16), clip_threshold=1.0, betas=(0.9, 0.999, 0.9999), weight_decay=0.0):
    """Luo et al. 2023, algorithm 2."""
    def inverse_root(rows, columns):
        return 1 / np.sqrt(np.outer(rows, columns) / rows.mean())

    m, v = np.zeros_like(p), np.zeros_like(p)
    rows, columns, rest_rows, rest_columns = (np.zeros(p.shape[axis]) for axis in (0, -1, 0, -1))
    for g in gradients:
        square = g * g + eps[0]
        if p.ndim > 1:
            rows = betas[1] * rows + (1 - betas[1]) * square.mean(1)
            columns = betas[1] * columns + (1 - betas[1]) * square.mean(0)
            u = g * inverse_root(rows, columns)
        else:
            v = betas[1] * v + (1 - betas[1]) * square
            u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u * u).mean()) / clip_threshold)
        m = betas[0] * m + (1 - betas[0]) * u
        step = m
        if p.ndim > 1:
            rest = (u - m)**2 + eps[1]
            rest_rows = betas[2] * rest_rows + (1 - betas[2]) * rest.mean(1)
            rest_columns = betas[2] * rest_columns + (1 - betas[2]) * rest.mean(0)
            step = m * inverse_root(rest_rows, rest_columns)
        p = p - lr * weight_decay * p - lr * step
        yield p


def play_lion(p, gradients, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    """Chen et al. 2023, algorithm 2."""
    m = np.zeros_like(p)
    for g in gradients:
        p = p - lr * (np.sign(betas[0] * m + (1 - betas[0]) * g) + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
        yield p


def dynamic_code(is_signed):
    """Dettmers et al. 2022, section 2.2: 0, 1 and seven decades of middles of equal intervals."""
    numbers = {0.0, 1.0}
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2**(decade if is_signed else decade + 1) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0**(decade - 6)
        numbers.update(middles)
        numbers.update(-middles if is_signed else ())
    return np.array(sorted(numbers))


def in_8_bits(x, code, block=1024):
    """What is left of x: the nearest numbers of the code times the largest magnitude of each block."""
    flat, parts = x.reshape(-1), []
    for begin in range(0, flat.size, block):
        part = flat[begin:begin + block]
        scale = np.abs(part).max() or 1.0
        parts.append(code[np.abs(part[:, None] / scale - code[None, :]).argmin(1)] * scale)
    return np.concatenate(parts).reshape(x.shape)


def play_adamw_8bit(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, min_8bit_size=4096):
    """AdamW whose moments are kept in 8 bits between steps."""
    signed, unsigned = dynamic_code(True), dynamic_code(False)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p * (1 - lr * weight_decay) - lr * (m / (1 - betas[0]**t)) / (np.sqrt(v / (1 - betas[1]**t)) + eps)
        if p.size >= min_8bit_size:
            m, v = in_8_bits(m, signed), in_8_bits(v, unsigned)
        yield p


PLAYERS = {'Lamb': play_lamb, 'Adafactor': play_adafactor, 'FusedSGD': play_fused_sgd, 'HybridAdam': play_adam, 'FusedAdam': play_adam,
           'CPUAdam': play_adam, 'FusedLAMB': play_fused_lamb, 'Lars': play_lars, 'CAME': play_came, 'Lion': play_lion,
           'AdamW8bit': play_adamw_8bit}
