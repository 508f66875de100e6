"""The page in a real browser, Debian's chromium: what a person does with it, and sees."""

import io
import json
import re
import signal
import time
import urllib.error
import urllib.request
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from biglearn_vae.capabilities import BigLearnVAE
from model.biglearn import BigLearnModel
from tests.serving.conftest import picture

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def joint(digits_run, tmp_path_factory):
    """The export of a joint VAE of such images, not trained."""
    of = BigLearnVAE.load(digits_run).description.model_copy(update={"method": "vae"})
    folder = tmp_path_factory.mktemp("joint") / "joint"
    BigLearnVAE(BigLearnModel(of.model, "vae", of.data.token_dim, of.data.patches), of).export(folder)
    return folder


@pytest.fixture(scope="module")
def address(start, digits_run, joint):
    """Of a page of a trained model, beside which a joint VAE stands."""
    process = start.background("python", "launch/page.py", "--model", digits_run, "--model", joint, "--port", "0")
    found = re.match(r"open (http://127\.0\.0\.1:\d+) in a browser", line := process.stderr.readline())
    assert found, line + process.communicate()[1]
    yield found[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """chromium(width): a browser that keeps downloads in `downloads`; of a phone where it is narrow."""
    started = []

    def start_browser(width):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},1200"):
            options.add_argument(argument)
        if width < 600:
            screen = {"width": width, "height": 800, "pixelRatio": 2, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": screen})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
        browser.downloads = tmp_path_factory.mktemp("downloads")
        where = {"behavior": "allow", "downloadPath": str(browser.downloads)}
        browser.execute_cdp_cmd("Page.setDownloadBehavior", where)
        started.append(browser)
        return browser

    yield start_browser
    for browser in started:
        browser.quit()


class Page:
    """What stands on the page, and what a person does there."""

    def __init__(self, browser, address: str):
        self.browser = browser
        self.open(address)

    def open(self, address: str) -> None:
        self.browser.get(address)
        self.wait(lambda: len(self.sources("draws")) == 8)
        self.answered()

    def wait(self, condition, seconds: float = 60):
        return WebDriverWait(self.browser, seconds, 0.05).until(lambda _: condition())

    def find(self, name: str):
        return self.browser.find_element(By.ID, name)

    def tool(self, name: str) -> None:
        self.browser.find_element(By.CSS_SELECTOR, f"input[value={name}]").click()

    def labels(self, row: str) -> list[str]:
        read = "return [...document.getElementById(arguments[0]).children].map((child) => child.textContent)"
        return self.browser.execute_script(read, row)

    def sources(self, row: str) -> list[str]:
        read = "return [...document.querySelectorAll(`#${arguments[0]} img`)].map((image) => image.src)"
        return self.browser.execute_script(read, row)

    def pixels(self, row: str) -> np.ndarray:
        """(N, H, W, 3) uint8."""
        contents = [b64decode(source.partition(",")[2]) for source in self.sources(row)]
        return np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])

    def does(self, act) -> None:
        """Do it, and wait until all answers to it are there."""
        before = self.browser.find_element(By.CSS_SELECTOR, "#draws img")
        act()
        self.wait(lambda: before != self.browser.find_element(By.CSS_SELECTOR, "#draws img"))
        self.answered()

    def answered(self) -> None:
        """Wait until all answers are there, those to what the page asks again when it got a 503, too."""
        read = "return document.body.dataset.asks"
        self.wait(lambda: self.browser.execute_script(read) == "0" and len(self.sources("beside")) == 8)

    def press(self, name: str) -> None:
        self.does(self.find(name).click)

    def drag(self, *shares: tuple[float, float]) -> None:
        """The brush over the image, between places that are shares of its sides from its middle, -0.5 to 0.5."""
        canvas = self.find("editor")
        places = [(round(x * canvas.size["width"]), round(y * canvas.size["height"])) for x, y in shares]
        actions = ActionChains(self.browser, duration=50).move_to_element_with_offset(canvas, *places[0])
        actions.click_and_hold()
        for place in places[1:]:
            actions.move_to_element_with_offset(canvas, *place)
        self.does(actions.release().perform)

    @property
    def message(self) -> str:
        return self.find("message").text


@pytest.fixture(scope="module")
def browser(chromium):
    return chromium(1280)


