"""What the fork server imports, so that each rank starts with SGLang in memory.

Nothing here may initialise a device or leave a thread: ranks are forked from this process.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata

from pytest_pprank.sglang.compat.accelerator import use_accelerator
from pytest_pprank.sglang.platform import NAMES, select_platform
from pytest_pprank.sglang.static.release import NO_NCCL
from pytest_pprank.sglang.static.torchvision_shim import ensure_torchvision

# A Scheduler's start and first forward import these modules anyway; here the fork server does it
# once (sys.modules before and after, 0.5.21: 667 modules, 2.2 s per rank; with these, 57).
_LAZY = (
    "sglang.srt.models.registry",
    "sglang.srt.managers.tp_worker",
    "sglang.srt.arg_groups.pipeline",
    "sglang.srt.layers.attention.torch_native_backend",
    "multiprocessing.synchronize",
    "numpy.ctypeslib",
    "pytest_pprank.sglang.stage.profiler",
    "pytest_pprank.sglang.stage.scheduler",
    "pytest_pprank.sglang.batches.build",
    "pytest_pprank.sglang.driver.disagg",
    "sglang.srt.disaggregation.mooncake.conn",
)
# The registry imports all models and logs which ones lack a CUDA-only dependency.
_CHATTY = ("sglang.srt.models.registry", "sglang.srt.model_executor")

_ENVIRONMENT = {
    # OpenBLAS (numpy) starts its threads on import; they would not survive a fork.
    "OPENBLAS_NUM_THREADS": "1",
    # Ask NVML, not the CUDA runtime, whether there is a GPU: the runtime does not survive a fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # Ranks need nothing from a model hub; without these a typo waits for the network.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # pyarrow's jemalloc starts a thread on import: a fork would lose it.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # Progress bars would fill the captured output of each test, and start a thread.
    "TQDM_DISABLE": "1",
}


_CPU_NO_NCCL = {
    # With a CUDA build of torch, SGLang finds libnccl and then refuses the device "cpu"
    # (distributed/device_communicators/pynccl.py). SGLang's own variable hides the library from
    # it (and logs an error). A CPU build has no libnccl.
    "SGLANG_NCCL_SO_PATH": NO_NCCL,
}


_CPU_ENVIRONMENT = {
    # SGLang compiles a few functions (expert routing), which takes half a minute and a C++
    # compiler per rank and tests nothing here. torch's own switch; "0" turns compilation on again.
    "TORCH_COMPILE_DISABLE": "1",
}


_CUDA_ENVIRONMENT = {
    # With enable_deterministic_inference SGLang cuts prompts at multiples of it, 4096 by default.
    # If chunks are smaller, as those of tests are, a prompt is never computed (up to 0.5.21), or
    # SGLang refuses to start (managers/scheduler.py: check_truncation_align_fits_chunk).
    "SGLANG_TRITON_PREFILL_TRUNCATION_ALIGN_SIZE": "16",
}


def prepare_environment(device: str) -> None:
    """Set the environment variables that SGLang and its dependencies read on import.

    `device` is "cpu", "sim", "sim:K", "cuda" or "cuda:K". Call before the first import of numpy.
    """
    kind = device.partition(":")[0]
    hide_nccl = kind in NAMES and not metadata.version("torch").endswith("+cpu")
    wanted = {**_ENVIRONMENT, **(_CPU_ENVIRONMENT if kind in NAMES else _CUDA_ENVIRONMENT)}
    wanted |= _CPU_NO_NCCL if hide_nccl else {}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if kind == "sim":
        from pytest_pprank.devices.sim.module import install

        install()  # before SGLang imports functions of torch that the device changes
    if kind in NAMES:
        select_platform(kind)


def import_sglang(device: str = "cpu") -> None:
    """Import SGLang's Scheduler and what it would import later, for ranks on `device`."""
    prepare_environment(device)
    with _quiet(device), _root_logger_kept():
        ensure_torchvision()
        importlib.import_module("sglang.srt.managers.scheduler")
        for name in _LAZY:
            with suppress(ModuleNotFoundError):  # a preload only saves time
                importlib.import_module(name)
        _compile_patterns()
        use_accelerator(device.partition(":")[0])
        # SGLang shows some progress bars in spite of TQDM_DISABLE: at least start no thread.
        importlib.import_module("tqdm").tqdm.monitor_interval = 0


def _compile_patterns() -> None:
    """Let transformers compile its patterns of weights' names.

    That is half of the time to load a tiny model, as each rank does that compares tokens.
    """
    with suppress(ImportError, AttributeError):  # a preload only saves time
        mapping = importlib.import_module("transformers.conversion_mapping")
        mapping.get_checkpoint_conversion_mapping("llama")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable tqdm's bars in this block, also those that SGLang enables explicitly."""
    bar = importlib.import_module("tqdm").tqdm
    start = bar.__init__

    def silent(self: object, *args: object, **kwargs: object) -> None:
        start(self, *args, **{**kwargs, "disable": True})

    bar.__init__ = silent
    try:
        yield
    finally:
        bar.__init__ = start


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Remove the stderr handler that SGLang adds to the root logger: pytest captures logs."""
    before = list(logging.root.handlers)
    yield
    for handler in [handler for handler in logging.root.handlers if handler not in before]:
        logging.root.removeHandler(handler)


@contextmanager
def _quiet(device: str) -> Iterator[None]:
    """On a device without a GPU, hide messages about missing CUDA-only parts of SGLang."""
    if device.startswith("cuda"):
        yield
        return
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
