"""How fluid the page of `embedding` is in a browser, with many images.

`python bench/map.py [--images 100000] [--chromium /usr/bin/chromium]`: a page of synthetic places
in 200 classes with thumbnails cut from the sample photographs is opened in a headless Chromium (its
debugging port is spoken to by aiohttp, which Ray of the extra `cluster` brings). A script in the
page sends pointer and wheel events, one a frame, and notes the time between frames and of each
drawing.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sightline.images.io import pictures as images
from sightline.methods.retrieval import embedding_page as scatter

CLASSES, PORT = 200, 9377
SPY = """
const later_ = window.requestAnimationFrame.bind(window), draws = [];
window.requestAnimationFrame = draw => later_(t => {
  const a = performance.now();
  draw(t);
  draws.push(performance.now() - a);
  window.firstDrawn ??= performance.now();
});
"""
MOVE = """(async (kind, frames) => {
  const box = map.getBoundingClientRect(), x = box.width / 2, y = box.height / 2, between = [];
  const point = (type, dx, dy, buttons, more) => map.dispatchEvent(
    new PointerEvent(type, {
      pointerId: 1, clientX: box.left + x + dx, clientY: box.top + y + dy,
      button: 0, buttons, bubbles: true, ...more,
    }));
  const wheel = by => map.dispatchEvent(new WheelEvent("wheel", {
    deltaY: by, clientX: box.left + x, clientY: box.top + y, bubbles: true, cancelable: true,
  }));
  map.setPointerCapture = () => {};
  draws.length = 0;
  const isDrag = kind !== "wheel" && kind !== "hover";
  if (isDrag) point("pointerdown", 0, 0, 1, { shiftKey: kind === "lasso" });
  for (let frame = 0, last = 0; frame < frames; frame++) {
    const now = await new Promise(later_);
    if (last) between.push(now - last);
    last = now;
    const turn = frame / frames * 6.28;
    if (kind === "wheel") wheel(frame < frames / 2 ? -60 : 60);
    else if (kind === "hover")
      point("pointermove", 200 * Math.cos(turn), 150 * Math.sin(3 * turn), 0);
    else if (kind === "lasso") point("pointermove", 250 * Math.cos(turn), 250 * Math.sin(turn), 1);
    else point("pointermove", 120 * Math.sin(2 * turn), 90 * Math.sin(3 * turn), 1);
  }
  const began = performance.now();
  if (kind !== "wheel" && kind !== "hover") point("pointerup", 0, 0, 0);
  const ended = performance.now() - began;
  await new Promise(done => setTimeout(done, 200));
  return { between, draws: [...draws], ended };
})"""


def page(count: int) -> str:
    """The page of so many images: clusters of places, parts of the sample photographs, wrong
    predictions for a fifth.
    """
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, CLASSES, (count,), generator=generator)
    places = 20 * torch.randn(CLASSES, 2, generator=generator)[classes] + 1.6 * torch.randn(
        count, 2, generator=generator
    )
    predicted = torch.where(
        torch.rand(count, generator=generator) < 0.8, classes, (classes + 1) % CLASSES
    )
    photographs = [images.sample(name) for name in images.samples()]

    def thumbnails(ids: Sequence[int]) -> Tensor:
        tiles: list[Tensor] = []
        for id in ids:
            photograph = photographs[id % len(photographs)]
            top, left = (id * 7919 % (size - 48) for size in photograph.shape[-2:])
            tiles.append(photograph[..., top : top + 48, left : left + 48])
        return torch.cat(tiles)

    names = [f"class {number}" for number in range(CLASSES)]
    found: Any = SimpleNamespace(
        images=count,
        paths=[f"/photos/{id:06}.jpg" for id in range(count)],
        class_names=names,
        model_labels=names,
        classes=classes,
        top5=(predicted[:, None].expand(-1, 5), None), thumbnails=thumbnails,
    )  # fmt: skip
    return scatter.render_scatter_page(
        found, places, "t-SNE of penultimate", f"{count:,} images", 16.0
    )


class Browser:
    """A page in a browser, spoken to by its debugging port."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0

    async def call(self, method: str, **given: Any) -> Any:
        """The answer to a command."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": given})
        while (told := json.loads((await self.socket.receive()).data)).get("id") != self.number:
            pass
        return told["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        told = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"])
        return told["result"].get("value")


async def measure(path: Path) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        address = ""
        while not address:
            with contextlib.suppress(aiohttp.ClientError):
                tabs = await (await session.get(f"http://127.0.0.1:{PORT}/json")).json()
                address = next(
                    (tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"), ""
                )
            await asyncio.sleep(0.1)
        browser = Browser(await session.ws_connect(address, max_msg_size=0))
        await browser.call("Page.enable")
        await browser.call("Page.addScriptToEvaluateOnNewDocument", source=SPY)
        await browser.call("Page.navigate", url=path.as_uri())
        while not await browser.run("window.firstDrawn && sheets.every(sheet => sheet.complete)"):
            await asyncio.sleep(0.1)
        print(f"first drawing after {await browser.run('firstDrawn'):.0f} ms")
        for zoom, kind in (
            (1, "drag"),
            (1, "wheel"),
            (4, "drag"),
            (20, "drag"),
            (1, "lasso"),
            (1, "hover"),
        ):
            await browser.run(f"home(); zoomed({zoom}, map.width / 2, map.height / 2)")
            await asyncio.sleep(0.5)
            told = await browser.run(f"{MOVE}({kind!r}, 90)")
            shares = [f"{name} {middle(told[name])}" for name in ("between", "draws") if told[name]]
            print(
                f"{kind}, zoomed {zoom} times: {', '.join(shares)}; the end of it "
                f"{told['ended']:.0f} ms"
            )


def middle(values: list[float]) -> str:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.1f} ({ordered[int(0.95 * len(ordered))]:.1f}) ms"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "map.html")
        path.write_text(page(given.images), encoding="utf-8")
        print(f"{path.stat().st_size / 1e6:.1f} MB, {given.images:,} images")
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1280,900",
            f"--remote-debugging-port={PORT}",
        ]
        browser = subprocess.Popen(
            [given.chromium, *flags, f"--user-data-dir={folder}/profile"], stderr=subprocess.DEVNULL
        )
        try:
            asyncio.run(measure(path))
        finally:
            browser.terminate()
            browser.wait(10)
            time.sleep(0.5)


if __name__ == "__main__":
    main()
