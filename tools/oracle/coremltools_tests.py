"""Has coremltools' own tests of operations and of its PyTorch converter run on quince instead of Core ML.

The tests build programs with a few operations, and know what Core ML gives for them on Apple's machines. This pytest
plugin puts `quince predict` where they ask Core ML for a prediction.

Usage (coremltools 9.0, numpy, torch, pytest, pillow and scipy; OPS is coremltools/converters/mil/mil/ops/tests, TORCH is
coremltools/converters/mil/frontend/torch/test/test_torch_ops.py, both in site-packages):

    PYTHONPATH=tools/oracle PYMIL_TEST_TARGETS=mlprogram INCLUDE_MIL_FP32_UNIT_TESTS=1 QUINCE=target/debug/quince \\
        python -m pytest -p coremltools_tests -q OPS TORCH

There are tens of thousands of them: each test function runs with SAMPLES (default 4) of its sets of parameters, chosen
by SEED (default 1). Tests of converters for neural networks, which are no ML Programs, are left out.
"""
import os
import random
import shutil
import subprocess
import tempfile

import numpy as np
import pytest

import coremltools.converters.mil.testing_utils as mil_tests
import coremltools.models.model as models
import coremltools.models.utils as utils

QUINCE = os.environ.get("QUINCE", "quince")
SAMPLES = int(os.environ.get("SAMPLES", "4"))
SEED = int(os.environ.get("SEED", "1"))

ARRAYS = {65568: np.float32, 65552: np.float16, 65600: np.float64, 131104: np.int32, 131080: np.int8}
FLOAT16 = 10


class State:
    """What came before: calls are made again so that the last one finds the state they left."""

    def __init__(self):
        self.calls = []


def array(value, description):
    """An input as quince takes it: in the declared type, images as [1, C, H, W]."""
    if hasattr(value, "convert"):
        pixels = np.asarray(value).astype(np.float32)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        is_bgr = description.type.imageType.colorSpace == 30
        return (pixels[::-1] if is_bgr else pixels)[None]
    value = np.asarray(value)
    return value.astype(ARRAYS.get(description.type.multiArrayType.dataType, value.dtype))


def predict(self, data, state=None):
    """In place of `MLModel.predict`."""
    if self._spec.WhichOneof("Type") != "mlProgram":
        pytest.skip("not an ML Program")
    descriptions = {feature.name: feature for feature in self._spec.description.input}
    state = state if isinstance(state, State) else State()
    state.calls.append({name: array(value, descriptions[name]) for name, value in data.items()})
    directory = tempfile.mkdtemp()
    try:
        command = [QUINCE, "--quiet", "predict", self.package_path, "--outputs", directory + "/out"]
        for number, inputs in enumerate(state.calls):
            np.savez(f"{directory}/{number}.npz", **inputs)
            command += ["--call", f"main:{directory}/{number}.npz"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outputs = np.load(f"{directory}/out/{len(state.calls) - 1}.npz")
        # Core ML gives a scalar as an array of one element.
        return {name: outputs[name].reshape(outputs[name].shape or 1) for name in outputs.files}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def has_float16(block):
    """Whether an operation of the block, or of a block in it, gives float16."""
    return any(
        any(output.type.tensorType.dataType == FLOAT16 for output in operation.outputs)
        or any(has_float16(inner) for inner in operation.blocks)
        for operation in block.operations
    )


def compare(mlmodel, input_key_values, expected_outputs, dtype="fp32", atol=1e-4, rtol=1e-5, **others):
    """In place of `compare_backend`, which lets float16 programs be wrong by half: here by some units of float16."""
    program = mlmodel._spec.mlProgram
    blocks = [block for f in program.functions.values() for block in f.block_specializations.values()]
    if any(map(has_float16, blocks)):
        atol, rtol = max(atol, 3e-3), max(rtol, 6e-3)
    compare.original(mlmodel, input_key_values, expected_outputs, dtype="fp32", atol=atol, rtol=rtol, **others)


def install():
    models.MLModel.predict = predict
    models.MLModel.make_state = lambda self: State()
    utils._macos_version = lambda: (26, 0)
    mil_tests._IS_MACOS = True
    compare.original = mil_tests.compare_backend
    mil_tests.compare_backend = compare
    try:
        import coremltools.converters.mil.frontend.torch.test.testing_utils as torch_tests
    except ImportError:
        return
    torch_tests._IS_MACOS = True


def pytest_collection_modifyitems(items):
    by_function = {}
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is None or "neuralnetwork" not in str(list(parameters.params.values())):
            by_function.setdefault(item.nodeid.split("[")[0], []).append(item)
    chance = random.Random(SEED)
    chosen = [found if len(found) <= SAMPLES else chance.sample(found, SAMPLES) for found in by_function.values()]
    items[:] = [item for found in chosen for item in found]


install()
