"""Categories of boosters: the file has them in the order of their codes, and a row has what they stand for."""

from __future__ import annotations

from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost

from octoserve.core.errors import InvalidInput
from octoserve.runtimes.lightgbm import LightGBMRuntime
from octoserve.runtimes.protocol import RuntimeSettings
from octoserve.runtimes.xgboost import XGBoostRuntime

COUNT = 200
SETTINGS = {"min_data_in_leaf": 2, "min_data_per_group": 2, "verbose": -1, "num_threads": 1}


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "still": np.ones(COUNT),
            "number": np.arange(COUNT, dtype=float) % 7,
            "code": pd.Categorical([i % 5 for i in range(COUNT)]),
            "zip": pd.Categorical([(3000, 8001, 9000)[i % 3] for i in range(COUNT)]),
        }
    )


def target(table: pd.DataFrame) -> np.ndarray:
    numbers = table["number"] + table["code"].astype(int) + 5 * (table["zip"].astype(int) == 8001)
    return numbers.to_numpy(float)


def test_lightgbms_texts_belong_to_their_columns(tmp_path: Path) -> None:
    """A number that never changes is not taken for one of them."""
    table = frame()
    table["zip"] = pd.Categorical([("Bern", "Oslo", "Rome")[i % 3] for i in range(COUNT)])
    booster = lightgbm.train(SETTINGS, lightgbm.Dataset(table, label=target(frame())), 4)
    booster.save_model(tmp_path / "model.txt")
    loaded = LightGBMRuntime().load(tmp_path, RuntimeSettings())
    assert loaded.signature.categories == {"zip": ("Bern", "Oslo", "Rome")}
    assert [spec.datatype for spec in loaded.signature.inputs] == ["FP64", "FP64", "FP64", "BYTES"]
    texts = np.array([str(text).encode() for text in table["zip"]], dtype=object)
    columns = [table["still"].to_numpy(), table["number"].to_numpy(), table["code"].to_numpy(float), texts]
    assert np.allclose(loaded.run(columns)[0], booster.predict(table))


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_numbers_that_stand_for_categories_are_not_taken_for_their_codes(tmp_path: Path, library: str) -> None:
    table = frame()
    if library == "lightgbm":
        booster = lightgbm.train(SETTINGS, lightgbm.Dataset(table, label=target(table)), 4)
        booster.save_model(tmp_path / "model.txt")
        loaded, wanted = LightGBMRuntime().load(tmp_path, RuntimeSettings()), booster.predict(table)
    else:
        told = xgboost.DMatrix(table, label=target(table), enable_categorical=True)
        trees = xgboost.train({"max_depth": 4, "nthread": 1}, told, 4)
        trees.save_model(tmp_path / "model.ubj")
        loaded, wanted = XGBoostRuntime().load(tmp_path, RuntimeSettings()), trees.predict(told)
    [spec] = loaded.signature.inputs
    rows = table.astype(float).to_numpy(np.float64 if spec.datatype == "FP64" else np.float32)
    assert set(rows[:, 3].tolist()) == {3000, 8001, 9000}
    assert np.allclose(loaded.run([rows])[0], wanted, atol=1e-6)
    rows[5, 3] = 1234
    with pytest.raises(InvalidInput, match="zip: 1234 is no category of it; the model knows 3000, 8001, 9000"):
        loaded.run([rows])
    rows[5, 3] = np.nan
    assert loaded.run([rows])[0].shape == (COUNT,)
