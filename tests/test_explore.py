import time

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.backend_bases import KeyEvent, MouseEvent
from matplotlib.image import imread

import data
import explore
import metrics
import runs
import vae_joint


@pytest.fixture
def explorer(tmp_path, monkeypatch):
    torch.manual_seed(0)
    runs.save_model(tmp_path / "model.pt", vae_joint.JointVAE(2, 3, 20), 2, 3, 20)
    monkeypatch.setattr(vae_joint, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    yield explore.main()
    plt.close("all")


def mouse(explorer, name, z1, z2, button=1):
    x, y = explorer.plane.transData.transform((z1, z2))
    MouseEvent(name, explorer.figure.canvas, x, y, button)._process()


def shown(explorer):
    return torch.as_tensor(explorer.image.get_array()).permute(2, 0, 1)


def test_it_opens_on_the_first_test_image(explorer):
    test = data.colored_set(train=False, device=torch.device("cpu"))
    code = explorer.model.code(data.colorize(test.images[:1], test.colors[:1]))[0]
    assert torch.equal(explorer.code, code)
    categories = [int(code[2 + 20 * i : 22 + 20 * i].argmax()) + 1 for i in range(3)]
    assert [slider.val for slider in explorer.sliders] == categories


def test_dragging_moves_the_point_and_the_picture(explorer):
    before = shown(explorer).clone()
    mouse(explorer, "button_press_event", 1.5, -2.0)
    mouse(explorer, "motion_notify_event", 2.5, 1.0)
    assert explorer.code[:2].tolist() == pytest.approx([2.5, 1.0], abs=0.05)
    assert [v[0] for v in explorer.point.get_data()] == pytest.approx([2.5, 1.0], abs=0.05)
    assert not torch.equal(shown(explorer), before)
    assert torch.allclose(shown(explorer).float(), explorer.decoded())
    here = explorer.code.clone()
    mouse(explorer, "button_release_event", 2.5, 1.0)
    mouse(explorer, "motion_notify_event", -1.0, -1.0, button=None)  # moving without pressing does nothing
    mouse(explorer, "button_press_event", -30.0, 0.0)  # nor does pressing outside the plane
    assert torch.equal(explorer.code, here)


def test_a_slider_sets_its_variable_alone(explorer):
    before = explorer.code.clone()
    box = explorer.sliders[1].ax.get_window_extent()
    canvas = explorer.figure.canvas
    for name in ("button_press_event", "button_release_event"):
        MouseEvent(name, canvas, box.x0 + box.width * 0.999, box.y0 + box.height / 2, 1)._process()
    assert explorer.sliders[1].val == 20
    assert torch.equal(explorer.code[22:42], torch.eye(20)[19])
    assert torch.equal(explorer.code[:22], before[:22]) and torch.equal(explorer.code[42:], before[42:])


def test_keys(explorer, tmp_path, capsys):
    before = explorer.code.clone()
    KeyEvent("key_press_event", explorer.figure.canvas, "r")._process()
    assert not torch.equal(explorer.code, before)
    mouse(explorer, "button_press_event", 0.5, 0.5)  # and the point can be moved on from there
    assert explorer.code[:2].tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    KeyEvent("key_press_event", explorer.figure.canvas, "w")._process()
    saved = torch.as_tensor(imread(tmp_path / "explored.png")[5::10, 5::10, :3]).permute(2, 0, 1)
    assert "explored.png" in capsys.readouterr().out
    assert torch.allclose(saved, explorer.decoded(), atol=0.01)
    KeyEvent("key_press_event", explorer.figure.canvas, "q")._process()
    assert not plt.fignum_exists(explorer.figure.number)


def test_decoding_is_fast_enough_to_drag(explorer):
    started = time.perf_counter()
    for _ in range(50):
        explorer.decoded()
    decoding = time.perf_counter() - started
    assert decoding / 50 < 0.015


def test_without_weights_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(vae_joint, "OUTPUT_DIR", tmp_path)
    with pytest.raises(SystemExit, match="is not there: run the script that writes it first"):
        explore.main()


def test_the_shown_codes_are_the_test_images(explorer):
    offsets = torch.as_tensor(explorer.plane.collections[0].get_offsets())
    few = explorer.test[: explore.N_SHOWN]
    assert torch.allclose(offsets.float(), metrics.codes_of(explorer.model, few)[:, :2])
