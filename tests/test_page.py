"""The page in a real browser, headless Chromium: drawn on, its knobs turned, its arithmetic compared with torch's."""

import base64
import colorsys
import json
import re
import shutil
import webbrowser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cyclegan_colors
import data
import explore
import metrics
import runs
import vae_control

NAMES = [3, 7, 1, 0, 9, 2, 8, 5, 4, 4]  # of the categories: two are called 4, none is called 6
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
DESK, PHONE = {"width": 1600, "height": 1000}, {"width": 360, "height": 740}


def colored_model() -> nn.Module:
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
def model():
    return colored_model()


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


@pytest.fixture
def outputs(folders, tmp_path, monkeypatch):
    """A copy of the two folders, and a place for the page; no browser is opened."""
    for script, source, name in zip((vae_control, cyclegan_colors), folders, ("vae", "translation"), strict=True):
        monkeypatch.setattr(script, "OUTPUT_DIR", Path(shutil.copytree(source, tmp_path / name)))
    monkeypatch.setattr(explore, "PAGE", tmp_path / "explore.html")
    monkeypatch.setattr(webbrowser, "open", lambda uri: False)
    return tmp_path


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """The page of these models."""
    with pytest.MonkeyPatch.context() as patch:
        for script, folder in zip((vae_control, cyclegan_colors), folders, strict=True):
            patch.setattr(script, "OUTPUT_DIR", folder)
        patch.setattr(explore, "PAGE", tmp_path_factory.mktemp("page") / "explore.html")
        patch.setattr(webbrowser, "open", lambda uri: False)
        return explore.main()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
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
    assert "Scaled by 1." in page.text_content("#seen-note")
    assert page.text_content("#reading").startswith("The code: read as ")
    assert not torch.equal(pixels(page, "picture"), before[1])

    hue = page.evaluate("hueOf(colored(state.seen.grey, rgbOf(+$('ink').value)))")
    page.focus("#ink")
    page.keyboard.press("End")
    settle(page)
    assert page.evaluate("$('ink').value") == "359" and abs(hue - 359) > 1
    assert page.evaluate("state.hue") == pytest.approx(359, abs=3)
    page.click("#clear")
    assert pixels(page, "seen").max() == 0 and "Nothing is drawn" in page.text_content("#seen-note")


def test_test_images_pass_the_field_unchanged_wherever_they_lie(visit, made, test_set):
    page = visit(made)
    shown = set()
    for _ in range(3):
        page.click("#random")
        shown.add(page.text_content("#point"))
        assert torch.equal(pixels(page, "field"), pixels(page, "seen"))
    assert len(shown) > 1
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
        before, picture = page.evaluate("state.code"), pixels(page, "picture")
        pressed = page.get_attribute(f"#digit{digit}", "aria-pressed")
        page.click(f"#digit{digit}")
        after = page.evaluate("state.code")
        assert names[after["v"][0]] == digit and after["v"][1:] == before["v"][1:] and after["z"] == before["z"]
        assert page.get_attribute(f"#digit{digit}", "aria-pressed") == "true"
        assert pressed == "true" or not torch.equal(pixels(page, "picture"), picture)
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
    assert page.input_value("#hue") == str(round(page.evaluate("state.hue")))
    assert float(page.input_value("#weight")) == pytest.approx(page.evaluate("state.weight"), abs=0.006)
    for digit, picture in before.items():
        assert not torch.equal(pixels(page, f"digit{digit}-picture"), picture)
    drag(page, "#wheel", [(0.5, 0.5), (1.5, 0.5)])  # beyond the rim
    assert page.evaluate("state.code.z") == pytest.approx([reach, 0], abs=0.02)
    here = page.evaluate("state.code.z")
    page.mouse.move(100, 100)  # moving without pressing does nothing
    assert page.evaluate("state.code.z") == here
    page.click("#back")
    assert page.evaluate("state.code.z") == page.evaluate("state.read.z")


