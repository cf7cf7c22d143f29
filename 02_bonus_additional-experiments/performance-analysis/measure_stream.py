"""Classify a file as `classify.py` does, in this fresh process; prints seconds and peak as JSON.

python measure_stream.py DIR --file messages.csv --output classified.csv
"""

import json
import sys
import time

import classify
from fine_tuning import peak_memory_mb

if __name__ == "__main__":
    start = time.perf_counter()
    status = classify.main(sys.argv[1:])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak, MB": peak_memory_mb()}))
    sys.exit(status)
