"""Makes messages for the queues, and what bare ONNX Runtime says to them. Runs in the `tools` environment.

python prepare_messages.py OUT_DIR MODEL ROWS

OUT_DIR/messages.jsonl   one a line, some 330 bytes: an id, and 30 numbers of two digits
OUT_DIR/expected.json    rows, the sum of their labels, and that of the second class's probabilities
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from sklearn.datasets import load_breast_cancer

_AT_ONCE = 20_000


def main(out: Path, model: str, rows: int) -> None:
    data = load_breast_cancer().data
    random = np.random.default_rng(0)
    session = ort.InferenceSession(model)
    staged = out.with_suffix(".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    labels, chances = 0, 0.0
    with (staged / "messages.jsonl").open("w") as file:
        for start in range(0, rows, _AT_ONCE):
            count = min(_AT_ONCE, rows - start)
            table = random.standard_normal((count, data.shape[1])) * data.std(axis=0) + data.mean(axis=0)
            texts = [[f"{value:.2g}" for value in row] for row in table.tolist()]
            for number, row in enumerate(texts, start):
                fields = ",".join(f'"f{i}":{float(text):g}' for i, text in enumerate(row))
                file.write(f'{{"id":"m{number}",{fields}}}\n')
            features = np.array([[float(text) for text in row] for row in texts], np.float32)
            label, probabilities = session.run(None, {"features": features})
            labels += int(label.sum())
            chances += float(probabilities[:, 1].sum(dtype=np.float64))
    expected = {"rows": rows, "labels": labels, "chances": chances}
    (staged / "expected.json").write_text(json.dumps(expected))
    staged.rename(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
