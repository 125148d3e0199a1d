"""What the page shows of reasons and risks."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from captum_mllm.visualization.page import ReasonsView, RiskView, render_page
from tests.visualization.browser import Browser
from tests.visualization.test_page_browser import arguments

NAMES = ("image", "question", "answer", "prior")
VALUES = np.array(
    [[0.0, 0.0, 0.0, 2.0], [3.0, 0, 1, -1], [1.0, 1, 0, 0], [1.0, 0, 1, 0], [-2.0, -1, -1, -3]]
)
RISKS = [
    RiskView((1,), 0.1, "low", True, ()),
    RiskView((2, 3), 0.834, "high", True, ("no region says it", "the words predict it")),
    RiskView((4,), 0.3, "some", False, ()),
]


def page(**changes: object) -> str:
    return render_page(
        **arguments(reasons=ReasonsView(NAMES, VALUES, exact=True), risks=RISKS, **changes)
    )


def test_the_page_carries_reasons_and_risks() -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page(), re.S)
    assert found is not None
    data = json.loads(found[1])
    assert data["reasons"]["values"] == VALUES.tolist() and data["reasons"]["exact"]
    assert [risk["level"] for risk in data["risks"]] == ["low", "high", "some"]
    without = render_page(**arguments())
    assert '"reasons":null' in without and '"risks":null' in without


def test_reasons_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(5, 4\)"):
        render_page(**arguments(reasons=ReasonsView(NAMES, VALUES[:2], exact=True)))
    with pytest.raises(ValueError, match="finite"):
        render_page(**arguments(reasons=ReasonsView(NAMES, VALUES * np.nan, exact=True)))
    for risk in (RiskView((9,), 0.5, "high", True, ()), RiskView((0,), 1.5, "high", True, ())):
        with pytest.raises(ValueError, match="expected a risk"):
            render_page(**arguments(risks=[risk]))


def test_a_word_shows_its_shares_and_its_risk_in_text(browser: Browser) -> None:
    browser.open(page())
    units = browser.all("[role=option]")
    assert [unit.get_attribute("class").split()[-1] for unit in units] == [
        "unit",
        "unit",
        "risk-high",
        "risk-some",
    ]
    units[1].click()
    rows = browser.all("#reasons li")
    labels = [row.find_element("css selector", ".name").text for row in rows]
    values = [row.find_element("css selector", ".value").text for row in rows]
    assert labels == ["image", "question", "earlier words", "neither"]
    assert values == ["75%", "0%", "25%", "against"]
    assert "low risk" in browser.text("#risk").lower()
    units[2].click()
    risk = browser.text("#risk")
    assert risk == (
        "high risk that the image does not show it (83%): no region says it; the words predict it"
    )
    assert risk in browser.text("#live")
    assert "high risk" in units[2].get_attribute("aria-label")
    units[3].click()
    assert "not calibrated, a ranking" in browser.text("#risk")
    browser.open(render_page(**arguments()))
    assert not browser.all("#reasons")
    assert not browser.one("#risk").is_displayed()
