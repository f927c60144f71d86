"""The page in a real browser, headless Chromium: drawn on, its knobs turned, its arithmetic compared with torch's."""

import base64
import json
import re
import shutil
import webbrowser
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import cyclegan_colors
import data
import metrics
import runs
import vae_knobs
from page import explore

NAMES = [3, 7, 1, 0, 9, 2, 8, 5, 4, 4]  # of the categories: two are called 4, none is called 6
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
DESK, PHONE = {"width": 1600, "height": 1000}, {"width": 390, "height": 844}
KNOBS = """Object.fromEntries("digit hue slant width weight style1 style2 ink number example dressed strokes".split(" ")
    .map((name) => [name, state[name]]))"""


@pytest.fixture(scope="module")
def model():
    """Random weights, except that the first two numbers are a colour wheel: their angle is the hue."""
    torch.manual_seed(0)
    model = vae_knobs.KnobVAE(3, 10, (14.0, 15.0, 0.35))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        model.decoder[-2].weight *= 5  # logits as large as those of a trained model
        channels = torch.tensor([[2, -1, -1], [0, 3**0.5, -(3**0.5)]]) / 200
        axes = channels.repeat_interleave(784, 1)  # (2, 3 · 784)
        model.encoder[1].weight[:4] = torch.cat([axes, -axes])  # a ReLU passes on either the sum or its negative
        model.encoder[3].weight[:4] = torch.eye(4, 512)
        model.gaussian_head.weight[:2] = torch.eye(2, 256) - torch.eye(2, 256).roll(2, 1)
        for layer in (model.encoder[1], model.encoder[3]):
            layer.bias[:4] = 0
        model.gaussian_head.bias.zero_()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folders(model, test_set, tmp_path_factory):
    """The folders of two runs: one with this model, one with the tracked generators."""
    vae, translation = tmp_path_factory.mktemp("vae"), tmp_path_factory.mktemp("cyclegan_colors")
    runs.save_model(vae / explore.WEIGHTS, model, 3, 10)
    categories = metrics.codes_of(model, test_set)[:, model.latents["digit"]].argmax(1)
    accuracy = (torch.tensor(NAMES)[categories] == test_set.digits).double().mean().item()
    results = {"category_digits": NAMES, "digit_accuracy": accuracy, "knob_both": 0.9871, "knob_slant_error": 1.234}
    constants = {"DATASET": "MNIST", "TRAIN_COLOR_SEED": data.TRAIN_COLOR_SEED, "SEED": 5}
    content = {"constants": constants, "results": results, "history": []}
    (vae / "metrics.json").write_text(json.dumps(content))
    for name in ("metrics.json", "generators.pt"):
        shutil.copy(cyclegan_colors.OUTPUT_DIR / name, translation / name)
    return vae, translation


def point_to(patch, place, *folders):
    """The page is made from these two folders, and put into `place`; no browser is opened."""
    for script, folder in zip((vae_knobs, cyclegan_colors), folders, strict=True):
        patch.setattr(script, "OUTPUT_DIR", folder)
    patch.setattr(explore, "PAGE", place / "explore.html")
    patch.setattr(explore, "RESULTS", place / "metrics.json")
    patch.setattr(explore, "N_CANDIDATES", 30)
    patch.setattr(explore, "N_TEST_IMAGES", 5)
    patch.setattr(webbrowser, "open", lambda uri: False)


