"""A window on the trained joint model: drag a point through the plane of its continuous numbers, choose categories.

    python vae_joint.py          # first: trains the model
    python explore.py            # trains nothing

Left: the plane, with the codes of test images in their true hues; press or drag to move the point. Right: the decoded
digit, with a slider for each categorical variable below. Keys: r jumps to the code of a random test image, w saves the
picture as outputs/vae_joint/explored.png, q closes the window.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backend_bases import KeyEvent, MouseEvent
from matplotlib.widgets import Slider

import data
import metrics
import plots
import runs
import vae_joint

N_SHOWN = 3000  # codes of test images in the plane
REACH = 4.0  # the plane goes from -REACH to REACH


class Explorer:
    """The window: `code` (D + N·K,) is what is decoded; every control writes to it and calls draw()."""

    def __init__(self, model: vae_joint.JointVAE, test: data.ColoredSet):
        self.model, self.test = model, test
        self.random = torch.Generator().manual_seed(0)
        few = test[:N_SHOWN]
        codes = metrics.codes_of(model, few)
        self.code = codes[0].clone()

        rows = model.n_variables
        self.figure = plt.figure("Joint VAE: explore", figsize=(11, 5.2 + 0.3 * rows))
        bottom = (0.3 * rows + 0.7) / (5.2 + 0.3 * rows)  # the sliders are below
        self.plane = self.figure.add_axes((0.06, bottom, 0.42, 0.93 - bottom))
        self.plane.scatter(*codes[:, :2].T.numpy(), c=few.hues.numpy(), cmap="hsv", vmin=0, vmax=360, s=3, linewidths=0)
        self.plane.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
        self.plane.set_title("press or drag: test codes in their true hues")
        (self.point,) = self.plane.plot([], [], "o", markersize=11, markerfacecolor="none", color="black", mew=2)
        self.picture = self.figure.add_axes((0.54, bottom, 0.42, 0.93 - bottom))
        self.picture.set_axis_off()
        self.image = self.picture.imshow(np.zeros((28, 28, 3)))
        self.sliders = []
        for i in range(model.n_variables):
            axes = self.figure.add_axes((0.12, 0.04 + (rows - 1 - i) * (bottom - 0.12) / rows, 0.78, 0.03))
            slider = Slider(axes, f"$v_{{{i + 1}}}$", 1, model.n_categories, valstep=1)
            slider.on_changed(lambda value, i=i: self.choose(i, int(value) - 1))
            self.sliders.append(slider)
        self.figure.canvas.mpl_connect("button_press_event", self.move)
        self.figure.canvas.mpl_connect("motion_notify_event", self.move)
        self.figure.canvas.mpl_connect("key_press_event", self.press)
        self.show_code(self.code)

    def show_code(self, code: torch.Tensor) -> None:
        """Takes over a whole code, and sets every control to it."""
        self.code = code.clone()
        for i, slider in enumerate(self.sliders):
            slider.eventson = False
            slider.set_val(int(code[self.model.latents[f"v{i + 1}"]].argmax()) + 1)
            slider.eventson = True
        self.draw()

    def move(self, event: MouseEvent) -> None:
        """The mouse, pressed in the plane, sets the first two continuous numbers."""
        if event.inaxes is self.plane and event.button == 1:
            self.code[0], self.code[1] = event.xdata, event.ydata
            self.draw()

    def choose(self, variable: int, category: int) -> None:
        """A slider sets one variable, counted from 0, to one category, counted from 0."""
        columns = self.model.latents[f"v{variable + 1}"]
        self.code[columns] = 0
        self.code[columns.start + category] = 1
        self.draw()

    def press(self, event: KeyEvent) -> None:
        """r: the code of a random test image; w: save the picture; q: close."""
        if event.key == "r":
            index = torch.randint(len(self.test.images), (1,), generator=self.random)
            with torch.inference_mode():
                code = self.model.code(self.test.colored(index))[0]
            self.show_code(code)
        elif event.key == "w":
            path = vae_joint.OUTPUT_DIR / "explored.png"
            plots.picture(path, self.decoded())
            print(f"Saved {path}")
        elif event.key == "q":
            plt.close(self.figure)

    def decoded(self) -> torch.Tensor:
        """The picture of the present code, (3, 28, 28) in [0, 1]."""
        with torch.inference_mode():
            return self.model.decode(self.code[None])[0]

    def draw(self) -> None:
        """Decodes the code and shows it."""
        self.point.set_data([self.code[0].item()], [self.code[1].item()])
        self.image.set_data(self.decoded().permute(1, 2, 0).numpy())
        self.figure.canvas.draw_idle()


def main() -> Explorer:
    """Opens the window and returns when it is closed."""
    model = runs.load_model(vae_joint.OUTPUT_DIR / "model.pt", vae_joint.JointVAE)
    if model.latent_dim < 2:
        raise SystemExit("The trained model has a LATENT_DIM of 1: there is no plane to explore.")
    explorer = Explorer(model, data.colored_set(train=False, device=torch.device("cpu")))
    plt.show()
    return explorer


if __name__ == "__main__":
    main()
