"""Threads are those of the settings, whatever the model was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import threadpoolctl
import xgboost
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from octoserve.runtimes.lightgbm import LightGBMRuntime
from octoserve.runtimes.protocol import RuntimeSettings
from octoserve.runtimes.sklearn import SklearnRuntime
from octoserve.runtimes.xgboost import XGBoostRuntime
from support.formats import lightgbm_model, rows, xgboost_model


@pytest.mark.parametrize("threads", [1, 3])
def test_xgboost(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = xgboost_model(tmp_path).inputs
    seen: list[str] = []
    predict = xgboost.Booster.inplace_predict

    def looks(self: Any, *args: Any, **more: Any) -> Any:
        seen.append(json.loads(self.save_config())["learner"]["generic_param"]["nthread"])
        return predict(self, *args, **more)

    monkeypatch.setattr(xgboost.Booster, "inplace_predict", looks)
    loaded = XGBoostRuntime().load(tmp_path, RuntimeSettings(threads=threads))
    loaded.run(list(inputs.values()))
    assert set(seen) == {str(threads)}


@pytest.mark.parametrize("threads", [1, 3])
def test_lightgbm(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightgbm

    inputs = lightgbm_model(tmp_path).inputs
    seen: list[Any] = []
    predict = lightgbm.Booster.predict

    def looks(self: Any, *args: Any, **more: Any) -> Any:
        seen.append(more.get("num_threads"))
        return predict(self, *args, **more)

    monkeypatch.setattr(lightgbm.Booster, "predict", looks)
    LightGBMRuntime().load(tmp_path, RuntimeSettings(threads=threads)).run(list(inputs.values()))
    assert set(seen) == {threads}


def test_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows()
    target = (table[:, 0] > 5).astype(int)
    model = make_pipeline(StandardScaler(), FunctionTransformer(), RandomForestClassifier(2, n_jobs=7)).fit(
        table, target
    )
    skops.io.dump(model, tmp_path / "model.skops")
    seen: list[Any] = []

    def looks(self: Any, table: Any) -> Any:
        seen.append((self.n_jobs, {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}))
        return np.zeros(len(table), int)

    monkeypatch.setattr(RandomForestClassifier, "predict", looks)
    loaded = SklearnRuntime().load(tmp_path, RuntimeSettings(threads=1))
    loaded.run([table])
    assert seen == [(1, {1})] * 2
