"""What coremltools 9.0 makes of weights: the sums of squared errors that quince must never exceed.

    python tools/oracle/compress_vectors.py PACKAGE OUT [PROGRAM]   palettizes the weights of an uncompressed package;
        writes OUT/*.npy and OUT/sse.json. With PROGRAM (target/release/examples/sse) prints ours beside theirs.
    python tools/oracle/compress_vectors.py --golden FILE           writes the small random weights, with results of
        palettization and linear quantization, that the tests of quince-compress read.

Needs: pip install coremltools==9.0 scikit-learn==1.5.1 (the latter for float32 weights and small groups).
"""

import json
import pathlib
import subprocess
import sys
import warnings

import numpy as np
from coremltools.converters.mil.mil import types
from coremltools.optimize import _utils as optimize_utils
from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights, palettize_weights

NBITS = [1, 2, 3, 4, 6, 8]
GROUPS = [0, 8, 16]  # 0: one table for the whole weight


def sse(weight, restored):
    difference = weight.astype(np.float64) - restored.astype(np.float64)
    return float((difference * difference).sum())


def palettized(weight, nbits, group, mode="KMEANS"):
    """The sum of squared errors of coremltools' palettization, or None where it refuses."""
    if group and weight.shape[0] % group:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct values than clusters
        params = palettize_weights.grouped_channelwise_compress(weight, mode, nbits, 0, group)
    return None if params is None else sse(weight, palettize_weights.decompress(params))


def weights_of(package):
    """Name and value of each float constant of more than 2048 elements, coremltools' own threshold."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.models import MLModel

    model = MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, spec.specificationVersion, model.weights_dir)
    seen = set()
    for function in program.functions.values():
        for op in function.find_ops(op_type="const"):
            value = op.outputs[0].val
            if isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32) and value.size > 2048:
                if op.name not in seen:
                    seen.add(op.name)
                    yield op.name, value


def compare_package(package, out, program):
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, weight in weights_of(package):
        np.save(out / f"{name}.npy", weight)
        theirs = {}
        for group in GROUPS:
            for nbits in NBITS:
                value = palettized(weight, nbits, group)
                if value is not None:
                    theirs[f"{nbits}/{group or 'tensor'}"] = value
        results[name] = {"shape": weight.shape, "dtype": weight.dtype.name, "sse": theirs}
        if program:
            report(program, out / f"{name}.npy", results[name])
    (out / "sse.json").write_text(json.dumps(results, indent=1))
    if program:
        summary(results)


def report(program, file, result):
    lines = subprocess.run([program, file], check=True, capture_output=True, text=True).stdout.split("\n")
    result["quince"] = {case: float(value) for case, value in (line.split() for line in lines if line)}


def summary(results):
    """Ours over theirs for each scheme, over all weights: total, and the worst single weight."""
    print(f"{'bits/group':<12}{'weights':>8}{'coremltools':>16}{'quince':>16}{'ratio':>9}{'worst':>9}")
    for group in GROUPS:
        for nbits in NBITS:
            case = f"{nbits}/{group or 'tensor'}"
            both = [(r["sse"][case], r["quince"][case]) for r in results.values() if case in r["sse"]]
            theirs, ours = sum(b[0] for b in both), sum(b[1] for b in both)
            worst = max((b[1] / b[0] if b[0] else float(b[1] > 0) + 1.0 for b in both), default=1.0)
            ratio = ours / theirs if theirs else 1.0
            print(f"{case:<12}{len(both):>8}{theirs:>16.8g}{ours:>16.8g}{ratio:>9.5f}{worst:>9.5f}")


def linear(weight, dtype, mode, blocks):
    data, scale, offset = optimize_utils.compute_qparams_by_dtype(weight, types.string_to_builtin(dtype), mode, blocks)
    params = optimize_utils.QuantParams(data, scale, offset, None)
    result = {"dtype": dtype, "mode": mode.lower(), "blocks": blocks}
    result["sse"] = sse(weight, linear_quantize_weights.decompress(params))
    if weight.dtype == np.float32:  # in float16 theirs overflows or rounds on the way
        result["scale"] = scale.flatten().view(np.uint32).tolist()
        result["offset"] = None if offset is None else offset.astype(int).flatten().tolist()
    return result


def golden(file):
    random = np.random.default_rng(7)
    cases = []
    for name, dtype, scale in [("plain", np.float32, 0.05), ("heavy", np.float16, 1.0)]:
        weight = random.standard_normal((16, 16)) * scale
        weight = (weight**3 if name == "heavy" else weight).astype(dtype)
        case = {"name": name, "dtype": weight.dtype.name, "shape": weight.shape}
        case["bits"] = weight.view(np.uint16 if dtype == np.float16 else np.uint32).flatten().tolist()
        case["palettized"] = [
            {"mode": mode.lower(), "nbits": nbits, "group": group, "sse": palettized(weight, nbits, group, mode)}
            for mode in ["KMEANS", "UNIFORM"]
            for nbits in NBITS
            for group in [0, 4, 8]
        ]
        case["linear"] = [
            linear(weight, integer, mode, blocks)
            for integer in ["int8", "uint8", "int4", "uint4"]
            for mode in ["LINEAR_SYMMETRIC", "LINEAR"]
            for blocks in [[0, 0], [1, 0], [0, 1], [1, 8]]
        ]
        cases.append(case)
    file.write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--golden":
        golden(pathlib.Path(sys.argv[2]))
    else:
        compare_package(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
