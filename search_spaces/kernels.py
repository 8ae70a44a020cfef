"""Training forms of kernels on Cifar-quick: the form, KFLO's B and rho, one for all or by stage.

Copy this file, edit it, and name it in a study as `sample: {space: my_space.py:space}`.
"""

from planter import Architecture, Candidate, form_of

FORMS = ["plain", "kflo", "do-conv", "acnet", "expandnet"]
STAGES = ["conv1", "conv2", "conv3", "head"]


def space(trial, *, image, classes):
    """Cifar-quick of a drawn width; one form of the kernels for the network or for each stage."""
    width = trial.suggest_categorical("width", [8, 16, 24, 32])
    widths = {"conv1": width, "conv2": width, "conv3": 2 * width, "fc1": 2 * width}
    if trial.suggest_categorical("kernels_by", ["network", "stage"]) == "network":
        kernels = _form(trial, "kernels", FORMS)
    else:
        # KFLO is the only form for a head of linear layers.
        forms = {stage: FORMS if stage != "head" else ["plain", "kflo"] for stage in STAGES}
        kernels = {stage: _form(trial, f"kernels_{stage}", forms[stage]) for stage in STAGES}
    network = Architecture("cifar_quick", widths, {"image": image, "classes": classes})
    return Candidate(network, kernels=kernels, kd_weight=trial.suggest_float("kd_weight", 0.0, 4.0))


def _form(trial, name, forms):
    """Draws a form, then only the parameters of that form."""
    form = trial.suggest_categorical(name, forms)
    if form == "kflo":
        depth = trial.suggest_int(f"{name}_depth", 2, 3)
        form = f"kflo:{depth}x{trial.suggest_categorical(f'{name}_rho', [1, 2, 4])}"
    elif form == "expandnet":
        form = f"expandnet:{trial.suggest_categorical(f'{name}_widening', [2, 4])}"
    return form_of(form)
