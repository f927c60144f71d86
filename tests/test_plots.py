import inspect

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import plots

HISTORY = [{f"{part}_{term}": 200.0 for part in ("train", "test") for term in ("reconstruction", "kl_z", "kl_v")}] * 2
FLOORS = {"train": 111.0, "test": 113.0}


def test_tiles_show_each_image_in_its_place_unchanged_and_mark_the_wrong_ones():
    images = torch.rand(2, 3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with plots.styled():
        axes = Figure().subplots()
        plots._tiles(axes, images, ["a", "b"], [0, 1, 2])
        plots._mark(axes, np.array([[False, True, False], [False] * 3]))
    drawn = axes.images[0].get_array()
    assert drawn.shape == (58, 88, 3) and axes.images[0].get_interpolation() == "nearest"
    assert np.array_equal(drawn[30:58, 60:88], images[1, 2].permute(1, 2, 0).numpy())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    (mark,) = axes.texts
    assert 30 < mark.get_position()[0] < 60 and 0 < mark.get_position()[1] < 30


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, in place of files."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def test_the_loss_is_drawn_above_its_floor_each_term_in_its_color(drawn):
    plots.loss_curves(None, HISTORY, FLOORS)
    left, right = (axes.lines for axes in drawn[0].axes)
    assert [line.get_ydata().tolist() for line in left] == [[89, 89], [87, 87]]
    assert [line.get_ydata().tolist() for line in right] == [[200, 200]] * 4
    assert len({line.get_color() for line in (*left, *right)}) == 3


def test_latent_usage_has_a_row_for_the_angle_if_it_is_scored(drawn):
    latents = {name: {"kl": 1.0, "mi_digit": 0.25, "mi_hue": 0.5} for name in ("z1", "z2", "v1")}
    results = {"latents": latents, "color_latents": ["z1", "z2"]}
    plots.latent_usage(None, results, "Joint VAE")
    plots.latent_usage(None, results | {"angle_mi_digit": 0.01, "angle_mi_hue": 2.11}, "Joint VAE")
    without, with_angle = ([label.get_text() for label in f.axes[0].get_yticklabels()] for f in drawn)
    assert len(without) == 3 and len(with_angle) == 4 and with_angle[2].startswith("angle")
    assert {"0.01", "2.11"} <= {text.get_text() for text in drawn[1].axes[0].texts}


def test_categories_frame_the_first_test_images(drawn):
    images = torch.rand(4, 4, 3, 28, 28)
    plots.categories(None, images, ("v1", "v2"), [2, 1], "title")
    plots.categories(None, images[:1], ("v1", "v1"), [3, 3], "title")  # one variable only
    frames = [figure.axes[0].patches[0].get_xy() for figure in drawn]
    assert frames == [(28.5, 58.5), (88.5, -1.5)]


def test_numerals_lead_to_codes_of_their_digit():
    angles = np.linspace(-np.pi, np.pi, 1000, endpoint=False)
    digits = np.arange(1000) % 9  # rings around the same centre; no 9
    axes = Figure().subplots()
    plots._draw_numerals(axes, (digits + 1)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1), digits, 12.0)
    assert sorted(text.get_text() for text in axes.texts) == [str(digit) for digit in range(9)]
    for text in axes.texts:
        assert np.hypot(*text.xy) == pytest.approx(int(text.get_text()) + 1, rel=0.1)
        assert np.hypot(*text.get_position()) == pytest.approx(12)
    assert len({text.get_position() for text in axes.texts}) == 9


def test_the_dial_has_a_hand_for_each_point(tmp_path):
    codes, hues, points = torch.randn(50, 3), torch.rand(50) * 360, torch.tensor([[[3.0, 0, 9]], [[0, 4.0, 9]]])
    axes = Figure().subplots()
    (hand,) = plots._draw_dial(axes, codes, hues, points)
    assert hand.get_xydata().tolist() == [[0, 0], [3, 0]] and axes.patches[0].get_radius() == 3
    frames = torch.zeros(2, 1, 1, 3, 28, 28)  # only the hand moves
    for name, dial in (("a.gif", (codes, hues, points)), ("b.gif", (codes[:, :1], hues, points[:, :, :1]))):
        plots.movie(tmp_path / name, frames, ["", ""], [""], [0], "digit", fps=2, dial=dial)
        with Image.open(tmp_path / name) as gif:
            assert gif.n_frames == 2


def test_translations_move_between_their_originals_and_targets(monkeypatch):
    calls, options = [], {}
    monkeypatch.setattr(plots, "movie", lambda *args, **others: calls.append(args) or options.update(others))
    a, b = torch.rand(2, 4, 10, 3, 28, 28)
    pictures, right = torch.randint(256, (5, 2, 10, 3, 28, 28)).byte(), torch.rand(5, 2, 10) > 0.5
    scores = {"a_to_b_exact": 0.5, "b_to_a_exact": 1.0}
    rows = zip((0, 50, 70, 200, 270), pictures, right, strict=True)
    history = [{"step": step, "pictures": p, "right": r, **scores} for step, p, r in rows]
    plots.translation_movie(None, {"a_to_b": (a, a, b, None), "b_to_a": (b, b, a, None)}, history)
    ((_, frames, titles, *_),) = calls
    assert [title.split()[1] for title in titles[:4]] == ["0", "50", "200", "270"] and len(titles) == len(frames)
    for row, expected in enumerate((a[0], pictures[1, 0] / 255, b[0], b[0], pictures[1, 1] / 255, a[0])):
        assert np.allclose(frames[1, row], expected)
    wrong = torch.zeros(6, 10, dtype=torch.bool)
    wrong[[1, 4]] = ~right[3]
    assert (options["wrong"][2] == wrong.numpy()).all()


def test_figures_are_whole_and_a_users_own_settings_change_none(tmp_path, monkeypatch):
    functions = [function for _, function in inspect.getmembers(plots, inspect.isfunction) if function != plots._save]
    drawing = [function for function in functions if "path" in inspect.signature(function).parameters]
    assert len(drawing) > 10 and all(hasattr(function, "__wrapped__") for function in drawing)

    monkeypatch.setattr(plots, "DPI", 40)
    images = torch.rand(10, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    (tmp_path / "a.png").write_text("old")

    def draw():
        plots.loss_curves(tmp_path / "a.png", HISTORY, FLOORS)
        plots.movie(tmp_path / "b.gif", images[:, None, None], ["x"] * 10, [""], [0], "digit", fps=2)
        assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.gif"}
        return [path.read_bytes() for path in sorted(tmp_path.iterdir())]

    usual = draw()
    with pytest.raises(SystemExit, match="could not be written"):
        plots.loss_curves(tmp_path, HISTORY, FLOORS)  # a folder
    settings = {"image.origin": "lower", "axes.grid": True, "text.usetex": True, "savefig.dpi": 300, "font.size": 30}
    with matplotlib.rc_context(settings):
        assert draw() == usual
        assert all(matplotlib.rcParams[name] == value for name, value in settings.items())
