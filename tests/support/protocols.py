"""The same rows in every HTTP protocol beside V2, and what each of them answered, as V2 would say it.

The encoders are written from the protocols' own documentation and share nothing with the server's. These protocols
say neither datatypes nor shapes in their answers; the signature that V2's metadata tells is what explains them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from support.service import Answer, Served
from support.wire import DTYPES, Got, Outputs, Refused, Sent, raw_of


def value_of(sent: Sent) -> Any:
    """An input as nested lists."""

    def plain(item: Any) -> Any:
        if isinstance(item, list):
            return [plain(one) for one in item]
        return item.decode() if isinstance(item, bytes) else item

    return plain(sent.array.tolist())


def got_of(spec: dict[str, Any], value: Any, single: bool = False) -> Got:
    """An output from what a protocol said of it. single: an output of [rows, 1] came as an element a row."""
    array = np.array(value, dtype=object)
    shape = tuple(array.shape)
    if spec["datatype"] == "BYTES":
        raw = raw_of("BYTES", np.array([item.encode() for item in array.ravel().tolist()], dtype=object))
    else:
        flat = [float(item) if isinstance(item, str) else item for item in array.ravel().tolist()]
        kinds = {"BOOL": bool, "FP16": float, "FP32": float, "FP64": float}
        assert all(type(item) is kinds.get(spec["datatype"], int) or type(item) is int for item in flat), flat
        raw = np.array(flat, DTYPES[spec["datatype"]]).tobytes()
    if single and len(spec["shape"]) == 2 and len(shape) == 1:
        shape = (*shape, 1)
    return Got(spec["datatype"], shape, raw)


class Asking:
    """One protocol's way to ask. path: of a model; takes: how the inputs are put; reads: how the answer is."""

    def __init__(
        self,
        path: str,
        body: Callable[[Sequence[Sent]], Any],
        rows: str | None = None,
        columns: str | None = None,
        single: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        """rows, columns: the answer's member that holds rows, or whole outputs; rows "": the body is the rows."""
        self.path = path
        self.body = body
        self.rows = rows
        self.columns = columns
        self.single = single
        self.headers = headers or {}

    def ask(self, service: Served, model: str, inputs: Sequence[Sent]) -> Answer:
        """The answer as it came."""
        body = self.body(inputs)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return service.ask("POST", self.path.format(model=model), data, self.headers)

    def __call__(self, service: Served, model: str, inputs: Sequence[Sent]) -> Outputs:
        """The outputs. Raises Refused."""
        specs = service.ask("GET", f"/v2/models/{model}").json()["outputs"]
        return self.read(self.ask(service, model, inputs), specs)

    def read(self, answer: Answer, specs: list[dict[str, Any]]) -> Outputs:
        """The outputs that an answer holds. Raises Refused."""
        said = answer.json()
        if answer.status != 200:
            raise Refused(answer.status, said.get("error") or said.get("message"))
        if self.columns is not None:
            whole = said[self.columns]
            named = {specs[0]["name"]: whole} if len(specs) == 1 else whole
        else:
            rows = said[self.rows] if self.rows else said
            bare = len(specs) == 1 and not self.single
            named = {s["name"]: [row if bare else row[s["name"]] for row in rows] for s in specs}
        assert named.keys() == {spec["name"] for spec in specs}
        return {spec["name"]: got_of(spec, named[spec["name"]], self.single) for spec in specs}


def _rows(inputs: Sequence[Sent]) -> list[Any]:
    """Rows as objects by input name."""
    values = {sent.name: value_of(sent) for sent in inputs}
    return [{name: value[i] for name, value in values.items()} for i in range(inputs[0].array.shape[0])]


def _bare(inputs: Sequence[Sent]) -> Any:
    """The only input's value; of several, objects."""
    return value_of(inputs[0]) if len(inputs) == 1 else _rows(inputs)


def _columns(inputs: Sequence[Sent]) -> Any:
    return {sent.name: value_of(sent) for sent in inputs}


def _words(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [_words(item) for item in value]
    return {name: _words(item) for name, item in value.items()} if isinstance(value, dict) else value


def _split(inputs: Sequence[Sent]) -> Any:
    names = [sent.name for sent in inputs]
    return {
        "dataframe_split": {"columns": names[::-1], "data": [[row[n] for n in names[::-1]] for row in _rows(inputs)]}
    }


def _csv(inputs: Sequence[Sent]) -> bytes:
    """The only input's columns, or one column an input of [rows, 1]; with a header."""
    tables = [value_of(sent) for sent in inputs]
    names = [sent.name for sent in inputs] if len(inputs) > 1 else [f"v{i}" for i in range(len(tables[0][0]))]
    out = io.StringIO()
    csv.writer(out).writerows([names, *([c for cells in row for c in cells] for row in zip(*tables, strict=True))])
    return out.getvalue().encode()


V1 = "/v1/models/{model}:predict"
INVOKE = "/models/{model}/invoke"
LINES = {"content-type": "application/jsonlines", "accept": "application/json"}
BY_ROW = {
    "V1 rows by name": Asking(V1, lambda inputs: {"instances": _rows(inputs)}, rows="predictions"),
    "predict": Asking("/models/{model}/predict", lambda inputs: _words(_rows(inputs)), rows="", single=True),
    "MLflow records": Asking(INVOKE, lambda inputs: {"dataframe_records": _rows(inputs)}, rows="predictions"),
    "MLflow split": Asking(INVOKE, _split, rows="predictions"),
    "JSON lines": Asking(
        INVOKE, lambda i: "\n".join(map(json.dumps, _rows(i))).encode(), rows="predictions", headers=LINES
    ),
}
"""Ways for models whose inputs and outputs have rows."""
WHOLE = {
    "V1 rows": Asking(V1, lambda inputs: {"instances": _bare(inputs)}, rows="predictions"),
    "V1 columns": Asking(V1, lambda inputs: {"inputs": _columns(inputs)}, columns="outputs"),
    "MLflow instances": Asking(INVOKE, lambda inputs: {"instances": _bare(inputs)}, rows="predictions"),
    "MLflow inputs": Asking(INVOKE, lambda inputs: {"inputs": _columns(inputs)}, columns="predictions"),
}
"""Ways that any model takes (rows of several inputs excepted)."""
CSV = Asking(INVOKE, _csv, rows="predictions", headers={"content-type": "text/csv"})
"""For models of one table, or of columns."""