def test_the_knobs_turn_by_keyboard(visit, made):
    page = visit(made)
    hue, weight, v = (page.evaluate(f"state.{name}") for name in ("hue", "weight", "code.v"))
    for knob, key in (
        ("#hue", "ArrowLeft"),
        ("#weight", "ArrowRight"),
        ("#v3", "ArrowRight" if v[2] < 9 else "ArrowLeft"),
    ):
        page.focus(knob)
        page.keyboard.press(key)
    settle(page)
    assert page.evaluate("state.hue") == pytest.approx(round(hue) - 1)
    assert page.evaluate("state.weight") == pytest.approx(weight + 0.01, abs=0.0051)
    expected = [v[0], v[1], v[2] + (1 if v[2] < 9 else -1), v[3]]
    assert page.evaluate("state.code.v") == expected
    round_trip = page.evaluate("[0, 77, 199.5, 359].map((hue) => hueAndWeight(pointOf(hue, 1.3)))")
    assert [place["hue"] for place in round_trip] == pytest.approx([0, 77, 199.5, 359], abs=1e-6)
    assert [place["weight"] for place in round_trip] == pytest.approx([1.3] * 4)
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
        assert page.text_content("#in-a-note") == f"{digit} is {data.DOMAIN_A[digit]}."
        assert f"Should be {data.DOMAIN_B[digit]}." in page.text_content("#in-b-note")
    page.click("#domain7")
    assert f"nearest to {data.DOMAIN_B[7]}" in page.text_content("#in-b-note")


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
    results = json.loads((folders[0] / "metrics.json").read_text())["results"]
    translation = json.loads((folders[1] / "metrics.json").read_text())["results"]
    page = visit(made)
    for name, share in (results | translation).items():
        for element in page.locator(f"[data-share={name}]").all():
            assert element.text_content() == f"{100 * share:.1f}%"
    assert page.locator("[data-share]").count() == 4 and page.locator(".fact:visible").count() == 3
    assert "(seed 5)" in page.text_content("#origin") and page.is_hidden("#dataset")


def edit(path, **constants):
    """Changes constants in a metrics.json."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"constants": content["constants"] | constants}))


def test_another_dataset_names_its_classes(visit, outputs, monkeypatch):
    loaded = data.load(train=False)
    monkeypatch.setattr(data, "load", lambda train: loaded)  # in place of clothes
    monkeypatch.setattr(data, "DATASET", "FashionMNIST")
    for path in outputs.glob("*/metrics.json"):
        edit(path, DATASET="FashionMNIST")
    page = visit(explore.main(), PHONE)
    assert page.text_content("#digit9").strip() == "Ankle boot" and "T-shirt/top" in page.text_content("#bars")
    assert "trained on FashionMNIST" in page.text_content("#dataset") and page.is_visible("#dataset")
    drag(page, "#field", [(0.1, 0.1), (0.3, 0.3)])
    assert torch.equal(pixels(page, "seen"), pixels(page, "field"))  # only MNIST's digits were scaled and centred
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_is_small_and_the_same_each_time_and_says_where_it_is(made, outputs, capsys, monkeypatch):
    explore.main()
    text = explore.PAGE.read_text(encoding="utf-8")
    assert text == made.read_text(encoding="utf-8") and explore.PAGE.stat().st_size < 6_000_000
    assert str(explore.TEMPLATE.parent) not in text and str(outputs) not in text and "{{" not in text
    assert not re.findall(r"""(?:src|href)="(?!data:,)|https?:|@import|url\(""", text)  # nothing to be loaded
    assert f"Wrote {explore.PAGE}" in (said := capsys.readouterr().out) and "No browser was found" in said
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: opened.append(uri) or True)
    explore.main()
    assert opened == [explore.PAGE.as_uri()] and "No browser" not in capsys.readouterr().out
    assert [path.name for path in outputs.iterdir() if path.is_file()] == ["explore.html"]


def test_pack_is_a_row_of_bits():
    assert explore.pack(torch.tensor([1, 4095, 0, 16]).numpy(), 12) == "AB//AAAQ"
    layer = explore.pack_layer(torch.tensor([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0.25, -1.0]))
    assert layer["scale"][0] == pytest.approx(1 / 2047) and layer["bias"] == [0.25, -1.0]
    assert layer["weights"] == explore.pack(
        torch.tensor([4095, 2048, 1024, 2048, 2048, 2048]).numpy(), 12
    )  # input by input


def other_sizes(folder):
    runs.save_model(folder / "vae" / "model.pt", vae_control.ControlVAE(1, 2, 10), 1, 2, 10)


