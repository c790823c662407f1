"""The GPU's kernels, without a GPU: in Triton's interpreter against plain torch, and compiled for each kind of card."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
CARDS = (75, 80, 89, 90)  # T4, A100, L4, H100


def run(arguments: list[str], **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_in_the_interpreter_they_compute_what_torch_computes() -> None:
    """In a process of its own: triton reads the variable once, as it is imported."""
    run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted_kernels.py"], TRITON_INTERPRET="1")


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llava_demo.engines.batched import kernels
H, I, F = "*fp16", "*i32", "*fp32"
def compiled(kernel, types, constants):
    names = kernel.arg_names
    left = dict(zip([name for name in names if name not in constants], types, strict=True))
    signature = {name: left.get(name, "constexpr") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    binary = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 4})
    assert binary.asm["cubin"]
def i(n): return ["i32"] * n
compiled(kernels.write_rotated, [H] * 6 + [H, H, I, I, *i(5)], {"PAGE": 16, "D": 128})
sizes = {"SPLITS": 8, "PAGE": 16, "D": 128, "BLOCK": 128}
compiled(kernels.attend_split, [H] * 3 + [I, I, F, F, *i(2), "fp32", "i32"], sizes)
compiled(kernels.join_splits, [F, F, H], {"SPLITS": 8, "D": 128})
compiled(kernels.add_and_norm, [H] * 5 + ["i32", "fp32"], {"HAS_DELTA": True, "BLOCK": 4096})
compiled(kernels.silu_times, [H] * 3 + i(2), {"BLOCK": 1024})
"""


@pytest.mark.parametrize("card", CARDS)
def test_the_kernels_compile_for_each_kind_of_card(card: int, tmp_path: Path) -> None:
    run(["-c", COMPILE, str(card)], TRITON_CACHE_DIR=str(tmp_path))
