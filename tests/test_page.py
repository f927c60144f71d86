"""The page in a real browser, headless Chromium: drawn on, its knobs turned, its arithmetic compared with torch's."""

import base64
import json
import re
import shutil
import webbrowser
from pathlib import Path

import pytest
import torch
from torch import nn

import cyclegan_colors
import data
import metrics
import runs
import vae_control
from page import explore

NAMES = [3, 7, 1, 0, 9, 2, 8, 5, 4, 4]  # of the categories: two are called 4, none is called 6
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
DESK, PHONE = {"width": 1600, "height": 1000}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def model():
    """Random weights, except that z is a colour wheel: its angle is the hue, its radius the amount of ink."""
    torch.manual_seed(0)
    model = vae_control.ControlVAE(2, 4, 10)
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
    runs.save_model(vae / "model.pt", model, 2, 4, 10)
    categories = metrics.codes_of(model, test_set)[:, model.latents["v1"]].argmax(1)
    accuracy = (torch.tensor(NAMES)[categories] == test_set.digits).double().mean().item()
    results = {"category_digits": NAMES, "digit_accuracy": accuracy, "knob_both": 0.9871}
    constants = {"DATASET": "MNIST", "TRAIN_COLOR_SEED": data.TRAIN_COLOR_SEED, "SEED": 5}
    (vae / "metrics.json").write_text(json.dumps({"constants": constants, "results": results}))
    for name in ("metrics.json", "generators.pt"):
        shutil.copy(cyclegan_colors.OUTPUT_DIR / name, translation / name)
    return vae, translation