FAULTS = {
    "no numbers": (lambda f: (f / "vae" / "metrics.json").unlink(), r"metrics\.json is not there: run python vae_"),
    "no model": (lambda f: (f / "vae" / "model.pt").unlink(), r"model\.pt is not there: run the script"),
    "no generators": (lambda f: (f / "translation" / "generators.pt").unlink(), r"generators\.pt is not there"),
    "cut numbers": (lambda f: (f / "vae" / "metrics.json").write_text('{"constants": '), "is damaged: run python vae_"),
    "a list": (
        lambda f: (f / "translation" / "metrics.json").write_text("[]"),
        "is damaged: run python cyclegan_colors",
    ),
    "cut model": (lambda f: (f / "vae" / "model.pt").write_bytes(b"PK"), r"model\.pt is damaged"),
    "another file": (
        lambda f: runs.save_torch(f / "translation" / "generators.pt", {"a_to_b": {}}),
        "does not hold the two generators",
    ),
    "other sizes": (other_sizes, "LATENT_DIM of 1: there is no colour wheel"),
    "other data": (
        lambda f: edit(f / "vae" / "metrics.json", DATASET="KMNIST"),
        "DATASET in data.py is 'MNIST', but .* was made with 'KMNIST': set it back, or run python vae_",
    ),
    "other colours": (
        lambda f: edit(f / "translation" / "metrics.json", DOMAIN_A=["red"] * 10),
        "DOMAIN_A in data.py is .* run python cyclegan_colors.py again",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_the_old_page_stays(fault, outputs):
    damage, sentence = FAULTS[fault]
    explore.PAGE.write_text("old")
    damage(outputs)
    with pytest.raises(SystemExit, match=sentence) as ended:
        explore.main()
    assert "\n" not in str(ended.value) and str(ended.value).endswith(".")
    assert explore.PAGE.read_text() == "old" and not list(outputs.glob("*.tmp*"))


def test_a_full_disk_leaves_the_old_page(outputs, monkeypatch):
    def write_a_part(path, text, **options):
        path.write_bytes(text[:1000].encode())
        raise OSError(28, "No space left on device")

    explore.PAGE.write_text("old")
    monkeypatch.setattr(Path, "write_text", write_a_part)
    with pytest.raises(SystemExit, match=r"explore\.html could not be written \(No space left on device\)"):
        explore.main()
    assert explore.PAGE.read_text() == "old" and not list(outputs.glob("*.tmp*"))


@pytest.mark.parametrize("results", [{}, {"category_digits": NAMES[:9]}, {"category_digits": NAMES[::-1]}])
def test_numbers_of_another_run_are_refused(results, outputs):
    path = outputs / "vae" / "metrics.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | {"results": results | {"digit_accuracy": content["results"]["digit_accuracy"]}})
    )
    with pytest.raises(SystemExit, match="are not of the same run: run python vae_control"):
        explore.main()


# ------------------------------------------------------------------------------------------- the tracked page

TRACKED = explore.PAGE


@pytest.fixture
def tracked():
    """What the tracked page holds."""
    if not TRACKED.exists():
        pytest.skip("outputs/explore.html is not there yet")
    before, after = explore.TEMPLATE.read_text(encoding="utf-8").split("{{PAGE}}")
    text = TRACKED.read_text(encoding="utf-8")
    assert text.startswith(before) and text.endswith(after), "explore_template.html was edited: run python explore.py"
    return json.loads(text[len(before) : -len(after)])


def unpack(layer):
    """The weights of a layer of the page, (inputs, outputs), and its bias."""
    each_bit = np.unpackbits(np.frombuffer(base64.b64decode(layer["weights"]), np.uint8))
    numbers = each_bit[: layer["inputs"] * layer["outputs"] * layer["bits"]].reshape(-1, layer["bits"])
    numbers = torch.tensor(numbers @ (1 << np.arange(layer["bits"])[::-1]) - 2 ** (layer["bits"] - 1))
    return numbers.view(layer["inputs"], -1) * torch.tensor(layer["scale"]), torch.tensor(layer["bias"])


def test_the_tracked_page_reads_test_images_as_its_model_does(visit, tracked, test_set):
    """1,000 of them through its drawing field; the model is rebuilt from the weights in the page."""
    n, names = 1000, torch.tensor(tracked["digit_of_category"])
    hues = test_set.hues[:n].round().int()
    read = """([packed, hues]) => {
        const images = unpack(packed, 8, 784 * hues.length);
        return hues.map((hue, n) => {
            const field = Float32Array.from(images.subarray(784 * n, 784 * (n + 1)), (ink) => ink / 255);
            return encode(colored(normalize(field).grey, rgbOf(hue))).v[0]; }); }"""
    found = names[visit(TRACKED).evaluate(read, [explore.pack(test_set.images[:n].numpy(), 8), hues.tolist()])]

    colors = torch.tensor([colorsys.hsv_to_rgb(hue / 360, 1, 1) for hue in hues.tolist()])
    x = data.colorize(test_set.images[:n], colors).flatten(2).transpose(1, 2).flatten(1)  # pixel by pixel
    for layer in tracked["networks"]["encoder"]:
        weights, bias = unpack(layer)
        x = (x @ weights + bias).relu()
    weights, bias = unpack(tracked["networks"]["categorical_head"][0])
    model_right = (names[(x @ weights + bias)[:, : len(names)].argmax(1)] == test_set.digits[:n]).sum()
    assert (found == test_set.digits[:n]).sum() >= min(970, model_right)


def test_the_tracked_page_is_small_and_has_the_tracked_numbers(tracked):
    assert TRACKED.stat().st_size < 6_000_000 and tracked["names"] == data.class_names()
    for script in (vae_control, cyclegan_colors):
        results = json.loads((script.OUTPUT_DIR / "metrics.json").read_text())["results"]
        for name in set(results) & set(tracked["shares"]):
            assert tracked["shares"][name] == results[name]


def test_the_tracked_page_has_the_tracked_generators(tracked):
    generators = runs.load_torch(cyclegan_colors.OUTPUT_DIR / "generators.pt")
    for name in ("a_to_b", "b_to_a"):
        assert tracked["networks"][name] == json.loads(json.dumps(explore.generator_layers(generators[name])))
