"""A ZeroGPU Space in small: `SPACES_ZERO_GPU=true python -m zero_gpu_space PORT CHECKPOINT STEP_S` serves a checkpoint.

The `spaces` package is the real one and forks its workers. It must not see torch, since this machine's has no CUDA:
what is left out by that is the moving of weights to the GPU. Each step of the model takes STEP_S longer.
"""

import sys
import time

sys.modules["torch"] = None  # type: ignore[assignment]
import spaces  # noqa: E402, F401

del sys.modules["torch"]

from llava_demo.engines.load import load_engine  # noqa: E402
from llava_demo.engines.zero_gpu import ZeroGpuEngine  # noqa: E402
from llava_demo.serve import launch  # noqa: E402
from llava_demo.settings import Settings  # noqa: E402

if __name__ == "__main__":
    port, checkpoint, step_s = sys.argv[1:]
    settings = Settings(model=checkpoint, port=int(port))
    engine = load_engine(settings)
    assert isinstance(engine, ZeroGpuEngine)
    engine.llava.model.register_forward_pre_hook(lambda *_: time.sleep(float(step_s)))
    launch(settings, engine)