def point_to(patch, place, *folders):
    """The page is made from these two folders, and put into `place`; no browser is opened."""
    for script, folder in zip((vae_control, cyclegan_colors), folders, strict=True):
        patch.setattr(script, "OUTPUT_DIR", folder)
    patch.setattr(explore, "PAGE", place / "explore.html")
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
    contexts, requests, complaints = [], [], []

    def visit(path, viewport=DESK, **options):
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_timeout(150)  # until the first picture is recoloured
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints and len(requests) == len(contexts) and all(url.startswith("file:") for url in requests)


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
    """Waits until what was asked for is painted."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 150)))")


def pixels(page, canvas):
    """What a canvas of 28 × 28 pixels shows, (3, 28, 28) in [0, 1]."""
    copy = """(id) => {
        const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        pen.drawImage($(id), 0, 0);
        return [...pen.getImageData(0, 0, 28, 28).data]; }"""
    return torch.tensor(page.evaluate(copy, canvas)).view(28, 28, 4)[:, :, :3].permute(2, 0, 1) / 255


def test_its_arithmetic_is_torchs(visit, made, model, test_set):
    few = test_set[:200]
    x = few.colored(slice(None))
    codes = metrics.codes_of(model, few)
    translations = cyclegan_colors.load_model(cyclegan_colors.OUTPUT_DIR / "generators.pt")
    wanted = [model.decode(codes), *(translate(x) for translate in translations)]
    v = codes[:, 2:].view(-1, 4, 10).argmax(-1)

    compute = """(all) => all.map(([rgb, z, v], i) => {
        const x = colored(Float32Array.from(images.subarray(784 * i, 784 * (i + 1)), (ink) => ink / 255), rgb);
        const pictures = [decode({ z, v }), translate("a_to_b", x), translate("b_to_a", x)];
        const bytes = (picture) => new Uint8Array(Uint16Array.from(picture, (value) => 65535 * value).buffer);
        return [encode(x), pictures.map((picture) => btoa(String.fromCharCode(...bytes(picture))))]; })"""
    arguments = [list(row) for row in zip(few.colors.tolist(), codes[:, :2].tolist(), v.tolist(), strict=True)]
    found = visit(made).evaluate(compute, arguments)
    for i, target in enumerate(wanted):
        packed = b"".join(base64.b64decode(pictures[i]) for _, pictures in found)
        pictures = torch.frombuffer(bytearray(packed), dtype=torch.uint16).float().view(-1, 28, 28, 3) / 65535
        assert (pictures.permute(0, 3, 1, 2) - target).abs().max() < 0.01
    assert (torch.tensor([code["v"] for code, _ in found]) == v).all(1).double().mean() >= 0.995
    assert (torch.tensor([code["z"] for code, _ in found]) - codes[:, :2]).abs().max() < 0.02
    q = torch.tensor([code["q"] for code, _ in found])
    assert (q - model.encode(x)[2].exp()).abs().max() < 0.05 and torch.allclose(q.sum(-1), torch.ones(200, 4))


def test_it_is_fast_enough_to_drag(visit, made):
    milliseconds = """(compute) => Math.min(...Array.from({ length: 30 }, () => {
        const started = performance.now(); eval(compute); return performance.now() - started; }))"""
    page = visit(made)
    assert page.evaluate(milliseconds, "decode(state.code)") < 10
    assert page.evaluate(milliseconds, "encode(colored(state.seen.grey, [1, 1, 1]))") < 20


def test_a_drawing_is_scaled_centred_and_read(visit, made):
    page = visit(made)
    before = page.evaluate("state.read"), pixels(page, "picture")
    drag(page, "#field", [(0.1, 0.1), (0.1, 0.4), (0.25, 0.4)])
    field, seen = pixels(page, "field"), pixels(page, "seen")
    assert field[:, 15:].max() == 0 and field[:, :15, :15].max() > 0.9  # the example is gone
    ink = seen.amax(0)
    rows, columns = (ink > 0.25).any(1).nonzero()[:, 0], (ink > 0.25).any(0).nonzero()[:, 0]
    assert 19 <= rows[-1] - rows[0] + 1 <= 21 and columns[-1] - columns[0] < 20
    center = (ink.sum(1) * (torch.arange(28) + 0.5)).sum() / ink.sum()
    assert 13.5 <= center <= 15.5
    assert page.evaluate("state.read.z") == page.evaluate("state.code.z") != before[0]["z"]
    assert not torch.equal(pixels(page, "picture"), before[1])

    hue = page.evaluate("hueOf(colored(state.seen.grey, rgbOf(+$('ink').value)))")
    page.focus("#ink")
    page.keyboard.press("End")
    settle(page)
    assert page.evaluate("$('ink').value") == "359" and abs(hue - 359) > 1
    assert page.evaluate("state.hue") == pytest.approx(359, abs=3)
    page.click("#clear")
    assert pixels(page, "seen").max() == 0


def test_test_images_pass_the_field_unchanged_wherever_they_lie(visit, made, test_set):
    page = visit(made)
    page.click("#random")
    assert torch.equal(pixels(page, "field"), pixels(page, "seen"))
    moved = """(shift) => { let changed = 0;
        for (let n = 0; n < 200; n++) {
            const grey = Float32Array.from(images.subarray(784 * n, 784 * (n + 1)), (ink) => ink / 255);
            const away = grey.map((_, i) => i % 28 < 25 ? grey[i - shift] || 0 : 0); // 3 pixels at least are empty
            const there = grey.every((ink, i) => ink === 0 || away[i + shift] === ink);
            if (there && normalize(away).grey.some((ink, i) => Math.abs(ink - grey[i]) > 1e-6)) changed++;
        }
        return changed; }"""
    assert page.evaluate(moved, 0) == 0 and page.evaluate(moved, 28) == 0 and page.evaluate(moved, -57) == 0


def test_a_digits_button_sets_the_first_variable_alone(visit, made):
    page = visit(made)
    names = page.evaluate("page.digit_of_category")
    for digit in sorted(set(names)):
        before = page.evaluate("state.code")
        page.click(f"#digit{digit}")
        after = page.evaluate("state.code")
        assert names[after["v"][0]] == digit and after["v"][1:] == before["v"][1:] and after["z"] == before["z"]
        assert page.get_attribute(f"#digit{digit}", "aria-pressed") == "true"
        assert torch.equal(pixels(page, "picture"), pixels(page, f"digit{digit}-picture"))
    for digit in set(range(10)) - set(names):
        assert page.is_disabled(f"#digit{digit}")


def test_dragging_the_wheel_turns_hue_and_weight_of_all_ten(visit, made):
    page = visit(made)
    reach, v, names = (page.evaluate(name) for name in ("page.reach", "state.code.v", "page.digit_of_category"))
    before = {digit: pixels(page, f"digit{digit}-picture") for digit in names}
    drag(page, "#wheel", [(0.5, 0.4), (0.75, 0.5), (0.5, 0.3)])  # in the end straight up
    assert page.evaluate("state.code.z") == pytest.approx([0, 0.4 * reach], abs=0.02)
    assert page.evaluate("state.hue") == pytest.approx(90, abs=6) and page.evaluate("state.code.v") == v
    for digit, picture in before.items():
        assert not torch.equal(pixels(page, f"digit{digit}-picture"), picture)
    drag(page, "#wheel", [(0.5, 0.5), (1.5, 0.5)])  # beyond the rim
    assert page.evaluate("state.code.z") == pytest.approx([reach, 0], abs=0.02)
    page.click("#back")
    assert page.evaluate("state.code.z") == page.evaluate("state.read.z")


def test_the_knobs_turn_by_keyboard(visit, made):
    page = visit(made)
    hue, weight, v = (page.evaluate(f"state.{name}") for name in ("hue", "weight", "code.v"))
    turns = {"#hue": "ArrowLeft", "#weight": "ArrowRight", "#v3": "ArrowRight" if v[2] < 9 else "ArrowLeft"}
    for knob, key in turns.items():
        page.focus(knob)
        page.keyboard.press(key)
    settle(page)
    assert page.evaluate("state.hue") == pytest.approx(round(hue) - 1)
    assert page.evaluate("state.weight") == pytest.approx(weight + 0.01, abs=0.0051)
    assert page.evaluate("state.code.v") == [v[0], v[1], v[2] + (1 if v[2] < 9 else -1), v[3]]
    for hue in (0, 77, 199.5, 359):
        place = page.evaluate("(hue) => hueAndWeight(pointOf(hue, 1.3))", hue)
        assert (place["hue"], place["weight"]) == pytest.approx((hue, 1.3), abs=1e-6)
    digit = page.evaluate("page.digit_of_category.find((digit, category) => category !== state.code.v[0])")
    page.focus(f"#digit{digit}")
    page.keyboard.press("Enter")
    assert page.evaluate("page.digit_of_category[state.code.v[0]]") == digit
    for control in page.locator("button, input").all():
        name = control.evaluate("(it) => it.labels && it.labels.length ? it.labels[0].textContent : it.textContent")
        assert name.strip()


def test_the_drawing_is_recoloured_there_and_back(visit, made, test_set):
    page = visit(made)
    a_to_b, b_to_a = cyclegan_colors.load_model(cyclegan_colors.OUTPUT_DIR / "generators.pt")
    palette = data.palette("DOMAIN_A", data.DOMAIN_A)
    for digit in (7, 3):  # the first test image is a 7
        page.click(f"#domain{digit}")
        x = data.colorize(test_set.images[:1], palette[digit : digit + 1])
        assert (pixels(page, "in-a") - x[0]).abs().max() < 0.01
        assert (pixels(page, "in-b") - a_to_b(x)[0]).abs().max() < 0.01
        assert (pixels(page, "again") - b_to_a(a_to_b(x))[0]).abs().max() < 0.02  # the rounding of both
        assert data.DOMAIN_B[digit] in page.text_content("#in-b-note")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESK])
def test_it_fits_the_window(visit, made, viewport, scheme):
    page = visit(made, viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128") == (scheme == "dark")
    narrow = page.locator("button:visible").evaluate_all("(all) => all.filter((b) => b.offsetHeight < 44).length")
    assert narrow == 0  # as tall as a finger is wide


def test_a_finger_draws_and_does_not_scroll(visit, made):
    page = visit(made, PHONE, has_touch=True, is_mobile=True)
    page.locator("#field").scroll_into_view_if_needed()
    box, top = page.locator("#field").bounding_box(), page.evaluate("scrollY")
    touch = page.context.new_cdp_session(page)
    for i, kind in enumerate(("touchStart", *["touchMove"] * 5, "touchEnd")):
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] * (0.2 + 0.1 * i)}
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if kind == "touchEnd" else [point]})
    settle(page)
    field = pixels(page, "field").amax(0)
    assert (field[6:19, 13:15] > 0.9).all() and field[:, :11].max() == 0 and page.evaluate("scrollY") == top


def test_its_numbers_are_those_of_the_models(visit, made, folders):
    page, (vae, translation) = visit(made), (json.loads((f / "metrics.json").read_text())["results"] for f in folders)
    for name, share in (vae | translation).items():
        for element in page.locator(f"[data-share={name}]").all():
            assert element.text_content() == f"{100 * share:.1f}%"
    assert page.locator("[data-share]").count() == 4 and page.locator(".fact:visible").count() == 3
    assert "(seed 5)" in page.text_content("#origin") and page.is_hidden("#dataset")


def edit(path, part, **values):
    """Changes constants or results in a metrics.json."""
    content = json.loads(path.read_text())
    content[part] |= values
    path.write_text(json.dumps(content))


def test_another_dataset_names_its_classes(visit, outputs, monkeypatch):
    loaded = data.load(train=False)
    monkeypatch.setattr(data, "load", lambda train: loaded)  # in place of clothes
    monkeypatch.setattr(data, "DATASET", "FashionMNIST")
    for path in outputs.glob("*/metrics.json"):
        edit(path, "constants", DATASET="FashionMNIST")
    page = visit(explore.main(), PHONE)
    assert page.text_content("#digit9").strip() == "Ankle boot" and "T-shirt/top" in page.text_content("#bars")
    assert "trained on FashionMNIST" in page.text_content("#dataset") and page.is_visible("#dataset")
    drag(page, "#field", [(0.1, 0.1), (0.3, 0.3)])
    assert torch.equal(pixels(page, "seen"), pixels(page, "field"))  # only MNIST's digits were scaled and centred
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_is_small_and_the_same_each_time_and_needs_nothing_else(made, outputs):
    explore.main()
    text = explore.PAGE.read_text(encoding="utf-8")
    assert text == made.read_text(encoding="utf-8") and explore.PAGE.stat().st_size < 6_000_000
    assert str(explore.TEMPLATE.parent) not in text and str(outputs) not in text and "{{" not in text
    assert not re.findall(r"""(?:src|href)="(?!data:,)|https?:|@import|url\(""", text)  # nothing to be loaded


