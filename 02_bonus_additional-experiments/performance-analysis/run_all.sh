#!/usr/bin/env bash
# Everything that this folder reports, measured anew: raw files, pictures, tables, notebooks.
# Leave the machine alone meanwhile: another program that computes slows all of it down.
set -euo pipefail
cd "$(dirname "$0")"

python benchmark.py all --plot --output results
smollm2=(--model smollm2-135m --output results/smollm2)
python benchmark.py infer "${smollm2[@]}" --sample 100
python benchmark.py train "${smollm2[@]}" --train-size 300 --repetitions 1
python benchmark.py memory "${smollm2[@]}"
python benchmark.py quantize "${smollm2[@]}"
python performance_tables.py
python ../../01_main-chapter-code/run_notebooks.py performance.ipynb quantization.ipynb
