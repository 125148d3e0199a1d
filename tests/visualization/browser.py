from __future__ import annotations

from pathlib import Path
from typing import Any


class Browser:
    """Opens pages in Chromium and reads what they show."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver = driver
        self.folder = folder

    def open(
        self, page: str, *, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", {"features": features})
        path = self.folder / "page.html"
        path.write_text(page, encoding="utf-8")
        self.driver.get(path.as_uri())

    def command(self, name: str, arguments: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def current(self) -> str:
        return self.text("[role=option][aria-selected=true]")

    def messages(self) -> list[str]:
        """What the console holds, refusals of the content security policy among it."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