def test_pack_is_a_row_of_bits():
    assert explore.pack(torch.tensor([1, 4095, 0, 16]).numpy(), 12) == "AB//AAAQ"
    layer = explore.pack_layer(torch.tensor([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0.25, -1.0]))
    assert layer["scale"][0] == pytest.approx(1 / 2047) and layer["bias"] == [0.25, -1.0]
    by_input = torch.tensor([4095, 2048, 1024, 2048, 2048, 2048])
    assert layer["weights"] == explore.pack(by_input.numpy(), 12)


FAULTS = {  # the end of the sentence → what is done to the folders
    r"metrics\.json is missing.*": lambda f: (f / "a" / "metrics.json").unlink(),
    "LATENT_DIM of 1: .*": lambda f: runs.save_model(f / "a/model.pt", vae_control.ControlVAE(1, 2, 10), 1, 2, 10),
    "run cyclegan_colors.py again": lambda f: edit(f / "b" / "metrics.json", "constants", DOMAIN_A=["red"] * 10),
    "run vae_control.py again": lambda f: edit(f / "a" / "metrics.json", "results", category_digits=NAMES[::-1]),
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_a_fault_is_one_sentence_and_the_old_page_stays(sentence, outputs):
    explore.PAGE.write_text("old")
    FAULTS[sentence](outputs)
    with pytest.raises(SystemExit, match=rf"^.*{sentence}\.$"):
        explore.main()
    assert explore.PAGE.read_text() == "old" and not list(outputs.glob("*.tmp*"))


# ------------------------------------------------------------------------------------------- the tracked page

TRACKED = explore.PAGE


@pytest.fixture
def tracked():
    """What the tracked page holds."""
    before, after = explore.TEMPLATE.read_text(encoding="utf-8").split("{{PAGE}}")
    text = TRACKED.read_text(encoding="utf-8")
    assert text.startswith(before) and text.endswith(after), "template.html was edited: run python -m page.explore"
    return json.loads(text[len(before) : -len(after)])


def test_the_tracked_page_reads_test_images(visit, tracked, test_set):
    """1,000 of them through its drawing field."""
    read = """([packed, hues]) => {
        const images = unpack(packed, 8, 784 * hues.length);
        return hues.map((hue, n) => {
            const field = Float32Array.from(images.subarray(784 * n, 784 * (n + 1)), (ink) => ink / 255);
            return encode(colored(normalize(field).grey, rgbOf(hue))).v[0]; }); }"""
    arguments = [explore.pack(test_set.images[:1000].numpy(), 8), test_set.hues[:1000].round().int().tolist()]
    found = torch.tensor(tracked["digit_of_category"])[visit(TRACKED).evaluate(read, arguments)]
    assert (found == test_set.digits[:1000]).sum() >= 970


def test_the_tracked_page_has_the_tracked_numbers_and_generators(tracked):
    assert TRACKED.stat().st_size < 6_000_000 and tracked["names"] == data.class_names()
    for script in (vae_control, cyclegan_colors):
        results = runs.load_results(script.OUTPUT_DIR / "metrics.json")["results"]
        assert {name: results.get(name, share) for name, share in tracked["shares"].items()} == tracked["shares"]
    generators = cyclegan_colors.load_model(cyclegan_colors.OUTPUT_DIR / "generators.pt")
    for name, generator in zip(("a_to_b", "b_to_a"), generators, strict=True):
        assert tracked["networks"][name] == json.loads(json.dumps(explore.generator_layers(*generator)))