@pytest.fixture
def outputs(folders, tmp_path, monkeypatch):
    """A copy of the two folders, and a place for the page."""
    copies = (Path(shutil.copytree(folder, tmp_path / name)) for folder, name in zip(folders, "ab", strict=True))
    point_to(monkeypatch, tmp_path, *copies)
    return tmp_path


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """The page of these models."""
    with pytest.MonkeyPatch.context() as patch:
        point_to(patch, tmp_path_factory.mktemp("page"), *folders)
        return explore.main()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium was found: the page is not tested")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page in a window of its own. In the end nothing may have been requested or complained about."""
    contexts, requests, complaints, visited = [], [], [], set()

    def visit(path, viewport=DESK, address="", **options):
        contexts.append(browser.new_context(viewport=viewport, **{"reduced_motion": "reduce"} | options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        visited.add(path.as_uri())
        page.goto(path.as_uri() + address)
        page.wait_for_timeout(150)  # until the first picture is recoloured
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints and {url.split("#")[0] for url in requests} <= visited


def drag(page, selector, points):
    """Presses the pointer on an element and moves it; points (x, y) go from 0 to 1 across the element."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()
    settle(page)


def settle(page):
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_timeout(250)


def pixels(page, canvas):
    """What a canvas of 28 × 28 pixels shows, (3, 28, 28) in [0, 1]."""
    copy = """(id) => {
        const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        pen.drawImage($(id), 0, 0);
        return [...pen.getImageData(0, 0, 28, 28).data]; }"""
    return torch.tensor(page.evaluate(copy, canvas)).view(28, 28, 4)[:, :, :3].permute(2, 0, 1) / 255


def code_of(page):
    """The code on the knobs, (1, 35)."""
    code = page.evaluate("codeOf()")
    return torch.cat([torch.tensor(code["z"]), nn.functional.one_hot(torch.tensor(code["v"]), 10).flatten()])[None]


# ------------------------------------------------------------------------------------------------ arithmetic


def test_its_arithmetic_is_torchs(visit, made, model, test_set):
    few = test_set[:100]
    x = few.colored(slice(None))
    codes = metrics.codes_of(model, few)
    translations = cyclegan_colors.load_model(cyclegan_colors.OUTPUT_DIR / "generators.pt")
    wanted = [model.decode(codes), *(translate(x) for translate in translations)]
    v = codes[:, 5:].view(-1, 3, 10).argmax(-1)

    compute = """(all) => all.map(([grey, rgb, z, v]) => {
        const x = colored(Float32Array.from(grey, (ink) => ink / 255), rgb);
        const pictures = [decode({ z, v }), translate("a_to_b", x), translate("b_to_a", x)];
        const bytes = (picture) => new Uint8Array(Uint16Array.from(picture, (value) => 65535 * value).buffer);
        return [encode(x), pictures.map((picture) => btoa(String.fromCharCode(...bytes(picture))))]; })"""
    rows = (few.images.flatten(1), few.colors, codes[:, :5], v)
    found = visit(made).evaluate(compute, [list(row) for row in zip(*(row.tolist() for row in rows), strict=True)])
    for i, target in enumerate(wanted):
        packed = b"".join(base64.b64decode(pictures[i]) for _, pictures in found)
        pictures = torch.frombuffer(bytearray(packed), dtype=torch.uint16).float().view(-1, 28, 28, 3) / 65535
        assert (pictures.permute(0, 3, 1, 2) - target).abs().max() < 0.01
    assert (torch.tensor([code["v"] for code, _ in found]) == v).all(1).double().mean() >= 0.96
    assert (torch.tensor([code["z"] for code, _ in found]) - codes[:, :5]).abs().max() < 0.05
    q = torch.tensor([code["q"] for code, _ in found])
    assert (q - model.encode(x)[2].exp()).abs().max() < 0.1 and torch.allclose(q.sum(-1), torch.ones(100, 3))


def test_it_measures_as_metrics_does(visit, made, model, test_set):
    page, x = visit(made), test_set[:40].colored(slice(None))
    measure_all = (
        "(all) => all.map((x) => measure(Float32Array.from(x))).map((m) => [m.hue, m.slant, m.width, m.weight])"
    )
    found = page.evaluate(measure_all, x.permute(0, 2, 3, 1).flatten(1).tolist())
    wanted = torch.cat([metrics.hue_of(x)[:, None], metrics.styles_of(x)], 1)
    assert torch.allclose(torch.tensor(found), wanted, atol=1e-2)

    moves = {"slant": 8, "width": 5, "weight": -0.2}
    page.evaluate("(moves) => { Object.assign(state, moves); showKnobs(); }", moves)
    code = code_of(page)
    for i, (name, move) in enumerate(moves.items()):
        both = torch.cat([code, model.turned(code, name, -move)])
        now, before = metrics.styles_of(model.decode(both))[:, i].tolist()
        text = page.text_content(f"#{name}-measured").replace("−", "-")
        change = page.evaluate("([name, change]) => moved(name, change)", [name, now - before])
        assert float(re.sub(r"[^-\d.]", "", text)) == pytest.approx(change, abs=0.06)
    assert [page.text_content(f"#{name}-asked") for name in moves] == ["+8°", "+5%", "−0.20 px"]


# ------------------------------------------------------------------------------------------------- drawing


def test_a_drawing_becomes_the_picture_that_data_render_makes_of_it(visit, made):
    page, strokes = visit(made), [drawing["strokes"] for drawing in data.strokes()]
    some = [*strokes[::8], [[[3, 7]]], [[[3, 7], [3, 7]], [[90, 9]]]]
    found = page.evaluate("(all) => all.map((strokes) => [...render(strokes)])", some)
    wanted = torch.stack([data.render(each) for each in some]).flatten(1)
    assert (torch.tensor(found) * 255 - wanted).abs().max() < 1.01

    drag(page, "#field", [(0.1, 0.1), (0.1, 0.4), (0.25, 0.4)])
    assert page.evaluate("state.example") is None  # the example is gone
    seen = data.render(page.evaluate("state.strokes")) / 255
    assert (pixels(page, "seen").amax(0) - seen).abs().max() < 0.01
    assert torch.equal(pixels(page, "seen"), pixels(page, "machine-in"))
    ink = page.evaluate("measure(colored(state.grey, rgbOf(state.ink))).hue")
    page.focus("#ink")
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.evaluate("state.ink") == pytest.approx((ink + 1) % 360, abs=0.6)
    knobs = page.evaluate("[knobsOf(state.read), codeOf(), state.read]")
    assert page.evaluate("state.slant") == knobs[0]["slant"] and knobs[1]["v"] == knobs[2]["v"]


def test_a_test_image_is_seen_as_it_is(visit, made, test_set):
    page = visit(made)
    page.click("#random")
    seen = (pixels(page, "seen").amax(0) * 255).round()
    assert (test_set.images[: explore.N_CANDIDATES].float() == seen).all(2).all(1).any()


def test_undo_and_clear(visit, made):
    page = visit(made)
    opening = page.evaluate(KNOBS)
    drag(page, "#field", [(0.3, 0.2), (0.6, 0.8)])
    drag(page, "#field", [(0.6, 0.2), (0.3, 0.8)])
    first = page.evaluate("state.strokes[0]")
    page.keyboard.press("Control+z")
    page.click("#another"), page.click("#back")
    assert page.evaluate("[state.strokes, state.example]") == [[first], None]
    page.press("#slant", "ArrowRight")
    page.press("#ink", "ArrowRight"), page.press("#ink", "ArrowLeft")
    page.evaluate("""() => ["pointerdown", "input", "pointercancel"].forEach((type) => { // a swipe that scrolled
        $("slant").dispatchEvent(new Event(type)); $("slant").value = 7; })""")
    settle(page)
    assert page.evaluate("state.slant") == page.evaluate("state.own.slant") + 1
    page.click("#domain3")
    page.click("#clear")
    settle(page)
    for canvas in ("field", "seen", "drawn", "machine-in", "in-a", "in-b", "again"):
        assert pixels(page, canvas).max() == 0
    assert page.text_content("#reading") == "Nothing is drawn yet." and page.text_content("#in-b-note") == ""
    assert page.locator("#bars li, #domains [aria-pressed=true]").count() == 0
    assert page.evaluate(KNOBS) | {"example": 0, "dressed": opening["dressed"]} == opening
    page.click("#undo")
    assert page.evaluate("state.strokes") == [first]
    page.click("#undo")
    assert page.evaluate(KNOBS) == opening and page.is_disabled("#undo")


def test_a_second_guess_is_named(visit, made):
    page = visit(made)
    guess = """(second) => { const own = encode, q = [[0, second, 0, 0, 0, 0, 1 - second, 0, 0, 0]];
        window.encode = (x) => ({ ...own(x), v: [6, 0, 0], q });
        read(); window.encode = own; return $("reading").textContent; }"""
    assert page.evaluate(guess, 0.09) == "Read as an 8." and page.evaluate(guess, 0.11) == "Read as an 8, or a 7?"
    assert page.locator("#bars li").all_text_contents()[1].split() == ["7", "11%"]


def test_one_pointer_draws_and_does_not_scroll(visit, made):
    page = visit(made, PHONE, has_touch=True, is_mobile=True)
    page.locator("#field").scroll_into_view_if_needed()
    box, top = page.locator("#field").bounding_box(), page.evaluate("scrollY")
    cdp = page.context.new_cdp_session(page)

    def at(x, y, number=0):
        return {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": number}

    def touch(kind, *points):
        cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [*points]})

    touch("touchStart", at(0.5, 0.2))
    for i in range(1, 7):  # a palm, or another finger, rests at the edge
        touch("touchStart" if i == 1 else "touchMove", at(0.5, 0.2 + 0.1 * i), at(0.1, 0.9 - 0.1 * i, 1))
    touch("touchEnd")
    settle(page)
    strokes = page.evaluate("state.strokes")
    assert len(strokes) == 1 and len(strokes[0]) >= 6 and all(abs(x - 648) < 20 for x, _ in strokes[0])
    assert page.evaluate("scrollY") == top

    pen = {"pointerType": "pen", "button": "left", "buttons": 1}
    touch("touchStart", at(0.9, 0.9))  # the palm comes before the pen
    for kind, x in (("mousePressed", 0.2), ("mouseMoved", 0.4), ("mouseReleased", 0.4)):
        cdp.send("Input.dispatchMouseEvent", {"type": kind, "x": at(x, 0)["x"], "y": at(0, 0.5)["y"], **pen})
    touch("touchEnd")
    touch("touchStart", at(0.9, 0.9))
    touch("touchEnd")
    settle(page)
    strokes = page.evaluate("state.strokes")
    assert len(strokes) == 2 and strokes[1][0][0] < 300


# --------------------------------------------------------------------------------------------------- knobs


def test_a_digits_button_sets_the_digit_alone(visit, made, model):
    page = visit(made)
    names = page.evaluate("page.digit_of_category")
    for digit in sorted(set(names)):
        before = page.evaluate("codeOf()")
        page.click(f"#digit{digit}")
        after = page.evaluate("codeOf()")
        assert names[after["v"][0]] == digit and after["v"][1:] == before["v"][1:] and after["z"] == before["z"]
        assert page.get_attribute(f"#digit{digit}", "aria-pressed") == "true"
        assert (pixels(page, "machine-out") - model.decode(code_of(page))[0]).abs().max() < 0.02
    for digit in set(range(10)) - set(names):
        assert page.is_disabled(f"#digit{digit}")


def test_parts_minus_holes():
    ink = torch.zeros(4, 28, 28)
    ink[:, 5:20, 5:20], ink[1:3, 8:11, 8:11], ink[2, 14:17, 14:17], ink[3, 12:14] = 1, 0, 0, 0
    assert explore.euler_numbers(ink, 0.3).tolist() == [1, 0, -1, 2]


def test_dragging_the_wheel_turns_the_hue_of_all_ten(visit, made):
    page = visit(made)
    before, names = page.evaluate("codeOf()"), page.evaluate("page.digit_of_category")
    shown = {digit: page.evaluate(f"$('digit{digit}-picture').toDataURL()") for digit in names}
    for hue, points in ((90, [(0.5, 0.05), (0.95, 0.5)]), (0, [(0.95, 0.5), (0.5, -0.5)])):  # beyond the rim
        drag(page, "#ring", points)
        assert page.evaluate("state.hue") % 360 == pytest.approx(hue, abs=1)
    after = page.evaluate("codeOf()")
    assert after["z"][2:] == before["z"][2:] and after["v"] == before["v"] and after["z"][:2] != before["z"][:2]
    drag(page, "#ring", [(0.05, 0.5)])
    for digit, picture in shown.items():
        assert page.evaluate(f"$('digit{digit}-picture').toDataURL()") != picture
    assert page.locator("#values .turned dt").all_text_contents() == ["hue"]
    page.click("#back")
    assert page.evaluate("codeOf()") == before and page.is_disabled("#back")


def test_the_knobs_turn_by_keyboard(visit, made):
    page, names = visit(made), ("hue", "slant", "width", "weight", "style1", "style2")
    page.evaluate(
        "Object.assign(state, { hue: 359, slant: 0, width: 0, weight: 0, style1: 3, style2: 3 }); showKnobs()"
    )
    page.click("summary")
    for knob in names:
        page.focus(f"#{knob}")
        page.keyboard.press("ArrowRight")
    settle(page)
    assert [page.evaluate(KNOBS)[name] for name in names] == [0, 1, 1, 0.02, 4, 4]  # the hue goes around
    assert page.get_attribute("#slant", "aria-valuetext").startswith("+1 degrees, measured ")
    digit = page.evaluate("page.digit_of_category.find((digit) => digit !== state.digit)")
    page.focus(f"#digit{digit}")
    page.keyboard.press("Enter")
    assert page.evaluate("state.digit") == digit
    for control in page.locator("button, input").all():
        name = control.evaluate("(it) => it.labels && it.labels.length ? it.labels[0].textContent : it.textContent")
        assert name.strip() and (control.get_attribute("type") != "range" or control.get_attribute("aria-valuetext"))


def test_the_hue_turns_once_by_itself_until_touched(visit, made):
    page, still = visit(made, reduced_motion="no-preference"), visit(made)
    hues = {page.evaluate("state.hue") for _ in range(8) if page.wait_for_timeout(100) is None}
    assert len(hues) > 3 and still.evaluate("state.hue") == still.evaluate("opening.hue")
    page.keyboard.press("Tab")
    settle(page)
    hue = page.evaluate("state.hue")
    page.wait_for_timeout(200)
    assert page.evaluate("state.hue") == hue


# ------------------------------------------------------------------------------- recolouring, numbers, the address


def test_the_drawing_is_recoloured_there_and_back(visit, made):
    page = visit(made)
    a_to_b, b_to_a = cyclegan_colors.load_model(cyclegan_colors.OUTPUT_DIR / "generators.pt")
    palette = data.palette("DOMAIN_A", data.DOMAIN_A)
    grey = torch.tensor(page.evaluate("[...state.grey]")).view(1, 1, 28, 28)
    for digit in (7, 3):
        page.click(f"#domain{digit}")
        x = grey * palette[digit][:, None, None]
        assert (pixels(page, "in-a") - x[0]).abs().max() < 0.01
        assert (pixels(page, "in-b") - a_to_b(x)[0]).abs().max() < 0.01
        assert (pixels(page, "again") - b_to_a(a_to_b(x))[0]).abs().max() < 0.02  # the rounding of both
        assert page.text_content("#in-b-note") == f"✓ {data.DOMAIN_B[digit]}, as a {digit} wears in B"
        assert f"dressed as a {digit}" in page.text_content("#by-color") or digit == page.evaluate("opening.digit")


def test_a_number_is_written_and_saved(visit, made, tmp_path):
    page = visit(made)
    page.fill("#number", "31-12 x7")
    settle(page)
    assert page.evaluate("state.number") == "31-12 7" and "31-12 7" in page.get_attribute("#line", "aria-label")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "number.png")
    picture = plt.imread(tmp_path / "number.png")[:, :, :3]
    assert picture.shape[1] >= 1000 and picture.max() > 0.9 and (picture.max((0, 2)) > 0.5).mean() > 0.2
    page.click("#today")
    settle(page)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", page.input_value("#number"))


def test_a_link_and_a_reload_show_the_same(visit, made):
    page = visit(made, address="#digit=99&hue=x&slant=1e9&strokes=%21-00&number=%3Cb%3E1&example=-4")
    assert page.evaluate("[state.number, state.strokes, state.slant]") == ["1", [], page.evaluate("state.slant")]
    drag(page, "#field", [(0.3, 0.2), (0.6, 0.8), (0.2, 0.7)])
    page.evaluate("Object.assign(state, { hue: 200, slant: -3, weight: 0.2, style1: 7, number: '40/2' })")
    page.click("#digit3")
    page.click("#domain5")
    page.wait_for_timeout(400)
    state, address = page.evaluate(KNOBS), page.evaluate("location.hash")
    assert state["hue"] == 200 and state["strokes"] and state["dressed"] == 5
    other = visit(made, address=address)
    page.reload()
    for each in (other, page):
        settle(each)
        found = each.evaluate(KNOBS)
        assert found.pop("weight") == pytest.approx(0.2) and found == {k: v for k, v in state.items() if k != "weight"}
        assert each.input_value("#hue") == "200" and each.text_content("#slant-asked") == "−3°"
        assert each.input_value("#slant") == "-3" and each.input_value("#number") == "40/2"
    page.goto("about:blank")
    page.go_back()
    settle(page)
    assert page.evaluate(KNOBS)["strokes"] == state["strokes"] and page.input_value("#hue") == "200"


# ---------------------------------------------------------------------------------------------- how it is shown


@pytest.mark.parametrize("viewport", [PHONE, DESK])
def test_it_fits_the_window(visit, made, viewport):
    for scheme in ("light", "dark"):
        page = visit(made, viewport, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128") == (
            scheme == "dark"
        )
        low = page.locator("button:visible, input:visible").evaluate_all(
            "(all) => all.filter((b) => b.offsetHeight < 44)"
        )
        assert not low  # as tall as a finger is wide
    page.set_viewport_size({"width": 360, "height": 740})
    for size in (24, 32):
        page.evaluate(f"document.documentElement.style.fontSize = '{size}px'")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_shows_the_field_and_its_reading_at_once(visit, made):
    page = visit(made, PHONE, has_touch=True, is_mobile=True)
    field, *others = (page.locator(f"#{name}").bounding_box() for name in ("field", "reading", "seen", "drawn", "undo"))
    ends = [end for box in (field, *others) for end in (box["y"], box["y"] + box["height"])]
    assert max(ends) - min(ends) < 600  # a browser's bars leave 660
    assert field["x"] >= 44 and PHONE["width"] - field["x"] - field["width"] >= 44  # room to scroll beside it
    assert visit(made).locator("#field").bounding_box()["width"] == 400


def test_forced_colors_and_printing_keep_what_is_shown(visit, made):
    page = visit(made, forced_colors="active")
    drag(page, "#field", [(0.3, 0.2), (0.6, 0.8)])
    style = "(it, names) => names.map((name) => getComputedStyle(it)[name])"
    for selector in (".disc", ".bar", ".hue", "#ring", "canvas", "#digits", ".funnel"):
        found = page.locator(selector).first.evaluate(style, ["forcedColorAdjust", "printColorAdjust"])
        assert found == ["none", "exact"]
    page.focus("#digit3")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    pressed, look = page.locator("#digits [aria-pressed=true]"), ["outlineStyle", "borderBottomColor"]
    focused, pressed = page.locator("#digit3").evaluate(style, look), pressed.evaluate(style, look)
    assert focused[0] == "dashed" and pressed[0] == "none" and focused[1] != pressed[1]


# ---------------------------------------------------------------------------------------------------- the file


def test_a_damaged_file_says_so(browser, made, tmp_path):
    text = made.read_text(encoding="utf-8")
    at = text.rindex('"weights":"') + 1000
    for damaged, sentence in (
        (text[: len(text) // 2], "The end of this file is missing"),
        (text[:-2000], "The end of this file is missing"),
        (text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :], "A part of this file is damaged"),
        (text[:at] + text[at + 1 :], "A part of this file is damaged"),
        (text.replace("const opening", "const const"), "Something in this page went wrong"),
        (text, "nothing to draw on"),
    ):
        (tmp_path / "page.html").write_text(damaged, encoding="utf-8")
        with browser.new_context() as context:
            page = context.new_page()
            if damaged == text:
                page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
            page.goto((tmp_path / "page.html").as_uri())
            page.wait_for_timeout(400)
            assert sentence in page.locator("#notice").inner_text() and not page.locator(".panel:visible").count()


def test_a_saved_page_opens_again(visit, made, tmp_path):
    page = visit(made)
    drag(page, "#field", [(0.3, 0.2), (0.6, 0.8)])
    (tmp_path / "saved.html").write_text(page.content(), encoding="utf-8")
    again = visit(tmp_path / "saved.html")
    assert again.locator("#digits button").count() == again.locator("#domains button").count() == 10
    assert again.locator("#named input").count() == 4 and again.locator("#rest input").count() == 2
    ids = again.evaluate("[...document.querySelectorAll('[id]')].map((it) => it.id)")
    again.click("#digit3")
    assert len(ids) == len(set(ids)) and again.evaluate("state.digit") == 3 and again.is_hidden("#notice")


def test_its_numbers_are_those_of_the_models(visit, made, folders):
    page, (vae, translation) = visit(made), (json.loads((f / "metrics.json").read_text())["results"] for f in folders)
    own = json.loads((made.parent / "metrics.json").read_text())["results"]
    shares = {name: share for name, share in (vae | translation | own).items() if isinstance(share, float)}
    for name in ("digit_accuracy", "knob_both", "a_to_b_both", "b_to_a_both", "drawings_read"):
        for element in page.locator(f"[data-number={name}]").all():
            assert element.text_content() == f"{100 * shares[name]:.1f}%"
    assert page.locator("[data-number=n_test]").first.text_content() == "10,000"
    assert page.locator(".fact:visible").count() == 4  # the model has no error of width and weight
    assert "(seed 5)" in page.text_content("#origin") and page.is_hidden("#dataset")


def edit(path, part, **values):
    """Changes constants or results in a metrics.json."""
    content = json.loads(path.read_text())
    content[part] |= values
    path.write_text(json.dumps(content))


def test_the_page_is_small_and_the_same_each_time_and_needs_nothing_else(made, outputs):
    explore.main()
    text = explore.PAGE.read_text(encoding="utf-8")
    assert text == made.read_text(encoding="utf-8") and explore.PAGE.stat().st_size < 5_000_000
    shell = "".join(parts_of(text)[:2])
    assert str(explore.TEMPLATE.parent) not in text and str(outputs) not in text and "{{" not in shell
    assert not re.findall(r"""(?:src|href)="(?!data:)|https?:(?!//www.w3.org/2000/svg)|@import|url\(""", shell)


FAULTS = {  # the end of the sentence → what is done to the folders
    r"metrics\.json is missing.*": lambda f: (f / "a" / "metrics.json").unlink(),
    "run cyclegan_colors.py again": lambda f: edit(f / "b" / "metrics.json", "constants", DOMAIN_A=["red"] * 10),
    "run vae_knobs.py again": lambda f: edit(f / "a" / "metrics.json", "results", category_digits=NAMES[::-1]),
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_a_fault_is_one_sentence_and_the_old_page_stays(sentence, outputs):
    explore.PAGE.write_text("old")
    FAULTS[sentence](outputs)
    with pytest.raises(SystemExit, match=rf"^.*{sentence}\.$"):
        explore.main()
    assert explore.PAGE.read_text() == "old" and not list(outputs.glob("*.tmp*"))


# ------------------------------------------------------------------------------------------- the tracked page

TRACKED, TRACKED_RESULTS = explore.PAGE, explore.RESULTS


def parts_of(text):
    """What comes before a page's data, what comes after it, and the data."""
    before, rest = text.split('id="page">')
    lines, after = rest.split("</script>", 1)
    return before, after, lines


@pytest.fixture
def tracked():
    """What the tracked page holds: a list of layers, or the rest, by name."""
    before, after, lines = parts_of(TRACKED.read_text(encoding="utf-8"))
    template = explore.TEMPLATE.read_text(encoding="utf-8").replace("{{SIZE}}", str(len(lines)))
    template = template.replace("{{ARITHMETIC}}", explore.ARITHMETIC.read_text(encoding="utf-8").strip())
    assert (before, after) == parts_of(template)[:2], "the template was edited: run python -m page.explore"
    parts = {}
    for line in lines.split("\n"):
        _, name, text = line.split("\t")
        parts.setdefault(name, []).append(json.loads(text))
    return parts | {"page": parts["page"][0]}


def test_the_tracked_page_reads_test_images_and_drawings(visit, tracked, test_set):
    """1,000 test images, and a third of the drawings through its own rendering."""
    read = """([packed, hues, all]) => {
        const numbers = unpack(packed, 8, 784 * hues.length);
        const category = (grey, hue) => encode(colored(grey, rgbOf(hue))).v[0];
        const image = (n) => new Float32Array(numbers.subarray(784 * n, 784 * (n + 1))).map((ink) => ink / 255);
        return [hues.map((hue, n) => category(image(n), hue)),
            all.map((each, n) => category(render(each), 7 * n % 360))]; }"""
    drawn, names = data.strokes()[::3], torch.tensor(tracked["page"]["digit_of_category"])
    strokes, digits = [each["strokes"] for each in drawn], torch.tensor([each["digit"] for each in drawn])
    hues = test_set.hues[:1000].round().int().tolist()
    found = visit(TRACKED).evaluate(read, [explore.pack(test_set.images[:1000].numpy(), 8), hues, strokes])
    assert (names[found[0]] == test_set.digits[:1000]).sum() >= 970
    assert (names[found[1]] == digits).double().mean() >= 0.88


def test_the_tracked_page_has_the_tracked_numbers_and_generators(tracked):
    assert TRACKED.stat().st_size < 5_000_000 and tracked["page"]["names"] == data.class_names()
    own = runs.load_results(TRACKED_RESULTS)["results"]
    assert own["pixel_error"] <= explore.MAX_ERROR and own["megabytes"] == round(TRACKED.stat().st_size / 1e6, 2)
    for script in (vae_knobs, cyclegan_colors):
        own |= runs.load_results(script.OUTPUT_DIR / "metrics.json")["results"]
    numbers = {name: value for name, value in tracked["page"]["numbers"].items() if name in own}
    assert {name: own[name] for name in numbers} == numbers and len(numbers) >= 6
    generators = cyclegan_colors.load_model(cyclegan_colors.OUTPUT_DIR / "generators.pt")
    for name, generator in zip(("a_to_b", "b_to_a"), generators, strict=True):
        assert tracked[name] == json.loads(json.dumps(explore.generator_layers(*generator)))
