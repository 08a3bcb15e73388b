#!/usr/bin/env python3
"""Cuts golden logits to the size of a test file.

usage: cut_logits.py LOGITS.safetensors OUT.safetensors [--every 8]

The first sequence keeps every row of its logits. Of the others every eighth row is kept, and the last; `rows_N` says
which. Needs numpy and safetensors.
"""

import argparse

import numpy as np
from safetensors.numpy import load_file, save_file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logits")
    parser.add_argument("out")
    parser.add_argument("--every", type=int, default=8)
    args = parser.parse_args()

    golden = load_file(args.logits)
    cut = {name: array for name, array in golden.items() if name.startswith("input_ids_")}
    for name in sorted(name for name in golden if name.startswith("logits_")):
        number = int(name.removeprefix("logits_"))
        length = golden[name].shape[1]
        every = 1 if number == 0 else args.every
        rows = sorted({*range(0, length, every), length - 1})
        cut[f"rows_{number}"] = np.array(rows, dtype=np.int32)
        cut[name] = np.ascontiguousarray(golden[name][:, rows])
    save_file(cut, args.out)


if __name__ == "__main__":
    main()
