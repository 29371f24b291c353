"""PyTorch's scaled_dot_product_attention on the shapes of attention_speed.cpp, by backend; needs PyTorch and a GPU."""
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = [(32, 1024, 12, 64, True), (8, 4096, 12, 64, True), (16, 1024, 25, 64, True), (16, 1024, 32, 128, True),
          (4, 4096, 32, 128, True), (8, 4096, 12, 64, False), (4, 4096, 32, 128, False), (8, 1024, 12, 64, True, torch.float32)]
BACKENDS = [("default", None), ("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]
RUNS, WARM_UPS, CALLS = 11, 3, 4


def median_ms(work):
    times = []
    for run in range(RUNS + WARM_UPS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(CALLS):
            work()
        end.record()
        end.synchronize()
        if run >= WARM_UPS:
            times.append(begin.elapsed_time(end) / CALLS)
    return sorted(times)[len(times) // 2]


def measure(batch, length, heads, dim, causal, dtype=torch.bfloat16):
    packed = torch.randn(batch, length, 3, heads, dim, device="cuda", dtype=dtype)
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in packed.unbind(2))
    dout = torch.randn(batch, length, heads, dim, device="cuda", dtype=dtype).transpose(1, 2)
    forward = median_ms(lambda: scaled_dot_product_attention(q, k, v, is_causal=causal))
    out = scaled_dot_product_attention(q, k, v, is_causal=causal)
    return forward, median_ms(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))


print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
for shape in SHAPES:
    batch, length, heads, dim, causal = shape[:5]
    dtype = "f32" if len(shape) == 6 else "bf16"
    work = 4 * batch * heads * length * (length + 1 if causal else 2 * length) / 2 * dim
    for name, backend in BACKENDS:
        try:
            if backend is None:
                forward, backward = measure(*shape)
            else:
                with sdpa_kernel(backend):
                    forward, backward = measure(*shape)
        except RuntimeError as error:
            print(f"{name:<8}", shape, "not run:", str(error)[:80])
            continue
        print(f"{name:<8} {dtype} {'causal' if causal else 'full':<6} B {batch:2} T {length:4} H {heads:2} D {dim:3}  "
              f"forward {forward:7.4f} ms {work / forward / 1e9:4.0f} TFLOP/s  "
              f"backward {backward:7.4f} ms {2.5 * work / backward / 1e9:4.0f} TFLOP/s  both {forward + backward:7.4f} ms",
              flush=True)
