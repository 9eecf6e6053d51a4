"""The same experts in PyTorch's batched products, as lines for table.py:

  torch KIND D H EXPERTS TOKENS FORWARD STEP

TFLOP/s as experts_bench.cc gives them. Arguments: seconds.
"""

import sys
import time

import torch

KINDS = {"tf32": (torch.float32, True), "fp32": (torch.float32, False),
         "bf16": (torch.bfloat16, True)}


def measure(call):
    call()
    torch.cuda.synchronize()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.1:
        call()
        calls += 1
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def run(kind, d, h, experts, tokens):
    dtype, tf32 = KINDS[kind]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    options = {"dtype": dtype, "device": "cuda"}
    w1 = torch.nn.Parameter(0.03 * torch.randn(experts, d, h, **options))
    w2 = torch.nn.Parameter(0.03 * torch.randn(experts, h, d, **options))
    x = torch.randn(experts, tokens, d, requires_grad=True, **options)
    gate = torch.randn(experts, tokens, 1, requires_grad=True, **options)
    optimizer = torch.optim.Adam([w1, w2], lr=1e-6, fused=True)

    def forward():
        return torch.bmm(torch.relu(torch.bmm(x, w1)), w2)

    def infer():
        with torch.no_grad():
            forward()

    def step():
        (forward() * gate).backward(x.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        x.grad = gate.grad = None

    tera = 4 * experts * tokens * d * h / 1e12
    return tera / measure(infer), 3 * tera / measure(step)


def main():
    end = time.monotonic() + float(sys.argv[1])
    print("torch-version", torch.__version__, torch.cuda.get_device_name())
    for kind in KINDS:
        for d, h in ((512, 1024), (1024, 4096), (1024, 8192)):
            for experts in (64, 256):
                for tokens in (256, 1024, 64, 16):
                    where = f"torch {kind} {d} {h} {experts} {tokens}"
                    if time.monotonic() > end:
                        print(where, "time", flush=True)
                        continue
                    try:
                        forward, step = run(kind, d, h, experts, tokens)
                        print(where, f"{forward:.2f} {step:.2f}", flush=True)
                    except torch.cuda.OutOfMemoryError:
                        print(where, "memory", flush=True)
                    torch.cuda.empty_cache()


main()
