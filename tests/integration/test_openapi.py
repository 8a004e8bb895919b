"""The OpenAPI document of a real service, and its page in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from support.examples import ECHOES
from support.service import Served

CHROMIUM = Path("/usr/bin/chromium")


def test_the_document_is_valid_and_its_examples_are_answered(examples: Served) -> None:
    said = examples.ask("GET", "/openapi.json").json()
    validate(said)
    for path in ("/v2/models/{model}/infer", "/v1/models/{model}:predict", "/models/{model}/predict"):
        content = said["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        without_rows = {"fixed", "echo_bf16"} if path != "/v2/models/{model}/infer" else {"echo_bf16"}
        for model, example in content["examples"].items():
            if model in without_rows | {"spinning"}:
                continue
            answer = examples.ask("POST", path.replace("{model}", model), example["value"])
            assert answer.status == 200, (path, model, answer.body)
        assert content["examples"].keys() >= ECHOES.keys()


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium: apt-get install chromium")
def test_the_page_sends_a_request_and_shows_the_answer(examples: Served) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(f"http://{examples.http}/docs")
        page.wait_for_selector("#operation option", state="attached")
        labels = page.locator("#operation option").all_text_contents()
        predict = next(label for label in labels if "/v1/models/{model}:predict" in label)
        page.select_option("#operation", label=predict)
        page.select_option("#model", "fraud")
        page.click("#send")
        page.wait_for_selector("#answer:not([hidden])")
        assert page.text_content("#status").startswith("200")
        assert "predictions" in json.loads(page.text_content("#answer"))
        browser.close()
    assert not complaints
