"""The GPU's kernels, without a GPU: in Triton's interpreter against plain torch, and compiled for each kind of card."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
INTERPRETED = ("tests/interpreted_kernels.py", "tests/interpreted_nf4.py")
LIGHTLY = ("--noconftest", "-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:hypothesispytest")
# T4, A100, L4 and H100; blocks smaller than in use, since ptxas takes 10 s for 128 keys
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llava_demo.engines.batched import kernels
from llava_demo.model import nf4_kernel

H, B, I, F, U, N, X = "*fp16", "*bf16", "*i32", "*fp32", "*u8", "i32", "fp32"
ATTEND = {"SPLITS": 8, "PAGE": 16, "D": 64, "BLOCK": 16}
MULTIPLY = {"ROWS": 16, "CHANNELS": 32, "BYTES": 64, "PARTS": 1}
COMPILED = [
    (75, kernels.write_rotated, [*[H] * 8, I, I, *[N] * 5], {"PAGE": 16, "D": 128}),
    (75, kernels.attend_split, [H, H, H, I, I, F, F, N, N, X, N], ATTEND),
    (75, kernels.join_splits, [F, F, H], {"SPLITS": 8, "D": 128}),
    (75, kernels.add_and_norm, [*[H] * 5, N, X], {"HAS_DELTA": True, "BLOCK": 4096}),
    (75, kernels.silu_times, [H, H, H, N, N], {"BLOCK": 1024}),
    (75, nf4_kernel.multiply, [H, U, F, H, N, N, N], MULTIPLY),
    (80, nf4_kernel.multiply, [B, U, F, F, N, N, N], MULTIPLY | {"PARTS": 2}),
]
for card in (75, 80, 89, 90):
    for oldest, kernel, types, constants in COMPILED:
        if card < oldest:
            continue
        names, left = kernel.arg_names, iter(types)
        signature = {name: "constexpr" if name in constants else next(left) for name in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        binary = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 4})
        assert binary.asm["cubin"]
        print(card, kernel.__name__)
"""


def run(arguments: list[str], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_in_the_interpreter_they_compute_what_torch_computes() -> None:
    """In a process of its own: triton reads the variable once, as it is imported."""
    run(["-m", "pytest", "-q", *LIGHTLY, *INTERPRETED], TRITON_INTERPRET="1")


def test_they_compile_for_each_kind_of_card(tmp_path: Path) -> None:
    compiled = run(["-c", COMPILE], TRITON_CACHE_DIR=str(tmp_path)).split("\n")
    assert len([line for line in compiled if line]) == 6 + 3 * 7