@pytest.fixture
def page(browser, address):
    yield Page(browser, address)
    wrong = [line for line in browser.get_log("browser") if not re.search("status of (422|503)", line["message"])]
    assert not wrong, "the console has errors"


def test_completions_keep_what_is_known_and_differ_where_it_is_not(page):
    page.press("restore-all")
    (original,) = page.pixels("together")[-1:]
    assert (page.pixels("draws") == original).all()
    assert "nothing of the image is missing" in page.message
    page.drag((-0.4, -0.4), (0.4, -0.4))
    draws = page.pixels("draws")
    side = len(original)
    assert (draws[:, side // 2 :] == original[side // 2 :]).all()
    upper = draws[:, : side // 4].astype(int)
    assert len({each.tobytes() for each in upper}) == 8
    mean, spread, _, _ = page.pixels("together")
    assert np.abs(mean[: side // 4] - upper.mean(0)).max() <= 1
    assert spread[: side // 4].max() == 255
    assert spread[side // 2 :].max() == 0
    errors = [float(re.fullmatch(r"draw \d: (\d\.\d{4})", label)[1]) for label in page.labels("draws")]
    missing = (draws != original).any((0, 3))
    for draw, error in zip(draws / 255, errors, strict=True):
        assert abs(np.square(draw - original / 255)[missing].mean() - error) < 2e-3 + 0.1 * error
    page.press("undo")
    assert (page.pixels("draws") == original).all()


def test_beside_it_stand_the_baselines_and_the_joint_vae(page):
    ways = {label.rpartition(": ")[0]: float(label.rpartition(": ")[2]) for label in page.labels("beside")}
    assert {"Gaussian", "mean image", "nearest neighbour", "joint, pseudo-Gibbs"} <= ways.keys()
    assert ways["Gaussian"] < ways["mean image"]
    assert len(page.sources("inferred")) == 4


def test_other_draws_and_what_lies_between_two_of_them(page):
    before = page.pixels("draws")
    page.press("again")
    draws = page.pixels("draws")
    assert (before != draws).any((1, 2, 3)).all()
    assert not page.find("interpolate").is_enabled()
    for number in (2, 5):
        page.browser.find_elements(By.CSS_SELECTOR, "#draws button")[number].click()
    assert page.find("draw").get_attribute("value") == "6"
    assert page.find("big-caption").text.startswith("draw 6")
    page.find("interpolate").click()
    page.wait(lambda: len(page.sources("between")) == 8)
    assert page.labels("between")[0] == "0%"
    page.find("draw").send_keys(Keys.ARROW_LEFT)
    assert page.find("big-caption").text.startswith("draw 5")


def test_the_keyboard_does_what_the_mouse_does(page):
    page.press("restore-all")
    (original,) = page.pixels("together")[-1:]
    page.browser.execute_script("arguments[0].focus()", page.find("editor"))
    page.does(lambda: page.find("editor").send_keys(Keys.ARROW_RIGHT, "e", " "))
    assert page.find("cursor").text == "Row 1, column 2: erased"
    changed = (page.pixels("draws") != original).any((0, 3))
    patch = 8
    assert changed[:patch, patch : 2 * patch].any()
    assert not changed[patch:].any()
    page.does(lambda: page.find("editor").send_keys(Keys.CONTROL, "z"))
    assert (page.pixels("draws") == original).all()
    page.browser.execute_script("document.getElementById('size').value = 1")
    page.find("whole").click()  # then it moves by pixels
    page.browser.execute_script("arguments[0].focus()", page.find("editor"))
    page.does(lambda: page.find("editor").send_keys(Keys.ARROW_DOWN, " "))
    assert page.find("cursor").text == "Row 2, column 9: erased"
    assert "63 known pixels lie in partly known patches" in page.message


def test_what_was_erased_is_not_sent(page):
    """Though the model is shown the rest of partly known patches, the original is not there."""
    page.press("restore-all")
    (original,) = page.pixels("together")[-1:]
    page.press("erase-half")
    is_hidden, is_drawn = (
        pixels.any(-1).reshape(4, 8, 4, 8).any((1, 3))
        for pixels in ((page.pixels("draws") != original).any(0), original)
    )
    row, column = (int(place) for place in np.argwhere(is_hidden & is_drawn)[0])
    page.find("whole").click()
    page.does(page.find("any").click)
    page.browser.execute_script("document.getElementById('size').value = 1")
    page.tool("restore")
    page.drag(((column + 0.5) / 4 - 0.5, (row + 0.5) / 4 - 0.5))
    patch = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    draw = page.pixels("draws")[0][patch]
    assert (draw == 0).all(-1).sum() >= 63
    assert original[patch].any()


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    for element in page.browser.find_elements(By.CSS_SELECTOR, "button, input, select, canvas, #offered img"):
        assert element.accessible_name or not element.is_displayed(), element.get_attribute("outerHTML")


def test_files_are_taken_or_refused_with_a_reason(page, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page.find("upload").send_keys(str(tmp_path / "notes.png"))
    page.wait(lambda: page.message == "image: no PNG or JPEG file")
    assert "wrong" in page.find("message").get_attribute("class")
    alpha = np.ones((80, 80))
    alpha[:40] = 0
    picture(1, 80, alpha).save(tmp_path / "holes.png")
    page.does(lambda: page.find("upload").send_keys(str(tmp_path / "holes.png")))
    assert "80x80 to 32x32 pixels" in page.message
    draws = page.pixels("draws").astype(int)
    assert (draws[0, 16:] == draws[:, 16:]).all()
    assert (draws[0, :16] != draws[1, :16]).any()


def test_parts_of_two_images_and_strokes(page):
    first, second = page.browser.find_elements(By.CSS_SELECTOR, "#offered button")[:2]
    page.does(first.click)
    page.press("restore-all")
    (original,) = page.pixels("together")[-1:]
    page.find("as-second").click()
    second.click()
    page.wait(page.find("second-shown").is_displayed)
    shown = page.pixels("second-shown")[0]
    page.drag((-0.4, -0.45), (0.4, -0.45))
    draws = page.pixels("draws")
    assert (draws[:, :4] == shown[:4]).all()
    assert (draws[:, 16:] == original[16:]).all()
    page.press("blank")
    assert page.message == "draw strokes on the image; nothing of the image is known"
    page.drag((0, -0.3), (0, 0.3))
    draws = page.pixels("draws")
    assert (draws[:, 16, 16] == 255).all()
    assert page.labels("draws")[0] == "draw 1", "strokes have no original, so no error"


def test_all_of_it_can_be_kept(page):
    page.find("download").click()
    path = page.browser.downloads / "completions.png"
    page.wait(path.exists)
    time.sleep(0.2)
    with Image.open(path) as kept:
        assert kept.width > 8 * 96
        assert len(kept.convert("RGB").getcolors(2**20)) > 50


def test_two_tabs_do_not_mix(page, address):
    browser, first = page.browser, page.browser.current_window_handle
    page.press("erase-all")
    samples = page.pixels("draws")
    browser.switch_to.new_window("tab")
    other = Page(browser, address)
    other.press("restore-all")
    (original,) = other.pixels("together")[-1:]
    browser.switch_to.window(first)
    assert (page.pixels("draws") == samples).all()
    page.press("again")
    assert (page.pixels("draws") != original).any((1, 2, 3)).all()
    browser.switch_to.window(browser.window_handles[-1])
    other.press("again")
    assert (other.pixels("draws") == original).all()
    browser.close()
    browser.switch_to.window(first)


def test_nothing_comes_from_elsewhere(page, address):
    read = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert all(name.startswith((address, "data:")) for name in page.browser.execute_script(read))
    with urllib.request.urlopen(address) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    for headers in ({"Host": "other.example"}, {"Origin": "http://other.example"}):
        asked = urllib.request.Request(f"{address}/v1/generate", b"{}", headers)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(asked)


def test_mistakes_are_one_line(start, digits_run, joint, tmp_path):
    for options, reason in (
        (("--model", joint), "a joint VAE knows no parts of images"),
        (("--model", digits_run, "--shards", tmp_path), "index.json does not exist"),
        (("--model", tmp_path), "holds no run, no checkpoint and no export"),
    ):
        done = start("python", "launch/page.py", "--port", "0", *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert reason in done.stderr


def test_a_phone_shows_it_without_scrolling_sideways(chromium, address):
    page = Page(chromium(390), address)
    width = page.browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= 390 >= width[1] - 1, json.dumps(width)
    page.press("erase-half")
    assert len(page.sources("draws")) == 8
