"""The dialogs of the page: they hold no data, and console.js fills them in."""

from __future__ import annotations

from octoserve.patterns.online.supervisor.console.markup import Markup, el, join


def dialogs() -> Markup:
    """One to confirm a command, one for the token, one for the history."""
    return join(_confirm(), _token(), _history())


def _buttons(*buttons: Markup) -> Markup:
    return el("p", *buttons, class_="dialog-buttons")


def _confirm() -> Markup:
    form = el(
        "form",
        el("h2", "Confirm", id="confirm-title"),
        el("p", id="confirm-consequence", class_="consequence"),
        el("p", id="confirm-changed", class_="notice", role="status"),
        el("label", "Reason, for the audit log", for_="confirm-reason"),
        el("input", id="confirm-reason", name="reason", maxlength=500, autocomplete="off", spellcheck="true"),
        el("p", id="confirm-error", class_="problem", role="alert"),
        _buttons(
            el("button", "Cancel", type="button", id="confirm-cancel"),
            el("button", "Confirm", type="submit", id="confirm-go", class_="command"),
        ),
        method="dialog",
    )
    return el("dialog", form, id="confirm", aria_labelledby="confirm-title", aria_describedby="confirm-consequence")


def _token() -> Markup:
    form = el(
        "form",
        el("h2", "Admin token", id="token-title"),
        el("p", "Kept in this tab until it is closed, and sent to this service only.", id="token-told"),
        el("label", "Token", for_="token-value"),
        el("input", id="token-value", type="password", autocomplete="off", required=True),
        el("p", id="token-error", class_="problem", role="alert"),
        _buttons(
            el("button", "Cancel", type="button", id="token-cancel"),
            el("button", "Use this token", type="submit", id="token-go", class_="command"),
        ),
        method="dialog",
    )
    return el("dialog", form, id="token", aria_labelledby="token-title", aria_describedby="token-told")


def _history() -> Markup:
    return el(
        "dialog",
        el("h2", "History", id="history-title"),
        el("div", id="history-rows", role="region", aria_labelledby="history-title", tabindex=0),
        _buttons(el("button", "Close", type="button", id="history-close")),
        id="history",
        aria_labelledby="history-title",
    )
