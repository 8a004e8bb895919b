"""MLflow's scoring client, unmodified: a program for the environment `mlflow`.

mlflow_calls.py PORT COLUMNS    a JSON array of rows in; for a DataFrame and for an array, what was predicted, out
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    import numpy as np
    import pandas as pd
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    port, columns = sys.argv[1:]
    rows = json.load(sys.stdin)
    client = ScoringServerClient("127.0.0.1", int(port))
    client.wait_server_ready(timeout=60)
    named = pd.DataFrame(rows, columns=columns.split(",")).astype("float32")
    asked = (named, np.array(rows, dtype="float32"))
    said = {
        "predictions": [client.invoke(data).get_predictions().to_dict("records") for data in asked],
        "version": client.get_version(),
    }
    try:
        client.invoke(pd.DataFrame([{"other": "text"}]))
    except Exception as error:
        said["refusal"] = str(error)
    json.dump(said, sys.stdout)
